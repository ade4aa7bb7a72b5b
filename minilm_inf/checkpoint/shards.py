"""Which tensors a folder of safetensors holds, known from the files' headers alone; and how
such a file is written, tensor by tensor.

safetensors reads the headers: whatever can be wrong with the order of a file shows there and
in its size, so a damaged or truncated one is refused before a number is read. What is ours is
which files belong together, and writing: of tensors that need never be in memory together, as
the header, which comes first, needs only names, dtypes and shapes. (The library's save_file
writes under a random name that a killed program would leave there.) Every failure is a
ValueError of one sentence.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..terminal.files import LFS_POINTER, beside, named, read_json, reason, refuse_pointer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip
DTYPES = FLOATS | {
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """One tensor in a file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: Stored | None = None  # of each row, where the weights are rounded (models/int8.py)

    @property
    def nbytes(self) -> int:
        """Bytes in the file; 0 for a dtype that no model is loaded from, nor converted."""
        dtype = DTYPES.get(self.dtype)
        return 0 if dtype is None else math.prod(self.shape) * dtype.itemsize

    def read_into(self, target):
        """Copy the stored numbers into target, whatever its dtype and device: a tensor, or the
        int8.Rows of a layer.

        The file is opened for this one tensor and closed again: what was mapped of it goes, and
        no more than one tensor is ever in memory beside the model.
        """
        with torch.no_grad(), opened(self.path) as file:
            numbers = file.get_tensor(self.name)
            if self.scale is None:
                target.copy_(numbers)
                return
            scale = torch.empty(len(numbers))
            self.scale.read_into(scale)
            if isinstance(target, Tensor):
                target.copy_(numbers * scale[:, None])
            else:
                target.copy_(numbers, scale)


def opened(path: Path):
    """A safetensors file whose header is in order. Raises ValueError for any other."""
    try:
        with open(path, "rb") as file:
            refuse_pointer(path, file.read(len(LFS_POINTER)))
        return safe_open(path, framework="pt", device="cpu")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {reason(error)}") from error
    except SafetensorError as error:
        what = f"is not a whole safetensors file ({named(error)}): fetch it again"
        raise ValueError(f"{path} {what}") from error


def find_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint's folder by its name, from the headers of all of its files.

    model.safetensors if it is there, else the shards of model.safetensors.index.json. Raises
    ValueError where there is neither, for a damaged file, and where index and shards disagree.
    """
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    files = indexed(folder / INDEX)
    headers = map(read_header, sorted(set(files.values())))
    found = [stored for header in headers for stored in header.values()]
    differ = {(stored.name, stored.path) for stored in found} ^ set(files.items())
    if differ:
        name, path = min(differ)
        raise ValueError(
            f"{folder / INDEX} and {path.name} do not agree on whether the tensor "
            f"{named(name)} is there: fetch both again"
        )
    return {stored.name: stored for stored in found}


def with_scales(stored: dict[str, Stored]) -> dict[str, Stored]:
    """The same, where the scale of int8 weights is a part of them: NAME.weight (rows, columns)
    in I8 belongs to NAME.weight_scale (rows,) in F32."""
    found = dict(stored)
    for name, place in stored.items():
        scale = stored.get(f"{name}_scale")
        is_one = scale and (scale.dtype, scale.shape) == ("F32", place.shape[:1])
        if is_one and place.dtype == "I8" and len(place.shape) == 2:
            found[name] = replace(place, scale=found.pop(scale.name))
    return found


def indexed(index: Path) -> dict[str, Path]:
    """The file of each tensor, by an index. Raises ValueError where there is no index, or none
    of tensors and files, and for a file that does not stand beside it."""
    if not index.is_file():
        raise ValueError(
            f"{index.parent} holds neither {WEIGHTS} nor {INDEX}: fetch the model's weights "
            "too, or convert its pytorch_model.bin or .gguf, with python -m minilm_inf.convert"
        )
    files = read_json(index).get("weight_map")
    is_map = isinstance(files, dict) and files
    if not is_map or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files: fetch it again")
    for file in set(files.values()):
        # A Windows path knows both slashes and drive letters, so every system refuses the same.
        if PureWindowsPath(file).name != file or not os.path.isfile(index.parent / file):
            raise ValueError(
                f"{index} names the file {named(repr(file))}, which does not stand beside it: "
                "fetch it too"
            )
    return {name: index.parent / file for name, file in files.items()}


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file, none of them read. Raises ValueError for a file that
    is none, or is not all there."""
    found = {}
    with opened(path) as file:
        for name in file.keys():  # noqa: SIM118 - it is no dict
            part = file.get_slice(name)
            found[name] = Stored(path, name, part.get_dtype(), tuple(part.get_shape()))
    return found


def write_tensors(
    path: Path,
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    blocks: Callable[[str], Iterable[Tensor]] | None = None,
):
    """Write a file, which appears when it is whole, in the place of an earlier one.

    blocks: yields the numbers of a tensor, by its name, in order and in any shape; the tensors
    themselves may then be on the meta device. Raises ValueError where it cannot be written.
    """
    # Larger numbers first, so that each tensor lies at a multiple of its own size.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header, end = {"__metadata__": metadata}, 0
    for name in names:
        x, begin = tensors[name], end
        end += x.numel() * x.dtype.itemsize
        offsets = [begin, end]
        header[name] = {"dtype": NAMES[x.dtype], "shape": [*x.shape], "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with beside(path) as part, open(part, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            for block in blocks(name) if blocks else [tensors[name]]:
                file.write(as_bytes(block))
        assert file.tell() == 8 + len(text) + end


def as_bytes(block: Tensor) -> memoryview:
    """A tensor's numbers as they lie in a file; copied only where they lie otherwise now."""
    return memoryview(block.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())

"""Which tensors a folder of safetensors holds, known from the files' headers alone.

    8 bytes       length of the header, little-endian
    the header    JSON: name -> {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__"
    the data      every tensor's numbers, end to end, offsets counted from here

Whatever can be wrong with the order of a file shows in its header and its size, so a damaged or
truncated one is refused before a number is read. Every failure is a ValueError of one sentence.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..terminal.files import LFS_POINTER, named, parse_object, read_json, shown

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LARGEST_HEADER = 2**22  # bytes of a header, an index or a config.json; real ones take 5% of it
FLOATS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip

PART = "part {0} of {1}: fetch whichever parts are missing, and %s, which says what each holds"
CONVERT = "with python -m minilm_inf.convert {folder}"
TRAINER = r"(?:training_args|optimizer|scheduler|scaler|rng_state|random_states).*"
INSTEAD = {  # names of what stands in the weights' place -> what it is, and what to do
    r"adapter_(?:config\.json|model\..+)": "an adapter and no whole model: merge it into the "
    "model that it adapts, and give the folder of the result",
    r".*-0*1-of-0*1\.safetensors": f"another name of the whole: rename it to {WEIGHTS}",
    r".*-(\d+)-of-(\d+)\.safetensors": PART % INDEX,
    r"consolidated.*": "in another program's form: fetch the model in Hugging Face's",
    r".*\.safetensors": f"another name: if it is the whole model, rename it to {WEIGHTS}",
    r"pytorch_model\.bin(?:\.index\.json)?": "a pickle, which can run code and is not loaded: "
    f"convert it first, {CONVERT}",
    r".*-(\d+)-of-(\d+)\.bin": PART % "pytorch_model.bin.index.json",
    r".*\.gguf": f"another format: convert it first, {CONVERT}/{{name}}",
    rf"(?!{TRAINER}).*\.(?:bin|pt|pth|ckpt)": "a pickle, which can run code and is not loaded: "
    f"if it is the whole model, rename it to pytorch_model.bin, and convert it, {CONVERT}",
    TRAINER: "which a trainer leaves beside the weights: fetch the weights too",
}


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: its place is data[begin:end], counted behind the header."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def read_into(self, target: Tensor):
        """Copy the stored numbers into target, whatever its dtype and device.

        The file is opened for this one tensor and closed again: what was mapped of it goes, and
        no more than one tensor is ever in memory beside the model.
        """
        with torch.no_grad(), self._opened() as file:
            target.copy_(file.get_tensor(self.name))

    def equals(self, other: Stored) -> bool:
        """Whether two stored tensors are the same numbers in the same dtype."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        with self._opened() as file, other._opened() as other_file:
            return torch.equal(file.get_tensor(self.name), other_file.get_tensor(other.name))

    def _opened(self):
        try:
            return safe_open(self.path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise ValueError(damaged(self.path, str(error))) from error


def damaged(path: Path, what: str) -> str:
    """The sentence for a file that is not what its name says."""
    return f"{path} is not a readable safetensors file ({what}): fetch it again"


def find_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint's folder by its name, from the headers of all of its files.

    model.safetensors if it is there, else the shards of model.safetensors.index.json. Raises
    ValueError where there is neither, for a damaged file, and where index and shards disagree.
    """
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        raise ValueError(nothing_to_load(folder))
    index = folder / INDEX
    weight_map = read_weight_map(index)
    found: dict[str, Stored] = {}
    for shard in dict.fromkeys(weight_map.values()):
        for name, stored in read_header(_shard_path(index, shard)).items():
            if name in found:
                raise ValueError(
                    f"the tensor {named(name)} is in two files, {found[name].path} and "
                    f"{stored.path}: fetch the checkpoint again"
                )
            if name not in weight_map:
                raise ValueError(
                    f"the tensor {named(name)} is in {stored.path}, but {index} does not name "
                    "it: fetch the index again"
                )
            found[name] = stored
    for name, shard in weight_map.items():
        if name not in found or found[name].path.name != shard:
            raise ValueError(
                f"{index} says that the tensor {named(name)} is in {shard}, but it is not: "
                "fetch both again"
            )
    return found


def read_weight_map(index: Path) -> dict[str, str]:
    """Which file each tensor is in, by an index. Raises ValueError where it does not say so."""
    weight_map = read_json(index, LARGEST_HEADER).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map from tensors to files: fetch it again")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise ValueError(
                f"the weight_map of {index} gives the tensor {named(name)} the file "
                f"{shown(file)}, which is no name: fetch it again"
            )
    return weight_map


def _shard_path(index: Path, shard: str) -> Path:
    """The file that an index names, which must stand beside the index."""
    # A Windows path knows both slashes and drive letters, so every system refuses the same.
    plain = PureWindowsPath(shard).name == shard and shard not in ("", "..")
    if not plain or "\0" in shard or len(shard) > 200:  # a longer name is none for any disk
        raise ValueError(
            f"{index} names the file {named(repr(shard))}, which is not a plain file name: a "
            "shard must stand in the folder of its index"
        )
    if not (index.parent / shard).is_file():
        raise ValueError(
            f"{index} names the file {named(shard)}, which does not exist: fetch it too"
        )
    return index.parent / shard


def nothing_to_load(folder: Path) -> str:
    """The sentence for a folder without weights: what is there instead, and what to do."""
    sentence = f"{folder} holds neither {WEIGHTS} nor {INDEX}"
    names = sorted(path.name for path in folder.iterdir())
    for pattern, advice in INSTEAD.items():
        for found in filter(None, (re.fullmatch(pattern, name) for name in names)):
            advice = advice.format(*found.groups(), folder=folder, name=found[0])
            return f"{sentence}, but {found[0]}, {advice}"
    return f"{sentence}, nor pytorch_model.bin: fetch the model's weights too"


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file, none of them read.

    Raises ValueError for a file that is no safetensors file, and for one that is cut short,
    with the first tensor that is not all there.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            raw = _header_bytes(path, file, size)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    try:
        header = parse_object(raw)
        header.pop("__metadata__", None)
        tensors = [_entry(path, name, entry) for name, entry in header.items()]
    except ValueError as error:
        raise ValueError(damaged(path, f"its header is wrong: {error}")) from error
    _check_extent(path, tensors, size - 8 - len(raw))
    return {stored.name: stored for stored in tensors}


def _header_bytes(path: Path, file, size: int) -> bytes:
    start = file.read(8)
    if start == LFS_POINTER[:8]:
        raise ValueError(
            f"{path} is a pointer of git-lfs, not the file itself: run git lfs pull"
        )
    if len(start) < 8:
        raise ValueError(damaged(path, f"it has only {len(start)} bytes"))
    length = struct.unpack("<Q", start)[0]
    if length > LARGEST_HEADER:
        raise ValueError(damaged(path, f"its header would have {length} bytes"))
    if length > size - 8:
        raise ValueError(damaged(path, "it ends within its header"))
    return file.read(length)


def _entry(path: Path, name: str, entry) -> Stored:
    """One line of a header. Raises ValueError where it is not one."""

    def naturals(value) -> bool:
        return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)

    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not naturals(shape) or not naturals(offsets):
        raise ValueError(f"the tensor {named(name)} has no dtype, shape and data_offsets")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"the tensor {named(name)} has the data_offsets {shown(offsets)}")
    if len(shape) > 64:  # PyTorch has no more dimensions
        raise ValueError(f"the tensor {named(name)} has {len(shape)} dimensions")
    begin, end = offsets
    if dtype in FLOATS and end - begin != math.prod(shape) * FLOATS[dtype].itemsize:
        raise ValueError(
            f"the tensor {named(name)} of shape {shown(shape)} has {end - begin} bytes"
        )
    return Stored(path, name, dtype, tuple(shape), begin, end)


def _check_extent(path: Path, tensors: list[Stored], available: int):
    """The data must be the tensors, end to end, and all there. Raises ValueError otherwise."""
    reached = 0
    for stored in sorted(tensors, key=lambda stored: (stored.begin, stored.end)):
        if stored.begin != reached:
            raise ValueError(
                damaged(path, f"{named(stored.name)} does not begin where the one before ends")
            )
        reached = stored.end
        if reached > available:
            raise ValueError(
                f"{path} is cut short: the tensor {named(stored.name)} lies beyond its end, so "
                "fetch the file again"
            )
    if reached != available:
        raise ValueError(damaged(path, f"{available - reached} bytes belong to no tensor"))

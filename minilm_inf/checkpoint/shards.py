"""Which tensors a folder of safetensors holds, known from the files' headers alone.

safetensors reads the headers: whatever can be wrong with the order of a file shows there and
in its size, so a damaged or truncated one is refused before a number is read. What is ours is
which files belong together. Every failure is a ValueError of one sentence.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..terminal.files import LFS_POINTER, named, read_json, reason, refuse_pointer, shown

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LARGEST_HEADER = 2**22  # bytes of an index or a config.json; real ones take 5% of it
FLOATS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip
DTYPES = FLOATS | {
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
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
    """One tensor in a file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file; 0 for a dtype that no model is loaded from, nor converted."""
        dtype = DTYPES.get(self.dtype)
        return 0 if dtype is None else math.prod(self.shape) * dtype.itemsize

    def read_into(self, target: Tensor):
        """Copy the stored numbers into target, whatever its dtype and device.

        The file is opened for this one tensor and closed again: what was mapped of it goes, and
        no more than one tensor is ever in memory beside the model.
        """
        with torch.no_grad(), opened(self.path) as file:
            target.copy_(file.get_tensor(self.name))

    def equals(self, other: Stored) -> bool:
        """Whether two stored tensors are the same numbers in the same dtype."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        with opened(self.path) as file, opened(other.path) as other_file:
            return torch.equal(file.get_tensor(self.name), other_file.get_tensor(other.name))


def opened(path: Path):
    """A safetensors file whose header is in order. Raises ValueError for any other."""
    try:
        with open(path, "rb") as file:
            refuse_pointer(path, file.read(len(LFS_POINTER)))
        return safe_open(path, framework="pt", device="cpu")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {reason(error)}") from error
    except SafetensorError as error:
        what = named(str(error).removeprefix("Error while deserializing header: "))
        raise ValueError(
            f"{path} is not a whole safetensors file ({what}): fetch it again"
        ) from error


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
        for name, stored in read_header(shard_path(index, shard)).items():
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


def shard_path(index: Path, shard: str) -> Path:
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
    """The tensors of one safetensors file, none of them read. Raises ValueError for a file that
    is none, or is not all there."""
    found = {}
    with opened(path) as file:
        for name in file.keys():  # noqa: SIM118 - it is no dict
            part = file.get_slice(name)
            found[name] = Stored(path, name, part.get_dtype(), tuple(part.get_shape()))
    return found

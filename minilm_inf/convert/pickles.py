"""The tensors of a pytorch_model.bin, found without running it.

A .bin is a pickle, and a pickle is a program. PyTorch's own interpreter of such programs
(torch.load with weights_only) runs only what makes tensors; a file that asks for anything else
is refused here, by the name of what it asks for.

Since PyTorch 1.6 a .bin is a zip archive in which the numbers lie as they are. It is mapped,
not read: numbers come into memory when somebody takes them. An older .bin is read whole.
"""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from zipfile import ZipFile

import torch
from torch import Tensor

from ..checkpoint.shards import nothing_to_load, read_weight_map, shard_path
from ..checkpoint.tensor_file import NAMES
from ..terminal.files import LFS_POINTER, named, refuse_pointer

WEIGHTS = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"


def find_pickles(folder: Path) -> dict[Path, set[str] | None]:
    """The .bin files of a checkpoint's folder, each with the names of its tensors.

    The names are those of pytorch_model.bin.index.json; None for a single file, which has no
    index. Raises ValueError where there is nothing to convert, and where a shard is missing.
    """
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: None}
    index = folder / INDEX
    if not index.is_file():
        raise ValueError(nothing_to_load(folder))
    shards: dict[Path, set[str]] = {}
    for name, shard in read_weight_map(index).items():
        shards.setdefault(shard_path(index, shard), set()).add(name)
    return dict(sorted(shards.items()))


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a .bin by name, on the CPU, mapped where the file allows it.

    Raises ValueError for a file that asks for anything but tensors, one that is damaged, and
    one that holds something else, or a tensor that no safetensors file can hold.
    """
    with open(path, "rb") as file:
        start = file.read(len(LFS_POINTER))
    refuse_pointer(path, start)
    is_zip = start.startswith(b"PK\3\4")
    try:
        if is_zip and any(entry.compress_type for entry in ZipFile(path).infolist()):
            raise ValueError("PyTorch compresses nothing: unpacked, this may have any size")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to whoever wrote the file
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a stranger's program may end in any of them
        raise ValueError(_refusal(path, error)) from error
    if not isinstance(held, dict):
        raise ValueError(f"{path} holds no tensors by their names: it is no file of weights")
    for name, tensor in held.items():
        _check(path, name, tensor)
    size, room = sum(tensor.nbytes for tensor in held.values()), path.stat().st_size
    if size > 2 * room:  # a tied pair may come twice, and nothing else has a reason to
        raise ValueError(
            f"{path} has {room:,} bytes, but its tensors would take {size:,}: it is not a file "
            "of weights"
        )
    return {name: tensor.detach().resolve_neg() for name, tensor in held.items()}


def _refusal(path: Path, error: Exception) -> str:
    """One sentence for a pickle that torch.load refused."""
    asked = re.search(r"GLOBAL ([\w.]{1,200})", str(error))
    if asked:
        return (
            f"{path} is more than tensors: reading it would run {asked[1]}, so it was not "
            "read; fetch the weights from somebody you trust, best as safetensors"
        )
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return (
            f"{path} asks for more memory than there is: fetch it again, or convert it on a "
            "larger machine"
        )
    what = "it is damaged"
    if isinstance(error, pickle.UnpicklingError | LookupError):
        what = "its pickle cannot be understood"
    return f"{path} is not a readable .bin of PyTorch ({what}): fetch it again"


def _check(path: Path, name, tensor):
    """Raise ValueError for an entry that is no plain tensor under a name."""
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        raise ValueError(
            f"{path} holds {named(repr(name))}, which is no tensor under its name: it is not a "
            "file of weights alone"
        )
    if name == "__metadata__" or re.search("[\ud800-\udfff]", name):
        raise ValueError(f"{path} holds {named(name)}, which is no name for safetensors")
    is_plain = tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_nested)
    if not is_plain or tensor.dtype not in NAMES:
        kind = "no numbers" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
        raise ValueError(f"{path} holds {named(name)} as {kind}, which safetensors cannot hold")


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the very same numbers in the same place."""

    def place(tensor: Tensor):
        return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()

    return place(one) == place(other)

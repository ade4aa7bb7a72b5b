"""The tensors of a pytorch_model.bin, found without running it.

A .bin is a pickle, and a pickle is a program. PyTorch's own interpreter of such programs
(torch.load with weights_only) runs only what makes tensors, and whatever asks for more is
refused. Since PyTorch 1.6 a .bin is a zip archive in which the numbers lie as they are. It is
mapped, not read: numbers come into memory when somebody takes them. An older one is read whole.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from zipfile import ZipFile

import torch
from torch import Tensor

from ..checkpoint.shards import NAMES, indexed
from ..terminal.files import LFS_POINTER, named, refuse_pointer

WEIGHTS = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"


def find_pickles(folder: Path) -> list[Path]:
    """The .bin files of a checkpoint's folder: one, or the shards that an index names. Raises
    ValueError where there is nothing to convert, and where a shard is missing."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    return sorted(set(indexed(folder / INDEX).values()))


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
        asked = re.search(r"GLOBAL ([\w.]{1,200})", str(error))
        what = f"would run {asked[1]}" if asked else "is damaged, or is not such a file"
        raise ValueError(
            f"{path} was not read, as it {what}: fetch the weights again, from somebody you "
            "trust, preferably as safetensors"
        ) from error
    if not isinstance(held, dict):
        raise ValueError(f"{path} holds no tensors by their names: it is no file of weights")
    for name, tensor in held.items():
        if not can_be_stored(name, tensor):
            raise ValueError(
                f"{path} holds {named(repr(name))}, which is no tensor under its name, or of a "
                "kind that safetensors cannot hold: it is no file of weights alone"
            )
    size, room = sum(tensor.nbytes for tensor in held.values()), path.stat().st_size
    if size > 2 * room:  # a tied pair may come twice, and nothing else has a reason to
        raise ValueError(
            f"{path} has {room:,} bytes, but its tensors would take {size:,}: it is no file of "
            "weights"
        )
    return {name: tensor.detach().resolve_neg() for name, tensor in held.items()}


def can_be_stored(name, tensor) -> bool:
    """Whether an entry is a plain tensor under a name."""
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        return False
    is_plain = tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_nested)
    is_name = name != "__metadata__" and not re.search("[\ud800-\udfff]", name)
    return is_plain and is_name and tensor.dtype in NAMES

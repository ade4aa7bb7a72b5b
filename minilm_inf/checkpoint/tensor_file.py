"""A safetensors file, written block by block: what shards.py reads.

The header needs names, dtypes and shapes only, so it is written first, and then the numbers of
one tensor after the other. What is in memory is one block, however large the file. The
library's own save_file writes under a random name that a killed program would leave there.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..terminal.files import beside
from .shards import DTYPES, LARGEST_HEADER

NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Pending:
    """A tensor that is still to be written.

    blocks: yields its numbers in order, as tensors of this dtype and any shape.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Tensor]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def pending(tensors: dict[str, Tensor]) -> list[Pending]:
    """Tensors that are there already, as they are to be written."""
    return [
        Pending(name, x.dtype, tuple(x.shape), lambda x=x: [x]) for name, x in tensors.items()
    ]


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]):
    """Write tensors that are there already, in the place of an earlier file of that name.
    Raises ValueError as write_safetensors does."""
    write_safetensors(path, pending(tensors), metadata=metadata, replace=True)


def write_safetensors(
    path: Path,
    tensors: Iterable[Pending],
    progress=lambda done, all: None,
    metadata: dict[str, str] | None = None,
    replace: bool = False,
):
    """Write a file, which appears when it is whole.

    progress(done, all) is told the bytes of data written so far, after each block. Raises
    ValueError where the disk has no room for it and, without `replace`, where it exists.
    """
    # Larger numbers first, so that each tensor lies at a multiple of its own size.
    ordered = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    header: dict = {"__metadata__": metadata or {"format": "pt"}}
    end = 0
    for tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": NAMES[tensor.dtype], "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LARGEST_HEADER:
        raise ValueError(f"{path} would hold {len(ordered)} tensors, more than can be read")
    free = shutil.disk_usage(path.parent).free
    if end + len(text) > free:
        raise ValueError(
            f"{path} takes {end:,} bytes, and the disk has {free:,} left: make room first"
        )
    with new_file(path, replace) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        done = 0
        for tensor in ordered:
            before = done
            for block in tensor.blocks():
                assert block.dtype == tensor.dtype
                done += file.write(as_bytes(block))
                progress(done, end)
            assert done - before == tensor.nbytes, tensor.name


@contextlib.contextmanager
def new_file(path: Path, replace: bool = False):
    """A binary file to write to, which becomes `path` when all went well, and else is gone.

    Raises ValueError where it cannot be written and, without `replace`, where `path` exists.
    """
    with beside(path, replace) as part, open(part, "wb") as file:
        yield file


def as_bytes(block: Tensor) -> memoryview:
    """A tensor's numbers as they lie in a file; copied only where they lie otherwise now."""
    return memoryview(block.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())

"""A safetensors file, written tensor by tensor: what shards.py reads.

The header needs names, dtypes and shapes only, so it is written first, and then the numbers of
one tensor after the other, so that they need never be in memory together. The library's own
save_file writes under a random name that a killed program would leave there.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..terminal.files import beside
from .shards import DTYPES

NAMES = {dtype: name for name, dtype in DTYPES.items()}


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

"""Keys and values that are only ever added: in memory, or in files that memory maps, so that
what stays resident does not grow.

A block holds a fixed number of tokens and is made when its first token comes; nothing is ever
copied to grow. On disk each is a file of its own, which is mapped, and let go of once it was
used. It has no name where the system can do that, and loses it when it is closed where it
cannot: however the program ends, it is gone.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile

import torch
from torch import Tensor

TOKENS_PER_BLOCK = 4096
KINDS = ("ram", "disk")


class Blocks:
    """Keys and values of the tokens of a text that grows.

    kind: "ram" or "disk"; shape: (B, H_kv, D); blocks: (2, B, H_kv, per_block, D) each, keys
    and values.
    """

    def __init__(self, kind: str, shape: tuple[int, int, int], dtype, device):
        self.kind, self.shape, self.dtype, self.device = kind, shape, dtype, device
        self.per_block, self.length = TOKENS_PER_BLOCK, 0
        self.blocks: list[Tensor] = []
        self.maps: list[mmap.mmap] = []  # of the blocks that are files

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, in memory or in the file."""
        return sum(block.nbytes for block in self.blocks)

    def append(self, k: Tensor, v: Tensor):
        """Take in the next tokens, (B, H_kv, T, D) each."""
        while k.shape[2]:
            number, slot = divmod(self.length, self.per_block)
            if number == len(self.blocks):
                self.blocks.append(self._new())
            count = min(k.shape[2], self.per_block - slot)
            for place, x in zip(self.blocks[number], (k, v)):
                place[:, :, slot : slot + count] = x[:, :, :count]
            k, v, self.length = k[:, :, count:], v[:, :, count:], self.length + count
        self._let_go()

    @torch.inference_mode(False)  # or it could be written to in that mode alone
    def _new(self) -> Tensor:
        batch, n_kv_head, head_dim = self.shape
        shape = (2, batch, n_kv_head, self.per_block, head_dim)
        if self.kind == "ram":
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.maps.append(new_map(math.prod(shape) * self.dtype.itemsize))
        return torch.frombuffer(self.maps[-1], dtype=self.dtype).view(shape)

    def _let_go(self):
        """Say that what was read or written is not needed for now."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self.maps:
                mapped.madvise(mmap.MADV_DONTNEED)

    def all(self, rows: slice) -> Tensor:
        """The keys and values of some rows, (2, B, H_kv, S, D)."""
        found = torch.cat([block[:, rows] for block in self.blocks], 3)
        return found[:, :, :, : self.length]

    def keys(self, tokens: Tensor):
        """The keys of consecutive tokens, block by block."""
        first, last = int(tokens[0]), int(tokens[-1])
        for number in range(first // self.per_block, last // self.per_block + 1):
            start = number * self.per_block
            yield self.blocks[number][0][:, :, max(first - start, 0) : last + 1 - start]

    def at(self, tokens: Tensor) -> Tensor:
        """The keys and values of some tokens, which ascend, (2, B, H_kv, m, D)."""
        numbers, found = tokens // self.per_block, [self.blocks[0][:, :, :, :0]]
        for number in numbers.unique().tolist():
            slots = tokens[numbers == number] - number * self.per_block
            block = self.blocks[number]
            found.append(block.index_select(3, slots.to(block.device)))
        self._let_go()
        return torch.cat(found, 3).to(tokens.device)


def new_map(n_bytes: int) -> mmap.mmap:
    """Zeros in a temporary file, in the folder that TMPDIR names, which lasts as long as the
    map. Raises OSError, in one sentence, where the disk has no room."""
    with tempfile.TemporaryFile() as file:
        try:
            if hasattr(os, "posix_fallocate"):  # or a full disk would kill the program later
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            else:
                file.truncate(n_bytes)
            return mmap.mmap(file.fileno(), n_bytes)
        except OSError as error:
            raise OSError(
                f"{tempfile.gettempdir()} has no room for another {n_bytes / 1e6:,.0f} MB of "
                "middle tokens: free some, name another folder in TMPDIR, or take --middle ram"
            ) from error

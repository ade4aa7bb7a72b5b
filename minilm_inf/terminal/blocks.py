"""Keys and values that are only ever added: in memory, or in a file that memory maps, so that
what stays resident does not grow.

A block holds a fixed number of tokens and is made when its first token comes; nothing is ever
copied to grow. Each block of a file is mapped by itself, and let go of once it was used. The
file has no name where the system can do that, and loses it when it is closed where it cannot:
however the program ends, it is gone.
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
PAGE = mmap.ALLOCATIONGRANULARITY  # bytes: a mapping begins at a multiple of it


class Blocks:
    """Keys and values of the tokens of a text that grows.

    kind: "ram" or "disk"; shape: (B, H_kv, D); blocks: (2, B, H_kv, per_block, D) each, keys
    and values.
    """

    def __init__(self, kind: str, shape: tuple[int, int, int], dtype, device):
        self.shape, self.dtype, self.device = shape, dtype, device
        self.file = MappedFile() if kind == "disk" else None
        self.per_block, self.length = TOKENS_PER_BLOCK, 0
        self.blocks: list[Tensor] = []

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
        if self.file:
            self.file.let_go()

    @torch.inference_mode(False)  # or it could be written to in that mode alone
    def _new(self) -> Tensor:
        batch, n_kv_head, head_dim = self.shape
        shape = (2, batch, n_kv_head, self.per_block, head_dim)
        if self.file:
            return self.file.new(shape, self.dtype)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

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
        if self.file:
            self.file.let_go()
        return torch.cat(found, 3).to(tokens.device)


class MappedFile:
    """A temporary file, in the folder that TMPDIR names."""

    def __init__(self):
        self.folder = tempfile.gettempdir()
        self.file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  (open while we are)
        self.maps: list[mmap.mmap] = []

    def new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros. Raises OSError, in one sentence, where the disk has no room."""
        count = math.prod(shape)
        n_bytes = -(-count * dtype.itemsize // PAGE) * PAGE
        start = sum(map(len, self.maps))
        try:
            if hasattr(os, "posix_fallocate"):  # or a full disk would kill the program later
                os.posix_fallocate(self.file.fileno(), start, n_bytes)
            else:
                self.file.truncate(start + n_bytes)
            self.maps.append(mmap.mmap(self.file.fileno(), n_bytes, offset=start))
        except OSError as error:
            raise OSError(
                f"{self.folder} has no room for another {n_bytes / 1e6:,.0f} MB of middle "
                "tokens: free some, name another folder in TMPDIR, or take --middle ram"
            ) from error
        return torch.frombuffer(self.maps[-1], dtype=dtype, count=count).view(shape)

    def let_go(self):
        """Say that what was read or written is not needed for now."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self.maps:
                mapped.madvise(mmap.MADV_DONTNEED)

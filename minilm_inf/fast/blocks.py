"""Rows that are only ever added: in memory, or in a file that memory maps.

A block holds a fixed number of tokens and is made when its first token comes; nothing is ever
copied to grow. A file's blocks are mapped one by one, and let go of once they were used, so
that what stays resident does not grow with the text. The file has no name where the system can
do that, and loses it when it is closed where it cannot: however the program ends, it is gone.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import tempfile

import torch
from torch import Tensor

TOKENS_PER_BLOCK = 4096
HEADER = mmap.ALLOCATIONGRANULARITY  # bytes: where the first mapping may begin
KINDS = ("ram", "disk")


class Blocks:
    """Keys and values (B, H_kv, n, D), not placed, of a text that grows.

    shape: (B, H_kv, D). In the memory of `device`.
    """

    per_block = TOKENS_PER_BLOCK

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device):
        self.shape, self.dtype, self.device = shape, dtype, device
        self.length = 0
        self.made: list[tuple[Tensor, Tensor]] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, in memory or in the file."""
        return sum(k.nbytes + v.nbytes for k, v in self.made)

    def append(self, k: Tensor, v: Tensor):
        """Take in the next tokens, (B, H_kv, T, D) each."""
        done = 0
        while done < k.shape[2]:
            number, slot = divmod(self.length, self.per_block)
            if number == len(self.made):
                self.made.append(self._new())
            count = min(k.shape[2] - done, self.per_block - slot)
            for block, x in zip(self.made[number], (k, v)):
                new = x.detach()[:, :, done : done + count]
                self._write(block, slice(slot, slot + count), new)
            self.length, done = self.length + count, done + count

    def keys(self, number: int) -> Tensor:
        """One block's keys, (B, H_kv, per_block, D)."""
        return self.made[number][0]

    def values(self, number: int) -> Tensor:
        """One block's values, (B, H_kv, per_block, D)."""
        return self.made[number][1]

    def keep(self, rows: list[int]):
        """Forget all rows but these."""
        self.shape = (len(rows), *self.shape[1:])
        self.made = [(k[rows], v[rows]) for k, v in self.made]

    def let_go(self):
        """Say that what was read or written is not needed for now."""

    def _new(self) -> tuple[Tensor, Tensor]:
        batch, n_kv_head, head_dim = self.shape
        size = (batch, n_kv_head, self.per_block, head_dim)
        return tuple(torch.zeros(size, dtype=self.dtype, device=self.device) for _ in range(2))

    def _write(self, block: Tensor, slots: slice, new: Tensor):
        block[:, :, slots] = new


class DiskBlocks(Blocks):
    """Blocks in a file: a header that says what it holds, then each block's keys and its
    values, D numbers for every row of the batch, head and token.

    Raises OSError, in one sentence, where the disk has no room for one more block.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device):
        super().__init__(shape, dtype, device)
        self.rows = list(range(shape[0]))  # those of the file that are still asked for
        self.in_file = (2, shape[0], shape[1], self.per_block, shape[2])
        self.maps: list[mmap.mmap] = []
        self.folder = tempfile.gettempdir()
        self.file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  (open while we are)
        about = {"block": "keys, values", "shape": self.in_file, "dtype": str(dtype)}
        self.file.write(json.dumps(about).encode().ljust(HEADER))
        self.file.flush()

    def keys(self, number: int) -> Tensor:
        return self._read(self.made[number][0])

    def values(self, number: int) -> Tensor:
        return self._read(self.made[number][1])

    def _read(self, block: Tensor) -> Tensor:
        return block if len(self.rows) == len(block) else block[self.rows]

    def keep(self, rows: list[int]):
        self.shape = (len(rows), *self.shape[1:])
        self.rows = [self.rows[row] for row in rows]

    def let_go(self):
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self.maps:
                mapped.madvise(mmap.MADV_DONTNEED)

    def _new(self) -> tuple[Tensor, Tensor]:
        count = math.prod(self.in_file)
        n_bytes = count * self.dtype.itemsize
        n_bytes += -n_bytes % HEADER
        start = HEADER + len(self.maps) * n_bytes
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
        flat = torch.frombuffer(self.maps[-1], dtype=self.dtype, count=count)
        return tuple(flat.view(self.in_file).unbind(0))

    def _write(self, block: Tensor, slots: slice, new: Tensor):
        if len(self.rows) == len(block):
            block[:, :, slots] = new
        else:
            block[self.rows, :, slots] = new.to(block.device)


class Whole(Blocks):
    """Keys and values (B, H_kv, S, D) of a text that is there already, as one block."""

    def __init__(self, k: Tensor, v: Tensor):
        super().__init__((*k.shape[:2], k.shape[3]), k.dtype, k.device)
        self.made, self.length, self.per_block = [(k, v)], k.shape[2], max(1, k.shape[2])

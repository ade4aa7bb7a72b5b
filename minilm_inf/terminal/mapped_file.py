"""Blocks of numbers in a file that memory maps, so that what stays resident does not grow.

Each block is mapped by itself, and let go of once it was used. The file has no name where the
system can do that, and loses it when it is closed where it cannot: however the program ends,
it is gone.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile

import torch
from torch import Tensor

PAGE = mmap.ALLOCATIONGRANULARITY  # bytes: a mapping begins at a multiple of it


class MappedFile:
    """A temporary file, in the folder that TMPDIR names."""

    def __init__(self):
        self.folder = tempfile.gettempdir()
        self.file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  (open while we are)
        self.maps: list[mmap.mmap] = []

    def new(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Two more tensors of zeros, all of one shape. Raises OSError, in one sentence, where
        the disk has no room for them."""
        count = 2 * math.prod(shape)
        n_bytes = count * dtype.itemsize
        n_bytes += -n_bytes % PAGE
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
        with torch.inference_mode(False):  # or it could be written to in that mode alone
            flat = torch.frombuffer(self.maps[-1], dtype=dtype, count=count)
            return tuple(flat.view(2, *shape).unbind(0))

    def let_go(self):
        """Say that what was read or written is not needed for now."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self.maps:
                mapped.madvise(mmap.MADV_DONTNEED)

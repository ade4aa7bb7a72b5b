"""Does memory hold a model and its cache? Answered by formula, before anything is loaded."""

from __future__ import annotations

import os

import torch

from ..cache import ring_and_starting
from ..config import FULL_ATTENTION, LMInfinite, ModelConfig
from ..sight import starting_is_placed, window_is_capped

LENGTHS = (4096, 32_768, 1_048_576)  # tokens for which the cache is told


def memory(config: ModelConfig, parameters: int, dtype: torch.dtype) -> dict:
    """Bytes of the weights and of one text's cache in a dtype, and whether both together fit.

    float32_bytes, of the weights, is told whatever the dtype; "fits" is None where the system
    does not tell its available memory.
    """
    available, weights = available_memory(), parameters * dtype.itemsize
    settings = {"vanilla": None, "lm_infinite": LMInfinite.for_model(config, n_global=10)}
    cache = []
    for name, lm in settings.items():
        for length in LENGTHS:
            n_bytes = cache_bytes(config, length, lm, dtype)
            fits = None if available is None else weights + n_bytes <= available
            cache.append({"reading": name, "tokens": length, "bytes": n_bytes, "fits": fits})
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "weights_bytes": weights,
        "float32_bytes": 4 * parameters,
        "available_bytes": available,
        "cache": cache,
    }


def cache_bytes(
    config: ModelConfig, length: int, lm: LMInfinite | None, dtype: torch.dtype
) -> int:
    """Cache.nbytes for one text behind `length` tokens that were read one by one.

    Buffers grow by doubling, so the rows of a vanilla cache are the next power of two; a ring
    stops at its limit. Read in chunks of a power of two, a text comes to the same once it has
    filled a chunk, and at a length that is a power of two, as LENGTHS are, nothing is spare.
    Not counted: while a layer's buffer grows, the old one stands beside it.
    """
    lm = lm or FULL_ATTENTION
    doubled = 1 << (length - 1).bit_length()
    window, starting = doubled, 0
    if lm.n_local is not None:
        window, starting = doubled, min(doubled, lm.n_global)
        if doubled >= lm.n_local:
            window = lm.n_local + (lm.n_global if ring_and_starting(lm) else 0)
    # Values, and keys placed, capped or both, as LayerCache keeps them.
    rows = window * (2 + window_is_capped(lm))
    rows += starting * (1 + starting_is_placed(lm) + (lm.distance_ceiling is not None))
    return rows * config.n_layer * config.n_kv_head * config.head_dim * dtype.itemsize


def available_memory() -> int | None:
    """Bytes that a new program can have: what Linux estimates, or else the free pages.

    None where the system tells neither.
    """
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
            return 1024 * int(next(found))
    except (OSError, StopIteration):
        pass
    try:
        pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return pages * size if pages > 0 else None
    except (AttributeError, ValueError, OSError):
        return None


def scaled(n_bytes: int) -> str:
    """Bytes with a unit of thousands.

    >>> scaled(544_768)
    '544.77 kB'
    """
    unit = min(4, (len(str(n_bytes)) - 1) // 3)
    return f"{n_bytes / 1000**unit:.2f} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"

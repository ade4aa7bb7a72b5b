"""How many bytes a cache will take, by the rules by which its buffers grow."""

from __future__ import annotations

import torch

from ...config import FULL_ATTENTION, LMInfinite, ModelConfig
from ...fast.middle import TOKENS_PER_BLOCK


def cache_bytes(
    config: ModelConfig,
    length: int,
    lm: LMInfinite | None,
    dtype: torch.dtype,
    chunk: int = 1,
    written: int = 0,
    batch: int = 1,
    shortest: int | None = None,
) -> int:
    """Cache.nbytes of `batch` texts of `length` tokens that were read in chunks of `chunk`, and
    of `written` more that were read one by one.

    shortest: the length of the shortest text, where the others are longer.
    Not counted: while a layer's buffer grows, the old one stands beside it.
    """
    lm, end = lm or FULL_ATTENTION, length + written
    columns = rows(lm.n_local, length, chunk, written)
    if lm.n_local is not None:
        columns += min(lm.n_global, end)  # the starting keys, at home
        if (shortest or length) + written >= lm.n_local + lm.n_global:
            columns += lm.n_global  # and once more, at the end of the ring
    numbers = 2 * batch * config.n_layer * config.n_kv_head * config.head_dim
    return columns * numbers * dtype.itemsize + middle_bytes(config, end, lm, dtype, batch)


def middle_bytes(
    config: ModelConfig, length: int, lm: LMInfinite, dtype: torch.dtype, batch: int = 1
) -> int:
    """Cache.middle_bytes of `batch` texts of `length` tokens: keys and values of all of them,
    in whole blocks, in the layers that reach back."""
    layers = max(0, config.n_layer - lm.top_k_from_layer) if lm.top_k else 0
    tokens = -(-length // TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK
    numbers = 2 * batch * config.n_kv_head * config.head_dim
    return layers * tokens * numbers * dtype.itemsize


def rows(limit: int | None, length: int, chunk: int, written: int) -> int:
    """Rows of a buffer that grows by doubling, or to what a chunk needs, up to its limit."""
    count = 0
    while count < length + written:
        # The end of the first chunk that finds no room.
        end = min(length, (count // chunk + 1) * chunk) if count < length else count + 1
        count = max(end, 2 * count)
        if limit is not None and count >= limit:
            return limit
    return count

"""How many bytes a cache will take, by the rules by which its buffers grow."""

from __future__ import annotations

import torch

from ..config import FULL_ATTENTION, LMInfinite, ModelConfig
from ..fast.blocks import TOKENS_PER_BLOCK
from ..fast.one_token import shape_can_be_fixed


def cache_bytes(
    config: ModelConfig,
    length: int,
    lm: LMInfinite | None,
    dtype: torch.dtype,
    chunk: int = 1,
    written: int = 0,
    batch: int = 1,
) -> int:
    """Cache.nbytes of `batch` texts of `length` tokens that were read in chunks of `chunk`, and
    of `written` more that were read one by one.

    Not counted: while a layer's buffer grows, the old one stands beside it.
    """
    lm = lm or FULL_ATTENTION
    window = rows(lm.n_local, length, chunk, written)
    starting = 0 if lm.n_local is None else rows(lm.n_global, length, chunk, written)
    if length + written >= (lm.n_local or 0) + lm.n_global and shape_can_be_fixed(lm):
        window += lm.n_global
    count = 2 * (window + starting)  # keys and values
    numbers = batch * config.n_layer * config.n_kv_head * config.head_dim
    return count * numbers * dtype.itemsize + middle_bytes(
        config, length + written, lm, dtype, batch
    )


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

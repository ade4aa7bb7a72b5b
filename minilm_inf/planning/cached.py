"""How many bytes a cache will take, by the rules by which its buffers grow."""

from __future__ import annotations

import torch

from ..blocks import TOKENS_PER_BLOCK
from ..config import FULL_ATTENTION, LMInfinite, ModelConfig
from ..layer_cache import ring_and_starting
from ..sight import starting_is_placed, window_is_capped


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
    if window == lm.n_local and ring_and_starting(lm):
        window += lm.n_global
    # Values, and keys placed, capped or both, as LayerCache keeps them.
    count = window * (2 + window_is_capped(lm))
    count += starting * (1 + starting_is_placed(lm) + (lm.distance_ceiling is not None))
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

"""What reading and writing will take, by formula: the cache, working buffers, arithmetic.

A cache's bytes are exact: they follow the rules by which its buffers grow. Working buffers are
an estimate of what a layer makes on its way, from the sizes of its vectors and of the logits
that fast/ holds at a time. Arithmetic counts products and sums: two for each weight that a
token is multiplied with, and 4 * D for each head and each key that it sees (2 * D for the
logit, 2 * D for its share of the values). Norms, angles and softmax are not in it, nor what
fast/ computes in vain to work in blocks, nor with top-k the search for middle keys.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..config import FULL_ATTENTION, LMInfinite, ModelConfig
from ..fast.band import BLOCK_LOGITS, ROWS
from ..fast.cache import LayerCache
from ..fast.chunk import LOGITS_AT_ONCE, QUERIES_AT_ONCE
from ..terminal.blocks import TOKENS_PER_BLOCK


def cache_bytes(
    config: ModelConfig, length: int, lm: LMInfinite | None, dtype: torch.dtype, batch: int = 1,
    shortest: int | None = None,
) -> int:  # fmt: skip
    """Cache.nbytes after `batch` texts were read, the longest of `length` tokens, and the
    shortest of `shortest` (as many)."""
    lm, shortest = lm or FULL_ATTENTION, length if shortest is None else shortest
    layer = LayerCache(replace(lm, top_k=0), (batch, 1, 1), dtype, "meta", "ram")
    columns = layer.n_columns(length, shortest) + layer.n_starting(length)
    columns *= config.n_layer
    if lm.top_k:  # whole blocks of all that was read, in the layers that reach back
        tokens = -(-length // TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK
        columns += tokens * max(0, config.n_layer - lm.top_k_from_layer)
    return 2 * columns * batch * config.n_kv_head * config.head_dim * dtype.itemsize


def working_bytes(net, lm: LMInfinite, before: int, tokens: int, batch: int = 1) -> int:
    """What a layer makes at its peak of the next tokens of each text, which follow `before`
    others: an estimate, with room for 25% of a run's memory. net: of plan.network.

    It is the larger of two moments. In the MLP those are vectors of every token; in attention
    the window's keys and values, in their order, and logits.
    """
    config, width = net.config, net.dtype.itemsize
    exact = max(width, torch.float32.itemsize)  # bytes of a number of the softmax
    queries, keys = (n * config.head_dim for n in (config.n_head, config.n_kv_head))
    seen = before + tokens if lm.n_local is None else min(before, lm.n_local) + tokens
    is_band = config.family == "mpt" or lm.distance_ceiling in (None, lm.n_local)
    if is_band and not (lm.top_k and lm.top_k_queries == "all"):  # of one key head's queries
        near = min(seen, (lm.n_local or seen) + QUERIES_AT_ONCE)
        logits = min(config.n_head // config.n_kv_head * tokens * near, BLOCK_LOGITS)
        logits += config.n_head * ROWS * near if config.family == "mpt" else 0  # their biases
    else:  # of all heads, in three copies
        at_once = batch * config.n_head * min(tokens, QUERIES_AT_ONCE) * seen
        logits = 3 * min(at_once, LOGITS_AT_ONCE)
    inner = 4 if config.family == "llama" else 2  # gate, up, silu, product; up and its gelu
    held = 2 * config.n_embd + queries + 2 * keys  # embedding, x; queries, keys, values
    mlp = batch * tokens * width * (queries + 2 * config.n_embd + inner * config.n_inner)
    attention = 2 * batch * (tokens * width * queries + seen * exact * keys) + logits * exact
    return batch * tokens * width * held + max(mlp, attention)


def visible_pairs(n: int, lm: LMInfinite) -> int:
    """How many pairs of a query and a key are seen in a text of n tokens, by the Λ alone: the
    sum of lm.visible(1) to lm.visible(n) without top-k.

    >>> visible_pairs(8, LMInfinite(n_local=3, n_global=2))
    30
    """
    full = n if lm.n_local is None else min(n, lm.n_local)  # the window's size, in the end
    after = n - full  # queries after the window is full
    few = min(after, lm.n_global)
    return full * (full + 1) // 2 + after * full + few * (few + 1) // 2 + (after - few) * few


def flops(net, lm: LMInfinite | None, first: int, last: int, n_logits: int) -> int:
    """Operations for the tokens first to last - 1 of a text, n_logits of which are asked what
    follows. net: of plan.network."""
    lm, config = lm or FULL_ATTENTION, net.config
    per_key = 2 * config.head_dim * config.n_head  # in a layer
    seen = visible_pairs(last, lm) - visible_pairs(first, lm)
    weights = net.in_layers * (last - first) + net.in_head * n_logits
    return 2 * weights + 2 * per_key * config.n_layer * seen

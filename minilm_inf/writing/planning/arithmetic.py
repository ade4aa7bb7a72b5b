"""How many floating-point operations reading and writing take: a product of two numbers and its
sum are two of them.

A token costs two operations for each weight that it is multiplied with, and 4 * D for each head
and each key that it sees: 2 * D for the logit, 2 * D for its share of the values; with top-k,
2 * D more for each middle key that is scored, seen or not. Counted is
what the definition asks for; norms, angles and softmax, and what chunked.py computes in vain to
work in blocks, are not.
"""

from __future__ import annotations

from dataclasses import replace

from ...config import LMInfinite, ModelConfig


def attention_flops(config: ModelConfig, keys: int) -> int:
    """Of all layers, for queries that see so many keys together."""
    return 4 * config.head_dim * config.n_head * config.n_layer * keys


def visible_together(lm: LMInfinite | None, n: int) -> int:
    """How many keys the queries of a text of n tokens see: the sum of lm.visible(1 .. n)."""
    if lm is None or lm.n_local is None:
        return n * (n + 1) // 2
    return sum_of_least(n, lm.n_local) + sum_of_least(max(0, n - lm.n_local), lm.n_global)


def reaching_flops(config: ModelConfig, lm: LMInfinite | None, n: int, is_last: bool) -> int:
    """What top-k adds for the queries of a text of n tokens, or for the last of them alone:
    scoring its middle, and seeing the best of it."""
    if lm is None or not lm.top_k:
        return 0
    middle = max(0, n - lm.n_local - lm.n_global)  # of the last query; of others, less
    one = is_last or lm.top_k_queries == "last"
    scored = middle if one else middle * (middle + 1) // 2
    seen = min(lm.top_k, middle) if one else sum_of_least(middle, lm.top_k)
    layers = max(0, config.n_layer - lm.top_k_from_layer)
    return 2 * config.head_dim * config.n_head * layers * (scored + 2 * seen)


def sum_of_least(n: int, most: int) -> int:
    """min(1, most) + min(2, most) + ... + min(n, most).

    >>> sum_of_least(5, 3)
    12
    """
    below = min(n, most)
    return below * (below + 1) // 2 + most * (n - below)


def reading_flops(
    config: ModelConfig, weights: int, head: int, lm: LMInfinite | None, n: int, scored: int
) -> int:
    """Of a text of n tokens, for `scored` of which the logits are asked for.

    weights, head: how many weights each token meets in all layers, and in the head.
    """
    found = 2 * (weights * n + head * scored) + attention_flops(config, visible_together(lm, n))
    return found + reaching_flops(config, lm, n, is_last=False)


def token_flops(
    config: ModelConfig, weights: int, head: int, lm: LMInfinite | None, n: int
) -> int:
    """Of one decode step, whose token is the n-th of its text."""
    visible = n if lm is None else replace(lm, top_k=0).visible(n)
    found = 2 * (weights + head) + attention_flops(config, visible)
    return found + reaching_flops(config, lm, n, is_last=True)

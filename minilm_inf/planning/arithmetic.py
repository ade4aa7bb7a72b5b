"""How many floating-point operations reading and writing take: a product of two numbers and its
sum are two of them.

A token costs two operations for each weight that it is multiplied with, and 4 * D for each head
and each key that it sees: 2 * D for the logit, 2 * D for its share of the values. Counted is
what the definition asks for; norms, angles and softmax, and what chunked.py computes in vain to
work in blocks, are not.
"""

from __future__ import annotations

from ..config import LMInfinite, ModelConfig


def attention_flops(config: ModelConfig, keys: int) -> int:
    """Of all layers, for queries that see so many keys together."""
    return 4 * config.head_dim * config.n_head * config.n_layer * keys


def visible_together(lm: LMInfinite | None, n: int) -> int:
    """How many keys the queries of a text of n tokens see: the sum of lm.visible(1 .. n)."""
    if lm is None or lm.n_local is None:
        return n * (n + 1) // 2
    return sum_of_least(n, lm.n_local) + sum_of_least(max(0, n - lm.n_local), lm.n_global)


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
    """Of a text of n tokens, behind `scored` of which the logits are asked for.

    weights, head: how many weights each token meets in all layers, and in the head.
    """
    return 2 * (weights * n + head * scored) + attention_flops(config, visible_together(lm, n))


def token_flops(
    config: ModelConfig, weights: int, head: int, lm: LMInfinite | None, n: int
) -> int:
    """Of one decode step, whose token is the n-th of its text."""
    visible = n if lm is None else lm.visible(n)
    return 2 * (weights + head) + attention_flops(config, visible)

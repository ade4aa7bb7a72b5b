"""The definition of LM-Infinite's attention: mask, ceiling, softmax, weighted sum.

O(n^2) in time and memory, and meant to be: this is the truth that every faster path is held to.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import FULL_ATTENTION, LMInfinite
from .distance_ceiling import capped_logits
from .lambda_mask import lambda_mask
from .positions import PLACED
from .terminal.checks import check_attention
from .top_k import bring_back


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_positions: Tensor,
    k_positions: Tensor,
    scheme,
    lm: LMInfinite | None,
    scale: float | None = None,
    n_reaching: int | None = None,
) -> Tensor:
    """What each query gathers from the keys that it sees (paper, section 3.2).

    q:      (B, H, T, D), not yet placed at its positions
    k, v:   (B, H_kv, S, D), not yet placed; H must be a multiple of H_kv
    q_positions, k_positions: integers, (T,) or (B, T) and (S,) or (B, S), in any order, up to
            2^53; a negative position is padding, which nobody sees
    scheme: Rotary or Alibi; None where q and k come placed, and lm has no ceiling and no top_k
    lm:     None is the vanilla model's causal attention
    scale:  factor of q . k, any finite number; None is 1/sqrt(D)
    n_reaching: with lm.top_k, how many of the last queries see middle keys as well (section
            3.3); None is what lm.top_k_queries says: the last one, or all

    Returns (B, H, T, D) in q's dtype; the softmax runs in float32, or in float64 for float64. A
    query that sees no key gets zeros, and what nobody sees has no influence, not even as NaN.
    Raises ValueError where the arguments do not fit together; see checks.py.
    """
    check_attention(q, k, v, q_positions, k_positions, scheme, lm, scale, n_reaching)
    scheme, lm = scheme or PLACED, lm or FULL_ATTENTION
    q_positions, k_positions = (x.to(q.device).long() for x in (q_positions, k_positions))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    unplaced, heads_per_key = (q, k), q.shape[1] // k.shape[1]
    k, v = (x.to(exact).repeat_interleave(heads_per_key, 1) for x in (k, v))  # (B, H, S, D)

    # (1, T, S) or (B, 1, T, S)
    visible = lambda_mask(q_positions, k_positions, lm).unsqueeze(-3)
    logits = capped_logits(
        q.to(exact), k, q_positions, k_positions, scheme, lm.distance_ceiling, scale
    )
    n_reaching = lm.reaching(q.shape[2]) if n_reaching is None else n_reaching
    if lm.top_k and n_reaching:
        chosen, at_middle = bring_back(
            *unplaced, q_positions, k_positions, scheme, lm, scale, n_reaching
        )
        visible = visible | chosen
        logits = torch.where(chosen, at_middle.to(exact), logits)
    # The lowest number, not -inf: the softmax of a query that sees nothing must not be NaN.
    weights = logits.masked_fill(~visible, torch.finfo(exact).min).softmax(-1)
    weights = weights.masked_fill(~visible, 0)
    seen_by_none = ~visible.any(-2).unsqueeze(-1)  # (1, S, 1) or (B, 1, S, 1)
    v = v.masked_fill(seen_by_none, 0)
    return torch.einsum("bhts,bhsd->bhtd", weights, v).to(q.dtype)

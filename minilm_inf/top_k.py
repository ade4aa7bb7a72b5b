"""Which middle keys come back: for every query and head, those with the largest logits.

Between the starting tokens and the window lies what the Λ hides. A head's query scores all of
it, as if every key stood at one fixed distance, and the k best join its softmax at that
distance (paper, section 3.3). Which these are must not depend on how a sum was rounded: equal
keys score equally wherever they stand, so logits are summed in float64 and compared as float32,
and among equal ones the most recent win.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import LMInfinite
from .distance_ceiling import place_fixed
from .lambda_mask import distances, is_global, is_local


def middle_mask(q_positions: Tensor, k_positions: Tensor, lm: LMInfinite) -> Tensor:
    """True where key j is a middle key of query i: after the first n_global tokens, as no
    padding is, and out of the window. (T,), (S,) -> (T, S), or with a batch in either
    (B, T, S)."""
    beyond = ~is_local(distances(q_positions, k_positions), lm.n_local)
    return beyond & ~is_global(k_positions, lm.n_global)


def middle_logits(q: Tensor, k: Tensor, scheme, lm: LMInfinite, scale: float) -> Tensor:
    """The logits of keys that all stand at the middle's distance.

    q (B, H, T, D) and k (B, H_kv, S, D), both unplaced -> (B, H, T, S) in float64.
    """
    (n_head, length), n_kv_head = q.shape[1:3], k.shape[1]
    asked = middle_queries(q, scheme, lm, scale).reshape(len(q), n_kv_head, -1, q.shape[-1])
    logits = (asked @ k.double().mT).view(len(q), n_head, length, -1)
    return logits + middle_bias(scheme, lm, q.device)


def middle_queries(q: Tensor, scheme, lm: LMInfinite, scale: float) -> Tensor:
    """Queries (B, H, T, D) in float64, placed and scaled so that a product with an unplaced key
    is its logit without the bias."""
    return place_fixed(scheme, lm.middle_distance, torch.float64, q.device)(q.double()) * scale


def middle_bias(scheme, lm: LMInfinite, device) -> Tensor:
    """What the middle's distance adds to each head's logits: () or (H, 1, 1), float64."""
    return scheme.bias(torch.tensor([[lm.middle_distance]], device=device))


def largest(logits: Tensor, candidates: Tensor, k: int) -> Tensor:
    """True for the k largest logits among the candidates of each row, or for all of them where
    there are fewer. Keys stand in the order of their positions. (.., S), (.., S) -> (.., S)."""
    ranked = logits.float().masked_fill(~candidates, -torch.inf)
    last = ranked.topk(min(k, ranked.shape[-1])).values[..., -1:]
    above, level = ranked > last, (ranked == last) & candidates
    room = k - above.sum(-1, keepdim=True)
    by_recency = level.flip(-1).cumsum(-1).flip(-1)  # 1 for the most recent
    return above | (level & (by_recency <= room))


def bring_back(
    q, k, q_positions, k_positions, scheme, lm: LMInfinite, scale: float, n_reaching: int
) -> tuple[Tensor, Tensor]:
    """The definition: which keys come back to the last n_reaching queries, (B, H, T, S), and
    every key's logit at the middle's distance, (B, H, T, S) in float64.

    q (B, H, T, D), k (B, H_kv, S, D), unplaced; positions as attention.attend takes them.
    """
    reaches = torch.arange(q.shape[2], device=q.device) >= q.shape[2] - n_reaching
    candidates = middle_mask(q_positions, k_positions, lm) & reaches[:, None]
    candidates = candidates.unsqueeze(-3).expand(len(q), q.shape[1], -1, -1)
    logits = middle_logits(q, k, scheme, lm, scale)
    order = k_positions.argsort(-1)[..., None, None, :].expand_as(logits)
    chosen = largest(logits.gather(-1, order), candidates.gather(-1, order), lm.top_k)
    return torch.zeros_like(candidates).scatter(-1, order, chosen), logits

"""How far away a key may seem: never further than the ceiling (paper, section 3.2).

A logit depends on the distance d between query and key, and a model has only ever seen
distances below its training length. So beyond the ceiling C the distance used is C itself: the
scheme is asked a second time, with the query placed at C and the key at 0, and each pair takes
the answer that holds for it. With C = n_local this concerns exactly the starting tokens that
have left the window.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .lambda_mask import distances


@functools.lru_cache(maxsize=16)
def place_fixed(scheme, position: int, dtype: torch.dtype, device):
    """A function that places every vector at one position, made once for all steps and layers.

    It is made outside inference mode, so that training may use it after generation did.
    """
    with torch.inference_mode(False):
        return scheme.at(torch.tensor([position], device="cpu"), dtype, device)


def capped_logits(q, k, q_positions, k_positions, scheme, ceiling, scale) -> Tensor:
    """w(q_i, k_j, min(i - j, C)) for every pair: (B, H, T, D), (B, H, S, D) -> (B, H, T, S).

    Positions are integers, (T,) or (B, T) and (S,) or (B, S); `ceiling` None means no ceiling.
    """
    if hasattr(scheme, "capped_logits"):  # xPos: no placing of a query and of a key gives it
        return scheme.capped_logits(q, k, q_positions, k_positions, ceiling, scale)
    d = distances(q_positions, k_positions)  # (T, S) or (B, T, S)

    def logits(placed_q, placed_k, distance):
        products = torch.einsum("bhtd,bhsd->bhts", placed_q, placed_k) * scale
        return products + scheme.bias(distance).to(products.dtype)

    at_distance = logits(scheme.place(q, q_positions), scheme.place(k, k_positions), d)
    if ceiling is None:
        return at_distance

    capped_q = place_fixed(scheme, ceiling, q.dtype, q.device)(q)
    capped = logits(capped_q, k, torch.full_like(d, ceiling))  # place(k, 0) is k
    within = d <= ceiling
    return torch.where(within.unsqueeze(-3), at_distance, capped)

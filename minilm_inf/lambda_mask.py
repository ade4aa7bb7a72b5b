"""Which keys a query may see: the Λ-shaped mask (paper, section 3.2, figure 2a).

The mask is a predicate on two positions, composed of smaller ones: a key is seen when it is
past, and either among the last n_local (one leg of the Λ) or among the first n_global (the
other leg). A starting token that still lies inside the window is local, and counted once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import LMInfinite


def distances(q_positions: Tensor, k_positions: Tensor) -> Tensor:
    """d = i - j for every pair: (T,), (S,) -> (T, S); with B in either, (B, T, S)."""
    return q_positions[..., :, None] - k_positions[..., None, :]


def is_past(distance: Tensor) -> Tensor:
    """The key stands at the query or before it."""
    return distance >= 0


def is_local(distance: Tensor, n_local: int | None) -> Tensor:
    """The key is one of the last n_local, the query's own included (for None: any)."""
    return (
        torch.ones_like(distance, dtype=torch.bool) if n_local is None else distance < n_local
    )


def is_global(k_positions: Tensor, n_global: int) -> Tensor:
    """The key is one of the first n_global tokens of the stream: (S,) -> (1, S)."""
    return (k_positions < n_global)[..., None, :]


def is_text(k_positions: Tensor) -> Tensor:
    """The key is a token at all: a negative position marks padding. (S,) -> (1, S)."""
    return (k_positions >= 0)[..., None, :]


def lambda_mask(q_positions: Tensor, k_positions: Tensor, lm: LMInfinite) -> Tensor:
    """True where query i sees key j: (T,), (S,) -> (T, S), or with a batch in either (B, T, S).

    With n_local=3 and n_global=2, a row per query and a column per key:

        # . . . . . . .
        # # . . . . . .
        # # # . . . . .
        # # # # . . . .
        # # # # # . . .
        # # . # # # . .
        # # . . # # # .
        # # . . . # # #
    """
    d = distances(q_positions, k_positions)
    local = is_local(d, lm.n_local)
    return is_past(d) & (local | is_global(k_positions, lm.n_global)) & is_text(k_positions)

"""A run of keys in the places where queries find them, in the forms that distances ask for.

A key is asked for at its own position by a query at its own; and at the ceiling by any query,
for which it is put where it stands exactly the ceiling away.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .config import LMInfinite
from .distance_ceiling import place_fixed
from .sight import as_tensor, cut, starting_is_placed, window_is_capped


class Keys(NamedTuple):
    """A run of keys in the places where queries find them, and their values.

    placed: at their own positions, for a query at its own.
    capped: all at position -ceiling, for a query at position 0, which is one not placed at all:
        to it, each of them stands exactly the ceiling away.
    Each is (B, H_kv, S, D); one that no distance of this run asks for is None.
    """

    placed: Tensor | None
    capped: Tensor | None
    values: Tensor


def fitting(x: Tensor | None, shape, dtype: torch.dtype) -> Tensor:
    """A tensor of a saved state. Raises ValueError where it is not of this shape and dtype, or
    not there: nothing is converted, and nothing spread."""
    if x is None or tuple(x.shape) != tuple(shape) or x.dtype != dtype:
        raise ValueError(f"there is no tensor of {tuple(shape)}, {dtype}")
    return x


def taken(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """What a saved state holds of a part, "part.name", by name, and no longer holds then."""
    names = [name for name in state if name.startswith(part + ".")]
    return {name.removeprefix(part + "."): state.pop(name) for name in names}


def cap_for(scheme, lm: LMInfinite, like: Tensor):
    """The function that makes Keys.capped of unplaced keys; None without a ceiling."""
    if lm.distance_ceiling is None:
        return None
    return place_fixed(scheme, -lm.distance_ceiling, like.dtype, like.device)


def window_keys(placed: Tensor, k: Tensor, v: Tensor, scheme, lm: LMInfinite) -> Keys:
    """Keys of the window, placed and not, in the forms that its distances ask for."""
    cap = cap_for(scheme, lm, k) if window_is_capped(lm) else None
    return Keys(placed, cap(k) if cap else None, v)


def starting_keys(k: Tensor, v: Tensor, places, scheme, lm: LMInfinite) -> Keys:
    """Keys of the first n_global tokens, not placed, in the forms that their distances ask for.

    places: where the scheme puts them, (S',), (B, S') or a range.
    """
    placed, cap = None, cap_for(scheme, lm, k)
    if starting_is_placed(lm):
        placed = scheme.at(as_tensor(places), k.dtype, k.device)(k)
    return Keys(placed, cap(k) if cap else None, v)


class Placed:
    """Keys (B, H_kv, S, D) at their positions, placed as they come into sight: a window of them
    that moves on and never back."""

    def __init__(self, scheme, k: Tensor, positions):
        self.scheme, self.k, self.positions = scheme, k, positions
        self.here, self.buffer = slice(0, 0), k[:, :, :0]
        self.window = self.buffer

    def __call__(self, keys: slice) -> Tensor:
        """The placed keys[first:stop]; those of the last call may be overwritten."""
        if self.scheme.has_bias:  # which places nothing
            return self.k[:, :, keys]
        fresh = slice(max(self.here.stop, keys.start), keys.stop)
        positions = as_tensor(cut(self.positions, fresh))
        place = self.scheme.at(positions, self.k.dtype, self.k.device)
        kept = self.window[:, :, keys.start - self.here.start :]
        n_kept, size = kept.shape[2], keys.stop - keys.start
        if size > self.buffer.shape[2] or n_kept > self.window.shape[2] - n_kept:
            self.buffer = self.k.new_empty(*self.k.shape[:2], size, self.k.shape[3])
        self.here, self.window = keys, self.buffer[:, :, :size]
        self.window[:, :, :n_kept] = kept
        n_kv_head = self.k.shape[1]
        # Of one head, all that is made on the way stays near a CPU.
        at_once = n_kv_head if self.k.is_cuda else 1
        for head in range(0, n_kv_head, at_once):
            some = slice(head, head + at_once)
            self.window[:, some, n_kept:] = place(self.k[:, some, fresh])
        return self.window

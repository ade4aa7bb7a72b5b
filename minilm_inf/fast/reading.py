"""The next tokens of texts whose past a cache keeps: what they see, worked out once for all
layers.

Which of four ways serves them is decided here, by positions and setting alone: one token that
sees all that is kept; all of the past; a band; or, for whatever else, chunks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .band import attend_all, attend_band, ceiling_parts, spare_columns
from .cache import Cache
from .chunk import Keys, attend_chunks
from .middle import Reach
from .one_token import OneToken, kept_columns


class Reading:
    """Attention for the next n_new tokens of each row of a cache.

    n_reaching: how many of the last of them reach back to the middle, where a layer does.
    learns: whether gradients will be asked for.
    """

    def __init__(
        self, cache: Cache, config, scheme, n_new: int, n_reaching: int, learns: bool, like
    ):
        self.cache, self.scheme, self.lm = cache, scheme, cache.lm
        scale = config.softmax_scale
        self.scale = 1 / math.sqrt(config.head_dim) if scale is None else float(scale)
        self.n_new, self.n_reaching, self.paddings = n_new, n_reaching, cache.paddings
        columns = None if learns or n_new > 1 else kept_columns(cache, scheme)
        self.one = None
        if columns is not None:
            position = torch.full((), cache.length, device=like.device)
            self.one = OneToken(cache, scheme, position, self.scale, columns)
            return
        lm, start = self.lm, cache.first_position + cache.length
        self.positions = torch.arange(start, start + n_new)
        self.place = scheme.at(self.positions, like.dtype, like.device)
        self.origin = cache.first_position
        if cache.padding is not None:
            self.origin = self.origin + cache.padding[:, None]
        fits = ceiling_parts(scheme, lm)
        padded = cache.padding is not None
        if padded and lm.n_local is not None:  # beyond the window no padding is seen
            told_apart = scheme.has_bias and lm.distance_ceiling is None
            furthest = max(lm.n_local, lm.distance_ceiling or 0)
            padded = told_apart or cache.shortest + 1 < furthest + lm.n_global
        self.in_all = fits and not padded and lm.n_local is None
        self.in_band = fits and not padded and not learns and lm.n_local is not None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Take in a layer's k, v (B, H_kv, T, D), not placed; what q (B, H, T, D) gathers."""
        cache, kept = self.cache, self.cache.layers[layer]
        if self.one is not None:
            if kept.middle:
                kept.middle.append(k, v)
            return self.one(layer, q, k, v, self.reach(kept))
        spare = 0
        if self.in_band:
            n_starting = min(self.lm.n_global, cache.shortest + self.n_new)
            spare = spare_columns(self.lm, max(n_starting, kept.starting_keys.shape[2]))
        keys, values = kept.extend(
            self.place(k), k, v, cache.length, self.paddings, self.scheme, spare
        )
        reach, some = self.reach(kept), slice(0, self.n_new - self.n_reaching)
        if reach is None:
            some = slice(0, self.n_new)
        window = keys[:, :, spare:], values
        if not some.stop:
            return self.chunks(q, slice(0, self.n_new), *window, kept, reach)
        if self.in_all:
            out = attend_all(self.place(q), *window, self.scheme, self.lm, self.scale)
        elif self.in_band:
            out = self.band(q, keys, values, kept)
        else:
            out = self.chunks(q, some, *window, kept)
        if reach is None:
            return out
        last = self.chunks(q, slice(some.stop, self.n_new), *window, kept, reach)
        return torch.cat((out[:, :, some], last), 2)

    def band(self, q: Tensor, keys: Tensor, values: Tensor, kept) -> Tensor:
        """By band.py. Where rows are padded, no query sees padding or feels its length any
        more: the shortest text stands for all."""
        exact = torch.float64 if q.dtype == torch.float64 else torch.float32
        starting, out = self.starting(kept), torch.empty_like(q)
        positions = starting.positions
        positions = positions.amax(0) if positions.dim() > 1 else positions
        starting = Keys(starting.k.to(exact), starting.v.to(exact), positions, starting.home)
        attend_band(
            q, self.place, keys.to(exact), values.to(exact), starting, int(self.positions[0]),
            self.scheme, self.lm, self.scale, out,
        )  # fmt: skip
        return out

    def chunks(self, q: Tensor, rows: slice, keys, values, kept, reach=None) -> Tensor:
        """By chunk.py: those rows of the queries."""
        newest = self.positions[-1]
        window = Keys(keys, values, torch.arange(newest + 1 - keys.shape[2], newest + 1))
        return attend_chunks(
            q[:, :, rows], self.positions[rows], window, self.starting(kept), self.scheme,
            self.lm, self.scale, self.origin, reach,
        )  # fmt: skip

    def starting(self, kept) -> Keys:
        """A layer's starting keys; those that a row has not read yet lie in its future."""
        k, v, ceiling = kept.starting_keys, kept.starting_values, self.lm.distance_ceiling
        positions = self.origin + torch.arange(k.shape[2])
        return Keys(k, v, positions, None if ceiling is None else -ceiling)

    def reach(self, kept) -> Reach | None:
        """How the last tokens reach back in a layer; None where they do not."""
        if kept.middle is None or not self.n_reaching:
            return None
        end = self.cache.length + self.n_new
        padding = 0 if self.cache.padding is None else self.cache.padding[:, None]
        return Reach(
            kept.middle, kept.lm, self.scheme,
            torch.arange(end - self.n_reaching, end) - padding,
            lambda columns: columns - padding, max(0, end - kept.lm.n_local), self.scale,
        )  # fmt: skip

"""The next tokens of texts whose past a cache keeps: what they see, worked out once for all
layers.

One token is a single product over all that is kept. More are a band, or, where the ceiling is
not the window, chunks; and so are those that reach back to the middle. Rows of different
lengths are read one by one, each without its padding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .band import attend_band, ceiling_is_the_window, spare_columns
from .cache import Cache
from .chunk import Found, How, Keys, attend_chunks
from .middle import Reach
from .one_token import OneToken, rings_of, starting_tokens_are_read


class Reading:
    """Attention for the next n_new tokens of each row of a cache.

    n_reaching: how many of the last of them reach back to the middle, where a layer does.
    """

    def __init__(self, cache: Cache, config, scheme, n_new: int, n_reaching: int, like: Tensor):
        scale = config.softmax_scale
        scale = 1 / math.sqrt(config.head_dim) if scale is None else float(scale)
        self.cache, self.how = cache, How(scheme, cache.lm, scale)
        self.n_new, self.n_reaching, self.end = n_new, n_reaching, cache.length + n_new
        self.is_band, self.one = ceiling_is_the_window(self.how), None
        # The rows that are read together, and their padding.
        self.rows = [
            (slice(row, row + 1), padding) for row, padding in enumerate(cache.padding)
        ]
        if len(set(cache.padding)) == 1:
            self.rows = [(slice(None), cache.padding[0])]
        has_begun = max(cache.padding) <= cache.length  # no row is padding still
        if n_new == 1 and self.is_band and has_begun and starting_tokens_are_read(cache):
            position = torch.full((), cache.length, device=like.device)
            rings = rings_of(cache, is_fixed=False)
            self.one = OneToken(cache, scheme, position, scale, rings, is_fixed=False)
            return
        columns = torch.arange(cache.length, self.end)
        self.place = scheme.at(columns + cache.first_position, like.dtype, like.device)
        self.place_home = self.place
        if self.how.home is not None:
            home = torch.tensor([self.how.home])
            self.place_home = scheme.at(home, like.dtype, like.device)
        self.is_padding = None
        if max(cache.padding) > cache.length:
            is_padding = columns < torch.tensor(cache.padding)[:, None]
            self.is_padding = is_padding[:, None, :, None].to(like.device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Take in a layer's k, v (B, H_kv, T, D), not placed; what q (B, H, T, D) gathers."""
        kept = self.cache.layers[layer]
        if kept.middle:
            kept.middle.append(k, v)
        if self.one:
            reaches = kept.middle and self.n_reaching
            found = [self.reach(kept, *row, 1).find(q[row[0]]) for row in self.rows if reaches]
            return self.one(layer, q, k, v, Found.of_rows(found))
        if self.is_padding is not None:  # what is masked in a later step must not be NaN
            k, v = (x.masked_fill(self.is_padding, 0) for x in (k, v))
        spare = self.spare(kept)
        window = kept.extend(
            self.place(k), self.place_home(k), v, self.cache.length, self.cache.padding, spare
        )
        out = torch.zeros_like(q)
        for rows, padding in self.rows:
            if padding < self.end:
                self.attend_rows(rows, padding, q, *window, kept, out)
        return out

    def spare(self, kept) -> int:
        """Columns before the window's keys, as band.py needs them."""
        longest, n_local = self.end - min(self.cache.padding), kept.lm.n_local
        return spare_columns(kept.columns(longest, 0)[1], min(self.end, n_local or self.end))

    def attend_rows(self, rows: slice, padding: int, q, keys, values, kept, out):
        """Write to out what the queries of some rows gather, which have the same padding."""
        first, end = self.cache.first_position, self.cache.first_position + self.end
        n = min(self.n_new, self.end - padding)  # new tokens that are text
        n_keys = min(values.shape[2], self.end - padding)
        spare = keys.shape[2] - values.shape[2]
        q, out = q[rows, :, -n:], out[rows, :, -n:]
        keys, values = keys[rows, :, -n_keys - spare :], values[rows, :, -n_keys:]
        window = Keys(keys[:, :, spare:], values, torch.arange(end - n_keys, end))
        starting = kept.starting_keys[rows], kept.starting_values[rows]
        positions = torch.arange(starting[0].shape[2]) + first + padding
        starting = Keys(*starting, positions, self.how.home)
        positions = torch.arange(end - n, end)

        n_reaching = min(n, self.n_reaching) if kept.middle else 0
        skipped = self.n_new - n

        def place(x: Tensor, here: slice) -> Tensor:
            return self.place(x, slice(skipped + here.start, skipped + here.stop))

        if n_reaching < n and self.is_band:
            attend_band(
                q, place, keys, values, starting, end - n, self.how, out,
            )  # fmt: skip
        elif n_reaching < n:
            out.copy_(attend_chunks(q, positions, window, starting, self.how))
        if n_reaching:
            back = slice(n - n_reaching, n)
            reach = self.reach(kept, rows, padding, n_reaching)
            out[:, :, back] = attend_chunks(
                q[:, :, back], positions[back], window, starting, self.how, reach
            )

    def reach(self, kept, rows: slice, padding: int, n_reaching: int) -> Reach:
        """How the last of the next tokens reach back to a layer's middle, by columns."""
        lm = kept.lm
        ends = torch.arange(self.end - n_reaching, self.end) - lm.n_local + 1
        return Reach(kept.middle, self.how, padding + lm.n_global, ends, rows)

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

from .band import Band, ceiling_is_the_window, spare_columns
from .cache import Cache
from .chunk import Found, Keys, attend_chunks
from .middle import Reach
from .one_token import OneToken, rings_of, serves


class Reading:
    """Attention for the next n_new tokens of each row of a cache.

    n_reaching: how many of the last of them reach back to the middle, where a layer does.
    """

    one: OneToken | None = None

    def __init__(self, cache: Cache, config, scheme, n_new: int, n_reaching: int, like: Tensor):
        self.cache, self.scheme, self.lm = cache, scheme, cache.lm
        scale = config.softmax_scale
        self.scale = 1 / math.sqrt(config.head_dim) if scale is None else float(scale)
        self.group = config.n_head // config.n_kv_head
        self.n_reaching, lm, paddings = n_reaching, cache.lm, cache.padding
        self.end = cache.length + n_new
        self.positions = torch.arange(cache.length, self.end) + cache.first_position
        self.is_padding = None
        if int(paddings.max()) > cache.length:  # in memory it must not be NaN
            columns = torch.arange(cache.length, self.end)
            self.is_padding = (columns < paddings[:, None])[:, None, :, None].to(like.device)
        if n_new == 1 and serves(cache, scheme):
            position = torch.full((), cache.length, device=like.device)
            rings = rings_of(cache, is_fixed=False)
            self.one = OneToken(cache, scheme, position, self.scale, rings, is_fixed=False)
        else:
            self.place = scheme.at(self.positions, like.dtype, like.device)
            if lm.distance_ceiling is not None:
                home = torch.tensor([-lm.distance_ceiling])
                self.place_home = scheme.at(home, like.dtype, like.device)
            past = cache.length if lm.n_local is None else min(cache.length, lm.n_local - 1)
            self.n_keys = past + n_new
            longest = self.end - int(paddings.min())
            self.n_starting = cache.layers[0].columns(longest, 0)[1]
            widest = min(self.n_keys, lm.n_local or self.n_keys)
            self.spare = spare_columns(self.n_starting, widest)
        rows = [(slice(None), int(paddings[0]))]
        if len(paddings.unique()) > 1:
            rows = [(slice(r, r + 1), padding) for r, padding in enumerate(paddings.tolist())]
        self.texts = [Text(self, *of_text, like) for of_text in rows]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Take in a layer's k, v (B, H_kv, T, D), not placed; what q (B, H, T, D) gathers."""
        kept = self.cache.layers[layer]
        if self.is_padding is not None:
            k, v = (x.masked_fill(self.is_padding, 0) for x in (k, v))
        if self.one:
            if not kept.middle:
                return self.one(layer, q, k, v)
            kept.middle.append(k, v)
            return self.one(layer, q, k, v, self.found(kept, q) if self.n_reaching else None)
        placed = self.place(k)
        home = placed if self.lm.distance_ceiling is None else self.place_home(k)
        window = kept.extend(
            placed, k, v, home, self.cache.length, self.cache.padding, self.spare
        )
        out = torch.zeros_like(q)
        for text in self.texts:
            text.attend(q, *window, kept, out)
        return out

    def found(self, kept, q: Tensor) -> Found:
        """The middle keys that come back to a layer's one query of each row."""
        found = [
            text.reach(kept, 1).find(q[text.rows], slice(None), self.scheme, self.scale)
            for text in self.texts
        ]
        return found[0] if len(found) == 1 else Found(*map(torch.cat, zip(*found)))


class Text:
    """The next tokens of one row, or of all rows where they are padded alike."""

    def __init__(self, reading: Reading, rows: slice, padding: int, like: Tensor):
        cache, lm = reading.cache, reading.lm
        self.reading, self.rows, self.padding = reading, rows, padding
        self.skipped = min(len(reading.positions), max(0, padding - cache.length))
        self.positions = reading.positions[self.skipped :]  # of the next tokens that are text
        self.band = None
        if reading.one or not len(self.positions):
            return
        oldest = max(padding, reading.end - reading.n_keys)
        self.n_keys = reading.end - oldest
        first = cache.first_position
        self.starting = torch.arange(reading.n_starting) + padding + first
        if ceiling_is_the_window(reading.scheme, lm):
            self.band = Band(
                reading.scheme, lm, reading.scale, self.place,
                range(int(self.positions[0]), first + reading.end), self.n_keys, self.starting,
                reading.spare, reading.group, like,
            )  # fmt: skip

    def place(self, x: Tensor, rows: slice) -> Tensor:
        """Some of the next tokens' queries, placed."""
        return self.reading.place(x, slice(self.skipped + rows.start, self.skipped + rows.stop))

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, kept, out: Tensor):
        """Write to out what the queries of these rows gather; arguments are of all rows."""
        reading, lm, n = self.reading, kept.lm, len(self.positions)
        if not n:
            return
        q, out = q[self.rows, :, self.skipped :], out[self.rows, :, self.skipped :]
        keys, values = keys[self.rows], values[self.rows, :, -self.n_keys :]
        ceiling = lm.distance_ceiling
        home = None if ceiling is None else -ceiling
        starting = kept.starting_keys[self.rows], kept.starting_values[self.rows]
        starting = Keys(*starting, self.starting, home)
        n_reaching = min(n, reading.n_reaching) if kept.middle else 0
        if self.band and n_reaching < n:
            exact = self.band.exact
            at_home = starting._replace(k=starting.k.to(exact), v=starting.v.to(exact))
            with_spare = keys[:, :, -self.n_keys - reading.spare :].to(exact)
            self.band(q, with_spare, values.to(exact), at_home, out)
        ends = torch.arange(self.n_keys) + int(self.positions[-1]) + 1 - self.n_keys
        window = Keys(keys[:, :, -self.n_keys :], values, ends)
        how = window, starting, reading.scheme, lm, reading.scale
        if not self.band and n_reaching < n:
            out.copy_(attend_chunks(q, self.positions, *how))
        if n_reaching:
            last = slice(n - n_reaching, n)
            reach = self.reach(kept, n_reaching)
            out[:, :, last] = attend_chunks(q[:, :, last], self.positions[last], *how, reach)

    def reach(self, kept, n_reaching: int) -> Reach:
        """How the last of the next tokens reach back to a layer's middle, by columns."""
        end = self.reading.end
        ends = torch.arange(end - n_reaching, end) - kept.lm.n_local + 1
        return Reach(kept.middle, kept.lm, self.padding + kept.lm.n_global, ends, self.rows)

"""The next tokens of texts whose past a cache keeps: what they see, worked out once for all
layers.

One token is one product over all that is kept. Its window is the ring, in any order, since each
key carries its position. After it stand the starting keys, moved for this very query from home
at -C to i - C, where a query at i finds each of them exactly C away. So one fused call over

    | ring: n_local keys | starting keys at i - C |

is the definition's softmax over the same keys, however long the text is. Padding, and starting
keys that are still in the window, a mask hides. More tokens are a band, or chunks where there
is none; rows of different lengths are then read one by one, each without its padding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .band import How, attend_band, fits_band, masked_bias, spare_columns
from .cache import Cache
from .chunk import attend_chunks
from .kernel import kernel_band, serves
from .middle import Found


class Reading:
    """Attention for the next n_new tokens of each row of a cache.

    n_reaching: how many of the last of them reach back to the middle, where a layer does.
    """

    def __init__(self, cache: Cache, config, scheme, n_new: int, n_reaching: int, like: Tensor):
        scale = config.softmax_scale
        scale = 1 / math.sqrt(config.head_dim) if scale is None else float(scale)
        self.cache, self.how = cache, How(scheme, cache.lm, scale)
        self.n_new, self.n_reaching, self.end = n_new, n_reaching, cache.length + n_new
        self.is_band, self.one = fits_band(self.how), None
        has_begun = max(cache.padding) <= cache.length  # no row is padding still
        if n_new == 1 and self.is_band and has_begun and starting_tokens_are_read(cache):
            position = torch.full((), cache.length, device=like.device)
            rings = rings_of(cache, is_fixed=False)
            self.one = OneToken(cache, scheme, position, scale, rings, is_fixed=False)
            return
        each = enumerate(cache.padding)  # rows that are read together, and their padding
        self.rows = [(slice(row, row + 1), padding) for row, padding in each]
        if len(set(cache.padding)) == 1:
            self.rows = [(slice(None), cache.padding[0])]
        columns = torch.arange(cache.length, self.end)
        homes = columns + cache.first_position, torch.tensor([self.how.home or 0])
        self.place, self.place_home = (scheme.at(x, like.dtype, like.device) for x in homes)
        if self.how.home is None:
            self.place_home = self.place
        if not self.is_band:  # then the definition, which serves instead, places the keys
            self.place = self.place_home = lambda x: x
        self.is_padding = None
        if not has_begun:
            is_padding = columns < torch.tensor(cache.padding)[:, None]
            self.is_padding = is_padding[:, None, :, None].to(like.device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Take in a layer's k, v (B, H_kv, T, D), not placed; what q (B, H, T, D) gathers."""
        kept, cache, found = self.cache.layers[layer], self.cache, None
        if kept.middle:
            kept.middle.append(k, v)
        if kept.middle and self.n_reaching:  # of the last query, if only to tell what came back
            firsts, left = cache.padding, self.end - cache.lm.n_local
            found = kept.middle.find(q[:, :, -1:], firsts, left, self.how)
        if self.one:
            return self.one(layer, q, k, v, found)
        if self.is_padding is not None:  # what is masked in a later step must not be NaN
            k, v = (x.masked_fill(self.is_padding, 0) for x in (k, v))
        new, out = (self.place(k), self.place_home(k), v), torch.zeros_like(q)
        spare = spare_columns(
            kept.n_starting(self.end - min(cache.padding)),
            min(self.end, cache.lm.n_local or self.end),
        )
        window = kept.extend(*new, cache.length, cache.padding, spare)
        for rows, padding in self.rows:
            n = min(self.n_new, self.end - padding)  # of text
            if n > 0:
                text = (x[rows, :, -n:] for x in (q, out))
                self.attend_text(*text, window[:, rows], spare, padding, rows, kept)
        return out

    def attend_text(self, q, out, window, spare: int, padding: int, rows: slice, kept):
        """Write to out what the queries of some rows gather, which have the same padding."""
        n, end = q.shape[2], self.end - padding  # from here on, positions are a text's own
        n_keys = min(window.shape[3] - spare, end)
        n_reaching = min(n, self.n_reaching) if kept.middle else 0
        keys, values = window[0, :, :, -n_keys - spare :], window[1, :, :, -n_keys:]
        starting, n_starting = kept.starting[:, rows], kept.starting.shape[3]
        if self.is_band and n_reaching < n:
            at_home, shift = (*starting, torch.arange(n_starting)), self.n_new - n
            read = kernel_band if q.is_cuda and serves(q) else attend_band
            read(q, self.place, shift, keys, values, at_home, end - n, self.how, out)
        n = n_reaching if self.is_band else n
        if n and kept.middle:
            k, v = (x[:, :, padding:] for x in kept.middle.all(rows))
            shown = torch.arange(end)
        elif n:  # of the starting keys, those that are not in the window
            left = min(n_starting, end - n_keys)
            k, v = torch.cat((starting[:, :, :, :left], window[..., -n_keys:, :]), 3)
            shown = torch.cat((torch.arange(left), torch.arange(end - n_keys, end)))
        if n:
            last = q[:, :, -n:], k, v, torch.arange(end - n, end), shown
            out[:, :, -n:] = attend_chunks(*last, self.how, n_reaching)


def starting_tokens_are_read(cache: Cache) -> bool:
    """Whether the next token of no row is a starting token, which a step would not keep."""
    return cache.lm.n_local is None or cache.shortest >= cache.lm.n_global


class OneToken:
    """What the next token of each row sees, for all layers.

    position: (), integer: the tokens that the cache has read, on its device.
    rings:    rings_of(cache, ...); with all columns that there will ever be, is_fixed, and a
              mask hides the empty ones.
    """

    def __init__(self, cache: Cache, scheme, position: Tensor, scale, rings, is_fixed: bool):
        lm, self.scale, self.rings = cache.lm, scale, rings
        like, starting = rings[0][1:]
        exact = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.turn = None
        if not scheme.has_bias:
            self.turn = scheme.matrix(position + cache.first_position, like.shape[-1], exact)
        self.slot = (position if lm.n_local is None else position % lm.n_local).view(1)
        self.moves = not (starting is None or self.turn is None or lm.distance_ceiling is None)
        if self.moves:
            after = torch.arange(lm.n_local, lm.n_local + lm.n_global, device=like.device)
            self.slots = torch.cat((self.slot, after))
        self.mask = None
        if is_fixed or scheme.has_bias or some_is_hidden(cache):
            self.mask = mask_of(cache, scheme, position, like)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, found=None) -> Tensor:
        """Take in a layer's new k, v (B, H_kv, 1, D), not placed; what q (B, H, 1, D) gathers.
        found: the middle keys that come back, if any."""
        keys, values, starting = self.rings[layer]
        if self.moves:
            keys.index_copy_(2, self.slots, self.place(torch.cat((k, starting), 2)))
        else:
            keys.index_copy_(2, self.slot, self.place(k))
        values.index_copy_(2, self.slot, v)
        if found is not None:
            return self.with_middle(q, keys, values, found)
        q, n_kv_head, mask = self.place(q), k.shape[1], self.mask
        group = q.shape[1] // n_kv_head
        if mask is not None:  # (.., H_kv, H / H_kv, S): the queries of a key head, in its rows
            by_head = mask.shape[1] > 1
            mask = mask.view(len(mask), n_kv_head, group, -1) if by_head else mask
        q = q.view(len(q), n_kv_head, group, q.shape[3])
        gathered = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, scale=self.scale
        )
        return gathered.reshape(len(q), n_kv_head * group, 1, -1)

    def with_middle(self, q: Tensor, keys: Tensor, values: Tensor, found: Found) -> Tensor:
        """The same with middle keys, each query head's own, under the same softmax."""
        exact = torch.float64 if q.dtype == torch.float64 else torch.float32
        n_kv_head, by_key_head = keys.shape[1], (len(q), keys.shape[1], -1, q.shape[3])
        asked = self.place(q.to(exact)).view(by_key_head)
        near = (asked @ keys.to(exact).mT).view(*q.shape[:3], -1) * self.scale
        near = near if self.mask is None else near + self.mask
        at_middle = found.logits.to(exact).masked_fill(~found.valid, torch.finfo(exact).min)
        weights = torch.cat((near, at_middle), -1).softmax(-1)
        near, at_middle = weights.split([keys.shape[2], found.logits.shape[3]], -1)
        gathered = torch.einsum("bhtk,bhtkd->bhtd", at_middle, found.v.to(exact))
        near = near.view(len(q), n_kv_head, -1, near.shape[-1]) @ values.to(exact)
        return (near.view(q.shape) + gathered).to(q.dtype)

    def place(self, x: Tensor) -> Tensor:
        """x at the query's position."""
        if self.turn is None or x.dtype == self.turn.dtype:
            return x if self.turn is None else x @ self.turn
        return (x.to(self.turn.dtype) @ self.turn).to(x.dtype)


def rings_of(cache: Cache, is_fixed: bool = True) -> list[tuple]:
    """Of each layer, what a step reads and writes: keys and values (B, H_kv, columns, D), and
    the starting keys (B, H_kv, n_global, D) to place again, None where none is seen.

    is_fixed: all columns that there will ever be, instead of those that are filled.
    """
    lm, rings = cache.lm, []
    for layer in cache.layers:
        if not is_fixed:
            layer.make_room(cache.length + 1, cache.shortest + 1)
        keys, values, starting = layer.parts
        if not is_fixed and (lm.n_local is None or cache.length < lm.n_local):
            filled = slice(0, cache.length + 1)
            keys, values, starting = keys[:, :, filled], values[:, :, filled], None
        rings.append((keys, values, starting if lm.n_global else None))
    return rings


def some_is_hidden(cache: Cache) -> bool:
    """Whether the next token of some row does not see all columns that are filled."""
    lm, end, shortest = cache.lm, cache.length + 1, cache.shortest + 1
    if lm.n_local is None or end <= lm.n_local:
        return shortest < end
    return shortest < lm.n_local + lm.n_global


def mask_of(cache: Cache, scheme, position: Tensor, like: Tensor) -> Tensor:
    """What is added to the logits of each column, the bias of its distance or the lowest number
    where it is hidden: (B, 1 or H, 1, columns)."""
    lm, device = cache.lm, like.device
    n_ring = like.shape[2] if lm.n_local is None else min(like.shape[2], lm.n_local)
    slots = torch.arange(n_ring, device=device)
    near = position - slots if lm.n_local is None else (position - slots) % lm.n_local
    padding = torch.tensor(cache.padding, device=device)[:, None]
    far = position - padding - torch.arange(like.shape[2] - n_ring, device=device)  # (B, G)
    seen = position - near >= padding
    if far.shape[1]:
        seen = torch.cat((seen, far >= lm.n_local), -1)
    d = torch.cat((near.expand(len(far), -1), far), -1)
    return masked_bias(scheme, lm, d[:, None], seen[:, None], like.dtype)

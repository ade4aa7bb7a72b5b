"""The next tokens of texts whose past a cache keeps: what they see, worked out once for all
layers.

One token is one product over all that is kept. Its window is the ring, in any order, since each
key carries its position. Before it stand the starting keys, moved for this very query from
home at -C to i - C, where a query at i finds each exactly C away. So one fused call over

    | starting keys at i - C | ring: n_local keys |

is the definition's softmax over the same keys, however long the text is. Padding, and starting
keys that are still in the window, a mask hides. More tokens are a band, or chunks where there
is none; rows of different lengths are then read one by one, each without its padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
            self.one = next_token(cache, scheme, cache.length, scale, like)
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
        if self.one and not kept.middle:
            return self.one(layer, q, k, v)
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


def next_token(cache: Cache, scheme, position: int | Tensor, scale: float, like: Tensor):
    """What the next token of each row sees: OneToken.

    position: how many tokens the cache has read. As an integer tensor () it makes a step whose
              shapes do not depend on it: the step passes over all columns that the cache has,
              after cache.settle, and a mask hides the empty ones.
    like:     a tensor of the cache's device and dtype.
    """
    lm, is_fixed, device = cache.lm, isinstance(position, Tensor), like.device
    if not is_fixed:
        cache.settle(cache.length + 1)
    rings = [layer.parts for layer in cache.layers]
    n_before = rings[0][2].shape[2]
    if not is_fixed and (lm.n_local is None or cache.length < lm.n_local):
        filled = slice(n_before, n_before + cache.length + 1)
        rings = [(k[:, :, filled], v[:, :, filled], None) for k, v, _ in rings]
        n_before = 0
    turn = mask = None
    if not scheme.has_bias:
        place = torch.as_tensor(position + cache.first_position, device=device)
        exact = torch.float64 if like.dtype == torch.float64 else torch.float32
        turn = scheme.matrix(place, cache.config.head_dim, exact)
    slot = position if lm.n_local is None else position % lm.n_local
    slots = slot = torch.as_tensor(n_before + slot, device=device).view(1)
    if n_before and turn is not None and lm.distance_ceiling is not None:
        slots = torch.cat((slot, torch.arange(n_before, device=device)))
    hides = is_fixed or some_is_hidden(cache)
    if hides or scheme.has_bias:
        mask = mask_of(cache, scheme, position, n_before, rings[0][0], hides)
        if mask.shape[1] > 1:
            mask = mask.view(len(mask), cache.config.n_kv_head, -1, mask.shape[3])
    return OneToken(turn, slot, slots, mask, scale, rings)


@dataclass
class OneToken:
    """What the next token of each row sees.

    turn:  what places a vector at its position (D, D), or None.
    slot:  where its key and value go (1,); slots: and after it where the starting keys go, if
           they are to be moved.
    mask:  what is added to the logits (B, H_kv, H / H_kv, columns), or None; it may be the
           same for all heads (B, 1, 1, columns).
    rings: of each layer, keys and values (B, H_kv, columns, D), which are written to, and the
           starting keys at home (B, H_kv, n_global, D).
    """

    turn: Tensor | None
    slot: Tensor
    slots: Tensor
    mask: Tensor | None
    scale: float
    rings: list[tuple]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, found=None) -> Tensor:
        """Take in a layer's new k, v (B, H_kv, 1, D), not placed; what q (B, H, 1, D) gathers.
        found: the middle keys that come back, if any."""
        keys, values, starting = self.rings[layer]
        k = k if self.slots.shape[0] == 1 else torch.cat((k, starting), 2)
        keys.index_copy_(2, self.slots, self.place(k))
        values.index_copy_(2, self.slot, v)
        if found is not None:
            return self.with_middle(q, keys, values, found)
        batch, n_kv_head, _, dim = v.shape
        asked = self.place(q).view(batch, n_kv_head, -1, dim)  # a key head's queries as rows
        gathered = F.scaled_dot_product_attention(
            asked, keys, values, attn_mask=self.mask, scale=self.scale
        )
        return gathered.reshape(q.shape)

    def with_middle(self, q: Tensor, keys: Tensor, values: Tensor, found: Found) -> Tensor:
        """The same with middle keys, each query head's own, under the same softmax."""
        exact = torch.float64 if q.dtype == torch.float64 else torch.float32
        n_kv_head = keys.shape[1]
        asked = self.place(q.to(exact)).view(len(q), n_kv_head, -1, q.shape[3])
        near = asked @ keys.to(exact).mT * self.scale
        near = (near if self.mask is None else near + self.mask).view(*q.shape[:3], -1)
        at_middle = found.logits.to(exact).masked_fill(~found.valid, torch.finfo(exact).min)
        weights = torch.cat((near, at_middle), -1).softmax(-1)
        near, at_middle = weights.split([keys.shape[2], found.logits.shape[3]], -1)
        gathered = torch.einsum("bhtk,bhtkd->bhtd", at_middle, found.v.to(exact))
        near = near.view(len(q), n_kv_head, -1, near.shape[-1]) @ values.to(exact)
        return (near.view(q.shape) + gathered).to(q.dtype)

    def place(self, x: Tensor) -> Tensor:
        """x at the token's position."""
        if self.turn is None or x.dtype == self.turn.dtype:
            return x if self.turn is None else x @ self.turn
        return (x.to(self.turn.dtype) @ self.turn).to(x.dtype)


def some_is_hidden(cache: Cache) -> bool:
    """Whether the next token of some row does not see all columns that are filled."""
    lm, end, shortest = cache.lm, cache.length + 1, cache.shortest + 1
    if lm.n_local is None or end <= lm.n_local:
        return shortest < end
    return shortest < lm.n_local + lm.n_global


def mask_of(
    cache: Cache, scheme, position: int | Tensor, n_before: int, like: Tensor, hides: bool
) -> Tensor:
    """What is added to the logits of each column, the bias of its distance or the lowest number
    where it is hidden: (B, 1 or H, 1, columns). n_before: how many columns are starting keys'.
    like: some keys. hides: whether there are hidden ones."""
    lm, device = cache.lm, like.device
    padding = torch.cat([torch.full((1, 1), n, device=device) for n in cache.padding])
    near = position - torch.arange(like.shape[2] - n_before, device=device)
    near = (near if lm.n_local is None else near % lm.n_local).expand(len(padding), -1)
    far = position - padding - torch.arange(n_before, device=device)  # (B, n_before)
    d, seen = torch.cat((far, near), -1)[:, None], None
    if hides:
        seen = torch.cat((far >= (lm.n_local or 0), near <= position - padding), -1)[:, None]
    return masked_bias(scheme, lm, d, seen, like.dtype)

"""One token at a time: the same attention for a chunk of one, in shapes that never change.

A decode step finds the window as the cache keeps it, a ring of n_local slots, and behind the
ring the starting keys, placed anew for this very query, so that each of them stands exactly
the ceiling away from it. So one product over n_local + n_global keys is the whole of the
attention, however long the text is; and since its position is a tensor and no number of
Python's, one compiled graph serves every step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import Cache
from .layer_cache import ring_and_starting


def has_fixed_shape(cache: Cache) -> bool:
    """Whether the next token can be taken here: the setting allows it, and every row's starting
    tokens have been read."""
    return ring_and_starting(cache.lm) and cache.shortest >= cache.lm.n_global


def sees_all(cache: Cache) -> bool:
    """Whether every row's window is full, and none of its starting keys is left in it."""
    return cache.shortest >= cache.lm.n_local + max(0, cache.lm.n_global - 1)


class OneToken:
    """What the next token of each row sees, for all layers.

    position: (), integer: the tokens that the cache has read, on its device.
    masked: whether something may be hidden: empty slots, padding, starting keys still in the
            window. Without it, sees_all must hold.
    """

    def __init__(self, cache: Cache, scheme, position: Tensor, masked: bool, rings=None):
        self.cache, lm = cache, cache.lm
        self.rings = cache.rings() if rings is None else rings
        like, at_ceiling = self.rings[0][1:]
        exact = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.turn = None
        if not scheme.has_bias:
            self.turn = scheme.matrix(position + cache.first_position, like.shape[-1], exact)
        self.slot = self.slots = (position % lm.n_local).view(1)
        self.anew = at_ceiling is not None and not scheme.has_bias
        if self.anew:
            self.slots = torch.cat((self.slot, cache.slots_behind))
        self.mask = self._mask(scheme, position, like) if masked or scheme.has_bias else None

    def _mask(self, scheme, position: Tensor, like: Tensor) -> Tensor:
        """What is added to the logits: (1 or B, 1 or H, 1, n_local + n_global)."""
        lm, device = self.cache.lm, like.device
        slots = torch.arange(lm.n_local, device=device)
        near = (position - slots) % lm.n_local
        far = position - torch.arange(lm.n_global, device=device)
        padding = self.cache.padding
        padding = position.new_zeros(1, 1) if padding is None else padding.to(device)[:, None]
        hidden = torch.cat(
            ((position - near < padding), (far - padding < lm.n_local)), -1
        )  # (1 or B, n_local + n_global)
        d = torch.cat((near.expand(len(padding), -1), far - padding), -1)
        exact = torch.float64 if like.dtype == torch.float64 else torch.float32
        bias = torch.zeros((), dtype=exact, device=device)
        if scheme.has_bias:
            if lm.distance_ceiling is not None:
                d = d.clamp(max=lm.distance_ceiling)
            bias = scheme.bias(d[:, None]).to(exact)  # (1 or B, H, 1, S)
        return torch.where(hidden[:, None, None], torch.finfo(like.dtype).min, bias).to(
            like.dtype
        )

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale) -> Tensor:
        """Take in a layer's new k, v (B, H_kv, 1, D); what q (B, H, 1, D) gathers."""
        keys, values, at_ceiling = self.rings[layer]
        if self.anew:
            k = torch.cat((k, at_ceiling), 2)
        keys.index_copy_(2, self.slots, self.place(k))
        values.index_copy_(2, self.slot, v)
        q, n_kv_head, mask = self.place(q), k.shape[1], self.mask
        group = q.shape[1] // n_kv_head
        if mask is not None:  # (.., H_kv, H / H_kv, S): the queries of a key head, in its rows
            by_head = mask.shape[1] > 1
            mask = mask.view(len(mask), n_kv_head, group, -1) if by_head else mask
        q = q.view(len(q), n_kv_head, group, q.shape[3])
        gathered = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)
        return gathered.reshape(len(q), n_kv_head * group, 1, -1)

    def place(self, x: Tensor) -> Tensor:
        """x at the query's position."""
        if self.turn is None:
            return x
        if x.dtype == self.turn.dtype:
            return x @ self.turn
        return (x.to(self.turn.dtype) @ self.turn).to(x.dtype)

"""What lies between the starting tokens and the window, for the heads that reach back to it.

All that was read is kept as it came, unplaced. A single query that reaches back scores what has
left the window, at the one distance that all of it seems to have, and takes the best k along:
see top_k.py, which is the definition. It scores keys in float32 first, whose error has a bound,
and in float64 only those that may still be among the best: the result is the same, key by key.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..terminal.blocks import Blocks
from ..top_k import largest, middle_bias, middle_queries
from .band import How

ROUNDING = 2.0**-21  # twice what a float32 product can be off by, and as much again


class Found(NamedTuple):
    """The middle keys that come back to one query of each row and head: their logits, in
    float64, values, columns, ascending, and which are keys at all, where there are fewer than
    k; (B, H, 1, k), the values (B, H, 1, k, D)."""

    logits: Tensor
    v: Tensor
    columns: Tensor
    valid: Tensor


class Middle(Blocks):
    """All keys and values of one layer, as they came. last: what the last search found."""

    def __init__(self, kind: str, shape: tuple[int, int, int], dtype, device):
        super().__init__(kind, shape, dtype, device)
        self.longest = torch.zeros(shape[:2], device=device)  # of each head, its longest key
        self.last: Found | None = None

    def append(self, k: Tensor, v: Tensor):
        """Take in the next tokens, unplaced, (B, H_kv, T, D) each."""
        super().append(k, v)
        self.longest = torch.maximum(self.longest, k.float().norm(dim=-1).amax(-1))

    def find(self, q: Tensor, padding: list[int], end: int, how: How) -> Found:
        """The k keys with the largest logits of one query of each row and head, (B, H, 1, D),
        not placed. A row's middle follows its starting tokens, and stands before `end`."""
        scheme, lm, scale = how
        asked, k = middle_queries(q, scheme, lm, scale), min(lm.top_k, self.length)
        start = min(min(padding) + lm.n_global, self.length - 1)
        columns = torch.arange(start, max(end, start + 1), device=q.device)
        firsts = torch.tensor(padding, device=q.device)[:, None, None, None] + lm.n_global
        candidates = (columns >= firsts) & (columns < end)  # (B, 1, 1, m)
        some = self._promising(asked.float(), k, columns, candidates)
        columns, candidates = columns[some], candidates[..., some]
        keys, values = self.at(columns)
        logits = scores(asked, keys.double())
        chosen = largest(logits, candidates.expand_as(logits), k)
        places = torch.where(chosen, torch.arange(len(columns), device=q.device), -1)
        places = F.pad(places, (k, 0), value=-1).topk(k).values.flip(-1)  # ascending
        valid, places = places >= 0, places.clamp(min=0)
        values = values.repeat_interleave(q.shape[1] // self.shape[1], 1)
        values = values[:, :, None].take_along_dim(places[..., None], 3)
        logits = logits.gather(-1, places) + middle_bias(scheme, lm, q.device)
        self.last = Found(logits, values, columns[places], valid)
        return self.last

    def _promising(self, asked: Tensor, k: int, columns: Tensor, candidates: Tensor) -> Tensor:
        """Which columns may hold one of the k best keys of any head, by logits in float32.

        Of D products and their sum, and of what float32 makes of the query, no logit is off by
        more than (D + 2) * 2^-24 times the lengths of query and key (Cauchy and Schwarz). A
        key that is further below the k-th best than twice that is not among the best.
        """
        blocks = (keys.to(asked.device).float() for keys in self.keys(columns))
        rough = torch.cat([scores(asked, keys) for keys in blocks], -1)  # (B, H, 1, m)
        rough = rough.masked_fill(~candidates, -torch.inf)
        longest = self.longest.repeat_interleave(asked.shape[1] // self.shape[1], 1)
        off = ROUNDING * (asked.shape[-1] + 2) * asked.norm(dim=-1) * longest[..., None]
        kth = F.pad(rough, (k, 0), value=-torch.inf).topk(k).values[..., -1:]
        may = ~(rough < kth - off[..., None])  # what is not a number may be anything
        some = (may & candidates).flatten(0, 2).any(0)
        some[0] = True  # that there be one, candidate or not
        return some.nonzero()[:, 0]


def scores(asked: Tensor, keys: Tensor) -> Tensor:
    """The logits of keys (B, H_kv, m, D): (B, H, 1, D) -> (B, H, 1, m)."""
    batch, n_head, _, head_dim = asked.shape
    by_key_head = asked.reshape(batch, keys.shape[1], n_head // keys.shape[1], head_dim)
    return (by_key_head @ keys.mT).view(batch, n_head, 1, keys.shape[2])

"""StreamingLLM (Xiao et al., ICLR 2024, arXiv 2309.17453): positions inside the cache.

It keeps the keys that LM-Infinite keeps, the first n_global and the last n_local, and differs
in one thing: distances are counted in the cache, not in the text (its section 3.2). The cache
holds the starting tokens, and right after them the window, the query's own key last. So a key
of the window is as far away as in the text; and a starting token g, once something has been
evicted, n_global + n_local - 1 - g away from every query. For a query at i that is one formula:

    distance to g = min(i, n_global + n_local - 1) - g

LM-Infinite puts all starting tokens at the ceiling instead: there they share one distance, here
each keeps one of its own.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..config import LMInfinite
from ..distance_ceiling import capped_logits
from ..lambda_mask import lambda_mask
from ..transformer import Transformer


class StreamingLLM:
    """One text, or several of the same length, read chunk by chunk as StreamingLLM does.

    There is no padding and nothing to learn. positions: of the keys that are kept between two
    chunks, (S,), which are those that the last token sees. kept: of each layer these keys, not
    placed, and their values, (2, B, H_kv, S, D).
    """

    def __init__(self, model: Transformer, n_local: int, n_global: int):
        self.model, self.lm, self.length = model, LMInfinite(n_local, n_global), 0
        self.positions = torch.arange(0, device=model.embed.weight.device)
        self.kept: list[Tensor | None] = [None] * len(model.blocks)

    def read(self, tokens: Tensor) -> Tensor:
        """Hidden states (B, T, E) of the next tokens (B, T), as Transformer.read gives them."""
        queries = self.length + torch.arange(tokens.shape[1], device=tokens.device)
        keys = torch.cat((self.positions, queries))
        attention = partial(self._attend, queries, keys)
        x = self.model.through(self.model.embed(tokens), attention)
        self.positions = keys[lambda_mask(queries[-1:], keys, self.lm)[0]]
        self.length += tokens.shape[1]
        return x

    def _attend(self, queries: Tensor, keys: Tensor, layer: int, q, k, v) -> Tensor:
        """What unplaced q (B, H, T, D) gathers; k, v (B, H_kv, T, D) are taken in. queries,
        keys: positions, (T,) and (S,)."""
        new, seen = torch.stack((k, v)), lambda_mask(queries, keys, self.lm)  # (T, S)
        if self.kept[layer] is not None:
            new = torch.cat((self.kept[layer], new), 3)
        self.kept[layer] = new[:, :, :, seen[-1]]
        exact = torch.float64 if q.dtype == torch.float64 else torch.float32
        k, v = new.to(exact).repeat_interleave(q.shape[1] // k.shape[1], 2)
        n_global, scale = self.lm.n_global, self.model.config.softmax_scale
        in_cache = queries.clamp(max=n_global + self.lm.n_local - 1)  # where each one stands
        how = self.model.scheme, None, scale or q.shape[-1] ** -0.5
        logits = [
            capped_logits(q.to(exact), k[:, :, some], at, keys[some], *how)
            for at, some in ((in_cache, slice(n_global)), (queries, slice(n_global, None)))
        ]
        weights = torch.cat(logits, -1).masked_fill(~seen, -torch.inf).softmax(-1)
        return (weights @ v).to(q.dtype)

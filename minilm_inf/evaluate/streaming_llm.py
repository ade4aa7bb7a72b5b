"""StreamingLLM (Xiao et al., ICLR 2024, arXiv 2309.17453): positions inside the cache.

It keeps the keys that LM-Infinite keeps, the first n_global and the last n_local, and differs
in one thing: distances are counted in the cache, not in the text (its section 3.2). The cache
holds the starting tokens, and right after them the window, the query's own key last. So a key
of the window is as far away as in the text; and a starting token g, once something has been
evicted, n_global + n_local - 1 - g away from every query. For a query at i that is one formula:

    distance to g = min(i, n_global + n_local - 1) - g

LM-Infinite puts all starting tokens at the ceiling instead: there they share one distance, here
each keeps one of its own. Keys are kept as they are placed once, since only distances matter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..transformer import Transformer


class StreamingLLM:
    """One text, or several of the same length, read chunk by chunk as StreamingLLM does.

    Only n_global + n_local keys of each layer are kept between two chunks. There is no padding
    and nothing to learn. starting, window: for each layer the keys, placed at their positions,
    and the values, each (B, H_kv, S, D).
    """

    def __init__(self, model: Transformer, n_local: int, n_global: int):
        self.model, self.n_local, self.n_global = model, n_local, n_global
        self.length = 0
        self.starting: list[tuple[Tensor, Tensor] | None] = [None] * len(model.blocks)
        self.window: list[tuple[Tensor, Tensor] | None] = [None] * len(model.blocks)

    def read(self, tokens: Tensor) -> Tensor:
        """Hidden states (B, T, E) of the next tokens (B, T), as Transformer.read gives them."""
        x, scheme = self.model.embed(tokens), self.model.scheme
        queries = torch.arange(self.length, self.length + tokens.shape[1], device="cpu")
        in_cache = queries.clamp(max=self.n_global + self.n_local - 1)  # where each one stands
        placing = [scheme.at(places, x.dtype, x.device) for places in (queries, in_cache)]
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        mask = self._mask(queries, in_cache).to(x.device, exact)
        for layer, block in enumerate(self.model.blocks):
            x = block(
                x, lambda q, k, v, layer=layer: self._attend(layer, q, k, v, *placing, mask)
            )
        self.length += tokens.shape[1]
        return self.model.norm(x)

    def _mask(self, queries: Tensor, in_cache: Tensor) -> Tensor:
        """What is added to the logits of starting tokens and window side by side, (T, S) or
        (H, T, S): the scheme's bias, and -inf where a query does not see a key."""
        first, end = int(queries[0]), int(queries[-1]) + 1
        window = torch.arange(max(0, first - self.n_local), end, device="cpu")
        starting = torch.arange(min(self.n_global, end), device="cpu")
        in_text = queries[:, None] - window
        is_seen = torch.cat((
            queries[:, None] - starting >= self.n_local,
            (in_text >= 0) & (in_text < self.n_local),
        ), 1)  # fmt: skip
        mask = torch.zeros(is_seen.shape, dtype=torch.float64, device="cpu")
        mask.masked_fill_(~is_seen, -torch.inf)
        distance = torch.cat((in_cache[:, None] - starting, in_text), 1)
        return mask + self.model.scheme.bias(distance)

    def _attend(self, layer: int, q, k, v, at_position, at_place, mask) -> Tensor:
        """What unplaced q (B, H, T, D) gathers, in one softmax over both runs; k, v
        (B, H_kv, T, D) are taken in."""
        new = at_position(k), v
        starting, window = (
            new if kept is None else tuple(torch.cat(x, 2) for x in zip(kept, new))
            for kept in (self.starting[layer], self.window[layer])
        )
        starting = tuple(x[:, :, : self.n_global].clone() for x in starting)
        self.starting[layer] = starting
        self.window[layer] = tuple(x[:, :, -self.n_local :].clone() for x in window)
        scale = self.model.config.softmax_scale or 1 / math.sqrt(q.shape[-1])
        group = q.shape[1] // k.shape[1]
        runs = (at_place(q), starting[0]), (at_position(q), window[0])
        logits = [(placed * scale) @ x.repeat_interleave(group, 1).mT for placed, x in runs]
        weights = (torch.cat(logits, -1).to(mask.dtype) + mask).softmax(-1)  # (B, H, T, S)
        values = torch.cat((starting[1], window[1]), 2).repeat_interleave(group, 1)
        return (weights @ values.to(mask.dtype)).to(q.dtype)

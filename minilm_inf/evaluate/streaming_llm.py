"""StreamingLLM (Xiao et al., ICLR 2024, arXiv 2309.17453): positions inside the cache.

It keeps the keys that LM-Infinite keeps, the first n_global and the last n_local, and differs
in one thing: distances are counted in the cache, not in the text (its section 3.2). The cache
holds

    the starting tokens, at the places 0 .. n_global - 1
    the window, right after them, the query's own key last, at n_global + n_local - 1

so a key of the window stands where it stands in the text, seen from the query; and a starting
token g, once something has been evicted, n_global + n_local - 1 - g away from every query. Up
to then the places are the text's own positions. For a query at i that is one formula:

    distance to g = min(i, n_global + n_local - 1) - g

LM-Infinite puts all starting tokens at the ceiling instead: there they share one distance, here
each keeps one of its own. The rest is the same Λ. Keys are kept as they are placed once, since
only distances matter; the paper's code places all of them again at every step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..transformer import Transformer


class StreamingLLM:
    """One text, or several of the same length, read chunk by chunk as StreamingLLM does.

    Only n_global + n_local keys of each layer are kept between two chunks. The kept window may
    be read by any number of queries at once; there is no padding and nothing to learn.

    starting, window: for each layer the keys, placed at their positions, and the values, each
    (B, H_kv, S, D).
    """

    def __init__(self, model: Transformer, n_local: int, n_global: int):
        self.model, self.n_local, self.n_global = model, n_local, n_global
        self.length = 0
        self.starting: list[tuple[Tensor, Tensor] | None] = [None] * len(model.blocks)
        self.window: list[tuple[Tensor, Tensor] | None] = [None] * len(model.blocks)

    def read(self, tokens: Tensor) -> Tensor:
        """Hidden states (B, T, E) of the next tokens (B, T), as Transformer.read gives them."""
        x = self.model.embed(tokens)
        step = Step(self, tokens.shape[1], like=x)
        for layer, block in enumerate(self.model.blocks):
            x = block(x, lambda q, k, v, layer=layer: self._attend(layer, step, q, k, v))
        self.length += tokens.shape[1]
        return self.model.norm(x)

    def _attend(self, layer: int, step: Step, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What unplaced q (B, H, T, D) gathers; k, v (B, H_kv, T, D) are taken in."""
        new = step.at_position(k), v
        starting, window = (
            new if kept is None else tuple(torch.cat(x, 2) for x in zip(kept, new))
            for kept in (self.starting[layer], self.window[layer])
        )
        starting = tuple(x[:, :, : self.n_global].clone() for x in starting)
        self.starting[layer] = starting
        self.window[layer] = tuple(x[:, :, -self.n_local :].clone() for x in window)
        return step.gather(q, starting, window, self.model.config.softmax_scale)


class Step:
    """What the queries of one chunk see and how far away, the same in every layer.

    past: a StreamingLLM that has not read them yet; n_new: how many they are; like: a tensor of
    the model's dtype and device.
    """

    def __init__(self, past: StreamingLLM, n_new: int, like: Tensor):
        scheme, n_local, first = past.model.scheme, past.n_local, past.length
        queries = torch.arange(first, first + n_new, device="cpu")
        window = torch.arange(max(0, first - n_local), first + n_new, device="cpu")
        starting = torch.arange(min(past.n_global, first + n_new), device="cpu")
        in_cache = queries.clamp(max=past.n_global + n_local - 1)  # where each query stands

        in_text = queries[:, None] - window
        is_seen = torch.cat(
            (queries[:, None] - starting >= n_local, (in_text >= 0) & (in_text < n_local)), 1
        )
        self.exact = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.mask = torch.zeros(is_seen.shape, dtype=torch.float64, device="cpu")
        self.mask.masked_fill_(~is_seen, -torch.inf)
        distance = torch.cat((in_cache[:, None] - starting, in_text), 1)
        self.mask = (self.mask + scheme.bias(distance)).to(like.device, self.exact)
        self.at_position = scheme.at(queries, like.dtype, like.device)
        self.at_place = scheme.at(in_cache, like.dtype, like.device)

    def gather(self, q: Tensor, starting, window, scale: float | None) -> Tensor:
        """One softmax over both runs: unplaced q (B, H, T, D) -> (B, H, T, D)."""
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        group = q.shape[1] // window[0].shape[1]
        runs = (self.at_place(q), starting[0]), (self.at_position(q), window[0])
        logits = [(placed * scale) @ k.repeat_interleave(group, 1).mT for placed, k in runs]
        weights = (torch.cat(logits, -1).to(self.exact) + self.mask).softmax(-1)  # (B, H, T, S)
        values = torch.cat((starting[1], window[1]), 2).repeat_interleave(group, 1)
        return (weights @ values.to(self.exact)).to(q.dtype)

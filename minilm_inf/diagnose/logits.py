"""Factors 1 and 2, and half of factor 3: what some rows of attention are made of.

A row is one query of one head. Its logits are those of the definition, distance_ceiling and
lambda_mask, from the q and k that the model itself computed; of each row is kept

    by distance     the largest |logit| of the keys in each bin of distances, true ones: a key
                    that is felt at the ceiling is still counted where it stands
    entropy         of the row's softmax, in nats
    bound           the largest |logit| of the row: B in Proposition 1, entropy >= ln n - 2B
    mass            the weight of the starting tokens in the softmax

so that all that is kept grows with the number of rows and bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import LMInfinite
from ..distance_ceiling import capped_logits
from ..lambda_mask import distances, lambda_mask

LOGITS_AT_ONCE = 1 << 24  # of all heads together; one row at least


class Rows:
    """The rows of some queries, for all layers of one reading of one text.

    q_positions: (T,) ascending. edges: of the bins of distances. n_starting: how many starting
    tokens `mass` counts. lm: what a row sees, which need not be what the model was read with:
    then the logits are those that its queries and keys would have.

    largest, highest: (N, H, bins), the largest |logit| and the largest logit of any row, by
        distance; -inf where no row sees a key.
    entropy, bound, mass: (N, H, T).
    """

    def __init__(
        self, model, q_positions: Tensor, edges: list[int], n_starting: int, lm: LMInfinite
    ):
        self.q_positions, self.n_starting, self.lm = q_positions, n_starting, lm
        self.scheme, self.scale = model.scheme, scale_of(model.config)
        self.edges = torch.tensor(edges[1:-1])
        layers, heads, rows = model.config.n_layer, model.config.n_head, len(q_positions)
        lowest = torch.full((layers, heads, len(edges) - 1), -math.inf, dtype=torch.float64)
        self.largest, self.highest = lowest, lowest.clone()
        kept = [torch.zeros(layers, heads, rows, dtype=torch.float64) for _ in range(3)]
        self.entropy, self.bound, self.mass = kept

    @property
    def visible(self) -> Tensor:
        """How many keys each row sees: (T,)."""
        return torch.tensor([self.lm.visible(i + 1) for i in self.q_positions.tolist()])

    def take(self, layer: int, q: Tensor, k: Tensor):
        """Take in the rows of one layer, from all its q and k: (1, H, n, D), (1, H_kv, n, D),
        not placed."""
        exact = torch.float64 if q.dtype == torch.float64 else torch.float32
        n_keys = int(self.q_positions[-1]) + 1
        k = k[:, :, :n_keys].to(exact).repeat_interleave(q.shape[1] // k.shape[1], 1)
        k_positions = torch.arange(n_keys, device=q.device)
        size = max(1, LOGITS_AT_ONCE // (q.shape[1] * n_keys))
        for start in range(0, len(self.q_positions), size):
            rows = slice(start, start + size)
            at = self.q_positions[rows].to(q.device)
            here = q[:, :, at].to(exact)
            ceiling = self.lm.distance_ceiling
            logits = capped_logits(
                here, k, at, k_positions, self.scheme, ceiling, self.scale
            )  # (1, H, T, S)
            visible = lambda_mask(at, k_positions, self.lm)
            self._take(layer, rows, logits[0], visible, distances(at, k_positions))

    def _take(self, layer: int, rows: slice, logits: Tensor, visible: Tensor, d: Tensor):
        """logits (H, T, S), visible and true distances (T, S)."""
        logits = logits.masked_fill(~visible, -math.inf)
        size = logits.abs().masked_fill(~visible, -math.inf)
        bins = torch.bucketize(d.clamp(min=0), self.edges.to(d.device), right=True)
        for kept, numbers in ((self.largest, size), (self.highest, logits)):
            found = numbers.new_full((*numbers.shape[:2], kept.shape[-1]), -math.inf)
            found.scatter_reduce_(-1, bins.expand_as(numbers), numbers, "amax")
            kept[layer] = torch.maximum(kept[layer], found.amax(1).double().cpu())
        weights = logits.softmax(-1)
        self.bound[layer][:, rows] = size.amax(-1).double().cpu()
        self.entropy[layer][:, rows] = torch.special.entr(weights).sum(-1).double().cpu()
        self.mass[layer][:, rows] = weights[..., : self.n_starting].sum(-1).double().cpu()


def scale_of(config) -> float:
    """What logits are multiplied with: 1 / sqrt(D) where the model has none of its own."""
    return config.head_dim**-0.5 if config.softmax_scale is None else config.softmax_scale

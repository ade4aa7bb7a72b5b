"""What passes through a model while it reads, shown from outside, and what rows of attention
are made of: `entropy_and_logits` for a text and a setting.

The core knows no hooks; PyTorch's own are put on the blocks by `recording`, and taken off
again. Each block is called with (x, attention): before the call the attention is exchanged for
one that first shows its q and k, and after it the block's output is shown. Nothing is changed,
so the reading is the same with and without.

`Rows` takes in such q and k. A row is one query of one head; its logits are those of the
definition, distance_ceiling and lambda_mask. All that is kept grows with the number of rows.
"""

from __future__ import annotations

import contextlib
import math
from functools import partial

import torch
from torch import Tensor

from ..config import FULL_ATTENTION, LMInfinite
from ..distance_ceiling import capped_logits
from ..lambda_mask import distances, lambda_mask
from ..transformer import Transformer

LOGITS_AT_ONCE = 1 << 24  # of all heads together; one row at least


@contextlib.contextmanager
def recording(model: Transformer, on_attention, on_hidden=lambda layer, x: None):
    """While it lasts, every layer of every reading calls both functions.

    on_attention: (layer, q, k), unplaced, (B, H, T, D) and (B, H_kv, T, D), before the layer
        uses them.
    on_hidden: (layer, x), (B, T, E), what the layer gives to the next.
    """

    def before(layer, block, arguments):
        x, attention = arguments

        def shown(q, k, v):
            on_attention(layer, q, k)
            return attention(q, k, v)

        return x, shown

    def after(layer, block, arguments, x):
        on_hidden(layer, x)

    with contextlib.ExitStack() as hooks:
        for layer, block in enumerate(model.blocks):
            hooks.enter_context(block.register_forward_pre_hook(partial(before, layer)))
            hooks.enter_context(block.register_forward_hook(partial(after, layer)))
        yield


@torch.inference_mode()
def entropy_and_logits(
    model, ids: list[int], q_positions: Tensor, lm=None, as_if=None, edges=(), n_starting=0
) -> Rows:
    """The Rows of some queries of a text that is read with lm, as they are, or as they would be
    with another setting, `as_if`. edges: where bins of distances end, within the text."""
    seen = as_if or lm or FULL_ATTENTION
    rows = Rows(model, q_positions, [0, *edges, len(ids)], n_starting, seen)
    with recording(model, rows.take):
        model.read(torch.tensor([ids], device=model.embed.weight.device), lm)
    return rows


class Rows:
    """The rows of some queries, for all layers of one reading of one text.

    q_positions: (T,) ascending. edges: of the bins of distances. n_starting: how many starting
    tokens `mass` counts. lm: what a row sees, which need not be what the model was read with:
    then the logits are those that its queries and keys would have.

    highest, largest: (N, H, bins), the highest logit and the largest |logit| of any row by true
        distance: a key that seems to stand at the ceiling still counts where it is; -inf where
        no row sees a key.
    entropy, bound, mass: (N, H, T), of a row's softmax the entropy in nats; the row's largest
        |logit|, which is B in Proposition 1: entropy >= ln n - 2B; and the weight of the
        starting tokens.
    """

    def __init__(
        self, model, q_positions: Tensor, edges: list[int], n_starting: int, lm: LMInfinite
    ):
        config = model.config
        self.q_positions, self.n_starting, self.lm = q_positions, n_starting, lm
        self.scheme, self.scale = model.scheme, config.softmax_scale or config.head_dim**-0.5
        self.edges = torch.tensor(edges[1:-1])
        each = config.n_layer, config.n_head
        bins = torch.full((2, *each, len(edges) - 1), -math.inf, dtype=torch.float64)
        self.highest, self.largest = bins
        kept = torch.zeros(3, *each, len(q_positions), dtype=torch.float64)
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
        size = max(1, LOGITS_AT_ONCE // (q.shape[1] * n_keys))
        for start in range(0, len(self.q_positions), size):
            rows = slice(start, start + size)
            self._take(layer, rows, q[:, :, self.q_positions[rows].to(q.device)].to(exact), k)

    def _take(self, layer: int, rows: slice, q: Tensor, k: Tensor):
        """Some of the rows: q (1, H, T, D), k (1, H, S, D)."""
        at, k_at = self.q_positions[rows].to(q.device), torch.arange(k.shape[2]).to(q.device)
        ceiling = self.lm.distance_ceiling
        logits = capped_logits(q, k, at, k_at, self.scheme, ceiling, self.scale)[0]  # (H, T, S)
        unseen = ~lambda_mask(at, k_at, self.lm)
        logits = logits.masked_fill(unseen, -math.inf)
        d = distances(at, k_at).clamp(min=0)
        bins = torch.bucketize(d, self.edges.to(q.device), right=True)  # (T, S)
        weights, size = logits.softmax(-1), logits.abs().masked_fill(unseen, -math.inf)
        for kept, values in ((self.highest, logits), (self.largest, size)):
            found = values.new_full((*values.shape[:2], kept.shape[-1]), -math.inf)
            found.scatter_reduce_(-1, bins.expand_as(values), values, "amax")
            kept[layer] = kept[layer].maximum(found.amax(1).double().cpu())
        self.bound[layer][:, rows] = size.amax(-1).double().cpu()
        self.entropy[layer][:, rows] = torch.special.entr(weights).sum(-1).double().cpu()
        self.mass[layer][:, rows] = weights[..., : self.n_starting].sum(-1).double().cpu()

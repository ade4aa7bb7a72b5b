"""The same function as attention.attend in O(n): each chunk of queries meets only what it can
see.

A chunk of queries sees two runs of keys: the window, which ends at the chunk, and the first
n_global keys, once they have left the window. Each run is one product of its own, because the
two stand at different distances: the window at its true ones, the starting keys at the ceiling.
The two softmaxes are then joined exactly by their log-sum-exp. In the same way a run that is
longer than a block (without a window: all of the past) is read block by block.

Which keys, which masks and which angles is worked out once, and used by every layer: see
sight.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import check_shapes
from .config import FULL_ATTENTION, LMInfinite
from .distance_ceiling import place_fixed
from .sight import (
    Chunk,
    Part,
    Sight,
    as_tensor,
    starting_run,
    window_is_capped,
)

# PyTorch's fused attention that also returns the log-sum-exp. It passes no gradient
# back through that, so training, and machines without it, use plain products.
FUSED = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
FUSED = FUSED and FUSED.default


class Keys(NamedTuple):
    """A run of keys in the places where queries find them, and their values.

    placed: at their own positions, for a query at its own.
    capped: all at position -ceiling, for a query at position 0, which is one not placed at all:
        to it, each of them stands exactly the ceiling away.
    Each is (B, H_kv, S, D); one that no distance of this run asks for is None.
    """

    placed: Tensor | None
    capped: Tensor | None
    values: Tensor


def chunked_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_positions: Tensor,
    k_positions: Tensor,
    scheme,
    lm: LMInfinite | None,
    scale: float | None = None,
) -> Tensor:
    """attention.attend's numbers in O(n) time and O(chunk + n_local + n_global) working memory.

    Arguments, result and errors are attend's; beyond them, positions must ascend in each row
    (gaps are fine), or ValueError. With n_local=None the time is O(n^2), and n x n is still
    never built.
    """
    check_shapes(q, k, v, q_positions, k_positions)
    lm = lm or FULL_ATTENTION
    q_positions, k_positions = q_positions.cpu().long(), k_positions.cpu().long()
    for name, positions in (("q_positions", q_positions), ("k_positions", k_positions)):
        if (positions.diff(dim=-1) <= 0).any():
            raise ValueError(f"{name} must ascend in each row; attend takes them in any order")

    starting_positions, pick = starting_run(k_positions, lm)
    window, starting = make_runs(
        scheme.at(k_positions, k.dtype, k.device)(k), k, v, pick, cap_for(scheme, lm, k), lm
    )
    heads = q.shape[1], k.shape[1]
    attention = ChunkedAttention(
        q_positions, k_positions, starting_positions, scheme, lm, heads, like=q
    )
    return attention(q, window, starting, scale)


def cap_for(scheme, lm: LMInfinite, like: Tensor):
    """The function that makes Keys.capped of unplaced keys; None without a ceiling."""
    if lm.distance_ceiling is None:
        return None
    return place_fixed(scheme, -lm.distance_ceiling, like.dtype, like.device)


def make_runs(
    placed: Tensor, k: Tensor, v: Tensor, pick, cap, lm: LMInfinite
) -> tuple[Keys, Keys]:
    """Window and starting keys of a text that is there as a whole; `pick` is starting_run's."""
    window = Keys(placed, cap(k) if window_is_capped(lm) else None, v)
    starting = Keys(pick(placed), cap(pick(k)) if cap else None, pick(v))
    return window, starting


class ChunkedAttention:
    """Attention of queries at some positions, for any number of layers.

    The positions are Sight's; `like` is a tensor of the model's dtype and device. places: the
    positions that the scheme sees, if others: all of a row may be moved by the same number,
    which no logit depends on.
    """

    def __init__(
        self, q_positions, k_positions, starting_positions, scheme, lm, heads, like, places=None
    ):
        self.exact = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.sight = Sight(
            q_positions, k_positions, starting_positions, scheme, lm, heads, self.exact,
            like.device,
        )  # fmt: skip
        self.fused = FUSED if like.device.type == "cpu" else None
        places = as_tensor(q_positions if places is None else places)
        self.place = scheme.at(places, like.dtype, like.device)

    def __call__(self, q: Tensor, window: Keys, starting: Keys, scale: float | None) -> Tensor:
        """What each query (B, H, T, D), not yet placed, gathers from both runs."""
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        if self.sight.is_vanilla:
            k, v = window.placed, window.values
            grouped = self.sight.heads[0] != self.sight.heads[1]
            if grouped and q.device.type != "cpu":  # there not every fused kernel knows groups
                k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
                grouped = False
            return F.scaled_dot_product_attention(
                self.place(q), k, v, is_causal=True, scale=scale, enable_gqa=grouped
            )
        runs = {"window": window, "starting": starting}
        unplaced = q.to(self.exact)
        placed = self.place(unplaced)
        plan = self.sight.plan
        if plan is not None and len(plan) == 1:  # one chunk, as in every decode step
            return self._attend_chunk(plan[0], placed, unplaced, runs, scale).to(q.dtype)
        out = torch.empty_like(q)
        for chunk in self.sight.chunks():
            here = chunk.queries
            pieces = placed[:, :, here], unplaced[:, :, here]
            out[:, :, here] = self._attend_chunk(chunk, *pieces, runs, scale).to(q.dtype)
        return out

    def _attend_chunk(self, chunk: Chunk, placed, unplaced, runs, scale: float) -> Tensor:
        """One chunk's queries, (B, H, T, D) placed at their positions and not placed."""
        shape = placed.shape
        placed, unplaced = self._by_key_head(placed), self._by_key_head(unplaced)
        seen = [
            self._gather(part, placed, unplaced, runs[part.run], scale) for part in chunk.parts
        ]
        if not seen:
            return placed.new_zeros(shape)
        out = join(seen).view(shape)
        return out if chunk.blind is None else out.masked_fill(chunk.blind, 0)

    def _by_key_head(self, q: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, H_kv, H / H_kv * T, D): together what shares a key head."""
        return q.reshape(q.shape[0], self.sight.heads[1], -1, q.shape[-1])

    def _gather(self, part: Part, placed, unplaced, keys: Keys, scale: float):
        """One softmax over a part: the weighted values (B, H_kv, H / H_kv * T, D), and the log
        of the softmax's sum (B, H_kv, H / H_kv * T)."""
        values = self._piece(keys.values, part)
        if part.beyond is None:
            q, k = (unplaced, keys.capped) if part.capped else (placed, keys.placed)
            k = self._piece(k, part)
            if self.fused and not (q.requires_grad or k.requires_grad or values.requires_grad):
                return self.fused(q, k, values, attn_mask=part.mask, scale=scale)
            logits = (q * scale) @ k.mT
        else:
            capped = (unplaced * scale) @ self._piece(keys.capped, part).mT
            logits = (placed * scale) @ self._piece(keys.placed, part).mT
            logits = torch.where(part.beyond, capped, logits)
        if part.mask is not None:
            logits = logits + part.mask
        return logits.softmax(-1) @ values, logits.logsumexp(-1)

    def _piece(self, x: Tensor, part: Part) -> Tensor:
        """A part's piece of a run's tensor, in the dtype of the softmax: (B, H_kv, S, D)."""
        x = x if part.keys is None else x[:, :, part.keys]
        x = x if x.dtype == self.exact else x.to(self.exact)
        return x if part.blank is None else x.masked_fill(part.blank, 0)


def join(seen: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Softmaxes over different keys as one softmax over all of them, exactly.

    Each is its weighted values (..., D) and the log of its sum (...); each one's share of the
    whole is its sum's share of all sums.
    """
    values, log_sum = seen[0]
    for number, (other, other_log_sum) in enumerate(seen[1:], 2):
        share = (log_sum - other_log_sum).sigmoid().unsqueeze(-1)
        values = other.lerp(values, share)
        if number < len(seen):
            log_sum = torch.logaddexp(log_sum, other_log_sum)
    return values

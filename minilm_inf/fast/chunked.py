"""The same function as attention.attend in O(n): each chunk of queries meets only what it can
see.

A chunk of queries sees two runs of keys: the window, which ends at the chunk, and the first
n_global keys, once they have left the window. Each run is one product of its own, because the
two stand at different distances: the window at its true ones, the starting keys at the ceiling.
The two softmaxes are then joined exactly by their log-sum-exp. In the same way a run that is
longer than a block (without a window: all of the past) is read block by block.

Which keys, which masks and which angles is worked out once, and used by every layer: see
sight.py. What comes back of the middle is a softmax of its own, joined in the same way: see
middle.py. Of a long text that is its beginning only, and whatever has gaps, padding, biases or
gradients; its middle, where every query has a whole window behind it, is band.py's.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import check_shapes
from .band import FUSED, Band
from .config import FULL_ATTENTION, LMInfinite
from .keys import Keys, Placed, starting_keys, window_keys
from .middle import Middle, Reach
from .sight import (
    Chunk,
    Part,
    Sight,
    as_range,
    as_tensor,
    cut,
    length_of,
    starting_run,
    window_is_capped,
)
from .triangles import Triangles

# What is made for one stretch of a long text is made anew for the next. A GPU needs more work
# at a time than a CPU.
QUERIES_PER_STRETCH = 1536
QUERIES_PER_STRETCH_OF_GPU = 8192


def chunked_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_positions: Tensor,
    k_positions: Tensor,
    scheme,
    lm: LMInfinite | None,
    scale: float | None = None,
    n_reaching: int | None = None,
) -> Tensor:
    """attention.attend's numbers in O(n) time and O(chunk + n_local + n_global) working memory.

    Arguments, result and errors are attend's; beyond them, positions must ascend in each row
    (gaps are fine), or ValueError. With n_local=None the time is O(n^2), and n x n is still
    never built.
    """
    check_shapes(q, k, v, q_positions, k_positions)
    lm = lm or FULL_ATTENTION
    q_positions, k_positions = (as_range(x.cpu().long()) for x in (q_positions, k_positions))
    for name, positions in (("q_positions", q_positions), ("k_positions", k_positions)):
        if isinstance(positions, Tensor) and (positions.diff(dim=-1) <= 0).any():
            raise ValueError(f"{name} must ascend in each row; attend takes them in any order")

    starting_positions, pick = starting_run(k_positions, lm)
    starting = starting_keys(pick(k), pick(v), starting_positions, scheme, lm)
    heads, out = (q.shape[1], k.shape[1]), torch.empty_like(q)
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    placed = Placed(scheme, k, k_positions)
    for queries, keys in stretches(q_positions, k_positions, lm, learns, at_once(lm, q.device)):
        attention = ChunkedAttention(
            cut(q_positions, queries), cut(k_positions, keys), starting_positions, scheme, lm,
            heads, like=q, learns=learns,
        )  # fmt: skip
        window = window_keys(placed(keys), k[:, :, keys], v[:, :, keys], scheme, lm)
        attention(q[:, :, queries], window, starting, scale, out[:, :, queries])

    n_reaching = lm.reaching(q.shape[2]) if n_reaching is None else n_reaching
    if lm.top_k and n_reaching:
        back = slice(q.shape[2] - n_reaching, q.shape[2])
        attention = ChunkedAttention(
            cut(q_positions, back), k_positions, starting_positions, scheme, lm, heads, like=q,
            learns=learns, reaches=True,
        )  # fmt: skip
        window = window_keys(scheme.place(k, as_tensor(k_positions)), k, v, scheme, lm)
        positions = as_tensor(k_positions)
        reach = Reach(
            Middle.of(k, v), lm, scheme, as_tensor(cut(q_positions, back)),
            lambda columns: positions[..., columns], k.shape[2],
        )  # fmt: skip
        attention(q[:, :, back], window, starting, scale, out[:, :, back], reach)
    return out


def at_once(lm: LMInfinite, device: torch.device) -> int:
    """How many queries of a long text are worked on together: on a GPU, whole windows."""
    if device.type != "cuda":
        return QUERIES_PER_STRETCH
    return max(1, QUERIES_PER_STRETCH_OF_GPU // lm.n_local) * lm.n_local if lm.n_local else 1


def stretches(q_positions, k_positions, lm: LMInfinite, learns: bool, size: int):
    """Cut a long text of consecutive positions: slices of the queries, and of the keys that any
    of them has in its window. What is made for one stretch does not grow with the text."""
    consecutive = isinstance(q_positions, range) and isinstance(k_positions, range)
    if learns or lm.n_local is None or not consecutive:
        yield slice(0, length_of(q_positions)), slice(0, length_of(k_positions))
        return
    size = -(-lm.n_local // size) * size
    for start in range(0, max(len(q_positions), 1), size):
        here = q_positions[start : start + size]
        first = max(0, here.start - lm.n_local - k_positions.start)
        stop = max(first, min(here.stop - k_positions.start, len(k_positions)))
        yield slice(start, start + len(here)), slice(first, stop)


class ChunkedAttention:
    """Attention of queries at some positions, for any number of layers.

    The positions are Sight's; `like` is a tensor of the model's dtype and device. places: the
    positions that the scheme sees, if others: all of a row may be moved by the same number,
    which no logit depends on. learns: whether gradients will be asked for. reaches: whether
    they reach back to the middle, in at least one layer.

    Queries of a text of consecutive positions that have a whole window behind them are the
    middle of the Λ, which band.py computes; Sight works out what the others see.
    """

    def __init__(
        self, q_positions, k_positions, starting_positions, scheme, lm, heads, like,
        places=None, learns=False, reaches=False,
    ):  # fmt: skip
        q_positions, k_positions = as_range(q_positions), as_range(k_positions)
        starting_positions = as_range(starting_positions)
        runs = q_positions, k_positions, starting_positions
        self.lm, self.runs = lm, runs
        places = as_tensor(q_positions if places is None else places)
        self.place = scheme.at(places, like.dtype, like.device)
        n_queries = length_of(q_positions)
        general = learns or reaches or scheme.has_bias
        self.early = n_queries if general else early(*runs, lm)
        n_keys = length_of(k_positions) - (n_queries - self.early)
        q_positions = cut(q_positions, slice(0, self.early))
        k_positions = cut(k_positions, slice(0, n_keys))
        self.exact = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.sight = Sight(
            q_positions, k_positions, starting_positions, scheme, lm, heads, self.exact,
            like.device,
        )  # fmt: skip
        self.fused = FUSED if like.device.type == "cpu" and not learns else None

    def __call__(
        self,
        q: Tensor,
        window: Keys,
        starting: Keys,
        scale: float | None,
        out=None,
        reach: Reach | None = None,
    ) -> Tensor:
        """What each query (B, H, T, D), not yet placed, gathers from both runs, and from the
        middle, if there is a reach; in `out`, if there is one."""
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        length = q.shape[2]
        if self.early == length and out is None:
            return self._attend_early(q, window, starting, scale, reach)
        out = torch.empty_like(q) if out is None else out
        if self.early:
            n_keys = window.values.shape[2] - (length - self.early)
            first = Keys(*(x if x is None else x[:, :, :n_keys] for x in window))
            out[:, :, : self.early] = self._attend_early(
                q[:, :, : self.early], first, starting, scale, reach
            )
        size = at_once(self.lm, q.device)
        for start in range(self.early, length, size):
            here = slice(start, min(start + size, length))
            self._attend_band(here, q[:, :, here], window, starting, scale, out[:, :, here])
        return out

    def _attend_band(self, here: slice, q, window: Keys, starting: Keys, scale: float, out):
        """Write what some queries gather, which have a whole window behind them, to out."""
        n_keys, n_local = window.values.shape[2], self.lm.n_local
        behind = n_keys - length_of(self.runs[0])  # keys before the first query's own
        keys = slice(behind + here.start - n_local, behind + here.stop)
        # The fused kernels of a GPU know no float64, and keep their sums in float32 themselves.
        fused = q.device.type == "cuda" and q.dtype != torch.float64
        kind, dtype = (Triangles, q.dtype) if fused else (Band, self.exact)
        k, v = (x[:, :, keys].to(dtype) for x in (window.placed, window.values))
        capped, found = starting.capped is not None, None
        if starting.values.shape[2]:
            found = starting.capped if capped else starting.placed
            found = found.to(dtype), starting.values.to(dtype)
        n_near = self.lm.n_global - 1 - (self.runs[0][here.start] - n_local)
        attend = kind(self.place, found, capped, n_local, scale)
        attend(q.to(dtype), k, v, here.start, n_near, out)

    def _attend_early(self, q, window: Keys, starting: Keys, scale: float, reach) -> Tensor:
        """What the queries gather that have no whole window behind them, or need masks."""
        if self.sight.is_vanilla and reach is None:
            k, v = window.placed, window.values
            grouped = self.sight.heads[0] != self.sight.heads[1]
            if grouped and q.device.type != "cpu":  # there not every fused kernel knows groups
                k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
                grouped = False
            q = self.place(q, slice(0, self.early))
            if scale == 0:  # which PyTorch's causal kernels answer with NaN
                q, scale = 0 * q, 1.0
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=grouped
            )
        runs = {"window": window, "starting": starting}
        unplaced = q.to(self.exact)
        placed = self.place(unplaced, slice(0, self.early))
        plan = self.sight.plan
        if plan is not None and len(plan) == 1:  # one chunk, as in every decode step
            return self._attend_chunk(plan[0], placed, unplaced, runs, scale, reach).to(q.dtype)
        out = torch.empty_like(q)
        for chunk in self.sight.chunks():
            here = chunk.queries
            pieces = placed[:, :, here], unplaced[:, :, here]
            out[:, :, here] = self._attend_chunk(chunk, *pieces, runs, scale, reach).to(q.dtype)
        return out

    def _attend_chunk(self, chunk: Chunk, placed, unplaced, runs, scale, reach) -> Tensor:
        """One chunk's queries, (B, H, T, D) placed at their positions and not placed."""
        shape = placed.shape
        back = reach and reach(unplaced, chunk.queries, scale, self.exact)
        placed, unplaced = self._by_key_head(placed), self._by_key_head(unplaced)
        seen = [
            self._gather(part, placed, unplaced, runs[part.run], scale) for part in chunk.parts
        ]
        if back is not None:
            seen.append(tuple(x.view(placed.shape[: x.dim()]) for x in back))
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
            if self.fused:
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


def early(q_positions, k_positions, starting_positions, lm: LMInfinite) -> int:
    """How many queries, the first ones, are not the middle of a Λ of consecutive positions."""
    length = length_of(q_positions)
    runs = q_positions, k_positions, starting_positions
    if not all(isinstance(positions, range) for positions in runs) or window_is_capped(lm):
        return length
    q, k, starting = runs
    if lm.n_local is None or not q or not k or k.start < 0 or k.stop != q.stop:
        return length
    if len(starting) != lm.n_global or (starting and starting.start != 0):
        return length
    if lm.distance_ceiling is not None and lm.distance_ceiling > lm.n_local and starting:
        return length  # a starting key may then stand below it or at it
    return min(length, max(0, k.start + lm.n_local - q.start))


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

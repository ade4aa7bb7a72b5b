"""The same function as attention.attend in O(n): each chunk of queries meets only what it can see.

A chunk of queries sees two runs of keys: the window, which ends at the chunk, and the first n_global
keys, once they have left the window. Each run is one small product of its own, because the two stand
at different distances: the window at its true ones, the starting keys at the ceiling. The two
softmaxes are then joined exactly by their log-sum-exp.

What depends on positions alone (which keys, which mask, which angles) is worked out once, by `Sight`,
and used by every layer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import check_shapes
from .config import FULL_ATTENTION, LMInfinite
from .distance_ceiling import ceiling_position
from .lambda_mask import distances

QUERIES_PER_CHUNK = 256
KEYS_PER_BLOCK = 4096  # one product has at most (B, H, 256, 4096) logits, whatever n is
MASKS_KEPT = 64
FUTURE = 1 << 62  # a position, and a distance, beyond all others


class Keys(NamedTuple):
    """A run of keys: placed at their own positions, unplaced (for the ceiling), and their values.

    Each is (B, H_kv, S, D); one that no distance of this run asks for may be None.
    """

    placed: Tensor | None
    unplaced: Tensor | None
    values: Tensor


class Part(NamedTuple):
    """What one chunk of queries sees of one run of keys; None where there is nothing to mark."""

    keys: slice
    capped: bool  # all of these keys stand at the ceiling
    beyond: Tensor | None = None  # True where d >= ceiling, if d lies on both sides: (..., T, S)
    bias: Tensor | None = None  # the scheme's bias: (H_kv, H / H_kv, T, S), or (B, ...)
    hidden: Tensor | None = None  # True where a query does not see a key: (..., T, S)
    blank: Tensor | None = None  # True where no query of the chunk sees a key: (..., S, 1)
    blind: Tensor | None = None  # True where a query sees no key of the part: (..., T, 1)


class Chunk(NamedTuple):
    """A run of queries, with the parts of the window and of the starting keys that it sees."""

    queries: slice
    window: list[Part]
    starting: list[Part]


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

    Arguments, result and errors are attend's; beyond them, positions must ascend in each row (gaps
    are fine), or ValueError. With n_local=None the time is O(n^2), and n x n is still never built.
    """
    check_shapes(q, k, v, q_positions, k_positions)
    lm = lm or FULL_ATTENTION
    q_positions, k_positions = q_positions.cpu().long(), k_positions.cpu().long()
    for name, positions in (("q_positions", q_positions), ("k_positions", k_positions)):
        if (positions.diff(dim=-1) <= 0).any():
            raise ValueError(f"{name} must ascend in each row; attend takes them in any order")

    window = Keys(scheme.at(k_positions, k.dtype, k.device)(k), k, v)
    starting_positions, pick = starting_run(k_positions, lm)
    starting = Keys(*(pick(x) for x in window))
    n_kv_head = k.shape[1]
    sight = Sight(q_positions, k_positions, starting_positions, scheme, lm, n_kv_head, q)
    return sight.attend(q, window, starting, scale)


def starting_run(k_positions: Tensor, lm: LMInfinite):
    """The positions of the starting tokens among ascending keys, and how to pick their tensors.

    A row's starting tokens follow its padding, so rows of different padding have them in different
    places: (S',) for k_positions (S,), (B, S') for (B, S). A row with fewer of them than another is
    filled up with a position in everybody's future, which nobody sees.
    """
    is_starting = (k_positions >= 0) & (k_positions < lm.n_global)
    count = 0 if lm.n_local is None else int(is_starting.sum(-1).max())
    padding = (k_positions < 0).sum(-1, keepdim=True)
    if k_positions.dim() == 1:
        run = slice(int(padding), int(padding) + count)
        return k_positions[run], lambda x: x[:, :, run]
    index = (padding + torch.arange(count)).clamp(max=k_positions.shape[-1] - 1)  # (B, S')
    surplus = torch.arange(count) >= is_starting.sum(-1, keepdim=True)
    positions = k_positions.gather(-1, index).masked_fill(surplus, FUTURE)
    return positions, lambda x: x.take_along_dim(index[:, None, :, None].to(x.device), 2)


class Sight:
    """What queries at some positions see, worked out from positions alone, once for all layers.

    q_positions, k_positions and starting_positions are integers on the CPU, (T,), (S,) and (S',),
    or each with B in front. k_positions are the window's keys, the queries' own at their end;
    starting_positions are those of the first n_global tokens, which the window may hold as well.
    `like` is a tensor of the model's dtype and device. The scheme sees all positions moved by
    `shift`, which no logit depends on.
    """

    def __init__(
        self, q_positions, k_positions, starting_positions, scheme, lm, n_kv_head, like, shift=0
    ):
        self.q_positions, self.scheme, self.lm = q_positions, scheme, lm
        self.runs = {"window": k_positions, "starting": starting_positions}
        self.n_kv_head, self.device = n_kv_head, like.device
        self.exact = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.place = scheme.at(q_positions + shift, like.dtype, like.device)
        self.ceiling = FUTURE if lm.distance_ceiling is None else lm.distance_ceiling
        if lm.distance_ceiling is not None:
            top = ceiling_position(lm.distance_ceiling, like=q_positions)
            self.place_at_ceiling = scheme.at(top, like.dtype, like.device)
        self.is_vanilla = self._is_vanilla()
        self.masks_made: dict = {}
        short = q_positions.shape[-1] <= QUERIES_PER_CHUNK
        self.plan = list(self._chunks()) if short and not self.is_vanilla else None

    def attend(self, q: Tensor, window: Keys, starting: Keys, scale: float | None) -> Tensor:
        """What each query (B, H, T, D), not yet placed, gathers from both runs: (B, H, T, D)."""
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        if self.is_vanilla:
            return F.scaled_dot_product_attention(
                self.place(q), window.placed, window.values, is_causal=True, scale=scale,
                enable_gqa=q.shape[1] != self.n_kv_head,
            )  # fmt: skip
        out = torch.empty_like(q)
        q = q.to(self.exact) * scale
        placed = self.place(q)
        for chunk in self.plan or self._chunks():
            at_distance = self._by_key_head(placed[:, :, chunk.queries])
            at_ceiling = None
            if any(p.capped or p.beyond is not None for p in chunk.window + chunk.starting):
                at_ceiling = self._by_key_head(self.place_at_ceiling(q[:, :, chunk.queries]))
            seen = [(p, window) for p in chunk.window] + [(p, starting) for p in chunk.starting]
            gathered = [self._gather(at_distance, at_ceiling, keys, p) for p, keys in seen]
            if gathered:
                out[:, :, chunk.queries] = join(gathered).flatten(1, 2).to(out.dtype)
            else:
                out[:, :, chunk.queries] = 0
        return out

    def _by_key_head(self, q: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, H_kv, H / H_kv, T, D): the queries of one key head together."""
        return q.unflatten(1, (self.n_kv_head, -1))

    def _gather(self, at_distance, at_ceiling, keys: Keys, part: Part) -> tuple[Tensor, Tensor]:
        """One softmax over one part: the weighted values, and the log of the softmax's sum."""

        def product(q, k):
            return torch.einsum("bgrtd,bgsd->bgrts", q, k[:, :, part.keys].to(self.exact))

        if part.capped:
            logits = product(at_ceiling, keys.unplaced)
        else:
            logits = product(at_distance, keys.placed)
        if part.beyond is not None:
            logits = torch.where(part.beyond, product(at_ceiling, keys.unplaced), logits)
        if part.bias is not None:
            logits = logits + part.bias
        if part.hidden is not None:
            logits = logits.masked_fill(part.hidden, torch.finfo(self.exact).min)

        values = keys.values[:, :, part.keys].to(self.exact)
        if part.blank is not None:
            values = values.masked_fill(part.blank, 0)
        log_sum = logits.logsumexp(-1, keepdim=True)  # (B, H_kv, R, T, 1)
        gathered = torch.einsum("bgrts,bgsd->bgrtd", (logits - log_sum).exp(), values)
        if part.blind is not None:
            gathered = gathered.masked_fill(part.blind, 0)
        return gathered, log_sum

    def _is_vanilla(self) -> bool:
        """Whether this is plain causal attention: one run of tokens, all local, below the ceiling."""
        k, starting = self.runs["window"], self.runs["starting"]
        if self.scheme.has_bias or k.dim() > 1 or not torch.equal(self.q_positions, k):
            return False
        if len(k) == 0:
            return False
        n_local = FUTURE if self.lm.n_local is None else self.lm.n_local
        first, last = int(k[0]), int(k[-1])
        sees_starting = len(starting) > 0 and last - int(starting[0]) >= n_local
        longest = last - first
        return first >= 0 and longest < n_local and longest <= self.ceiling and not sees_starting

    def _chunks(self):
        """The chunks, in order; a part that a chunk does not see at all is left out."""
        n_local = FUTURE if self.lm.n_local is None else self.lm.n_local
        for start in range(0, self.q_positions.shape[-1], QUERIES_PER_CHUNK):
            queries = slice(start, start + QUERIES_PER_CHUNK)
            window = list(self._parts("window", queries, 0, n_local))
            starting = list(self._parts("starting", queries, n_local, FUTURE))
            yield Chunk(queries, window, starting)

    def _parts(self, run: str, queries: slice, nearest: int, too_far: int):
        """The parts of a run that lie at nearest <= d < too_far of any of these queries."""
        k = self.runs[run]
        q = self.q_positions[..., queries]
        if k.shape[-1] == 0:
            return
        if self._all_between(q, k, nearest, too_far):
            start, stop = 0, k.shape[-1]
        else:
            oldest = (q[..., :1] - too_far + 1).clamp(min=0)
            newest = q[..., -1:] - nearest
            k = k.contiguous()
            if k.dim() == 1:
                oldest, newest = oldest.flatten(), newest.flatten()
            else:
                oldest, newest = (x.expand(len(k), 1).contiguous() for x in (oldest, newest))
            start = int(torch.searchsorted(k, oldest).min())
            stop = int(torch.searchsorted(k, newest, right=True).max())
        for first in range(start, stop, KEYS_PER_BLOCK):
            keys = slice(first, min(first + KEYS_PER_BLOCK, stop))
            marks = self._marks(q, k[..., keys], nearest, too_far)
            if marks is not None:
                yield Part(keys, **marks)

    def _marks(self, q: Tensor, k: Tensor, nearest: int, too_far: int) -> dict | None:
        """The fields of a Part beside its keys, or None where nothing is seen.

        They depend on distances alone, so the chunks in the middle of a long text share them.
        """
        origin = k.min() if bool((k >= 0).all()) else 0  # padding is known by its absolute position
        key = (nearest, (q - origin).numpy().tobytes(), (k - origin).numpy().tobytes())
        if key not in self.masks_made:
            if len(self.masks_made) >= MASKS_KEPT:
                self.masks_made.clear()
            self.masks_made[key] = self._make_marks(q, k, nearest, too_far)
        return self.masks_made[key]

    def _make_marks(self, q: Tensor, k: Tensor, nearest: int, too_far: int) -> dict | None:
        everything = self._all_between(q, k, nearest, too_far)
        if everything and not self.scheme.has_bias:
            if int(q.max() - k.min()) < self.ceiling:
                return {"capped": False}
            if int(q.min() - k.max()) >= self.ceiling:
                return {"capped": True}

        d = distances(q, k)  # (T, S) or (B, T, S)
        seen = (d >= nearest) & (d < too_far) & (k >= 0)[..., None, :]
        if not seen.any():
            return None
        beyond = d >= self.ceiling  # at d = ceiling both formulas agree
        marks = {"capped": bool(beyond[seen].all())}
        if not marks["capped"] and beyond[seen].any():
            marks["beyond"] = self._to_device(beyond)
        if self.scheme.has_bias:
            bias = self.scheme.bias(d.clamp(max=self.ceiling)).to(self.exact)
            marks["bias"] = bias.unflatten(-3, (self.n_kv_head, -1)).to(self.device)
        if not everything:
            marks["hidden"] = self._to_device(~seen)
            blank, blind = ~seen.any(-2), ~seen.any(-1)
            if blank.any():
                marks["blank"] = self._to_device(blank[..., None], heads=1)
            if blind.any():
                marks["blind"] = self._to_device(blind[..., None])
        return marks

    def _to_device(self, mask: Tensor, heads: int = 2) -> Tensor:
        """A mask on the model's device, with ones for the head letters behind its batch, if any."""
        if mask.dim() == 3:
            mask = mask.reshape(mask.shape[0], *[1] * heads, *mask.shape[1:])
        return mask.to(self.device)

    @staticmethod
    def _all_between(q: Tensor, k: Tensor, nearest: int, too_far: int) -> bool:
        """Whether every query sees every key: no padding, and nearest <= d < too_far throughout."""
        if q.dim() > 1 or k.dim() > 1:
            return False
        k_first, k_last = int(k.min()), int(k.max())
        return (
            k_first >= 0 and int(q.min()) - k_last >= nearest and int(q.max()) - k_first < too_far
        )


def join(gathered: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Softmaxes over disjoint keys as one softmax over all of them, exactly.

    Each has its weighted values (..., D) and the log of its sum (..., 1); a softmax's share of the
    whole is its sum's share of all sums.
    """
    if len(gathered) == 1:
        return gathered[0][0]
    values, log_sums = (torch.stack(x) for x in zip(*gathered))
    return (log_sums.softmax(0) * values).sum(0)

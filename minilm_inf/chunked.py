"""The same function as attention.attend in O(n): each chunk of queries meets only what it can see.

A chunk of queries sees two runs of keys: the window, which ends at the chunk, and the first n_global
keys, once they have left the window. Each run is one product of its own, because the two stand at
different distances: the window at its true ones, the starting keys at the ceiling. The two
softmaxes are then joined exactly by their log-sum-exp. In the same way a run that is longer than a
block (without a window: all of the past) is read block by block.

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
from .distance_ceiling import place_fixed
from .lambda_mask import distances

QUERIES_PER_CHUNK = 256
KEYS_PER_BLOCK = 4096  # a softmax has at most 256 x 4096 logits per head, whatever n is
MASKS_KEPT = 64
FUTURE = 1 << 62  # a position, and a distance, beyond all others
FUSED = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
FUSED = FUSED and FUSED.default
"""PyTorch's fused attention that also returns the log-sum-exp, but passes no gradient back from there;
so training, and machines without it, use plain products."""


class Keys(NamedTuple):
    """A run of keys in the places where queries find them, and their values.

    placed: at their own positions, for a query at its own. capped: all of them at -ceiling, for a
    query at position 0, that is, not placed at all; to such a query each seems to stand exactly
    the ceiling away. Each is (B, H_kv, S, D); one that no distance of this run asks for is None.
    """

    placed: Tensor | None
    capped: Tensor | None
    values: Tensor


class Part(NamedTuple):
    """What one chunk of queries sees of one run of keys; None where there is nothing to mark."""

    run: str  # "window" or "starting"
    keys: slice | None  # None: all of the run
    capped: bool  # all of these keys stand at the ceiling
    beyond: Tensor | None = (
        None  # True where d >= ceiling, if d lies on both sides: (..., T, S)
    )
    bias: Tensor | None = None  # the scheme's bias: (H_kv, H / H_kv, T, S), or (B, ...)
    hidden: Tensor | None = None  # True where a query does not see a key: (..., T, S)
    blank: Tensor | None = None  # True where no query of the chunk sees a key: (..., S, 1)
    blind: Tensor | None = None  # True where a query sees no key of the part: (..., T, 1)


class Chunk(NamedTuple):
    """A run of queries, and the parts that they see, each of which has a softmax of its own."""

    queries: slice
    parts: list[Part]
    blind: Tensor | None  # True where a query sees nothing at all: (T, 1) or (B, 1, T, 1)


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

    starting_positions, pick = starting_run(k_positions, lm)
    window, starting = make_runs(
        scheme.at(k_positions, k.dtype, k.device)(k), k, v, pick, cap_for(scheme, lm, k), lm
    )
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


def cap_for(scheme, lm: LMInfinite, like: Tensor):
    """The function that makes Keys.capped of unplaced keys; None without a ceiling."""
    if lm.distance_ceiling is None:
        return None
    return place_fixed(scheme, -lm.distance_ceiling, like.dtype, like.device)


def window_is_capped(lm: LMInfinite) -> bool:
    """Whether a window key can stand at the ceiling: it is at most n_local - 1 away."""
    return lm.distance_ceiling is not None and (
        lm.n_local is None or lm.distance_ceiling < lm.n_local
    )


def starting_is_placed(lm: LMInfinite) -> bool:
    """Whether a starting key can stand below the ceiling: it is at least n_local away."""
    return lm.distance_ceiling is None or (
        lm.n_local is not None and lm.distance_ceiling > lm.n_local
    )


def make_runs(
    placed: Tensor, k: Tensor, v: Tensor, pick, cap, lm: LMInfinite
) -> tuple[Keys, Keys]:
    """Window and starting keys of a text that is there as a whole; `pick` is starting_run's."""
    window = Keys(placed, cap(k) if window_is_capped(lm) else None, v)
    starting = Keys(pick(placed), cap(pick(k)) if cap else None, pick(v))
    return window, starting


class Sight:
    """What queries at some positions see, worked out from positions alone, once for all layers.

    q_positions, k_positions and starting_positions are integers on the CPU, (T,), (S,) and (S',),
    or each with B in front; or ranges, where they are consecutive, which cost a decode step less.
    k_positions are the window's keys, the queries' own at their end; starting_positions are those
    of the first n_global tokens, which the window may hold as well. `like` is a tensor of the
    model's dtype and device. The scheme sees all positions moved by `shift`, which no logit
    depends on.
    """

    def __init__(
        self, q_positions, k_positions, starting_positions, scheme, lm, n_kv_head, like, shift=0
    ):
        self.scheme, self.lm = scheme, lm
        self.runs = {"window": k_positions, "starting": starting_positions}
        self.spans = {name: span(positions) for name, positions in self.runs.items()}
        self.is_vanilla = self._is_vanilla(q_positions)
        self.q_positions, self.q_span = as_tensor(q_positions), span(q_positions)
        self.n_kv_head, self.device = n_kv_head, like.device
        self.exact = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.fused = FUSED if like.device.type == "cpu" else None
        q_places = self.q_positions + shift if shift else self.q_positions
        self.place = scheme.at(q_places, like.dtype, like.device)
        self.masks_made: dict = {}
        short = self.q_positions.shape[-1] <= QUERIES_PER_CHUNK
        self.plan = list(self._chunks()) if short and not self.is_vanilla else None

    @property
    def n_local(self) -> int:
        return FUTURE if self.lm.n_local is None else self.lm.n_local

    @property
    def ceiling(self) -> int:
        return FUTURE if self.lm.distance_ceiling is None else self.lm.distance_ceiling

    def attend(self, q: Tensor, window: Keys, starting: Keys, scale: float | None) -> Tensor:
        """What each query (B, H, T, D), not yet placed, gathers from both runs: (B, H, T, D)."""
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        if self.is_vanilla:
            return F.scaled_dot_product_attention(
                self.place(q), window.placed, window.values, is_causal=True, scale=scale,
                enable_gqa=q.shape[1] != self.n_kv_head,
            )  # fmt: skip
        runs = {"window": window, "starting": starting}
        unplaced = q.to(self.exact)
        placed = self.place(unplaced)
        if self.plan is not None and len(self.plan) == 1:  # one chunk, as in every decode step
            return self._attend_chunk(self.plan[0], placed, unplaced, runs, scale).to(q.dtype)
        out = torch.empty_like(q)
        for chunk in self.plan or self._chunks():
            here = chunk.queries
            pieces = placed[:, :, here], unplaced[:, :, here]
            out[:, :, here] = self._attend_chunk(chunk, *pieces, runs, scale).to(q.dtype)
        return out

    def _attend_chunk(self, chunk: Chunk, placed, unplaced, runs, scale: float) -> Tensor:
        """One chunk's queries, (B, H, T, D) placed at their positions and not placed."""
        shape = placed.shape
        placed, unplaced = self._by_key_head(placed), self._by_key_head(unplaced)
        seen = [
            self._gather(part, placed, unplaced, shape[2], runs[part.run], scale)
            for part in chunk.parts
        ]
        if not seen:
            return placed.new_zeros(shape)
        out = join(seen).view(shape)
        return out if chunk.blind is None else out.masked_fill(chunk.blind, 0)

    def _by_key_head(self, q: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, H_kv, H / H_kv * T, D): together what shares a key head."""
        return q.reshape(q.shape[0], self.n_kv_head, -1, q.shape[-1])

    def _gather(self, part: Part, placed, unplaced, n_queries: int, keys: Keys, scale: float):
        """One softmax over a part: the weighted values (B, H_kv, H / H_kv * T, D), and the log of
        the softmax's sum (B, H_kv, H / H_kv * T)."""
        values = self._run_of(keys.values, part)
        if self.fused and part.beyond is None and part.bias is None and part.hidden is None:
            q, k = (unplaced, keys.capped) if part.capped else (placed, keys.placed)
            if not (q.requires_grad or k.requires_grad or values.requires_grad):
                return self.fused(q, self._run_of(k, part), values, scale=scale)
        if part.blank is not None:
            values = values.masked_fill(part.blank, 0)
        logits = self._logits(part, placed, unplaced, n_queries, keys, scale)
        return logits.softmax(-1) @ values, logits.logsumexp(-1)

    def _run_of(self, x: Tensor, part: Part) -> Tensor:
        """A part's piece of a run's tensor, in the dtype of the softmax: (B, H_kv, S, D)."""
        x = x if part.keys is None else x[:, :, part.keys]
        return x if x.dtype == self.exact else x.to(self.exact)

    def _logits(self, part: Part, placed, unplaced, n_queries: int, keys: Keys, scale: float):
        """The logits of one part, hidden keys at the lowest number: (B, H_kv, H / H_kv * T, S)."""
        if part.capped:
            logits = (unplaced * scale) @ self._run_of(keys.capped, part).mT
        else:
            logits = (placed * scale) @ self._run_of(keys.placed, part).mT
        if part.beyond is None and part.bias is None and part.hidden is None:
            return logits
        logits = logits.unflatten(2, (-1, n_queries))  # (B, H_kv, H / H_kv, T, S)
        if part.beyond is not None:
            capped = (unplaced * scale) @ self._run_of(keys.capped, part).mT
            logits = torch.where(part.beyond, capped.view(logits.shape), logits)
        if part.bias is not None:
            logits = logits + part.bias
        if part.hidden is not None:
            logits = logits.masked_fill(part.hidden, torch.finfo(self.exact).min)
        return logits.flatten(2, 3)

    def _is_vanilla(self, q_positions) -> bool:
        """Whether this is plain causal attention: one run of tokens, all local, below the ceiling."""
        if self.scheme.has_bias or span(q_positions) is None:
            return False
        if self.spans["window"] != span(q_positions) or not same(
            q_positions, self.runs["window"]
        ):
            return False
        first, last = self.spans["window"]
        starting = self.spans["starting"]
        near = last - first < self.n_local and last - first <= self.ceiling
        return first >= 0 and near and (starting is None or last - starting[0] < self.n_local)

    def _chunks(self):
        """The chunks, in order; a part that a chunk does not see at all is left out."""
        length = self.q_positions.shape[-1]
        for start in range(0, length, QUERIES_PER_CHUNK):
            queries = slice(start, min(start + QUERIES_PER_CHUNK, length))
            q = self.q_positions[..., queries]
            q_span = self.q_span if q.shape[-1] == length else span(q)
            # Fewer queries may share a softmax with more keys: a decode step has but one block.
            most = KEYS_PER_BLOCK * QUERIES_PER_CHUNK // (queries.stop - queries.start)
            parts = list(self._parts("window", q, q_span, 0, self.n_local, most))
            parts += self._parts("starting", q, q_span, self.n_local, FUTURE, most)
            blinds = [part.blind for part in parts]
            blind = None if None in blinds or not blinds else torch.stack(blinds).all(0)
            yield Chunk(queries, parts, blind)

    def _parts(self, run: str, q: Tensor, q_span, nearest: int, too_far: int, most: int):
        """The parts of a run that lie at nearest <= d < too_far of any of these queries."""
        k, k_span = self.runs[run], self.spans[run]
        if all_between(q_span, k_span, nearest, too_far):
            start, stop = 0, len(k)
            if stop <= most and not self.scheme.has_bias:
                if q_span[1] - k_span[0] < self.ceiling:
                    yield Part(run, None, capped=False)
                    return
                if q_span[0] - k_span[1] >= self.ceiling:
                    yield Part(run, None, capped=True)
                    return
        k = self.runs[run] = as_tensor(k)
        if k.shape[-1] == 0:
            return
        if not all_between(q_span, k_span, nearest, too_far):
            oldest = (q[..., :1] - too_far + 1).clamp(min=0)
            newest = q[..., -1:] - nearest
            k = k.contiguous()
            if k.dim() == 1:
                oldest, newest = oldest.flatten(), newest.flatten()
            else:
                oldest, newest = (x.expand(len(k), 1).contiguous() for x in (oldest, newest))
            start = int(torch.searchsorted(k, oldest).min())
            stop = int(torch.searchsorted(k, newest, right=True).max())
        for first in range(start, stop, most):
            keys = slice(first, min(first + most, stop))
            marks = self._marks(q, k[..., keys], nearest, too_far)
            if marks is not None:
                yield Part(run, keys, **marks)

    def _marks(self, q: Tensor, k: Tensor, nearest: int, too_far: int) -> dict | None:
        """The fields of a Part beside its keys, or None where nothing is seen.

        They depend on distances alone, so the chunks in the middle of a long text share them.
        """
        origin = (
            k.min() if bool((k >= 0).all()) else 0
        )  # padding is known by its absolute position
        key = (nearest, (q - origin).numpy().tobytes(), (k - origin).numpy().tobytes())
        if key not in self.masks_made:
            if len(self.masks_made) >= MASKS_KEPT:
                self.masks_made.clear()
            self.masks_made[key] = self._make_marks(q, k, nearest, too_far)
        return self.masks_made[key]

    def _make_marks(self, q: Tensor, k: Tensor, nearest: int, too_far: int) -> dict | None:
        q_span, k_span = span(q), span(k)
        everything = all_between(q_span, k_span, nearest, too_far)
        if everything and not self.scheme.has_bias:
            if q_span[1] - k_span[0] < self.ceiling:
                return {"capped": False}
            if q_span[0] - k_span[1] >= self.ceiling:
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
                marks["blind"] = self._to_device(blind[..., None], heads=1)
        return marks

    def _to_device(self, mask: Tensor, heads: int = 2) -> Tensor:
        """A mask on the model's device, with ones for the head letters behind its batch, if any."""
        if mask.dim() == 3:
            mask = mask.reshape(mask.shape[0], *[1] * heads, *mask.shape[1:])
        return mask.to(self.device)


def as_tensor(positions) -> Tensor:
    """Positions as a tensor, if they are a range."""
    if isinstance(positions, range):
        return torch.arange(positions.start, positions.stop)
    return positions


def same(positions, others) -> bool:
    """Whether two runs of positions, tensors or ranges, are equal."""
    if isinstance(positions, range) and isinstance(others, range):
        return positions == others
    positions, others = as_tensor(positions), as_tensor(others)
    return positions.shape == others.shape and torch.equal(positions, others)


def span(positions) -> tuple[int, int] | None:
    """The first and the last of some positions; None where there is none, or rows differ."""
    if isinstance(positions, range):
        return (positions.start, positions.stop - 1) if positions else None
    if positions.dim() > 1 or len(positions) == 0:
        return None
    first, last = positions.aminmax()
    return int(first), int(last)


def all_between(q_span, k_span, nearest: int, too_far: int) -> bool:
    """Whether every query sees every key: no padding, and nearest <= d < too_far throughout."""
    if q_span is None or k_span is None:
        return False
    (q_first, q_last), (k_first, k_last) = q_span, k_span
    return k_first >= 0 and q_first - k_last >= nearest and q_last - k_first < too_far


def join(seen: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Softmaxes over different keys as one softmax over all of them, exactly.

    Each is its weighted values (..., D) and the log of its sum (...); each one's share of the whole
    is its sum's share of all sums.
    """
    values, log_sum = seen[0]
    for number, (other, other_log_sum) in enumerate(seen[1:], 2):
        share = (log_sum - other_log_sum).sigmoid().unsqueeze(-1)
        values = other.lerp(values, share)
        if number < len(seen):
            log_sum = torch.logaddexp(log_sum, other_log_sum)
    return values

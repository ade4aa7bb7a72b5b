"""What a chunk of queries can see, worked out from positions alone: once, for all layers.

Two runs of keys matter to a chunk: the window, which ends at the chunk, and the starting keys,
once they have left the window. Each run is cut to what the chunk sees of it, and that, where it
is long, into blocks of a bounded size; where a block is seen only in part, masks say where.
Nothing here touches a vector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .config import LMInfinite
from .lambda_mask import distances

QUERIES_PER_CHUNK = 256
KEYS_PER_BLOCK = 4096  # a softmax has at most 256 x 4096 logits per head, whatever n is
MASKS_KEPT = 8
FUTURE = 1 << 62  # a position, and a distance, beyond all others


class Part(NamedTuple):
    """What a chunk of queries sees of one run of keys; None where nothing is to be marked."""

    run: str  # "window" or "starting"
    keys: slice | None  # None: all of the run
    capped: bool  # all of these keys stand at the ceiling
    beyond: Tensor | None = None  # True where d >= ceiling, if some are and some are not
    mask: Tensor | None = None  # added to logits: a bias, and the lowest number for the unseen
    blank: Tensor | None = None  # True where no query of the chunk sees a key: (.., S, 1)
    blind: Tensor | None = None  # True where a query sees no key of the part: (.., T, 1)


class Chunk(NamedTuple):
    """A run of queries, and the parts that they see, each of which has a softmax of its own."""

    queries: slice
    parts: list[Part]
    blind: Tensor | None  # True where a query sees nothing at all: (1 or B, 1, T, 1)


class Sight:
    """The chunks of some queries, and what each of them sees.

    q_positions, k_positions and starting_positions are integers on the CPU, (T,), (S,) and
    (S',), or each with B in front; or ranges, where they are consecutive, which cost a decode
    step less. k_positions are the window's keys, the queries' own at their end;
    starting_positions are those of the first n_global tokens, which the window may hold as
    well. heads: (H, H_kv). Masks are made in dtype `exact` on `device`, for the H / H_kv * T
    queries that share a key head: (1 or B, 1 or H_kv, H / H_kv * T, S).
    """

    def __init__(
        self, q_positions, k_positions, starting_positions, scheme, lm, heads, exact, device
    ):
        self.scheme, self.lm, self.heads = scheme, lm, heads
        self.exact, self.device = exact, device
        self.runs = {"window": k_positions, "starting": starting_positions}
        self.spans = {name: span(positions) for name, positions in self.runs.items()}
        self.is_vanilla = self._is_vanilla(q_positions)
        self.q_positions, self.q_span = as_tensor(q_positions), span(q_positions)
        self.masks_made: dict = {}
        short = self.q_positions.shape[-1] <= QUERIES_PER_CHUNK
        self.plan = list(self._chunks()) if short and not self.is_vanilla else None

    @property
    def n_local(self) -> int:
        return FUTURE if self.lm.n_local is None else self.lm.n_local

    @property
    def ceiling(self) -> int:
        return FUTURE if self.lm.distance_ceiling is None else self.lm.distance_ceiling

    def chunks(self):
        """The chunks, in order; a part that a chunk does not see at all is left out."""
        return self._chunks() if self.plan is None else self.plan

    def _is_vanilla(self, q_positions) -> bool:
        """Whether this is plain causal attention: one run, all local, below the ceiling."""
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
            capped = self._one_side(q_span, k_span)
            if stop <= most and capped is not None:
                yield Part(run, None, capped)
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
        # Padding is known by its absolute position.
        origin = k.min() if bool((k >= 0).all()) else 0
        key = (nearest, (q - origin).numpy().tobytes(), (k - origin).numpy().tobytes())
        if key not in self.masks_made:
            if len(self.masks_made) >= MASKS_KEPT:
                self.masks_made.clear()
            self.masks_made[key] = self._make_marks(q, k, nearest, too_far)
        return self.masks_made[key]

    def _make_marks(self, q: Tensor, k: Tensor, nearest: int, too_far: int) -> dict | None:
        q_span, k_span = span(q), span(k)
        everything = all_between(q_span, k_span, nearest, too_far)
        if everything and self._one_side(q_span, k_span) is not None:
            return {"capped": self._one_side(q_span, k_span)}

        d = distances(q, k)  # (T, S) or (B, T, S)
        seen = (d >= nearest) & (d < too_far) & (k >= 0)[..., None, :]
        if not seen.any():
            return None
        beyond = d >= self.ceiling  # at d = ceiling both formulas agree
        marks = {"capped": bool(beyond[seen].all())}
        if not marks["capped"] and beyond[seen].any():
            marks["beyond"] = self._for_every_head(beyond)
        if self.scheme.has_bias or not everything:
            marks["mask"] = self._mask(d, ~seen)
        blank, blind = ~seen.any(-2), ~seen.any(-1)
        if blank.any():
            marks["blank"] = self._by_row(blank)
        if blind.any():
            marks["blind"] = self._by_row(blind)
        return marks

    def _one_side(self, q_span, k_span) -> bool | None:
        """Whether keys, all seen, stand at the ceiling; None if only some do, or for a bias."""
        if self.scheme.has_bias:
            return None
        if q_span[1] - k_span[0] < self.ceiling:
            return False
        return True if q_span[0] - k_span[1] >= self.ceiling else None

    def _mask(self, d: Tensor, hidden: Tensor) -> Tensor:
        """What is added to the logits of distances d, both (T, S) or (B, T, S)."""
        lowest = torch.finfo(self.exact).min
        if not self.scheme.has_bias:
            mask = torch.zeros(hidden.shape, dtype=self.exact).masked_fill(hidden, lowest)
            return self._for_every_head(mask)
        bias = self.scheme.bias(d.clamp(max=self.ceiling)).to(self.exact)  # (.., H, T, S)
        mask = bias.masked_fill(hidden.unsqueeze(-3), lowest)
        mask = mask.unflatten(-3, (self.heads[1], -1)).flatten(-3, -2)
        return (mask if mask.dim() == 4 else mask[None]).to(self.device)

    def _for_every_head(self, marks: Tensor) -> Tensor:
        """(T, S) or (B, T, S) -> (1 or B, 1, H / H_kv * T, S)."""
        marks = marks if marks.dim() == 3 else marks[None]
        return marks.repeat(1, self.heads[0] // self.heads[1], 1)[:, None].to(self.device)

    def _by_row(self, marks: Tensor) -> Tensor:
        """(N,) or (B, N) -> (1 or B, 1, N, 1): whole keys, or whole queries, of any head."""
        marks = marks if marks.dim() == 2 else marks[None]
        return marks[:, None, :, None].to(self.device)


def as_range(positions):
    """Positions as a range, if they are consecutive and the same for all rows."""
    if isinstance(positions, range) or positions.dim() > 1:
        return positions
    if len(positions) == 0:
        return range(0)
    ascending = positions.numpy()  # whose threads need not be woken for so little
    if len(ascending) > 1 and not (ascending[1:] - ascending[:-1] == 1).all():
        return positions
    return range(int(positions[0]), int(positions[-1]) + 1)


def cut(positions, places: slice):
    """Some of the positions, a range or a tensor, by their places."""
    return positions[places] if isinstance(positions, range) else positions[..., places]


def length_of(positions) -> int:
    """How many positions a row has."""
    return len(positions) if isinstance(positions, range) else positions.shape[-1]


def as_tensor(positions) -> Tensor:
    """Positions as a tensor, if they are a range."""
    if isinstance(positions, range):
        return torch.arange(positions.start, positions.stop, device="cpu")
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


def starting_run(k_positions, lm: LMInfinite):
    """The positions of the starting tokens among ascending keys, and how to pick their tensors.

    A row's starting tokens follow its padding, so rows of different padding have them in
    different places: (S',) for k_positions (S,), (B, S') for (B, S). A row with fewer of them
    than another is filled up with a position in everybody's future, which nobody sees.
    """
    if isinstance(k_positions, range):
        first = max(0, k_positions.start)
        stop = first if lm.n_local is None else max(first, min(k_positions.stop, lm.n_global))
        run = slice(first - k_positions.start, stop - k_positions.start)
        return range(first, stop), lambda x: x[:, :, run]
    is_starting = (k_positions >= 0) & (k_positions < lm.n_global)
    count = 0 if lm.n_local is None else int(is_starting.sum(-1).max())
    padding = (k_positions < 0).sum(-1, keepdim=True)
    if k_positions.dim() == 1:
        run = slice(int(padding), int(padding) + count)
        return k_positions[run], lambda x: x[:, :, run]
    index = (padding + torch.arange(count, device="cpu")).clamp(
        max=k_positions.shape[-1] - 1
    )  # (B, S')
    surplus = torch.arange(count, device="cpu") >= is_starting.sum(-1, keepdim=True)
    positions = k_positions.gather(-1, index).masked_fill(surplus, FUTURE)
    return positions, lambda x: x.take_along_dim(index[:, None, :, None].to(x.device), 2)


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

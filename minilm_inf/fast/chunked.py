"""attention.attend in O(n): every query meets only the keys that it can see.

Consecutive positions are a band, read from the first query to the last with a window of placed
keys that moves along; whatever else there may be is read in chunks. Both leave out only keys
whose weight in the definition is exactly 0. Rows of a batch that stand at positions of their
own are read one by one, each without its padding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import check_attention
from ..config import FULL_ATTENTION, LMInfinite
from .band import (
    LEAST_SCALE,
    ROWS,
    How,
    Keys,
    attend_band,
    attend_past,
    ceiling_is_the_window,
    spare_columns,
)
from .chunk import attend_chunks
from .middle import Middle, Reach

QUERIES_PER_STRETCH = 24 * ROWS  # for which the window moves along at once
KEY_HEADS_AT_ONCE = 8  # whose windows are in memory
ROWS_PLACED_AT_ONCE = 256  # what is made on the way then stays near the processor


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
    """attention.attend's numbers in O(n) time.

    Arguments, result and errors are attend's; beyond them, positions must ascend in each row
    (gaps are fine), or ValueError. Working memory is O(chunk + n_local + n_global) where
    positions are consecutive and no gradient is asked for, else O(n). With n_local=None the
    time is O(n^2), and n x n is still never built.
    """
    check_attention(q, k, v, q_positions, k_positions, scheme, lm, scale, n_reaching)
    lm = lm or FULL_ATTENTION
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    q_positions, k_positions = (x.cpu().long() for x in (q_positions, k_positions))
    for name, positions in (("q_positions", q_positions), ("k_positions", k_positions)):
        if (positions.diff(dim=-1) <= 0).any():
            raise ValueError(f"{name} must ascend in each row; attend takes them in any order")
    n_reaching = lm.reaching(q.shape[2]) if n_reaching is None else n_reaching
    how = How(scheme, lm, scale), n_reaching if lm.top_k else 0
    if q_positions.dim() == k_positions.dim() == 1:
        return attend_text(q, k, v, q_positions, k_positions, *how)
    of_rows = (x.expand(len(q), -1).split(1) for x in (q_positions, k_positions))
    rows = zip(q.split(1), k.split(1), v.split(1), *of_rows)
    return torch.cat([attend_text(*x, i[0], j[0], *how) for *x, i, j in rows])


def attend_text(q, k, v, q_positions, k_positions, how: How, n_reaching: int) -> Tensor:
    """chunked_attend where all rows stand at the same positions, (T,) and (S,)."""
    text = slice(int((k_positions < 0).sum()), None)  # what stands before it is padding
    k, v, k_positions = k[:, :, text], v[:, :, text], k_positions[text]
    first = 0 if how.lm.n_local is None else int((k_positions < how.lm.n_global).sum())
    starting = k[:, :, :first], v[:, :, :first], k_positions[:first]
    starting = Keys(how.at_home(starting[0], starting[2]), *starting[1:], how.home)
    n = q.shape[2] - n_reaching  # the others see no middle
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    is_band = ceiling_is_the_window(how) and are_consecutive(q_positions, k_positions)
    if is_band and learns and sees_all_past(how, len(q_positions), len(k_positions)):
        placed = (how.scheme.place(x, k_positions) for x in (q, k))
        return attend_past(*placed, v, how.scale)
    if is_band and not learns and n:
        out = read_as_band(q, k, v, int(k_positions[0]), starting, how)
        if not n_reaching:
            return out
    window = Keys(how.scheme.place(k, k_positions), v, k_positions)
    if learns or not is_band or not n:
        out = attend_chunks(q[:, :, :n], q_positions[:n], window, starting, how)
        if not n_reaching:
            return out
    ends = torch.searchsorted(k_positions, q_positions[n:] - how.lm.n_local, right=True)
    reach = Reach(Middle.of(k, v), how, first, ends)
    last = attend_chunks(q[:, :, n:], q_positions[n:], window, starting, how, reach)
    return torch.cat((out[:, :, :n], last), 2)


def sees_all_past(how: How, n_queries: int, n_keys: int) -> bool:
    """Whether every query sees all before it as they are: PyTorch does that, gradients too."""
    fits = n_queries == n_keys and n_keys <= (how.lm.n_local or n_keys)
    return fits and not how.scheme.has_bias and how.scale > LEAST_SCALE


def are_consecutive(q_positions: Tensor, k_positions: Tensor) -> bool:
    """Whether the keys are consecutive tokens of one text, and the queries the last of them."""
    n, m = len(k_positions), len(q_positions)
    if not 0 < m <= n or k_positions[-1] != k_positions[0] + n - 1:
        return False
    return torch.equal(q_positions, k_positions[n - m :])


def read_as_band(q, k, v, first: int, starting: Keys, how: How) -> Tensor:
    """What consecutive queries gather; the first key is token `first`.

    The placed keys of a stretch of queries stand in a buffer, those before the stretch's own
    in its first columns: from there the next stretch moves on, so that each is placed once.
    """
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    out, n, n_kv_head, n_queries = torch.empty_like(q), k.shape[2], k.shape[1], q.shape[2]
    group, reach = q.shape[1] // n_kv_head, min(n, how.lm.n_local or n) - 1
    spare = spare_columns(starting.k.shape[2], reach + 1)
    stretch = -(-max(reach, QUERIES_PER_STRETCH) // ROWS) * ROWS
    room = reach if n_queries > stretch else min(reach, n - n_queries)  # for keys before
    columns = spare + room + min(stretch, n_queries)
    for some in torch.arange(n_kv_head).split(KEY_HEADS_AT_ONCE):
        heads = slice(int(some[0]), int(some[-1]) + 1)
        query_heads = slice(heads.start * group, heads.stop * group)
        at_home = starting._replace(k=starting.k[:, heads], v=starting.v[:, heads])
        buffer = q.new_empty(len(q), len(some), columns, q.shape[3], dtype=exact)
        for start in range(0, n_queries, stretch):
            own = n - n_queries + start  # the first query's own key
            last = min(own + stretch, n)
            oldest = max(0, own - reach)
            column = spare + room - own  # where key 0 would stand
            new = own if start else oldest
            if start:
                moved = buffer[:, :, column + oldest + stretch : column + own + stretch]
                buffer[:, :, column + oldest : column + own] = moved
            place = how.scheme.at(torch.arange(first + new, first + last), exact, q.device)
            for at in range(new, last, ROWS_PLACED_AT_ONCE):
                to = min(at + ROWS_PLACED_AT_ONCE, last)
                fresh = k[:, heads, at:to].to(exact)
                buffer[:, :, column + at : column + to] = place(
                    fresh, slice(at - new, to - new)
                )

            def place_queries(x, rows, place=place, shift=own - new):
                return place(x, slice(rows.start + shift, rows.stop + shift))

            queries = slice(start, start + last - own)
            attend_band(
                q[:, query_heads, queries], place_queries,
                buffer[:, :, column + oldest - spare : column + last],
                v[:, heads, oldest:last], at_home, first + own, how,
                out[:, query_heads, queries], query_heads.start,
            )  # fmt: skip
    return out

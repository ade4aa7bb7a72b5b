"""attention.attend in O(n): every query meets only the keys that it can see.

Consecutive positions are a band, read from the first query to the last with a window of placed
keys that moves along; whatever else there may be is read in chunks. Rows of a batch that stand
at positions of their own are read one by one, each without its padding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import FULL_ATTENTION, LMInfinite
from ..positions import PLACED
from ..terminal.checks import check_attention
from .band import ROWS, How, attend_band, attend_past, fits_band, sees_all_past, spare_columns
from .chunk import attend_chunks
from .kernel import kernel_text, serves

QUERIES_PER_STRETCH = 24 * ROWS  # for which the window moves along at once
KEY_HEADS_AT_ONCE = 8  # whose windows are in memory
ROWS_PLACED_AT_ONCE = 256  # what is made on the way then stays near the processor


def chunked_attend(
    q: Tensor, k: Tensor, v: Tensor, q_positions: Tensor, k_positions: Tensor, scheme,
    lm: LMInfinite | None, scale: float | None = None, n_reaching: int | None = None,
) -> Tensor:  # fmt: skip
    """attention.attend's numbers in O(n) time.

    Arguments, result and errors are attend's; beyond them, positions must ascend in each row
    (gaps are fine), or ValueError. Working memory is O(chunk + n_local + n_global) where
    positions are consecutive and no gradient is asked for, else O(n). With n_local=None the
    time is O(n^2), and n x n is still never built.
    """
    check_attention(q, k, v, q_positions, k_positions, scheme, lm, scale, n_reaching)
    scheme, lm = scheme or PLACED, lm or FULL_ATTENTION
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
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    is_band = fits_band(how) and are_consecutive(q_positions, k_positions)
    if is_band and learns and sees_all_past(how, q.shape[2], k.shape[2]):
        placed = (how.scheme.place(x, k_positions) for x in (q, k))
        return attend_past(*placed, v, how.scale)
    n = q.shape[2] - n_reaching  # the others see no middle
    if learns or not is_band or not n:
        return attend_chunks(q, k, v, q_positions, k_positions, how, n_reaching)
    out = read_as_band(q, k, v, k_positions, how)
    if n_reaching:
        last = q[:, :, n:], k, v, q_positions[n:], k_positions
        out[:, :, n:] = attend_chunks(*last, how, n_reaching)
    return out


def are_consecutive(q_positions: Tensor, k_positions: Tensor) -> bool:
    """Whether the keys are consecutive tokens of one text, and the queries the last of them."""
    before = len(k_positions) - len(q_positions)
    some = len(q_positions) > 0 and before >= 0 and bool((k_positions.diff() == 1).all())
    return some and torch.equal(q_positions, k_positions[before:])


def read_as_band(q, k, v, k_positions: Tensor, how: How) -> Tensor:
    """What consecutive queries gather, the last of them at the last key's position.

    The placed keys of a stretch of queries stand in a buffer, those before the stretch's own
    in its first columns: from there the next stretch moves on, so that each is placed once.
    """
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    out, n, n_kv_head, n_queries = torch.empty_like(q), k.shape[2], k.shape[1], q.shape[2]
    group, reach = q.shape[1] // n_kv_head, min(n, how.lm.n_local or n) - 1
    first = int(k_positions[0])
    early = slice(0, 0 if how.lm.n_local is None else max(0, how.lm.n_global - first))
    home = k_positions[early] if how.home is None else torch.tensor([how.home])
    at_home = how.scheme.place(k[:, :, early], home)
    starting = at_home, v[:, :, early], k_positions[early]
    if q.is_cuda and serves(q):
        return kernel_text(q, k, v, k_positions, starting, how)
    spare = spare_columns(at_home.shape[2], reach + 1)
    stretch = -(-max(reach, QUERIES_PER_STRETCH) // ROWS) * ROWS
    room = reach if n_queries > stretch else min(reach, n - n_queries)  # for keys before
    columns = spare + room + min(stretch, n_queries)
    for head in range(0, n_kv_head, KEY_HEADS_AT_ONCE):
        heads = slice(head, min(head + KEY_HEADS_AT_ONCE, n_kv_head))
        query_heads = slice(heads.start * group, heads.stop * group)
        of_heads = *(x[:, heads] for x in starting[:2]), starting[2]
        buffer = q.new_empty(len(q), heads.stop - head, columns, q.shape[3], dtype=exact)
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
            queries = slice(start, start + last - own)
            attend_band(
                q[:, query_heads, queries], place, own - new,
                buffer[:, :, column + oldest - spare : column + last],
                v[:, heads, oldest:last], of_heads, first + own, how,
                out[:, query_heads, queries], query_heads.start,
            )  # fmt: skip
    return out

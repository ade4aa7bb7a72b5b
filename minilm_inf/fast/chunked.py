"""attention.attend in O(n): every query meets only the keys that it can see.

A text of consecutive positions is a band, read from its first query to its last with a window
of placed keys that moves along; whatever else there may be is read in chunks. Both leave out
only keys whose weight in the definition is exactly 0.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..checks import check_attention
from ..config import FULL_ATTENTION, LMInfinite
from .band import ROWS, attend_all, attend_band, ceiling_parts, spare_columns
from .chunk import NOWHERE, Keys, at_ceiling, attend_chunks
from .middle import Middle, Reach

QUERIES_PER_STRETCH = 16 * ROWS  # for which the window moves along at once
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
    n_reaching = n_reaching if lm.top_k else 0
    back = slice(q.shape[2] - n_reaching, q.shape[2])

    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    is_plain = are_a_text(q_positions, k_positions) and ceiling_parts(scheme, lm)
    if is_plain and lm.n_local is None:
        placed = scheme.place(q, q_positions), scheme.place(k, k_positions)
        out = attend_all(*placed, v, scheme, lm, scale)
    elif learns or not is_plain:
        out = read_in_chunks(q, k, v, q_positions, k_positions, scheme, lm, scale)
    else:
        out = torch.empty_like(q)
        for head in range(0, k.shape[1], KEY_HEADS_AT_ONCE):
            heads = range(head, min(head + KEY_HEADS_AT_ONCE, k.shape[1]))
            read_as_band(q, k, v, int(k_positions[0]), scheme, lm, scale, out, heads)
    if not n_reaching:
        return out
    reach = Reach(
        Middle.of(k, v), lm, scheme, q_positions[..., back],
        lambda columns: k_positions[..., columns], k.shape[2], scale,
    )  # fmt: skip
    last = q[:, :, back], k, v, q_positions[..., back], k_positions
    last = read_in_chunks(*last, scheme, lm, scale, reach)
    return torch.cat((out[:, :, : back.start], last), 2)


def are_a_text(q_positions: Tensor, k_positions: Tensor) -> bool:
    """Whether the keys are consecutive tokens of one text, and the queries the last of them."""
    if q_positions.dim() > 1 or k_positions.dim() > 1 or not len(q_positions):
        return False
    n = len(k_positions)
    if len(q_positions) > n or k_positions[0] < 0 or k_positions[-1] != k_positions[0] + n - 1:
        return False
    return torch.equal(q_positions, k_positions[n - len(q_positions) :])


def starting_keys(k, v, k_positions, scheme, lm: LMInfinite) -> Keys:
    """The keys of each row's first n_global tokens, kept as Keys says.

    A row's starting tokens follow its padding, so rows of different padding have them in
    different places; a row with fewer of them than another is filled up with keys in
    everybody's future, which nobody sees.
    """
    is_starting = (k_positions >= 0) & (k_positions < lm.n_global)
    count = 0 if lm.n_local is None else int(is_starting.sum(-1).amax()) if k.shape[2] else 0
    padding = (k_positions < 0).sum(-1, keepdim=True)
    index = (padding + torch.arange(count)).clamp(max=max(0, k.shape[2] - 1))  # ([B,] S')
    lacking = torch.arange(count) >= is_starting.sum(-1, keepdim=True)
    positions = k_positions.gather(-1, index).masked_fill(lacking, NOWHERE)
    index = torch.atleast_2d(index)[:, None, :, None].to(k.device)
    k, v = (x.take_along_dim(index, 2) for x in (k, v))
    return keep_starting(k, v, positions, scheme, lm)


def keep_starting(k, v, positions, scheme, lm: LMInfinite) -> Keys:
    """Starting keys that are not placed, at home; without a ceiling, at their own positions."""
    if lm.distance_ceiling is None:
        return Keys(scheme.place(k, positions), v, positions)
    return Keys(at_ceiling(k, scheme, lm), v, positions, -lm.distance_ceiling)


def read_in_chunks(
    q, k, v, q_positions, k_positions, scheme, lm: LMInfinite, scale: float, middle=None
) -> Tensor:
    """chunked_attend for any positions that ascend, with gradients."""
    window = Keys(scheme.place(k, k_positions), v, k_positions)
    starting = starting_keys(k, v, k_positions, scheme, lm)
    return attend_chunks(q, q_positions, window, starting, scheme, lm, scale, middle=middle)


def read_as_band(q, k, v, first: int, scheme, lm: LMInfinite, scale: float, out, heads: range):
    """Write to out what the queries of some key heads gather; the first key is token `first`.

    The placed keys of a stretch of queries stand in a buffer, those before the stretch's own
    in its first columns: from there the next stretch moves on, so that each is placed once.
    """
    lm = replace(lm, n_local=min(lm.n_local, k.shape[2]))  # a longer window has no more keys
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    early = torch.arange(first, max(first, min(lm.n_global, first + k.shape[2])))
    starting = (x[:, :, : len(early)] for x in (k, v))
    starting = keep_starting(*starting, early, scheme, lm)
    starting = starting._replace(k=starting.k.to(exact), v=starting.v.to(exact))
    spare, reach = spare_columns(lm, len(early)), lm.n_local - 1
    stretch = -(-max(reach, QUERIES_PER_STRETCH) // ROWS) * ROWS
    columns = spare + reach + min(stretch, q.shape[2])
    buffer = q.new_empty(len(q), len(heads), columns, q.shape[3], dtype=exact)
    for start in range(0, q.shape[2], stretch):
        own = k.shape[2] - q.shape[2] + start  # the first query's own key
        last = min(own + stretch, k.shape[2])
        oldest = max(0, own - reach)
        column = spare + reach - own  # where key 0 would stand
        new = own if start else oldest
        if start:
            moved = buffer[:, :, column + oldest + stretch : column + own + stretch]
            buffer[:, :, column + oldest : column + own] = moved
        place = scheme.at(torch.arange(first + new, first + last), exact, q.device)
        for at in range(new, last, ROWS_PLACED_AT_ONCE):
            to = min(at + ROWS_PLACED_AT_ONCE, last)
            fresh = k[:, heads.start : heads.stop, at:to]
            buffer[:, :, column + at : column + to] = place(fresh, slice(at - new, to - new))
        queries = slice(start, start + last - own)
        attend_band(
            q[:, :, queries], lambda x, rows, place=place, shift=own - new: place(
                x, slice(rows.start + shift, rows.stop + shift)
            ),
            buffer[:, :, column + oldest - spare : column + last],
            v[:, :, oldest:last].to(exact), starting, first + own, scheme, lm, scale,
            out[:, :, queries], heads,
        )  # fmt: skip

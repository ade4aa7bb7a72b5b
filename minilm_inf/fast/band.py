"""Consecutive queries: each block of them looks back alike, as the Λ is a band.

With n_local=8, blocks of 4 queries, and one position per column:

                   starting     a - 7                 a
    query a          # #          # # # # # # # # . . .
                     # #          . # # # # # # # # . .
                     # #          . . # # # # # # # # .
    query a + 3      # #          . . . # # # # # # # #

Only both ends of a row need a mask, which depends on distances alone and is made once. The
window is a view of keys that overlaps the next block's, so many blocks are one batched product.
The starting keys have columns of their own in the same logits: one softmax, as in the
definition. Near the beginning of a text the same block is cut off on its left.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import LMInfinite
from ..lambda_mask import distances, is_local, is_past
from .chunk import LOGITS_AT_ONCE, Keys

ROWS = 96  # queries of a block: of n_local + 95 keys, 95 are computed in vain
BLOCK_LOGITS = 13 << 18  # 16 blocks of one key head, at n_local 2048: they share its keys
LEAST_SCALE = 1e-30  # PyTorch's causal mask is -inf * scale, and less is 0 in float32
TIMES_ON_A_GPU = 16  # as much at once: there a call costs more than what passes through memory
ALIGNED = 16  # floats: a product is slower where rows begin at odd addresses


def ceiling_parts(scheme, lm: LMInfinite) -> bool:
    """Whether every window key stands below the ceiling and every starting key at it, or the
    scheme does not care: then two products are enough."""
    return scheme.has_bias or lm.distance_ceiling in (None, lm.n_local)


def spare_columns(lm: LMInfinite, n_starting: int) -> int:
    """How many columns of a block's logits stand before its window: the starting keys', and
    some that nobody sees, so that rows are aligned."""
    return n_starting + -(n_starting + lm.n_local - 1 + ROWS) % ALIGNED


def attend_band(
    q: Tensor, place, keys: Tensor, values: Tensor, starting: Keys, first: int, scheme,
    lm: LMInfinite, scale: float, out: Tensor, key_heads: range | None = None,
):  # fmt: skip
    """Write to out what consecutive queries gather.

    q, out:  (B, H, T, D), q not placed; place(q, rows) places those rows of it
    keys:    (B, H_kv, spare_columns + S, D), placed; the last T are the queries' own
    values:  (B, H_kv, S, D)
    first:   the position of the first query, counted as starting.positions are
    key_heads: which of H_kv are in `keys`, and answered for; None: all
    """
    lm = replace(lm, n_local=min(lm.n_local, values.shape[2]))  # a longer one has no more keys
    key_heads = key_heads or range(values.shape[1])
    n_kv_head, n_starting, exact = values.shape[1], starting.k.shape[2], keys.dtype
    group, before = q.shape[1] // n_kv_head, values.shape[2] - q.shape[2]
    spare = keys.shape[2] - values.shape[2]
    begins = not before and not (n_starting and int(starting.positions[0]) < first)
    early = 0
    if begins and not scheme.has_bias and scale > LEAST_SCALE:
        early = min(q.shape[2], lm.n_local)
        attend_early(q[:, :, :early], place, keys[:, :, spare:], values, scale, out, key_heads)
    mask = window_mask(scheme, lm, ROWS, exact, q.device)  # (1 or H, ROWS, n_local - 1 + ROWS)
    block = group * ROWS * (spare + mask.shape[-1])
    at_once = max(1, BLOCK_LOGITS * (TIMES_ON_A_GPU if q.is_cuda else 1) // block)
    scratch = q.new_empty(min(at_once, -(-(q.shape[2] - early) // ROWS)) * block, dtype=exact)
    for start, count, rows in runs_of_blocks(early, q.shape[2], before, lm.n_local, at_once):
        here = slice(start, start + count * rows)
        begin = max(0, before + start - (lm.n_local - 1))
        left = lm.n_local - 1 - (before + start - begin)  # columns that a text's start cuts off
        marks = mask[:, :rows, left : lm.n_local - 1 + rows]
        end = begin + marks.shape[-1] + (count - 1) * rows
        positions = range(first + here.start, first + here.stop)
        far = starting_mask(scheme, lm, positions, starting.positions, exact, q.device)
        for row, head in product(range(len(q)), key_heads):
            heads = slice(head * group, (head + 1) * group)
            mine = q[row, heads, here].to(exact)  # (H / H_kv, N * rows, D)
            placed = place(mine, here)
            at_home = starting_logits(mine, placed, starting, row, head, scale)
            if far is not None:
                at_home = at_home + (far[heads] if scheme.has_bias else far)
            gathered = attend_blocks(
                by_block(placed, count), keys[row, head - key_heads.start, begin : spare + end],
                values[row, head, begin:end], by_block(at_home, count), starting.v[row, head],
                marks[heads] if scheme.has_bias else marks, scheme.has_bias, scale, scratch,
            )  # fmt: skip
            by_block(out[row, heads, here], count).copy_(gathered)


def starting_logits(q, placed, starting: Keys, row: int, head: int, scale: float) -> Tensor:
    """The logits of one head's starting keys, (H / H_kv, T, G): from home at -C for queries
    that are not placed, from their own positions for those that are."""
    asked = placed if starting.home is None else q
    return asked @ starting.k[row, head].mT * scale


def attend_blocks(
    q, k, v, at_home, starting_v, marks, has_bias: bool, scale: float, scratch: Tensor
) -> Tensor:
    """What N blocks of queries gather that share one key head, (N, H / H_kv, rows, D).

    q:       (N, H / H_kv, rows, D), placed
    k, v:    (spare + S, D) and (S, D): of all blocks, one after the other
    at_home: the logits of the starting keys, (N, H / H_kv, rows, G); starting_v: (G, D)
    marks:   the window's mask, (1 or H / H_kv, rows, width)
    """
    (count, group, rows, _), n_starting = q.shape, at_home.shape[-1]
    spare, width = len(k) - len(v), marks.shape[-1]
    logits = scratch[: count * group * rows * (spare + width)]
    logits = logits.view(count, group * rows, spare + width)
    windows = k.unfold(0, spare + width, rows)  # (N, D, spare + width)
    torch.baddbmm(logits, q.flatten(1, 2), windows, beta=0, alpha=scale, out=logits)
    by_head = logits.unflatten(1, (group, rows))
    add_marks(by_head[..., spare:], marks, has_bias)
    by_head[..., :spare] = torch.finfo(logits.dtype).min
    by_head[..., :n_starting] = at_home
    weights = torch.softmax(logits, -1, out=logits)
    gathered = torch.bmm(weights[..., spare:], v.unfold(0, width, rows).mT)
    if n_starting:
        gathered.baddbmm_(weights[..., :n_starting], starting_v.expand(count, -1, -1))
    return gathered.unflatten(1, (group, rows))


def attend_early(q, place, k, v, scale: float, out, key_heads: range):
    """Write to out what the first queries of a text gather, no more of them than n_local: all
    of the past, in PyTorch's fused causal attention."""
    group, length = q.shape[1] // v.shape[1], q.shape[2]
    for head in key_heads:
        heads = slice(head * group, (head + 1) * group)
        placed = place(q[:, heads].to(k.dtype), slice(0, length))
        one = head - key_heads.start
        out[:, heads, :length] = F.scaled_dot_product_attention(
            placed, k[:, one : one + 1, :length], v[:, head : head + 1, :length],
            is_causal=True, scale=scale, enable_gqa=group > 1,
        )  # fmt: skip


def runs_of_blocks(start: int, length: int, before: int, n_local: int, at_once: int):
    """(first query, number of blocks, queries of each) from `start` on: blocks with a whole
    window together, others one by one."""
    while start < length:
        rows = min(ROWS, length - start)
        whole = before + start >= n_local - 1
        count = min(at_once, (length - start) // rows) if whole else 1
        yield start, count, rows
        start += count * rows


def by_block(x: Tensor, count: int) -> Tensor:
    """(heads, N * rows, D) -> (N, heads, rows, D), a view."""
    return x.unflatten(1, (count, -1)).transpose(0, 1)


@functools.lru_cache(maxsize=8)
def window_mask(scheme, lm: LMInfinite, rows: int, dtype, device) -> Tensor:
    """What is added to a block's logits: the bias of each distance, the lowest number for what
    is not in the window; (1 or H, rows, n_local - 1 + rows)."""
    with torch.inference_mode(False):
        d = distances(torch.arange(rows), torch.arange(1 - lm.n_local, rows))
        hidden = ~(is_past(d) & is_local(d, lm.n_local))
        bias = bias_of(scheme, lm, d, dtype)
        return bias.masked_fill(hidden, torch.finfo(dtype).min).to(device)


def starting_mask(scheme, lm: LMInfinite, queries: range, starting: Tensor, dtype, device):
    """The same for starting keys and queries at these positions, (1 or H, T, G); None where it
    would be 0 throughout."""
    in_window = len(starting) and queries.start - int(starting[-1]) < lm.n_local
    if not len(starting) or not (in_window or scheme.has_bias):
        return None
    d = distances(torch.arange(queries.start, queries.stop), starting)
    hidden = is_local(d, lm.n_local)
    return bias_of(scheme, lm, d, dtype).masked_fill(hidden, torch.finfo(dtype).min).to(device)


def bias_of(scheme, lm: LMInfinite, d: Tensor, dtype) -> Tensor:
    """The bias of distances (T, S), of which none seems beyond the ceiling: (1 or H, T or 1,
    S or 1)."""
    if not scheme.has_bias:
        return torch.zeros(1, 1, 1, dtype=dtype)
    d = d if lm.distance_ceiling is None else d.clamp(max=lm.distance_ceiling)
    return scheme.bias(d).to(dtype)


def add_marks(logits: Tensor, marks: Tensor, has_bias: bool):
    """Add a window's mask (1 or H / H_kv, rows, width) to logits (N, H / H_kv, rows, width);
    without a bias it is 0 but for both ends of the rows."""
    width, rows = marks.shape[-1], logits.shape[2]
    whole = has_bias or width <= 2 * ROWS
    for ends in (slice(None),) if whole else (slice(0, ROWS), slice(width - rows, width)):
        logits[..., ends] += marks[..., ends]


def attend_all(q, k, v, scheme, lm: LMInfinite, scale: float) -> Tensor:
    """Without a window: what placed queries (B, H, T, D) gather from all of the past, in
    PyTorch's fused attention. k, v: (B, H_kv, S, D), the last T the queries' own."""
    before = k.shape[2] - q.shape[2]
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.device.type != "cpu":  # there not every fused kernel knows groups
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        grouped = False
    attention = functools.partial(
        F.scaled_dot_product_attention, scale=scale, enable_gqa=grouped
    )
    if q.shape[2] == 1 and not scheme.has_bias:
        return attention(q, k, v)
    if before == 0 and not scheme.has_bias and scale > LEAST_SCALE:
        return attention(q, k, v, is_causal=True)
    heads = q.shape[1] if scheme.has_bias else 1
    rows, out = max(1, min(256, LOGITS_AT_ONCE // (heads * k.shape[2]))), []
    for start in range(0, q.shape[2], rows):
        some = q[:, :, start : start + rows]
        last = before + start + some.shape[2]
        d = distances(torch.arange(before + start, last), torch.arange(last))
        mask = bias_of(scheme, lm, d, q.dtype).masked_fill(
            ~is_past(d), torch.finfo(q.dtype).min
        )
        mask = mask.to(q.device)
        out.append(attention(some, k[:, :, :last], v[:, :, :last], attn_mask=mask))
    return torch.cat(out, 2)

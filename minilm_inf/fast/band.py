"""Consecutive queries of one text: each block of them looks back alike, as the Λ is a band.

With n_local=8, blocks of 4 queries, and one position per column:

                   starting     a - 7                 a
    query a          # #          # # # # # # # # . . .
                     # #          . # # # # # # # # . .
                     # #          . . # # # # # # # # .
    query a + 3      # #          . . . # # # # # # # #

What a row hides depends on distances alone. The window is a view of keys that overlaps the next
block's, so many blocks are one batched product. The starting keys have columns of their own in
the same logits: one softmax over the keys of the definition, and no others. Near the beginning
of a text the same block is cut off on its left.
"""

from __future__ import annotations

import functools
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import LMInfinite
from ..lambda_mask import distances, is_local, is_past
from ..positions import Alibi, Rotary

ROWS = 64  # queries of a block: of n_local + 63 keys, 63 are computed in vain
BLOCK_LOGITS = 13 << 18  # 24 blocks of one key head, at n_local 2048: they share its keys
TIMES_ON_A_GPU = 16  # as much at once: there a call costs more than what passes through memory
ALIGNED = 16  # floats: a product is slower where rows begin at odd addresses
LONG = 512  # a window of more than this: its logits are masked at both ends alone
LEAST_SCALE = 1e-30  # PyTorch's causal mask is -inf * scale, and less is 0 in float32


class How(NamedTuple):
    """How queries look back: Rotary or Alibi, the setting, and the factor of q . k."""

    scheme: Rotary | Alibi
    lm: LMInfinite
    scale: float

    @property
    def home(self) -> int | None:
        """Where all of fast/ keeps the starting keys: at -C. A query that is not placed, as if
        it stood at 0, finds each of them there exactly C away."""
        return None if self.lm.distance_ceiling is None else -self.lm.distance_ceiling


def fits_band(how: How) -> bool:
    """Whether every window key stands below the ceiling and every starting key at it, or the
    scheme places nothing: then placed queries meet the window, and unplaced ones home."""
    return how.scheme.has_bias or how.lm.distance_ceiling in (None, how.lm.n_local)


def sees_all_past(how: How, n_queries: int, n_keys: int) -> bool:
    """Whether every query of a text sees all before it as they are: PyTorch can do that."""
    fits = n_queries == n_keys and n_keys <= (how.lm.n_local or n_keys)
    return fits and not how.scheme.has_bias and how.scale > LEAST_SCALE


def spare_columns(n_starting: int, n_local: int) -> int:
    """How many columns of a block's logits stand before its window: the starting keys', and
    some that nobody sees, so that rows are aligned."""
    return n_starting + -(n_starting + n_local - 1 + ROWS) % ALIGNED


def attend_band(
    q: Tensor, place, shift: int, keys: Tensor, values: Tensor, starting: tuple, first: int,
    how: How, out: Tensor, first_head: int = 0,
):  # fmt: skip
    """Write to out what consecutive queries gather.

    q, out: (B, H, T, D), q not placed; place(q, rows) does that, as scheme.at gives it, where
            row `shift` is the first query's
    keys:   (B, H_kv, spare + S, D), placed; the last T are the queries' own, and the first
            spare ones, at least as many as there are starting keys, may be anything
    values: (B, H_kv, S, D)
    starting: the keys at home, their values, (B, H_kv, G, D), and their positions, (G,)
    first:  the position of the first query, counted as those of the starting keys are
    first_head: the number of H's first head in the scheme
    """
    scheme, lm, scale = how
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    keys, values, home_k, home_v = (x.to(exact) for x in (keys, values, *starting[:2]))
    (_, n_head, length, _), (_, n_kv_head, n_keys, _) = q.shape, values.shape
    n_local = min(n_keys, lm.n_local or n_keys)  # a longer window has no more keys
    group, before, spare = n_head // n_kv_head, n_keys - length, keys.shape[2] - n_keys
    each_head = [
        (row, head, slice(head * group, (head + 1) * group))
        for row, head in product(range(len(q)), range(n_kv_head))
    ]
    early = 0  # queries that see all of the past
    if not before and n_local > 1 and sees_all_past(how, n_local, n_local):
        early = min(length, n_local)
        for row, head, heads in each_head:
            placed = place(q[row, heads, :early].to(exact), slice(shift, shift + early))
            past = keys[row, head, spare : spare + early], values[row, head, :early]
            past = (x[None, None] for x in past)
            out[row, heads, :early] = attend_past(placed[None], *past, scale)[0]
    mask = window_mask(scheme, lm, n_local, ROWS, exact, q.device)
    block = group * ROWS * (spare + n_local - 1 + ROWS)  # logits
    at_once = max(1, BLOCK_LOGITS * (TIMES_ON_A_GPU if q.is_cuda else 1) // block)
    scratch = q.new_empty(min(at_once, -(-(length - early) // ROWS)) * block, dtype=exact)
    for start, count, rows in runs_of_blocks(early, length, n_local - 1 - before, at_once):
        here = slice(start, start + count * rows)
        cut = max(0, n_local - 1 - before - start)  # columns before the text's first token
        oldest = before + start - (n_local - 1) + cut
        window = slice(oldest, before + here.stop)  # of all blocks, one after the other
        d = distances(torch.arange(first + here.start, first + here.stop), starting[2])
        far = masked_bias(scheme, lm, d, ~is_local(d, lm.n_local), exact).to(q.device)
        for row, head, heads in each_head:
            biased = slice(0, 1)
            if scheme.has_bias:
                biased = slice(first_head + heads.start, first_head + heads.stop)
            unplaced = q[row, heads, here].to(exact)
            placed = place(unplaced, slice(shift + here.start, shift + here.stop))
            asked = placed if how.home is None else unplaced
            at_home = asked @ home_k[row, head].mT * scale + far[biased]
            gathered = attend_blocks(
                by_block(placed, count), keys[row, head, oldest : spare + window.stop],
                values[row, head, window], by_block(at_home, count), home_v[row, head],
                mask[biased, :rows], cut, scale, scratch,
            )  # fmt: skip
            by_block(out[row, heads, here], count).copy_(gathered)


def runs_of_blocks(start: int, length: int, n_cut: int, at_once: int):
    """(first query, number of blocks, queries of each) from `start` on: blocks with a whole
    window together, the first n_cut queries' one by one."""
    while start < length:
        rows = min(ROWS, length - start)
        count = 1 if start < n_cut else min(at_once, (length - start) // rows)
        yield start, count, rows
        start += count * rows


def attend_past(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """All of the past, in PyTorch's own causal attention: placed q (B, H, T, D) and k, and v,
    (B, H_kv, T, D)."""
    gqa = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)


def attend_blocks(q, k, v, at_home, home_v, mask, cut: int, scale: float, scratch) -> Tensor:
    """What N blocks of queries gather that share one key head, (N, H / H_kv, rows, D).

    q:       (N, H / H_kv, rows, D), placed
    k, v:    (spare + S, D) and (S, D): of all blocks, one after the other
    at_home: the logits of the starting keys, (N, H / H_kv, rows, G); home_v: (G, D)
    mask:    of the window, (1 or H / H_kv, rows, cut + width)
    """
    (count, group, rows, _), n_starting = q.shape, at_home.shape[-1]
    spare, width = len(k) - len(v), len(v) - (count - 1) * rows
    logits = scratch[: count * group * rows * (spare + width)]
    logits = logits.view(count, group * rows, spare + width)
    windows = k.unfold(0, spare + width, rows)  # (N, D, spare + width)
    torch.baddbmm(logits, q.flatten(1, 2), windows, beta=0, alpha=scale, out=logits)
    by_head = logits.unflatten(1, (group, rows))
    hide(by_head[..., spare:], mask, cut)
    by_head[..., :spare] = torch.finfo(logits.dtype).min
    by_head[..., :n_starting] = at_home
    weights = torch.softmax(logits, -1, out=logits)
    gathered = torch.bmm(weights[..., spare:], v.unfold(0, width, rows).mT)
    if n_starting:
        gathered.baddbmm_(weights[..., :n_starting], home_v.expand(count, -1, -1))
    return gathered.unflatten(1, (group, rows))


def hide(logits: Tensor, mask: Tensor, cut: int):
    """Add a window's mask to logits (N, H / H_kv, rows, width), whose first `cut` columns are
    missing. A mask that has fewer columns is 0 between its ends."""
    rows, width = logits.shape[2:]
    if cut + width <= mask.shape[-1]:
        logits += mask[..., cut : cut + width]
        return
    last = mask.shape[-1] - ROWS
    logits[..., : max(0, ROWS - cut)] += mask[..., cut:ROWS]
    logits[..., -rows:] += mask[..., last : last + rows]


def by_block(x: Tensor, count: int) -> Tensor:
    """(heads, N * rows, D) -> (N, heads, rows, D), a view."""
    return x.unflatten(1, (count, -1)).transpose(0, 1)


@functools.lru_cache(maxsize=2)
def window_mask(scheme, lm: LMInfinite, n_local: int, rows: int, dtype, device) -> Tensor:
    """What is added to a block's logits: the bias of each distance, the lowest number for what
    is not in the window; (1 or H, rows, n_local - 1 + rows).

    Without a bias all long windows have the same ends, and no more is kept of them.
    """
    if n_local > LONG and not scheme.has_bias:
        n_local = rows + 1
    with torch.inference_mode(False):
        d = distances(torch.arange(rows), torch.arange(1 - n_local, rows))
        return masked_bias(scheme, lm, d, is_past(d) & is_local(d, n_local), dtype).to(device)


def masked_bias(scheme, lm: LMInfinite, d: Tensor, seen: Tensor | None, dtype) -> Tensor:
    """The bias of distances (.., T, S), of which none seems beyond the ceiling, and the lowest
    number for what is not seen, unless all is: (.., 1 or H, T, S)."""
    if scheme.has_bias:
        d = d if lm.distance_ceiling is None else d.clamp(max=lm.distance_ceiling)
        bias = scheme.bias(d).to(dtype)
    else:
        bias = torch.zeros_like(d, dtype=dtype).unsqueeze(-3)
    if seen is None:
        return bias
    return bias.masked_fill(~seen.unsqueeze(-3), torch.finfo(dtype).min)

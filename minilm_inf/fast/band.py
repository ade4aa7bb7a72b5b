"""Consecutive queries of one text: each block of them looks back alike, as the Λ is a band.

With n_local=8, blocks of 4 queries, and one position per column:

                   starting     a - 7                 a
    query a          # #          # # # # # # # # . . .
                     # #          . # # # # # # # # . .
                     # #          . . # # # # # # # # .
    query a + 3      # #          . . . # # # # # # # #

Only both ends of a row need a mask, which depends on distances alone. The window is a view of
keys that overlaps the next block's, so many blocks are one batched product. The starting keys
have columns of their own in the same logits: one softmax over the keys of the definition. Near
the beginning of a text the same block is cut off on its left.
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
from .chunk import Keys

ROWS = 64  # queries of a block: of n_local + 63 keys, 63 are computed in vain
BLOCK_LOGITS = 13 << 18  # 24 blocks of one key head, at n_local 2048: they share its keys
TIMES_ON_A_GPU = 16  # as much at once: there a call costs more than what passes through memory
ALIGNED = 16  # floats: a product is slower where rows begin at odd addresses
LEAST_SCALE = 1e-30  # PyTorch's causal mask is -inf * scale, and less is 0 in float32


def ceiling_is_the_window(scheme, lm: LMInfinite) -> bool:
    """Whether every window key stands below the ceiling and every starting key at it, or the
    scheme places nothing: then placed queries meet the window, and unplaced ones home."""
    return scheme.has_bias or lm.distance_ceiling in (None, lm.n_local)


def spare_columns(n_starting: int, n_local: int) -> int:
    """How many columns of a block's logits stand before its window: the starting keys', and
    some that nobody sees, so that rows are aligned."""
    return n_starting + -(n_starting + n_local - 1 + ROWS) % ALIGNED


class Run(NamedTuple):
    """Blocks that are one product: `count` of them, for the queries `here`.

    keys: of all blocks, one after the other; mask: of the window, and far of the starting keys,
    None where all are seen as they are; both (1 or H, rows, columns).
    """

    here: slice
    count: int
    keys: slice
    cut: int
    far: Tensor | None


class Band:
    """Consecutive queries, each with its window: what all heads and layers share.

    positions: of the queries, as range(first, last); place: scheme.at of them
    n_keys:    how many keys there are in order, of which the last are the queries' own
    starting:  the positions of the starting keys, (G,)
    spare:     spare_columns; group: query heads of a key head
    """

    def __init__(
        self, scheme, lm: LMInfinite, scale: float, place, positions: range, n_keys: int,
        starting: Tensor, spare: int, group: int, like: Tensor,
    ):  # fmt: skip
        self.scheme, self.lm, self.scale, self.place = scheme, lm, scale, place
        self.spare, self.group, self.n_starting = spare, group, len(starting)
        self.exact = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.n_local = min(n_keys, lm.n_local or n_keys)  # a longer window has no more keys
        self.mask = window_mask(scheme, lm, self.n_local, self.exact, like.device)
        before = n_keys - len(positions)
        is_first = before == 0 and not (self.n_starting and starting[0] < positions[0])
        self.n_early = 0
        if is_first and not scheme.has_bias and scale > LEAST_SCALE:
            self.n_early = min(len(positions), self.n_local)
        columns = self.spare + self.n_local - 1 + ROWS
        times = TIMES_ON_A_GPU if like.is_cuda else 1
        self.at_once = max(1, BLOCK_LOGITS * times // (group * ROWS * columns))
        self.runs = list(self._runs(positions, before, starting, like.device))

    def _runs(self, positions: range, before: int, starting: Tensor, device):
        """Blocks with a whole window together, others one by one."""
        start = self.n_early
        while start < len(positions):
            rows = min(ROWS, len(positions) - start)
            cut = max(0, self.n_local - 1 - before - start)  # columns before the text's start
            count = 1 if cut else min(self.at_once, (len(positions) - start) // rows)
            here = slice(start, start + count * rows)
            first = before + start - (self.n_local - 1) + cut
            far = starting_mask(
                self.scheme, self.lm, positions[here], starting, self.exact, device
            )
            yield Run(here, count, slice(first, before + here.stop), cut, far)
            start = here.stop

    def __call__(self, q, keys, v, starting: Keys, out, first_head: int = 0):
        """Write to out what the queries gather.

        q, out:     (B, H, T, D), q not placed
        keys:       (B, H_kv, spare + S, D), placed, of which the spare ones may be anything
        v:          (B, H_kv, S, D)
        first_head: the number of H's first head in the scheme
        """
        blocks = max((run.count for run in self.runs), default=0)
        columns = self.spare + self.n_local - 1 + ROWS
        scratch = q.new_empty(blocks * self.group * ROWS * columns, dtype=self.exact)
        for row, head in product(range(len(q)), range(v.shape[1])):
            heads = slice(head * self.group, (head + 1) * self.group)
            biased = slice(first_head + heads.start, first_head + heads.stop)
            of_head = q[row, heads], keys[row, head], v[row, head]
            home = starting.k[row, head], starting.v[row, head]
            if self.n_early:
                self._attend_early(*of_head, out[row, heads])
            for run in self.runs:
                self._attend(run, *of_head, *home, out[row, heads], biased, scratch)

    def _attend_early(self, q, keys, v, out):
        """The first queries of a text, no more than n_local: all of the past, in PyTorch's own
        causal attention."""
        here = slice(0, self.n_early)
        placed = self.place(q[:, here].to(self.exact), here)
        past = keys[self.spare :][here], v[here]
        out[:, here] = F.scaled_dot_product_attention(
            placed[None], *(x[None, None] for x in past), is_causal=True, scale=self.scale,
            enable_gqa=self.group > 1,
        )[0]  # fmt: skip

    def _attend(self, run: Run, q, keys, v, home_k, home_v, out, heads: slice, scratch):
        """The blocks of a run, of the queries that share a key head.

        q, out: (H / H_kv, T, D); keys, v: (spare + S, D), (S, D); home_k, home_v: (G, D)
        """
        count, n_starting, spare = run.count, self.n_starting, self.spare
        rows = (run.here.stop - run.here.start) // count
        width = run.keys.stop - run.keys.start - (count - 1) * rows  # a block's window
        unplaced = q[:, run.here].to(self.exact)
        placed = self.place(unplaced, run.here)  # (H / H_kv, count * rows, D)
        logits = scratch[: count * self.group * rows * (spare + width)]
        logits = logits.view(count, self.group * rows, spare + width)
        with_spare = keys[run.keys.start : spare + run.keys.stop]
        windows = with_spare.unfold(0, spare + width, rows)  # (count, D, spare + width)
        asked = by_block(placed, count).flatten(1, 2)
        torch.baddbmm(logits, asked, windows, beta=0, alpha=self.scale, out=logits)
        by_head = logits.unflatten(1, (self.group, rows))
        self._hide(by_head[..., spare:], run.cut, heads)
        by_head[..., :spare] = torch.finfo(self.exact).min
        if n_starting:
            # From home at -C, an unplaced query is C away; without a ceiling all are placed.
            asked = placed if self.lm.distance_ceiling is None else unplaced
            at_home = by_block(asked @ home_k.mT * self.scale, count)
            if run.far is not None:
                far = run.far[heads] if self.scheme.has_bias else run.far
                at_home = at_home + by_block(far, count)
            by_head[..., :n_starting] = at_home
        weights = torch.softmax(logits, -1, out=logits)
        values = v[run.keys].unfold(0, width, rows).mT  # (count, width, D)
        gathered = torch.bmm(weights[..., spare:], values)
        if n_starting:
            gathered.baddbmm_(weights[..., :n_starting], home_v.expand(count, -1, -1))
        by_block(out[:, run.here], count).copy_(gathered.unflatten(1, (self.group, rows)))

    def _hide(self, logits: Tensor, cut: int, heads: slice):
        """Add the mask to logits (count, H / H_kv, rows, width), whose first `cut` columns are
        missing; without a bias it is 0 but for both ends of the rows."""
        rows, width = logits.shape[2:]
        if self.scheme.has_bias:
            logits += self.mask[heads, :rows, cut : cut + width]
        elif cut + width <= 2 * ROWS:
            logits += self.mask[:, :rows, cut : cut + width]
        else:
            logits[..., : max(0, ROWS - cut)] += self.mask[:, :rows, cut:ROWS]
            last = self.mask.shape[-1] - ROWS
            logits[..., -rows:] += self.mask[:, :rows, last : last + rows]


def by_block(x: Tensor, count: int) -> Tensor:
    """(heads, N * rows, D) -> (N, heads, rows, D), a view."""
    return x.unflatten(1, (count, -1)).transpose(0, 1)


@functools.lru_cache(maxsize=2)
def window_mask(scheme, lm: LMInfinite, n_local: int, dtype, device) -> Tensor:
    """What is added to a block's logits: the bias of each distance, the lowest number for what
    is not in the window; (1 or H, ROWS, n_local - 1 + ROWS).

    Without a bias all windows of more than 2 * ROWS have the same ends.
    """
    if not scheme.has_bias:
        n_local = min(n_local, 2 * ROWS)
    with torch.inference_mode(False):
        d = distances(torch.arange(ROWS), torch.arange(1 - n_local, ROWS))
        hidden = ~(is_past(d) & is_local(d, n_local))
        bias = bias_of(scheme, lm, d, dtype)
        return bias.masked_fill(hidden, torch.finfo(dtype).min).to(device)


def starting_mask(scheme, lm: LMInfinite, queries: range, starting: Tensor, dtype, device):
    """The same for starting keys and queries at these positions, (1 or H, T, G); None where it
    would be 0 throughout."""
    if not len(starting):
        return None
    have_left = lm.n_local is not None and queries[0] - int(starting[-1]) >= lm.n_local
    if have_left and not scheme.has_bias:
        return None
    d = distances(torch.arange(queries.start, queries.stop), starting)
    hidden = is_local(d, lm.n_local)
    return bias_of(scheme, lm, d, dtype).masked_fill(hidden, torch.finfo(dtype).min).to(device)


def bias_of(scheme, lm: LMInfinite, d: Tensor, dtype) -> Tensor:
    """The bias of distances (T, S), of which none seems beyond the ceiling: (H, T, S), or
    (1, 1, 1) where there is none."""
    if not scheme.has_bias:
        return torch.zeros(1, 1, 1, dtype=dtype)
    d = d if lm.distance_ceiling is None else d.clamp(max=lm.distance_ceiling)
    return scheme.bias(d).to(dtype)

"""The middle of a long text: consecutive queries, each with its whole window behind it.

There the Λ is a band, and each block of queries looks back alike. With n_local=8, blocks of 4:

    keys:        a - 8                     a
    query a        x # # # # # # # # . . .
                   x . # # # # # # # # . .        x: a key that no query of the block sees
                   x . . # # # # # # # # .
    query a + 3    x . . . # # # # # # # #

Many blocks are one batched product, in which their keys overlap as a view. Only both ends of a
row need a mask. The starting keys are summed apart, and what they give then enters the softmax
*as one more key*, in the column that no query sees: its logit is the log of their sum of
exponentials, its value what was gathered from them. That is exact:

    softmax over a, b, c, d  =  softmax over a, b, log(e^c + e^d), where the last one's value
                                is what a softmax over c and d gathers
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

QUERIES_PER_BLOCK = 96  # of n_local + 96 keys, 96 are computed in vain
LOGITS_AT_ONCE = 5 << 19  # of blocks that share keys, while these are in the CPU's caches


class Summed(NamedTuple):
    """A softmax over some keys: the weighted values (.., T, D), the log of its sum (.., T)."""

    gathered: Tensor
    log_sum: Tensor


def band(
    q: Tensor,
    place,
    k: Tensor,
    v: Tensor,
    starting: Summed | None,
    n_local: int,
    scale: float,
    out: Tensor,
):
    """Write to out what queries gather from their last n_local keys and the starting ones.

    q, out: (B, H, T, D), q not placed; place(q, rows) places some of its rows
    k, v:   (B, H_kv, n_local + T, D), k placed; the last T are the queries' own
    starting: of (B, H, T), None where there are no such keys
    """
    n_kv_head, rows = k.shape[1], QUERIES_PER_BLOCK
    group = q.shape[1] // n_kv_head
    blocks = max(1, LOGITS_AT_ONCE // (group * rows * (n_local + rows)))
    blocks = min(blocks, -(-q.shape[2] // rows))
    scratch = q.new_empty(blocks * group * rows * (n_local + rows))
    for start, count, rows in runs_of_blocks(q.shape[2], blocks):
        here, past = (
            slice(start, start + count * rows),
            slice(start, start + n_local + count * rows),
        )
        masks = edges(rows, q.dtype, q.device)
        for row in range(len(q)):
            for head in range(n_kv_head):
                heads = slice(head * group, (head + 1) * group)
                placed = place(q[row : row + 1, heads, here], here)[0]
                mine = [placed, *(x[row, heads, here] for x in (out, *(starting or ())))]
                mine = [x.unflatten(1, (count, rows)).transpose(0, 1) for x in mine]
                keys = k[row, head, past], v[row, head, past]
                attend_blocks(*mine[:2], *keys, mine[2:], masks, n_local, scale, scratch)


def runs_of_blocks(length: int, most: int):
    """(start, number of blocks, queries of each) of whole blocks, `most` at a time, and of what
    remains."""
    whole, left = divmod(length, QUERIES_PER_BLOCK)
    for first in range(0, whole, most):
        yield first * QUERIES_PER_BLOCK, min(most, whole - first), QUERIES_PER_BLOCK
    if left:
        yield whole * QUERIES_PER_BLOCK, 1, left


@functools.lru_cache(maxsize=8)
def edges(rows: int, dtype: torch.dtype, device) -> tuple[Tensor, Tensor]:
    """Masks (rows, rows) for the first and for the last keys of a block: query r does not see
    the first r + 1 of them, nor any behind its own."""
    upper = torch.ones(rows, rows, dtype=torch.bool, device=device).triu(1)
    zero = torch.zeros(rows, rows, dtype=dtype, device=device)
    lowest = torch.finfo(dtype).min
    return zero.masked_fill(~upper, lowest), zero.masked_fill(upper, lowest)


def attend_blocks(q, out, k, v, starting, masks, n_local: int, scale: float, scratch: Tensor):
    """Blocks of queries that share one key head: q, out (N, H / H_kv, rows, D); k, v
    (n_local + N * rows, D); starting, if any: (N, H / H_kv, rows, D), (N, H / H_kv, rows)."""
    count, group, rows, _ = q.shape
    width = n_local + rows
    logits = scratch[: count * group * rows * width].view(count, group * rows, width)
    keys = k.unfold(0, width, rows)  # (N, D, n_local + rows)
    torch.baddbmm(logits, q.flatten(1, 2), keys, beta=0, alpha=scale, out=logits)
    by_head = logits.unflatten(1, (group, rows))
    by_head[..., :rows].add_(masks[0])
    by_head[..., -rows:].add_(masks[1])
    by_head[..., 0] = starting[1] if starting else torch.finfo(logits.dtype).min
    weights = torch.softmax(logits, -1, out=logits)
    values = v[1:].unfold(0, width - 1, rows).mT  # (N, n_local + rows - 1, D)
    # A block of one head is gathered where it belongs.
    into = out.flatten(1, 2) if out.dtype == q.dtype else None
    gathered = torch.bmm(weights[..., 1:], values, out=into).unflatten(1, (group, rows))
    if starting:
        gathered.addcmul_(by_head[..., :1], starting[0])
    if gathered.data_ptr() != out.data_ptr():
        out.copy_(gathered)

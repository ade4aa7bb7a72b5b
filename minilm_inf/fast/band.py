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

import torch
from torch import Tensor

QUERIES_PER_BLOCK = 96  # of n_local + 96 keys, 96 are computed in vain
LOGITS_AT_ONCE = 13 << 18  # 16 blocks of one key head, at n_local 2048: they share its keys

# PyTorch's fused attention that also returns the log-sum-exp. It passes no gradient back.
FUSED = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
FUSED = FUSED and FUSED.default


class Band:
    """What consecutive queries gather from their last n_local keys and from the starting ones.

    place: place(q, rows) places queries (B, H, T, D) that are those rows of all
    starting: keys and values (B, H_kv, n_global, D), or None: keys for queries that are placed,
            or for queries that are not, where `capped`
    """

    def __init__(self, place, starting, capped: bool, n_local: int, scale: float):
        self.place, self.starting, self.capped = place, starting, capped
        self.n_local, self.scale = n_local, scale

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, first: int, n_near: int, out: Tensor):
        """Write what queries gather to out.

        q, out: (B, H, T, D), q not placed
        k, v:   (B, H_kv, n_local + T, D), k placed; the last T are the queries' own
        first:  which row of all the first query is
        n_near: how many starting keys are still in the first query's window; the next query
                sees one more of them
        """
        n_kv_head, rows = k.shape[1], QUERIES_PER_BLOCK
        group = q.shape[1] // n_kv_head
        of_block = group * rows * (self.n_local + rows)
        blocks = min(max(1, LOGITS_AT_ONCE // of_block), -(-q.shape[2] // rows))
        scratch = q.new_empty(blocks * of_block)
        for start, count, rows in runs_of_blocks(q.shape[2], blocks):
            here = slice(start, start + count * rows)
            keys = slice(start, here.stop + self.n_local)
            all_rows = slice(first + start, first + here.stop)
            for row in range(len(q)):
                for head in range(n_kv_head):
                    heads = slice(head * group, (head + 1) * group)
                    mine = q[row : row + 1, heads, here]  # (1, H / H_kv, N * rows, D)
                    placed = self.place(mine, all_rows)
                    asked = mine if self.capped else placed
                    summed = self._sum_starting(asked, row, head, n_near - start)
                    by_block = [
                        x[0].unflatten(1, (count, rows)).transpose(0, 1)
                        for x in (placed, out[row : row + 1, heads, here], *summed)
                    ]
                    near = k[row, head, keys], v[row, head, keys]
                    self._attend_blocks(*by_block[:2], *near, by_block[2:], scratch)

    def _sum_starting(self, q: Tensor, row: int, head: int, n_near: int) -> tuple:
        """What one key head's queries gather from the starting keys: weighted values
        (1, H / H_kv, T, D), and the log of the softmax's sum (1, H / H_kv, T)."""
        if self.starting is None:
            return ()
        k, v = (x[row : row + 1, head : head + 1] for x in self.starting)
        group, length = q.shape[1:3]
        mask = None
        if n_near > 0:
            hidden = torch.ones(length, k.shape[2], dtype=torch.bool, device=q.device)
            hidden = hidden.triu(k.shape[2] - n_near)
            mask = torch.zeros_like(hidden, dtype=q.dtype)
            mask.masked_fill_(hidden, torch.finfo(q.dtype).min)
            mask = mask.repeat(group, 1)[None, None]
        q = q.reshape(1, 1, group * length, -1)
        if FUSED and q.device.type == "cpu":
            gathered, log_sum = FUSED(q, k, v, attn_mask=mask, scale=self.scale)
        else:
            q, k, v = (x if x.dtype == torch.float64 else x.float() for x in (q, k, v))
            logits = (q * self.scale) @ k.mT
            logits = logits if mask is None else logits + mask
            gathered, log_sum = logits.softmax(-1) @ v, logits.logsumexp(-1)
        return gathered.view(1, group, length, -1), log_sum.view(1, group, length)

    def _attend_blocks(self, q, out, k, v, starting, scratch: Tensor):
        """Blocks of queries that share one key head: q, out (N, H / H_kv, rows, D); k, v
        (n_local + N * rows, D); starting, if any: (N, H / H_kv, rows, D), (N, H / H_kv, rows).
        """
        count, group, rows, _ = q.shape
        width = self.n_local + rows
        logits = scratch[: count * group * rows * width].view(count, group * rows, width)
        keys = k.unfold(0, width, rows)  # (N, D, n_local + rows)
        torch.baddbmm(logits, q.flatten(1, 2), keys, beta=0, alpha=self.scale, out=logits)
        by_head = logits.unflatten(1, (group, rows))
        masks = edges(rows, q.dtype, q.device)
        by_head[..., :rows].add_(masks[0])
        by_head[..., -rows:].add_(masks[1])
        by_head[..., 0] = starting[1] if starting else torch.finfo(logits.dtype).min
        weights = torch.softmax(logits, -1, out=logits)
        values = v[1:].unfold(0, width - 1, rows).mT  # (N, n_local + rows - 1, D)
        # A block of one head is gathered where it belongs.
        into = out.flatten(1, 2) if group == 1 and out.dtype == q.dtype else None
        gathered = torch.bmm(weights[..., 1:], values, out=into).unflatten(1, (group, rows))
        if starting:
            gathered.addcmul_(by_head[..., :1], starting[0])
        if into is None:
            out.copy_(gathered)


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

"""What lies between the starting tokens and the window, for the heads that reach back to it.

All that was read is kept as it came, unplaced. A query that reaches back scores what has left
the window, at the one distance that all of it seems to have, and takes the best k along: see
top_k.py, which is the definition. Keys are scored some at a time, and only the best so far are
carried on, which are the best of all in the end.

A single query scores keys in float32 first, whose error has a bound, and in float64 only those
that may still be among the best: the result is the same, key by key.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..terminal.mapped_file import MappedFile
from ..top_k import largest, middle_bias, middle_queries
from .band import How
from .chunk import Found

TOKENS_PER_BLOCK = 4096
LOGITS_AT_ONCE = 1 << 20
ROUNDING = 2.0**-21  # twice what a float32 product can be off by, and as much again
KINDS = ("ram", "disk")


class Best(NamedTuple):
    """The best middle keys so far of some queries: their logits in float64, their columns, in
    ascending order, and which of these are keys at all, since there may be fewer than k:
    (B, H, T, k)."""

    logits: Tensor
    columns: Tensor
    valid: Tensor


class Middle:
    """All keys and values of one layer, in blocks of as many tokens, made when they are needed.

    shape: (B, H_kv, D). kind: "ram" or "disk". last: what the last search found.
    """

    def __init__(self, kind: str, shape: tuple[int, int, int], dtype, device):
        self.shape, self.dtype, self.device = shape, dtype, device
        self.file = MappedFile() if kind == "disk" else None
        self.per_block, self.length = TOKENS_PER_BLOCK, 0
        self.blocks: list[tuple[Tensor, Tensor]] = []  # keys, values: (B, H_kv, per_block, D)
        self.longest = None  # the length of the longest key of each head, (B, H_kv)
        self.last: Best | None = None

    @classmethod
    def of(cls, k: Tensor, v: Tensor) -> Middle:
        """Of a text that is there whole: (B, H_kv, S, D) each."""
        middle = cls("ram", (*k.shape[:2], k.shape[3]), k.dtype, k.device)
        middle.blocks, middle.length, middle.per_block = [(k, v)], k.shape[2], k.shape[2]
        middle._measure(k)
        return middle

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, in memory or in the file."""
        return sum(k.nbytes + v.nbytes for k, v in self.blocks)

    def append(self, k: Tensor, v: Tensor):
        """Take in the next tokens, unplaced, (B, H_kv, T, D) each."""
        self._measure(k)
        done = 0
        while done < k.shape[2]:
            number, slot = divmod(self.length, self.per_block)
            if number == len(self.blocks):
                self.blocks.append(self._new_block())
            count = min(k.shape[2] - done, self.per_block - slot)
            for block, x in zip(self.blocks[number], (k, v)):
                block[:, :, slot : slot + count] = x.detach()[:, :, done : done + count]
            self.length, done = self.length + count, done + count
        self._let_go()

    def _new_block(self) -> tuple[Tensor, Tensor]:
        batch, n_kv_head, head_dim = self.shape
        shape = (batch, n_kv_head, self.per_block, head_dim)
        if self.file:
            return self.file.new(shape, self.dtype)
        return tuple(torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in "kv")

    def _measure(self, k: Tensor):
        if k.shape[2]:
            longest = k.detach().float().norm(dim=-1).amax(-1)
            known = self.longest
            self.longest = longest if known is None else torch.maximum(known, longest)

    def _let_go(self):
        if self.file:
            self.file.let_go()

    def keep(self, rows: list[int]):
        """Forget all rows but these, which ascend."""
        self.shape = (len(rows), *self.shape[1:])
        self.longest = None if self.longest is None else self.longest[rows]
        for number, block in enumerate(self.blocks):
            kept = tuple(x[rows] for x in block)
            if self.file:  # they stay where they are
                for x, mine in zip(block, kept):
                    x[: len(rows)] = mine
                kept = tuple(x[: len(rows)] for x in block)
            self.blocks[number] = kept

    def search(self, asked: Tensor, k: int, first: int, ends: Tensor, rows=slice(None)) -> Best:
        """The k keys with the largest logits of each query.

        asked: top_k.middle_queries of those rows, (B, H, T, D)
        first, ends: each query's middle is what stands in the columns from first to ends - 1;
               ends (T,), ascending, on the CPU
        """
        shape, stop, k = asked.shape[:3], int(ends.max()), min(k, self.length)
        none = torch.zeros(*shape, k, dtype=torch.long, device=asked.device)
        best = Best(asked.new_zeros(*shape, k), none, none.bool())
        at_once = max(64, min(self.per_block, LOGITS_AT_ONCE // shape.numel()))
        while first < stop:
            number, slot = divmod(first, self.per_block)
            count = min(at_once, stop - first, self.per_block - slot)
            keys = self.blocks[number][0][rows, :, slot : slot + count].to(asked.device)
            columns = torch.arange(first, first + count, device=asked.device)
            if shape[2] == 1:
                promising = self._promising(asked, keys, best, k, rows)
                keys, columns = keys[:, :, promising], columns[promising]
            logits = scores(asked, keys.double())
            candidates = columns < ends.to(asked.device)[:, None]
            best = merge(best, logits, columns, candidates.expand_as(logits), k)
            first += count
        self.last = best
        return best

    def _promising(self, asked: Tensor, keys: Tensor, best: Best, k: int, rows) -> Tensor:
        """Which keys (B, H_kv, m, D), all of them candidates, may be among the k best of any
        head's single query, by logits in float32: columns, ascending.

        Of D products and their sum, and of what float32 makes of the query, no logit is off by
        more than (D + 2) * 2^-24 times the lengths of query and key (Cauchy and Schwarz). A
        key that is further below the k-th best than twice that is not among the best.
        """
        u = asked.detach().float()
        rough = scores(u, keys.detach().float())  # (B, H, 1, m)
        longest = (
            self.longest[rows].to(u.device).repeat_interleave(u.shape[1] // keys.shape[1], 1)
        )
        off = ROUNDING * (u.shape[-1] + 2) * u.norm(dim=-1) * longest[..., None]
        known = best.logits.float().masked_fill(~best.valid, -torch.inf)
        kth = torch.cat((known, rough), -1).topk(k).values[..., -1:]
        may = ~(rough < kth - off[..., None])  # what is not a number may be anything
        return may.flatten(0, 2).any(0).nonzero()[:, 0]

    def values(self, found: Best, rows=slice(None)) -> Tensor:
        """The values of what was found, (B, H, T, k, D); zeros where there is no key."""
        out = torch.zeros(
            *found.columns.shape, self.shape[2], dtype=self.dtype, device=found.columns.device
        )
        group = found.columns.shape[1] // self.shape[1]
        numbers = found.columns // self.per_block
        for number in numbers[found.valid].unique().tolist():
            here = (numbers == number) & found.valid
            row, head, *_ = here.nonzero(as_tuple=True)
            block = self.blocks[number][1][rows]
            index = row, head // group, found.columns[here] - number * self.per_block
            out[here] = block[tuple(x.to(block.device) for x in index)].to(out.device)
        self._let_go()
        return out


def scores(asked: Tensor, keys: Tensor) -> Tensor:
    """The logits of keys (B, H_kv, m, D): (B, H, T, D) -> (B, H, T, m)."""
    by_key_head = asked.reshape(len(asked), keys.shape[1], -1, keys.shape[3])
    return (by_key_head @ keys.mT).view(*asked.shape[:3], -1)


def merge(found: Best, logits: Tensor, columns: Tensor, candidates: Tensor, k: int) -> Best:
    """The k best of what was found and of the next columns (m,): logits and candidates are
    (B, H, T, m)."""
    logits = torch.cat((found.logits, logits), -1)
    columns = torch.cat((found.columns, columns.expand(*logits.shape[:3], -1)), -1)
    chosen = largest(logits, torch.cat((found.valid, candidates), -1), k)
    places = torch.arange(logits.shape[-1], device=logits.device)
    places = torch.where(chosen, places, -1).topk(k).values.flip(-1)
    valid, places = places >= 0, places.clamp(min=0)
    return Best(logits.gather(-1, places), columns.gather(-1, places), valid)


class Reach(NamedTuple):
    """How queries reach back to the middle of some rows; first and ends as in search."""

    middle: Middle
    how: How
    first: int
    ends: Tensor
    rows: slice = slice(None)

    def find(self, q: Tensor, here: slice = slice(None)) -> Found:
        """The middle keys that come back to queries q (B, H, T, D), not placed: those of `here`
        among all that reach back."""
        scheme, lm, scale = self.how
        asked = middle_queries(q, scheme, lm, scale)
        best = self.middle.search(asked, lm.top_k, self.first, self.ends[here], self.rows)
        logits = best.logits + middle_bias(scheme, lm, q.device)
        return Found(logits, self.middle.values(best, self.rows), best.valid)

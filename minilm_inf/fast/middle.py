"""What lies between the starting tokens and the window, for the heads that reach back to it.

All that was read is kept as it came, unplaced. A query that reaches back scores what has left
the window, at the one distance that all of it seems to have, and takes the best k along: see
top_k.py, which is the definition. Keys are scored a block at a time, and only the best so far
are carried on, which are the best of all in the end.

A single query scores every key in float32 first, whose error has a bound, and in float64 only
those that may still be among the best: the result is the same, key by key.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import fitting
from ..config import LMInfinite
from ..top_k import largest, middle_bias, middle_mask, middle_queries
from .blocks import Blocks, DiskBlocks, Whole
from .chunk import Found

LOGITS_AT_ONCE = 1 << 20
ROUNDING = 2.0**-21  # twice what a float32 product can be off by, and as much again


class Best(NamedTuple):
    """The best middle keys so far of some queries: their logits in float64, their columns, in
    ascending order, and which of these are keys at all, where there are fewer than k:
    (B, H, T, k)."""

    logits: Tensor
    columns: Tensor
    valid: Tensor


class Middle:
    """The whole past of one layer, to be searched. last: what the last search found."""

    def __init__(self, blocks: Blocks):
        self.blocks = blocks
        self.longest: list[Tensor] = []  # of each block, its longest key: (B, H_kv)
        self.last: Best | None = None

    @classmethod
    def empty(cls, kind: str, shape: tuple[int, int, int], dtype, device) -> Middle:
        """For texts that are still to be read. kind: "ram" or "disk"; shape: (B, H_kv, D)."""
        return cls((DiskBlocks if kind == "disk" else Blocks)(shape, dtype, device))

    @classmethod
    def of(cls, k: Tensor, v: Tensor) -> Middle:
        """Of a text that is there whole: (B, H_kv, S, D) each."""
        return cls(Whole(k, v))

    def append(self, k: Tensor, v: Tensor):
        """Take in the next tokens, unplaced, (B, H_kv, T, D) each."""
        self._measure(k)
        self.blocks.append(k, v)
        self.blocks.let_go()

    def keep(self, rows: list[int]):
        """Forget all rows but these."""
        self.blocks.keep(rows)
        self.longest = [x[rows] for x in self.longest]

    def state(self) -> dict[str, Tensor]:
        """All that restore needs, by name: keys and values, block by block, as they lie."""
        found = {}
        for number in range(len(self.blocks.made)):
            here = slice(0, self.blocks.length - number * self.blocks.per_block)
            found[f"k.{number}"] = self.blocks.keys(number)[:, :, here]
            found[f"v.{number}"] = self.blocks.values(number)[:, :, here]
        return found

    def restore(self, state: dict[str, Tensor], length: int):
        """Take in what another middle of the same kind gave as its state, after as many tokens.
        Raises ValueError where it is no such thing."""
        batch, n_kv_head, head_dim = self.blocks.shape
        for number in range(-(-length // self.blocks.per_block)):
            count = min(self.blocks.per_block, length - number * self.blocks.per_block)
            shape = batch, n_kv_head, count, head_dim
            new = (state.pop(f"{kind}.{number}", None) for kind in "kv")
            self.append(*(fitting(x, shape, self.blocks.dtype) for x in new))

    def search(self, asked: Tensor, k: int, stop: int, candidates) -> Best:
        """The k keys with the largest logits of each query.

        asked: top_k.middle_queries, (B, H, T, D)
        stop:  no column from here on is a candidate of any query
        candidates: a function of ascending columns (m,), on the CPU: which of them are, for
               which query, (T, m) or (B, T, m)
        """
        shape = asked.shape[:3]
        nothing = torch.empty(*shape, 0, dtype=torch.long, device=asked.device)
        best = Best(asked.new_empty(*shape, 0), nothing, nothing.bool())
        columns = torch.arange(stop, device="cpu")
        if shape[2] == 1 and self.longest and stop:
            columns = self._promising(asked, k, columns, candidates)
        at_once = max(64, LOGITS_AT_ONCE // shape.numel())
        for some in columns.split(min(at_once, self.blocks.per_block)) if len(columns) else ():
            best = merge(best, *self._score(asked, some, candidates), k)
        self.last = best
        return best

    def values(self, found: Best) -> Tensor:
        """The values of what was found, (B, H, T, k, D); zeros where there is no key."""
        batch, n_kv_head, head_dim = self.blocks.shape
        out = torch.zeros(
            *found.columns.shape, head_dim, dtype=self.blocks.dtype, device=found.columns.device
        )
        group = found.columns.shape[1] // n_kv_head
        numbers = found.columns // self.blocks.per_block
        for number in numbers[found.valid].unique().tolist():
            here = ((numbers == number) & found.valid).nonzero(as_tuple=True)
            slots = found.columns[here] - number * self.blocks.per_block
            block = self.blocks.values(number)
            index = (x.to(block.device) for x in (here[0], here[1] // group, slots))
            out = out.index_put(here, block[tuple(index)].to(out.device))
        self.blocks.let_go()
        return out

    def _score(self, asked: Tensor, columns: Tensor, candidates):
        """The logits of the keys in some columns (B, H, T, m), the columns (m,), and which of
        them are candidates (B, H, T, m)."""
        batch, n_head, length, head_dim = asked.shape
        keys = self._keys(columns).to(asked.device).double()
        by_key_head = asked.reshape(batch, keys.shape[1], -1, head_dim)
        logits = (by_key_head @ keys.mT).view(batch, n_head, length, -1)
        mask = candidates(columns).to(asked.device).unsqueeze(-3)
        return logits, columns.to(asked.device), mask.expand(batch, n_head, -1, -1)

    def _keys(self, columns: Tensor) -> Tensor:
        """The keys in some ascending columns, (B, H_kv, m, D)."""
        numbers = columns // self.blocks.per_block
        parts = []
        for number in numbers.unique().tolist():
            slots = columns[numbers == number] - number * self.blocks.per_block
            first, last = int(slots[0]), int(slots[-1]) + 1
            block = self.blocks.keys(number)[:, :, first:last]
            if last - first > len(slots):
                block = block.index_select(2, (slots - first).to(block.device))
            parts.append(block)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def _measure(self, k: Tensor):
        """Note how long the longest key of each block is, before k is appended."""
        length, first = self.blocks.length, 0
        while first < k.shape[2]:
            number, slot = divmod(length + first, self.blocks.per_block)
            last = first + self.blocks.per_block - slot
            longest = k.detach()[:, :, first:last].float().norm(dim=-1).amax(-1)
            if number == len(self.longest):
                self.longest.append(longest)
            else:
                self.longest[number] = torch.maximum(self.longest[number], longest)
            first = last

    def _promising(self, asked: Tensor, k: int, columns: Tensor, candidates) -> Tensor:
        """The columns that may hold one of the k best keys of any head's single query, by
        logits in float32.

        Of D products and their sum, and of what float32 makes of the query, no logit is off by
        more than (D + 2) * 2^-24 times the lengths of query and key (Cauchy and Schwarz). A
        key that is further below the k-th best than twice that is not among the best.
        """
        batch, n_head, _, head_dim = asked.shape
        u = asked.float().reshape(batch, self.longest[0].shape[1], -1, head_dim)
        best = u.new_full((batch, n_head, 1, k), -torch.inf)
        longest = torch.stack(self.longest).amax(0).to(u.device)[..., None, None]
        off = ROUNDING * (head_dim + 2) * u.norm(dim=-1, keepdim=True) * longest
        off = off.view(batch, n_head, 1, 1)
        found = []
        for number, some in enumerate(columns.split(self.blocks.per_block)):
            keys = self.blocks.keys(number)[:, :, : len(some)].to(u.device).float()
            rough = (u @ keys.mT).view(batch, n_head, 1, -1)
            mask = candidates(some).to(u.device).unsqueeze(-3)
            rough = rough.masked_fill(~mask, -torch.inf)
            best = torch.cat((best, rough), -1).topk(k).values
            may = ~(rough < best[..., -1:] - off) & mask  # what is not a number may be anything
            found.append(some[may.flatten(0, 2).any(0).cpu()])
        return torch.cat(found)


def merge(found: Best, logits: Tensor, columns: Tensor, candidates: Tensor, k: int) -> Best:
    """The k best of what was found and of the next columns (m,): logits and candidates are
    (B, H, T, m)."""
    logits = torch.cat((found.logits, logits), -1)
    columns = torch.cat((found.columns, columns.expand(*logits.shape[:3], -1)), -1)
    chosen = largest(logits, torch.cat((found.valid, candidates), -1), k)
    places = torch.arange(logits.shape[-1], device=logits.device)
    places = torch.where(chosen, places, -1).topk(min(k, len(places))).values.flip(-1)
    valid, places = places >= 0, places.clamp(min=0)
    return Best(logits.gather(-1, places), columns.gather(-1, places), valid)


class Reach:
    """How one layer's queries reach back to their middle keys.

    q_positions: (T,) or (B, T), integers on the CPU; k_positions: a function of columns (m,)
    that returns their positions, (m,) or (B, m). stop: as in Middle.search.
    """

    def __init__(
        self, middle: Middle, lm: LMInfinite, scheme, q_positions, k_positions, stop, scale
    ):
        self.middle, self.lm, self.scheme, self.scale = middle, lm, scheme, scale
        self.q_positions, self.k_positions, self.stop = q_positions, k_positions, stop

    def __call__(self, q: Tensor, rows: slice = slice(None)) -> Found:
        """The middle keys that come back to those rows of the queries, q (B, H, T, D), which
        are not placed."""
        here = self.q_positions[..., rows]

        def candidates(columns: Tensor) -> Tensor:
            return middle_mask(here, self.k_positions(columns), self.lm)

        asked = middle_queries(q, self.scheme, self.lm, self.scale)
        best = self.middle.search(asked, self.lm.top_k, self.stop, candidates)
        logits = best.logits + middle_bias(self.scheme, self.lm, q.device)
        return Found(logits, self.middle.values(best), best.valid)

"""What lies between the starting tokens and the window, for the heads that reach back to it.

All that was read is kept as it came, unplaced. A query that reaches back scores what has left
the window, at the one distance that all of it seems to have, and takes the best k along: see
top_k.py, which is the definition.

A single query need not read every key. Of each page of keys the least and the largest of every
coordinate are known, and with them a bound on what any of its keys can score. A page whose
bound is below the k-th best score of a few promising pages holds none of the best, and is left
alone: the result is the same, key by key. How much that spares depends on the keys. Where like
stands by like it is most of them; of the models that were measured, none of them: every page
holds some large coordinate of everything. So after a few searches that spared little, bounds
are asked no more. Then every key is scored in float32 first, whose error has a bound as well,
and in float64 only those that may still be among the best.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .blocks import Blocks, DiskBlocks, Whole
from .config import LMInfinite
from .top_k import largest, middle_bias, middle_mask, middle_queries

TOKENS_PER_PAGE = 64
TRIALS = 8  # searches by bounds, before it shows whether they pay
PROMISING = 3  # pages of each head that are read first, beside those that k keys may fill
LOGITS_AT_ONCE = 1 << 20
ROUNDING = 2.0**-21  # twice what a float32 product can be off by, and as much again: see _rough


class Found(NamedTuple):
    """The middle keys of some queries: their logits in float64, their columns, in ascending
    order, and which of these are keys at all, where a query has fewer than k: (B, H, T, k)."""

    logits: Tensor
    columns: Tensor
    valid: Tensor


class Middle:
    """The whole past of one layer, to be searched.

    searches: of single queries; pages_read, pages_there: how many pages they read, and how many
    there were to read. last: what the last search found. What is noted of pages stays in
    memory, also where keys and values are in a file: a 32nd of the keys, until bounds are given
    up.
    """

    def __init__(self, blocks: Blocks):
        self.blocks = blocks
        self.low = self.high = None  # of each page: (B, H_kv, pages, D)
        self.longest: list[Tensor] = []  # of each block, its longest key: (B, H_kv)
        self.searches = self.pages_read = self.pages_there = 0
        self.last: Found | None = None

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
        first = self.blocks.length // TOKENS_PER_PAGE
        self._measure(k)
        self.blocks.append(k, v)
        if self._bounds_pay():
            self._bound(first)
        else:
            self.low = self.high = None
        self.blocks.let_go()

    def keep(self, rows: list[int]):
        """Forget all rows but these."""
        self.blocks.keep(rows)
        self.longest = [x[rows] for x in self.longest]
        if self.low is not None:
            self.low, self.high = self.low[rows], self.high[rows]

    def state(self) -> dict[str, Tensor]:
        """All keys and values, by name."""
        if not self.blocks.length:
            return {}
        numbers = range(len(self.blocks.made))
        k = torch.cat([self.blocks.keys(number) for number in numbers], 2)
        v = torch.cat([self.blocks.values(number) for number in numbers], 2)
        return {name: x[:, :, : self.blocks.length] for name, x in (("k", k), ("v", v))}

    def search(self, asked: Tensor, k: int, stop: int, candidates) -> Found:
        """The k keys with the largest logits of each query.

        asked: top_k.middle_queries, (B, H, T, D)
        stop:  no column from here on is a candidate of any query
        candidates: a function of ascending columns (m,), on the CPU: which of them are, for
               which query, (T, m) or (B, T, m)
        """
        shape, n_pages = asked.shape[:3], -(-stop // TOKENS_PER_PAGE)
        nothing = torch.empty(*shape, 0, dtype=torch.long, device=asked.device)
        found = Found(asked.new_empty(*shape, 0), nothing, nothing.bool())
        columns, pages_read = torch.arange(stop, device="cpu"), n_pages
        if shape[2] == 1 and self.longest and stop:
            if self.low is not None and self._bounds_pay():
                pages = self._worth_reading(asked, k, n_pages, candidates)
                columns, pages_read = self._columns(pages), len(pages)
            else:
                columns = self._rough(asked, k, stop, candidates)
            self.searches += 1
            self.pages_read += pages_read
            self.pages_there += n_pages
        at_once = max(TOKENS_PER_PAGE, LOGITS_AT_ONCE // shape.numel())
        for some in columns.split(min(at_once, self.blocks.per_block)) if len(columns) else ():
            found = merge(found, *self._score(asked, some, candidates), k)
        self.last = found
        return found

    def values(self, found: Found) -> Tensor:
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

    def _bounds_pay(self) -> bool:
        """Whether searches by bounds spare a quarter of the pages, as far as was tried."""
        return self.searches < TRIALS or 4 * self.pages_read <= 3 * self.pages_there

    def _columns(self, pages: Tensor) -> Tensor:
        """The columns of some ascending pages."""
        within = torch.arange(TOKENS_PER_PAGE, device="cpu")
        columns = (pages[:, None] * TOKENS_PER_PAGE + within).flatten()
        return columns[columns < self.blocks.length]

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

    def _bound(self, first: int):
        """Note the least and the largest coordinates of the pages from `first` on."""
        begin = first * TOKENS_PER_PAGE
        keys = self._keys(torch.arange(begin, self.blocks.length, device="cpu"))
        whole = keys.shape[2] // TOKENS_PER_PAGE * TOKENS_PER_PAGE
        parts = keys[:, :, :whole].unflatten(2, (-1, TOKENS_PER_PAGE)), keys[:, :, None, whole:]
        ends = [x.aminmax(dim=3) for x in parts if x.shape[2] and x.shape[3]]
        low, high = (torch.cat([end[i] for end in ends], 2) for i in (0, 1))
        if first:
            low = torch.cat((self.low[:, :, :first], low.to(self.low.device)), 2)
            high = torch.cat((self.high[:, :, :first], high.to(self.high.device)), 2)
        self.low, self.high = (x.to(self.blocks.device) for x in (low, high))

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

    def _rough(self, asked: Tensor, k: int, stop: int, candidates) -> Tensor:
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
        per_block, found = self.blocks.per_block, []
        for number in range(-(-stop // per_block)):
            columns = torch.arange(
                number * per_block, min(stop, (number + 1) * per_block), device="cpu"
            )
            keys = self.blocks.keys(number)[:, :, : len(columns)].to(u.device).float()
            rough = (u @ keys.mT).view(batch, n_head, 1, -1)
            mask = candidates(columns).to(u.device).unsqueeze(-3)
            rough = rough.masked_fill(~mask, -torch.inf)
            best = torch.cat((best, rough), -1).topk(k).values
            may = ~(rough < best[..., -1:] - off) & mask  # what is not a number may be anything
            found.append(columns[may.flatten(0, 2).any(0).cpu()])
        return torch.cat(found)

    def _worth_reading(self, asked: Tensor, k: int, n_pages: int, candidates) -> Tensor:
        """The pages that may hold one of the k best keys of any head's single query."""
        few = PROMISING + -(-k // TOKENS_PER_PAGE)
        if n_pages <= few:
            return torch.arange(n_pages, device="cpu")
        low, high = (x[:, :, :n_pages].double() for x in (self.low, self.high))
        u = asked.reshape(len(asked), low.shape[1], -1, asked.shape[-1])  # (B, H_kv, group, D)
        bounds = u.clamp(min=0) @ high.mT + u.clamp(max=0) @ low.mT
        # Sums of D products in float64 are off by less than this, both here and in a logit.
        bounds += 1e-14 * u.shape[-1] * (u.abs() @ torch.maximum(low.abs(), high.abs()).mT)
        promising = bounds.topk(few).indices.unique().cpu()
        logits, _, mask = self._score(asked, self._columns(promising), candidates)
        best = logits.float().masked_fill(~mask, -torch.inf)
        least = best.topk(min(k, best.shape[-1])).values[..., -1:]  # (B, H, 1, 1)
        if best.shape[-1] < k:
            least = torch.full_like(least, -torch.inf)
        worth = ~(bounds.float().flatten(1, 2) < least[:, :, 0])  # (B, H, pages); NaN is read
        return worth.any(0).any(0).nonzero()[:, 0].cpu()


def merge(found: Found, logits: Tensor, columns: Tensor, candidates: Tensor, k: int) -> Found:
    """The k best of what was found and of the next columns (m,): logits and candidates are
    (B, H, T, m)."""
    logits = torch.cat((found.logits, logits), -1)
    columns = torch.cat((found.columns, columns.expand(*logits.shape[:3], -1)), -1)
    chosen = largest(logits, torch.cat((found.valid, candidates), -1), k)
    places = torch.arange(logits.shape[-1], device=logits.device)
    places = torch.where(chosen, places, -1).topk(min(k, len(places))).values.flip(-1)
    valid, places = places >= 0, places.clamp(min=0)
    return Found(logits.gather(-1, places), columns.gather(-1, places), valid)


class Reach:
    """How one layer's queries reach back: a softmax over their middle keys alone, which is then
    joined to that over the others.

    q_positions: (T,) or (B, T), integers on the CPU; k_positions: a function of columns (m,)
    that returns their positions, (m,) or (B, m). stop: as in Middle.search.
    """

    def __init__(self, middle: Middle, lm: LMInfinite, scheme, q_positions, k_positions, stop):
        self.middle, self.lm, self.scheme = middle, lm, scheme
        self.q_positions, self.k_positions, self.stop = q_positions, k_positions, stop

    def __call__(self, q: Tensor, rows: slice, scale: float, exact: torch.dtype):
        """What those rows of the queries, q (B, H, T, D), unplaced, gather from their middle
        keys, (B, H, T, D), and the log of the softmax's sum (B, H, T); None without any."""
        here = self.q_positions[..., rows]

        def candidates(columns: Tensor) -> Tensor:
            return middle_mask(here, self.k_positions(columns), self.lm)

        asked = middle_queries(q, self.scheme, self.lm, scale)
        found = self.middle.search(asked, self.lm.top_k, self.stop, candidates)
        if not found.columns.shape[-1]:
            return None
        logits = found.logits + middle_bias(self.scheme, self.lm, q.device)
        logits = logits.to(exact).masked_fill(~found.valid, torch.finfo(exact).min)
        weights = logits.softmax(-1).masked_fill(~found.valid, 0)
        gathered = torch.einsum(
            "bhtk,bhtkd->bhtd", weights, self.middle.values(found).to(exact)
        )
        return gathered, logits.logsumexp(-1).masked_fill(~found.valid.any(-1), -torch.inf)

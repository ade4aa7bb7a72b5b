"""Sums of nll by position, in float64, and how far their means can be trusted.

A token's position is its index in the text, so that the first scored one has position 1. How
long the text will be is known before it is read, so what is kept does not grow. An interval
(intervals.py) does not compare two positions: the bins of a text hold different passages. Bins
with fewer than 16 tokens have none.
"""

from __future__ import annotations

import numpy as np

from .intervals import FEWEST_BLOCKS, blocks, interval

LARGEST_WINDOW = 1_000_000  # tokens that are compared, early and late


def add_between(edges: np.ndarray, sums: np.ndarray, first: int, numbers: np.ndarray):
    """Add numbers, float64, of the positions from `first` on to the sums between edges."""
    begin = np.searchsorted(edges, first, side="right") - 1
    end = np.searchsorted(edges, first + len(numbers))
    cuts = np.maximum(edges[begin:end], first) - first
    sums[begin:end] += np.add.reduceat(numbers, cuts)


class Bins:
    """The means of a text between edges, which lie at positions.

    cells: the edges of the blocks that bins are cut into; sums: of each of them. number: what
    sets these bins' intervals apart from those of others.
    """

    def __init__(self, edges: np.ndarray, number: int):
        self.edges, self.number = np.asarray(edges), number
        cut = [blocks(int(first), int(last)) for first, last in zip(edges, edges[1:])]
        self.cells = np.unique(np.concatenate(cut))
        self.sums = np.zeros(len(self.cells) - 1)

    def add(self, first: int, nll: np.ndarray):
        """Take in the nll of consecutive positions from `first` on: (T,), float64."""
        add_between(self.cells, self.sums, first, nll)

    def rows(self, seed: int) -> list[dict]:
        """A row per bin: first, last (exclusive), tokens, nll, interval."""
        rows, ends = [], np.searchsorted(self.cells, self.edges)
        for bin, (first, last) in enumerate(zip(self.edges.tolist(), self.edges.tolist()[1:])):
            here = slice(ends[bin], ends[bin + 1])
            sums, tokens = self.sums[here], np.diff(self.cells)[here]
            found = None
            if len(sums) >= FEWEST_BLOCKS:
                found = interval(sums, tokens, [seed, self.number, bin])
            row = {"first": first, "last": last, "tokens": last - first}
            rows.append(row | {"nll": float(sums.sum() / (last - first)), "interval": found})
        return rows


class Pairs:
    """The same tokens early and late: a stream that repeats its documents reads them again, and
    what has changed between the two times is not the text.

    Two windows of a stream of n tokens, of min(1,000,000, n / 4) tokens each, are compared: the
    one that begins after as many tokens, and the last. A token of the last window whose place
    was read in the first one too makes a pair; the mean difference over pairs is free of the
    documents' own easy and hard places. Of a place that the first window read twice, the later
    time counts. The interval is over blocks of the last window.
    """

    def __init__(self, n: int, n_places: int):
        self.window = min(LARGEST_WINDOW, n // 4)
        self.begins = self.window, n - self.window
        self.early = np.full(n_places, -np.inf, np.float32)  # by place; -inf: none was read
        self.nll = np.zeros(2)  # of all tokens in either window
        self.edges = blocks(n - self.window, n) if self.window else np.array([0, 1])
        self.sums = np.zeros((2, len(self.edges) - 1))  # of differences, and how many they are

    def add(self, first: int, nll: np.ndarray, places: np.ndarray):
        """Take in the nll, (T,), of consecutive tokens from the one of index `first` on, and
        their places."""
        for which, begin in enumerate(self.begins):
            here = slice(max(begin - first, 0), max(begin + self.window - first, 0))
            some, at = nll[here], places[here]
            self.nll[which] += some.sum()
            if which == 0:
                self.early[at] = some
            elif len(some):
                was_read = self.early[at] > -np.inf
                less = np.where(was_read, some - self.early[at], 0.0)
                add_between(self.edges, self.sums[0], max(first, begin), less)
                add_between(self.edges, self.sums[1], max(first, begin), 1.0 * was_read)

    def result(self, seed: int) -> dict | None:
        """The two windows, their means, and the mean difference (late - early) over pairs; None
        where there are none."""
        differences, counts = self.sums[:, self.sums[1] > 0]
        n_pairs = int(counts.sum())
        if not n_pairs:
            return None
        early, late = (self.nll / self.window).tolist()
        return {
            "tokens": self.window, "early_first": self.begins[0], "late_first": self.begins[1],
            "early_nll": early, "late_nll": late, "pairs": n_pairs,
            "difference": float(differences.sum() / n_pairs),
            "interval": interval(differences, counts, [seed, 3]),
        }  # fmt: skip

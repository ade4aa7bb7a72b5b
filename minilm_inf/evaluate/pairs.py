"""The same tokens early and late: a stream that repeats its documents reads them again, and
what has changed between the two times is not the text.

Two windows of a stream of n tokens, of min(1,000,000, n / 4) tokens each, are compared: the one
that begins after as many tokens, and the last. A token of the last window whose place in the
documents was read in the first one too makes a pair; the mean difference over pairs is free of
the documents' own easy and hard places. Of a place that the first window read twice, the later
time counts. The interval is tally.py's, over blocks of the last window.
"""

from __future__ import annotations

import numpy as np

from .tally import Sums, blocks, interval

LARGEST_WINDOW = 1_000_000
BITS = 20  # 2**20 > LARGEST_WINDOW: a place and when it was read fit into one int64


class Pairs:
    """What a stream of n tokens needs to keep for that; window is 0 where n < 4."""

    def __init__(self, n: int):
        self.window = min(LARGEST_WINDOW, n // 4)
        self.early, self.late = self.window, n - self.window
        # Both are filled here, so that their memory is taken before anything is measured.
        self.keys = np.full(self.window, -1, np.int64)  # place * 2**BITS + when it was read
        self.nll = np.full(self.window, 0, np.float32)
        self.sums = np.zeros(2)  # of all nll in either window
        edges = blocks(self.late, n) if self.window else np.array([0, 1])
        self.differences, self.counts = Sums(edges), Sums(edges)
        self.is_sorted = False

    def add(self, first: int, nll: np.ndarray, places: np.ndarray):
        """Take in the nll, (T,), of consecutive tokens from the one of index `first` on, and
        their places in the documents."""
        end = first + len(nll)
        if self.window == 0 or end <= self.early:
            return
        here = inside(first, end, self.early, self.early + self.window)
        if here is not None:
            when = np.arange(first, end)[here] - self.early
            self.keys[when] = (places[here] << BITS) + when
            self.nll[when] = nll[here]
            self.sums[0] += nll[here].sum()
        here = inside(first, end, self.late, self.late + self.window)
        if here is not None:
            self.sums[1] += nll[here].sum()
            self._compare(max(first, self.late), nll[here], places[here])

    def _compare(self, first: int, nll: np.ndarray, places: np.ndarray):
        if not self.is_sorted:
            self.keys.sort()
            self.is_sorted = True
        at = np.searchsorted(self.keys, (places + 1) << BITS) - 1
        found = self.keys[np.maximum(at, 0)]
        was_read = (at >= 0) & (found >> BITS == places) & (places >= 0)
        before = self.nll[found[was_read] & ((1 << BITS) - 1)]
        difference = np.zeros(len(nll))
        difference[was_read] = nll[was_read] - before
        self.differences.add(first, difference)
        self.counts.add(first, was_read.astype(np.float64))

    def result(self, seed: int) -> dict | None:
        """The two windows, their means, and the mean difference (late - early) over pairs."""
        if self.window == 0:
            return None
        differences, counts = self.differences.values, self.counts.values
        kept = counts > 0
        n_pairs = int(counts.sum())
        means = (self.sums / self.window).tolist()
        return {
            "tokens": self.window, "early_first": self.early, "late_first": self.late,
            "early_nll": means[0], "late_nll": means[1], "pairs": n_pairs,
            "difference": float(differences.sum() / n_pairs) if n_pairs else None,
            "interval": interval(differences[kept], counts[kept], [seed, 3]),
        }  # fmt: skip

    def check(self):
        """Raise ValueError where the keys, restored from a file, name no time in the window."""
        when = self.keys[self.keys >= 0] & ((1 << BITS) - 1)
        if (when >= self.window).any():
            raise ValueError("pairs.keys names what was never read")

    def state(self) -> dict[str, np.ndarray]:
        """The arrays that hold all that was taken in; to be written to, to restore it."""
        return {
            "keys": self.keys, "nll": self.nll, "sums": self.sums,
            "differences": self.differences.values, "counts": self.counts.values,
        }  # fmt: skip


def inside(first: int, end: int, begin: int, stop: int) -> slice | None:
    """Where the indices first to end (exclusive) lie within begin to stop; None if nowhere."""
    here = slice(max(begin - first, 0), min(stop, end) - first)
    return here if here.start < here.stop else None

"""The same tokens early and late: a stream that repeats its documents reads them again, and
what has changed between the two times is not the text.

Two windows of a stream of n tokens, of min(1,000,000, n / 4) tokens each, are compared: the one
that begins after as many tokens, and the last. A token of the last window whose place in the
documents was read in the first one too makes a pair; the mean difference over pairs is free of
the documents' own easy and hard places. Of a place that the first window read twice, the later
time counts. The interval is over blocks of the last window.
"""

from __future__ import annotations

import numpy as np

from .intervals import blocks, interval
from .tally import add_between

LARGEST_WINDOW = 1_000_000


class Pairs:
    """What a stream of n tokens needs to keep for that; window is 0 where n < 4."""

    def __init__(self, n: int):
        self.window = min(LARGEST_WINDOW, n // 4)
        self.early, self.late = self.window, n - self.window
        # Both are filled here, so that their memory is taken before anything is measured.
        self.places = np.full(self.window, -1, np.int64)  # of the early window
        self.nll = np.full(self.window, 0, np.float32)
        self.order = None  # of the places, ascending, once all are known
        self.sums = np.zeros(2)  # of all nll in either window
        self.edges = blocks(self.late, n) if self.window else np.array([0, 1])
        self.differences, self.counts = np.zeros((2, len(self.edges) - 1))

    def add(self, first: int, nll: np.ndarray, places: np.ndarray):
        """Take in the nll, (T,), of consecutive tokens from the one of index `first` on, and
        their places in the documents."""
        for which, begin in enumerate((self.early, self.late)):
            here = slice(max(begin - first, 0), max(begin + self.window - first, 0))
            if len(nll[here]):
                self.sums[which] += nll[here].sum()
                take = self._compare if which else self._keep
                take(max(first, begin), nll[here], places[here])

    def _keep(self, first: int, nll: np.ndarray, places: np.ndarray):
        here = slice(first - self.early, first - self.early + len(nll))
        self.nll[here], self.places[here] = nll, places

    def _compare(self, first: int, nll: np.ndarray, places: np.ndarray):
        if self.order is None:
            self.order = np.argsort(self.places, kind="stable")
        at = np.searchsorted(self.places, places, side="right", sorter=self.order) - 1
        when = self.order[np.maximum(at, 0)]
        was_read = (at >= 0) & (self.places[when] == places) & (places >= 0)
        difference = np.where(was_read, nll - self.nll[when], 0.0)
        add_between(self.edges, self.differences, first, difference)
        add_between(self.edges, self.counts, first, was_read.astype(np.float64))

    def result(self, seed: int) -> dict | None:
        """The two windows, their means, and the mean difference (late - early) over pairs."""
        if self.window == 0:
            return None
        kept = self.counts > 0
        n_pairs = int(self.counts.sum())
        early, late = (self.sums / self.window).tolist()
        return {
            "tokens": self.window, "early_first": self.early, "late_first": self.late,
            "early_nll": early, "late_nll": late, "pairs": n_pairs,
            "difference": float(self.differences.sum() / n_pairs) if n_pairs else None,
            "interval": interval(self.differences[kept], self.counts[kept], [seed, 3]),
        }  # fmt: skip

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that hold all that was taken in; to be written to, to restore it."""
        names = "places nll sums differences counts".split()
        return {name: getattr(self, name) for name in names}

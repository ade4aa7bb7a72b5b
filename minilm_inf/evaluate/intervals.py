"""Means of nll by position, in float64, and how far they, or shares of successes, can be
trusted: intervals of 95%.

A mean's interval is the bootstrap's: the mean is taken again and again over units that are
drawn with replacement from those there are, and the interval holds the middle 95% of these
means. The units are

    several texts   the texts: the interval says how another choice of as many texts of this
                    kind could have moved the mean. Of few texts it is too narrow; of two it is
                    no more than their two means.
    one text        blocks of consecutive tokens, 256 and more where there are enough: it says
                    how much the mean owes to which passages happened to be among them. Of other
                    texts it says nothing. Fewer than 16 tokens have none.

A token's position is its index in the text, so that the first scored one has position 1. How
long the text will be is known before it is read, so what is kept does not grow.
"""

from __future__ import annotations

import math

import numpy as np

BLOCK = 256  # tokens, at least, of a block of one text
FEWEST_BLOCKS, MOST_BLOCKS = 16, 128  # of a stretch; the first takes precedence over BLOCK
RESAMPLES = 1000
MILLION = 1_000_000  # tokens that are compared, early and late, of up to a billion
Z = 1.959963984540054  # the normal distribution's 97.5% point


def blocks(first: int, last: int) -> np.ndarray:
    """Edges of the blocks that the positions first to last (exclusive) are cut into."""
    tokens = last - first
    count = min(tokens, max(FEWEST_BLOCKS, min(tokens // BLOCK, MOST_BLOCKS)))
    return np.array([first + number * tokens // count for number in range(count + 1)])


def interval(sums: np.ndarray, weights: np.ndarray, seed: list[int]) -> list[float] | None:
    """The bootstrap interval of sum(sums) / sum(weights), both (units,), None for one unit."""
    if len(sums) < 2:
        return None
    drawn = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / weights[drawn].sum(1)
    return np.quantile(means, [0.025, 0.975]).tolist()


def wilson(found: int, count: int) -> tuple[float, float]:
    """Wilson's interval of a share of which `found` in `count` independent trials are known.

    It holds where a normal interval fails: for few trials, and for none or all found. Source:
    Wilson, Journal of the American Statistical Association 22 (1927).

    >>> [round(x, 4) for x in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    share, weight = found / count, Z * Z / count
    middle = (share + weight / 2) / (1 + weight)
    half = Z * math.sqrt(share * (1 - share) / count + weight / count / 4) / (1 + weight)
    # With none or all found one bound is exactly 0 or 1, which rounding must not move.
    return 0.0 if found == 0 else middle - half, 1.0 if found == count else middle + half


def share(found: int, count: int) -> dict:
    """A share of `count` trials, with its interval, as JSON takes it."""
    return {"found": found, "trials": count, "accuracy": found / count,
            "interval": list(wilson(found, count))}  # fmt: skip


# ---- a text that passes once


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

    def rows(self) -> list[dict]:
        """A row per bin: first, last (exclusive), tokens, nll, interval."""
        rows, ends = [], np.searchsorted(self.cells, self.edges)
        for bin, (first, last) in enumerate(zip(self.edges.tolist(), self.edges.tolist()[1:])):
            here, found = slice(ends[bin], ends[bin + 1]), None
            sums, tokens = self.sums[here], np.diff(self.cells)[here]
            if len(sums) >= FEWEST_BLOCKS:
                found = interval(sums, tokens, [0, self.number, bin])
            row = {"first": first, "last": last, "tokens": last - first}
            rows.append(row | {"nll": float(sums.sum() / (last - first)), "interval": found})
        return rows


class Pairs:
    """The same tokens early and late, in a stream of n tokens that repeats its documents: what
    has changed between the two times is not the text.

    Two windows are compared, the last tokens and those that follow as many at the beginning: a
    million, or ten for each billion of n, and at most n / 4. A token of the last one makes a
    pair if the first one read its place too, once or more, which is then a mean. So a mean over
    pairs is free of easy and hard places. Its interval is over blocks of places.

    found: of each window and place the sum of nll, and how often it was read.
    """

    def __init__(self, n: int, places: int):
        self.window = min(max(MILLION, n // 10**9 * 10 * MILLION), n // 4)
        self.begins = self.window, n - self.window
        self.sums, self.times = self.found = np.zeros((2, 2, places))

    def add(self, first: int, nll: np.ndarray, places: np.ndarray):
        """Take in the nll, (T,), of consecutive tokens from the one of index `first` on, and
        their places."""
        for sums, times, begin in zip(self.sums, self.times, self.begins):
            here = slice(max(begin - first, 0), max(begin + self.window - first, 0))
            np.add.at(sums, places[here], nll[here])
            np.add.at(times, places[here], 1)

    def result(self) -> dict | None:
        """The two windows, their means, and the mean difference (late - early) over pairs; None
        where there are none."""
        early, late = self.sums.sum(1).tolist()
        pairs = np.where(self.times[0] > 0, self.times[1], 0)  # of each place
        if not pairs.any():
            return None
        less = self.sums[1] - pairs * self.sums[0] / np.maximum(self.times[0], 1)
        cuts = blocks(0, len(pairs))[:-1]
        sums, counts = (np.add.reduceat(x, cuts) for x in (np.where(pairs > 0, less, 0), pairs))
        return {
            "tokens": self.window, "early_first": self.begins[0], "late_first": self.begins[1],
            "early_nll": early / self.window, "late_nll": late / self.window,
            "pairs": int(pairs.sum()), "difference": float(sums.sum() / pairs.sum()),
            "interval": interval(sums[counts > 0], counts[counts > 0], [0, 3]),
        }  # fmt: skip

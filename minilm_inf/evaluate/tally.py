"""Sums of nll by position, in float64, and how far their means can be trusted.

A token's position is its index in its text, so that the first scored one has position 1. How
long every text will be is known before it is read; so are all bins, and the blocks that they
are cut into, and what is kept does not grow with what is read.

What an interval covers is told in intervals.py. It does not compare two positions: the bins of
a stream hold different passages. Bins with fewer than 16 tokens (of one text) or two texts have
no interval.
"""

from __future__ import annotations

import numpy as np

from .intervals import FEWEST_BLOCKS, blocks, interval

MOST_GROUPS = 256  # of texts; where there are more texts, neighbours are drawn together
KINDS = ("log", "linear", "all")


def log_edges(n: int) -> np.ndarray:
    """Edges of bins that double, over the positions 1 to n - 1.

    >>> log_edges(11).tolist()
    [1, 2, 4, 8, 11]
    """
    return np.append(2 ** np.arange((n - 1).bit_length(), dtype=np.int64), n)


def linear_edges(n: int, bins: int) -> np.ndarray:
    """Edges of `bins` equal bins (fewer where n is small) over the positions 1 to n - 1.

    >>> linear_edges(12, 3).tolist(), linear_edges(4, 9).tolist()
    ([1, 4, 8, 12], [1, 2, 3, 4])
    """
    bins = min(bins, n - 1)
    return np.array([1 + number * (n - 1) // bins for number in range(bins + 1)])


def add_between(edges: np.ndarray, sums: np.ndarray, first: int, numbers: np.ndarray):
    """Add numbers, float64, of the positions from `first` on to the sums between edges."""
    begin = np.searchsorted(edges, first, side="right") - 1
    end = np.searchsorted(edges, first + len(numbers))
    cuts = np.maximum(edges[begin:end], first) - first
    sums[begin:end] += np.add.reduceat(numbers, cuts)


class Tally:
    """The tally of one text, or of several that are read one after another.

    edges: of the bins of each kind: "log", "linear", and "all", which is one bin. now: sums of
    the text at hand, by bin, or, of a single text, by the blocks of every bin. sums, weights:
    of several texts, by group of texts and bin.

    Of several texts, a bin's mean is the mean over texts of each text's own mean within the
    bin, as far as the text reaches into it; a text that does not reach it does not count in it.
    The bin "all" is the mean over all tokens, for which a longer text weighs more.
    """

    def __init__(self, lengths: np.ndarray, bins: int):
        self.lengths, n = lengths, int(lengths.max())
        self.several = len(lengths) > 1
        all_edges = log_edges(n), linear_edges(n, bins), np.array([1, n])
        self.edges = dict(zip(KINDS, all_edges))
        self.cells, self.now, self.sums, self.weights = {}, {}, {}, {}
        for kind, edges in self.edges.items():
            cells = edges
            if not self.several:
                cut = [blocks(*pair) for pair in zip(edges[:-1].tolist(), edges[1:].tolist())]
                cells = np.unique(np.concatenate(cut))
            shape = min(len(lengths), MOST_GROUPS), len(edges) - 1
            self.cells[kind], self.now[kind] = cells, np.zeros(len(cells) - 1)
            self.sums[kind], self.weights[kind] = np.zeros(shape), np.zeros(shape)

    def add(self, first: int, nll: np.ndarray):
        """Take in the nll of consecutive positions from `first` on: (T,), float64."""
        for kind, cells in self.cells.items():
            add_between(cells, self.now[kind], first, nll)

    def end(self, text: int):
        """All of a text was taken in."""
        group = text * len(self.sums["all"]) // len(self.lengths)
        for kind, now in self.now.items() if self.several else ():
            edges = self.edges[kind]
            tokens = np.clip(self.lengths[text] - edges[:-1], 0, np.diff(edges))
            weights = tokens if kind == "all" else np.minimum(tokens, 1)
            self.sums[kind][group] += now * weights / np.maximum(tokens, 1)
            self.weights[kind][group] += weights
            now[:] = 0

    @property
    def total(self) -> float:
        """The sum of all that was taken in."""
        return float(self.sums["all"].sum() + self.now["all"].sum())

    def rows(self, kind: str, seed: int) -> list[dict]:
        """A row per bin: first, last (exclusive), tokens and (of several) documents in it, nll,
        interval."""
        found = []
        for number, (first, last) in enumerate(zip(self.edges[kind], self.edges[kind][1:])):
            tokens = np.clip(self.lengths - first, 0, last - first)
            row = {"first": int(first), "last": int(last), "tokens": int(tokens.sum())}
            if self.several:
                row["documents"] = int(np.count_nonzero(tokens))
            sums, weights = self.units(kind, number)
            row["nll"] = float(sums.sum() / weights.sum())
            enough = self.several or len(sums) >= FEWEST_BLOCKS
            seeds = [seed, KINDS.index(kind), number]
            row["interval"] = interval(sums, weights, seeds) if enough else None
            found.append(row)
        return found

    def units(self, kind: str, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Sums and weights of what a bin's interval draws from: texts, or blocks."""
        if self.several:
            sums, weights = self.sums[kind][:, number], self.weights[kind][:, number]
            return sums[weights > 0], weights[weights > 0]
        cells = self.cells[kind]
        here = slice(*np.searchsorted(cells, self.edges[kind][number : number + 2]))
        return self.now[kind][here], np.diff(cells)[here].astype(np.float64)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that hold all that was taken in; to be written to, to restore it."""
        parts = {"now": self.now}
        if self.several:
            parts |= {"sums": self.sums, "weights": self.weights}
        return {f"{part}.{kind}": x for part, xs in parts.items() for kind, x in xs.items()}

"""Sums of nll by position, in float64, and how far their means can be trusted.

A token's position is its index in its text, so that the first scored one has position 1. How
long every text will be is known before it is read; so are all bins, and the blocks that they
are cut into, and what is kept does not grow with what is read.

The intervals are of 95%, by the bootstrap: the mean is taken again and again over units that
are drawn with replacement from those there are, and the interval holds the middle 95% of these
means. The units are

    several texts   the texts: the interval says how another choice of as many texts of this
                    kind could have moved the mean. Of few texts (below ten or so) it is too
                    narrow; of two it is no more than their two means.
    one text        blocks of consecutive tokens, 256 and more where the bin is long enough:
                    it says how much the mean owes to which passages happened to fall into the
                    bin. What is alike over longer stretches than a block it takes for more
                    evidence than it is; other texts, and other models, it says nothing of.

Neither compares two positions: the bins of a stream hold different passages. Bins with fewer
than 16 tokens (of one text) or two texts have no interval.
"""

from __future__ import annotations

import numpy as np

BLOCK = 256  # tokens, at least, of a block of one text
FEWEST_BLOCKS, MOST_BLOCKS = 16, 128  # of a bin; the first takes precedence over BLOCK
MOST_GROUPS = 256  # of texts; where there are more texts, neighbours are drawn together
RESAMPLES = 1000


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
    with np.errstate(invalid="ignore"):  # a model's nan is told, not warned of
        means = sums[drawn].sum(1) / weights[drawn].sum(1)
        return np.quantile(means, [0.025, 0.975]).tolist()


class Sums:
    """Sums of numbers that come in the order of their positions, over the ranges between
    edges."""

    def __init__(self, edges: np.ndarray):
        self.edges = edges
        self.values = np.zeros(len(edges) - 1)

    def add(self, first: int, numbers: np.ndarray):
        """Take in the numbers, float64, of the positions from `first` on."""
        begin = np.searchsorted(self.edges, first, side="right") - 1
        end = np.searchsorted(self.edges, first + len(numbers))
        cuts = np.maximum(self.edges[begin:end], first) - first
        self.values[begin:end] += np.add.reduceat(numbers, cuts)


class StreamTally:
    """The tally of one text of n tokens, in blocks.

    edges: of the bins of each kind: "log", "linear", and "all", which is one bin.
    """

    def __init__(self, n: int, bins: int):
        self.edges = edges_of(n, bins)
        self.blocks, self.firsts = {}, {}
        for kind, edges in self.edges.items():
            cut = [blocks(*pair) for pair in zip(edges[:-1].tolist(), edges[1:].tolist())]
            self.blocks[kind] = Sums(np.append(np.concatenate([c[:-1] for c in cut]), n))
            self.firsts[kind] = np.cumsum([0, *(len(c) - 1 for c in cut)])

    def add(self, first: int, nll: np.ndarray):
        """Take in the nll of consecutive positions from `first` on: (T,), float64."""
        for sums in self.blocks.values():
            sums.add(first, nll)

    def end(self, text: int):
        """There is one text only: its end changes nothing."""

    def rows(self, kind: str, seed: int) -> list[dict]:
        """A row per bin: first, last (exclusive), tokens, nll (their mean), interval."""
        found = []
        sums, firsts = self.blocks[kind], self.firsts[kind]
        tokens = np.diff(sums.edges).astype(np.float64)
        for number, (first, last) in enumerate(zip(self.edges[kind], self.edges[kind][1:])):
            here = slice(firsts[number], firsts[number + 1])
            units = sums.values[here], tokens[here]
            enough = len(units[0]) >= FEWEST_BLOCKS
            found.append(
                {
                    "first": int(first), "last": int(last), "tokens": int(last - first),
                    "nll": float(units[0].sum() / units[1].sum()),
                    "interval": interval(*units, [seed, KINDS.index(kind), number])
                    if enough else None,
                }
            )  # fmt: skip
        return found

    def state(self) -> dict[str, np.ndarray]:
        """The arrays that hold all that was taken in; to be written to, to restore it."""
        return {kind: sums.values for kind, sums in self.blocks.items()}


class DocumentsTally:
    """The tally of several texts of different lengths, read one after another.

    A bin's mean is the mean over texts of each text's own mean within the bin, as far as the
    text reaches into it; a text that does not reach it does not count in it. The bin "all" is
    the mean over all tokens, for which a longer text weighs more.
    """

    def __init__(self, lengths: np.ndarray, bins: int):
        self.lengths = lengths
        self.edges = edges_of(int(lengths.max()), bins)
        self.now = {kind: Sums(edges) for kind, edges in self.edges.items()}
        groups = min(len(lengths), MOST_GROUPS)
        shapes = {kind: (groups, len(edges) - 1) for kind, edges in self.edges.items()}
        self.sums = {kind: np.zeros(shape) for kind, shape in shapes.items()}
        self.weights = {kind: np.zeros(shape) for kind, shape in shapes.items()}

    def add(self, first: int, nll: np.ndarray):
        """Take in the nll of consecutive positions of a text: (T,), float64."""
        for sums in self.now.values():
            sums.add(first, nll)

    def end(self, text: int):
        """All of a text was taken in."""
        group = text * len(self.sums["all"]) // len(self.lengths)
        for kind, now in self.now.items():
            tokens = np.clip(self.lengths[text] - now.edges[:-1], 0, np.diff(now.edges))
            reached = tokens > 0
            by = np.ones(len(tokens)) if kind == "all" else np.maximum(tokens, 1)
            self.sums[kind][group, reached] += (now.values / by)[reached]
            self.weights[kind][group] += tokens if kind == "all" else reached
            now.values[:] = 0

    def rows(self, kind: str, seed: int) -> list[dict]:
        """A row per bin: first, last (exclusive), tokens and documents in it, nll (the mean of
        the documents' means), interval."""
        found = []
        for number, (first, last) in enumerate(zip(self.edges[kind], self.edges[kind][1:])):
            sums, weights = self.sums[kind][:, number], self.weights[kind][:, number]
            units = sums[weights > 0], weights[weights > 0]
            tokens = np.clip(self.lengths - first, 0, last - first)
            found.append(
                {
                    "first": int(first), "last": int(last), "tokens": int(tokens.sum()),
                    "documents": int(np.count_nonzero(tokens)),
                    "nll": float(units[0].sum() / units[1].sum()),
                    "interval": interval(*units, [seed, KINDS.index(kind), number]),
                }
            )  # fmt: skip
        return found

    def state(self) -> dict[str, np.ndarray]:
        """The arrays that hold all that was taken in; to be written to, to restore it."""
        now = {kind: sums.values for kind, sums in self.now.items()}
        parts = {"now": now, "sums": self.sums, "weights": self.weights}
        return {f"{part}.{kind}": x for part, xs in parts.items() for kind, x in xs.items()}


KINDS = ("log", "linear", "all")


def edges_of(n: int, bins: int) -> dict[str, np.ndarray]:
    """The edges of each kind of bins, for texts of n tokens at most."""
    return dict(zip(KINDS, (log_edges(n), linear_edges(n, bins), np.array([1, n]))))

"""How far a mean, or a share of successes, can be trusted: intervals of 95%.

A mean's interval is the bootstrap's: the mean is taken again and again over units that are
drawn with replacement from those there are, and the interval holds the middle 95% of these
means. The units are

    several texts   the texts: the interval says how another choice of as many texts of this
                    kind could have moved the mean. Of few texts it is too narrow; of two it is
                    no more than their two means.
    one text        blocks of consecutive tokens, 256 and more where there are enough: it says
                    how much the mean owes to which passages happened to be among them. Of other
                    texts it says nothing.
"""

from __future__ import annotations

import math

import numpy as np

BLOCK = 256  # tokens, at least, of a block of one text
FEWEST_BLOCKS, MOST_BLOCKS = 16, 128  # of a stretch; the first takes precedence over BLOCK
RESAMPLES = 1000
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
    with np.errstate(invalid="ignore"):  # a model's nan is told, not warned of
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

"""Byte pair encoding of one word: the neighbours whose merge is listed first become one token,
and again, until no pair of neighbours is listed (Sennrich et al., arXiv 1508.07909)."""

from __future__ import annotations

import heapq
from collections.abc import Callable


def merged(symbols: list, merge: Callable, least: int = 1) -> list:
    """What BPE makes of a word's symbols: as few as it can, but not fewer than `least`.

    merge(a, b): (rank, what both become) for neighbours that may be one, or None. The lowest
    rank goes first, and of equal ranks the leftmost. It takes O(n log n) for n symbols.

    >>> ranks = {"bc": 0, "ab": 1, "abc": 2}
    >>> merged([*"abc"], lambda a, b: (ranks[a + b], a + b) if a + b in ranks else None)
    ['abc']
    """
    n = left = len(symbols)
    symbols = list(symbols)  # a place that another has swallowed holds None
    before, after = list(range(-1, n - 1)), list(range(1, n + 1))
    queue: list[tuple] = []

    def offer(at: int):
        """Queue the pair that begins at a place."""
        found = merge(symbols[at], symbols[after[at]])
        if found is not None:
            heapq.heappush(queue, (found[0], at, found[1]))

    for at in range(n - 1):
        offer(at)
    while queue and left > least:
        _, at, whole = heapq.heappop(queue)
        following = after[at]
        if symbols[at] is None or following == n:
            continue
        found = merge(symbols[at], symbols[following])
        if found is None or found[1] != whole:
            continue  # one of the two has changed since
        symbols[at], symbols[following] = whole, None
        left -= 1
        after[at] = after[following]
        if after[at] < n:
            before[after[at]] = at
            offer(at)
        if before[at] >= 0:
            offer(before[at])
    return [symbol for symbol in symbols if symbol is not None]

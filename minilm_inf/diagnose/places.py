"""Which positions are looked at, and how positions and distances are put into bins.

Everything that is measured is measured at some queries only, so that memory grows with the
length of a text and never with its square. They are drawn from each octave of the text alike,
so that short distances and long ones, few visible keys and many, are all seen. The trained
length is an edge of every kind of bin: what lies inside it and what lies beyond never share
one.
"""

from __future__ import annotations

import torch
from torch import Tensor

QUERIES_PER_OCTAVE = 16
FIRST = 25  # starting positions whose states the paper sees apart from the rest (figure 1c)
MOST_STRETCHES = 20  # of as many positions each, that they are compared with


def log_edges(anchor: int, n: int, per_octave: int) -> list[int]:
    """Edges of bins over 0 to n - 1, `per_octave` of them whenever positions double.

    >>> log_edges(8, 40, 1)
    [0, 1, 2, 4, 8, 16, 32, 40]
    """
    steps = range(-per_octave * anchor.bit_length(), per_octave * n.bit_length() + 1)
    edges = {round(anchor * 2 ** (step / per_octave)) for step in steps}
    return sorted({0, 1, n} | {edge for edge in edges if 1 < edge < n})


def some_queries(edges: list[int], generator: torch.Generator) -> Tensor:
    """Positions of queries, ascending: of each bin as many, and the last position.

    Drawn without replacement; a bin that has no more than QUERIES_PER_OCTAVE gives them all.
    """
    found = [torch.tensor([edges[-1] - 1])]
    for first, last in zip(edges, edges[1:]):
        drawn = torch.randperm(last - first, generator=generator)[:QUERIES_PER_OCTAVE]
        found.append(first + drawn)
    return torch.cat(found).unique()


def stretches(n: int, generator: torch.Generator) -> Tensor:
    """The starting positions of a text of n, 25 or a quarter of few, and other stretches of as
    many: (1 + S, FIRST).

    Any run of neighbouring tokens is about one thing, and so alike; the other stretches say how
    much of being apart is that.
    """
    size = max(1, min(FIRST, n // 4))
    others = torch.randperm(n // size - 1, generator=generator)[:MOST_STRETCHES]
    starts = torch.cat((torch.zeros(1, dtype=torch.long), size * (1 + others.sort().values)))
    return starts[:, None] + torch.arange(size)

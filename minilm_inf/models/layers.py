"""Several projections of one input, computed as one product.

A small product costs a decode step as much as a larger one, so queries, keys and values share
theirs. Checkpoints mostly keep such projections apart: `rows` says which rows of the weight
belong to which.
"""

from __future__ import annotations

from torch import nn


class Stacked(nn.Linear):
    """A linear map (..., E) -> (..., sum(rows)), the outputs of len(rows) projections."""

    def __init__(self, width: int, rows: tuple[int, ...], bias: bool):
        super().__init__(width, sum(rows), bias=bias)
        self.rows = rows

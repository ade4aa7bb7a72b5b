"""The layers of the families' networks that are not PyTorch's own, and the names of weights.

A small product costs a decode step as much as a larger one, so queries, keys and values share
theirs. Checkpoints mostly keep such projections apart: `rows` says which rows of the weight
belong to which.
"""

from __future__ import annotations

from torch import nn


class Stacked(nn.Linear):
    """A linear map (..., E) -> (..., sum(rows)), the outputs of len(rows) projections."""

    def __init__(self, width: int, rows: list[int], bias: bool):
        super().__init__(width, sum(rows), bias=bias)
        self.rows = rows


def weights_and_biases(names: dict) -> dict:
    """The names of tensors from those of the layers that hold them; not every layer has both.

    >>> weights_and_biases({"qkv": ("q", "k")})
    {'qkv.weight': ('q.weight', 'k.weight'), 'qkv.bias': ('q.bias', 'k.bias')}
    """
    found = {}
    for ours, theirs in names.items():
        for kind in (".weight", ".bias"):
            one = isinstance(theirs, str)
            found[ours + kind] = theirs + kind if one else tuple(t + kind for t in theirs)
    return found

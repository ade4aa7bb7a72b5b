"""The layers of the families' networks that are not PyTorch's own, and the names of weights.

A small product costs a decode step as much as a larger one, so queries, keys and values share
theirs. Checkpoints mostly keep such projections apart: `rows` says which rows of the weight
belong to which.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / RMS(x) * weight, where RMS(x)^2 is the mean of x^2, |x|^2 / E (Zhang and Sennrich,
    arXiv 1910.07467), and eps keeps it above 0. It is nn.RMSNorm, in fewer operations on a CPU.
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype.itemsize == 2:  # half precision is no precision for a sum
            return self(x.float()).to(x.dtype)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        # eps + length^2 / E, in one operation
        mean = torch.rsub(length * length, self.eps, alpha=-1 / x.shape[-1])
        return x * torch.rsqrt(mean) * self.weight


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

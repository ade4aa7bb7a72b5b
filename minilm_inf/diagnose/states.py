"""Factor 3: how far the first positions' hidden states stand from the rest (paper, figure 1c).

Apart is a distance between means, in units of the rest's own spread:

    |mean(first) - mean(rest)| / sqrt(mean |x - mean(rest)|^2)

so that 1 is as far as a state of the rest usually lies from their middle. The unit makes layers
and models comparable, whose states differ in size by orders of magnitude. It is taken in all
dimensions, which is the number to trust, and in the plane of the first two principal
components, which is what a picture shows; a picture may hide what stands apart in a third.

The mean of a few neighbouring tokens is never the mean of all: they are about one thing. So the
same number is taken of other stretches of as many positions, and what the first positions have
beyond the largest of these is their own. Two further causes are told apart: the very first
token, which is the same one in most texts (BOS) and can draw the mean along alone, is left out
in `later`; and `by_position` says of each of the first positions how far its own states lie
from the rest's mean, where 1 is usual.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Separation(NamedTuple):
    """One layer's numbers. `other`: the largest apart of any other stretch; explained: the
    shares of the variance that lie on the two components; plane: the states on them,
    (texts, 1 + S, FIRST, 2)."""

    apart: float
    in_plane: float
    later: float
    other: float
    by_position: list[float]
    explained: tuple[float, float]
    plane: Tensor


def separation(states: Tensor) -> Separation:
    """The numbers of one layer's states (texts, 1 + S, FIRST, E), the first stretch of which is
    the first positions."""
    states = states.double()
    rest = states[:, 1:].flatten(0, 2)
    later = states[:, 0, min(1, states.shape[2] - 1) :].flatten(0, 1)
    others = [0.0]  # a single other stretch has nothing to be apart from
    for number in range(1, states.shape[1] if states.shape[1] > 2 else 0):
        left = torch.cat((states[:, 1:number], states[:, number + 1 :]), 1)
        others.append(apart(states[:, number].flatten(0, 1), left.flatten(0, 2)))
    plane, explained = principal_plane(states.flatten(0, 2))
    plane = plane.view(*states.shape[:3], 2)
    # The components' signs are arbitrary: the first positions lie on the positive side.
    ahead = plane[:, 0].mean((0, 1)) < plane[:, 1:].mean((0, 1, 2))
    plane = torch.where(ahead, -plane, plane)
    far = (states[:, 0] - rest.mean(0)).norm(dim=-1).mean(0) / spread(rest)  # (FIRST,)
    return Separation(
        apart(states[:, 0].flatten(0, 1), rest),
        apart(plane[:, 0].flatten(0, 1), plane[:, 1:].flatten(0, 2)),
        apart(later, rest), max(others), far.tolist(), explained, plane,
    )  # fmt: skip


def spread(states: Tensor) -> Tensor:
    """How far a state (M, E) usually lies from their mean: the root of the mean square."""
    return (states - states.mean(0)).square().sum(-1).mean().sqrt()


def apart(some: Tensor, rest: Tensor) -> float:
    """How far the mean of some states (M, E) lies from the rest's, in units of their spread."""
    return float((some.mean(0) - rest.mean(0)).norm() / spread(rest))


def principal_plane(points: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Points (M, E) in the plane of their first two principal components, (M, 2), and the share
    of the variance on each."""
    centred = points - points.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    if len(s) < 2:
        u, s = (torch.nn.functional.pad(x, (0, 2 - len(s))) for x in (u, s))
    total = s.square().sum().clamp(min=torch.finfo(s.dtype).tiny)
    share = s[:2].square() / total
    return u[:, :2] * s[:2], (float(share[0]), float(share[1]))

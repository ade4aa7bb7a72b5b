"""Factor 3: how far the first positions' hidden states stand from the rest (paper, figure 1c).

Apart is a distance between means, in units of the rest's own spread:

    |mean(first) - mean(rest)| / sqrt(mean |x - mean(rest)|^2)

so that 1 is as far as a state of the rest usually lies from their middle. The unit makes layers
and models comparable, whose states differ in size by orders of magnitude.

The mean of a few neighbouring tokens is never the mean of all: they are about one thing. So the
same number is taken of other stretches of as many positions, and what the first positions have
beyond the largest of these is their own. The very first token, which is the same one in most
texts (BOS) and can draw the mean along alone, is left out in `without_token_0`.
"""

from __future__ import annotations

from torch import Tensor


def separation(states: Tensor) -> dict[str, float]:
    """How far the first of S + 1 stretches of states, (texts, 1 + S, FIRST, E), stands apart
    from the others: apart, without_token_0, and largest_other, of any other stretch."""
    states = states.double()
    first, rest = states[:, 0], states[:, 1:]
    others = [0.0]  # a single other stretch has nothing to be apart from
    for number in range(rest.shape[1] if rest.shape[1] > 1 else 0):
        left = [s for s in range(rest.shape[1]) if s != number]
        others.append(apart(rest[:, number], rest[:, left]))
    later = first[:, min(1, first.shape[1] - 1) :]
    return {
        "apart": apart(first, rest), "without_token_0": apart(later, rest),
        "largest_other": max(others),
    }  # fmt: skip


def apart(some: Tensor, rest: Tensor) -> float:
    """How far the mean of some states (..., E) lies from the rest's, in units of their spread:
    the root of the mean square of their distances from it."""
    some, rest = (x.flatten(0, -2) for x in (some, rest))
    spread = (rest - rest.mean(0)).square().sum(-1).mean().sqrt()
    return float((some.mean(0) - rest.mean(0)).norm() / spread)

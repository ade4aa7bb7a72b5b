"""The numbers of a diagnosis as tables: lists of rows with names, for JSON and CSV.

Positions and distances are given as first (inclusive) and last (exclusive). A mean with a
deviation is over heads, of all layers together where `layer` is "all"; layers are counted from
0. What was not measured is None.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..evaluate.intervals import blocks, interval
from .measure import SIDES, Diagnosis


def tables_of(diagnosis: Diagnosis) -> dict[str, list[dict]]:
    """All tables by name."""
    separations = diagnosis.separations()
    return {
        "logits": logits(diagnosis),
        "beyond": beyond(diagnosis),
        "entropy": entropy(diagnosis),
        "states": states(separations),
        "positions": positions(separations),
        "mass": mass(diagnosis),
        "theorem": theorem(diagnosis),
        "nll": nll(diagnosis),
        "plane": plane(diagnosis, separations),
    }


def over_heads(numbers: Tensor, prefix: str = "") -> dict:
    """Mean and deviation of a number per head, and the largest."""
    numbers = numbers.flatten()
    if not bool(numbers.isfinite().all()):
        return {f"{prefix}{name}": None for name in ("mean", "deviation", "most")}
    return {
        f"{prefix}mean": float(numbers.mean()),
        f"{prefix}deviation": float(numbers.std(unbiased=False)),
        f"{prefix}most": float(numbers.max()),
    }


def by_layer(numbers: Tensor):
    """("all", numbers), and each layer's own: (n_layer, ...)."""
    return [("all", numbers), *enumerate(numbers)]


def logits(diagnosis: Diagnosis) -> list[dict]:
    """Factor 1: the running maximum of |logit|, up to each distance, over all texts and rows;
    and, as highest_, of the logit itself, which a falling bias does not raise."""
    found = []
    ranges = list(zip(diagnosis.edges, diagnosis.edges[1:]))
    for side in SIDES:
        largest, highest = (x.cummax(-1).values for x in maxima(diagnosis, side))
        for layer, here in by_layer(largest):
            above = highest if layer == "all" else highest[layer]
            for number, (first, last) in enumerate(ranges):
                found.append({
                    "side": side, "layer": layer, "first": first, "last": last,
                    **over_heads(here[..., number]),
                    **over_heads(above[..., number], "highest_"),
                })  # fmt: skip
    return found


def maxima(diagnosis: Diagnosis, side: str) -> tuple[Tensor, Tensor]:
    """The largest |logit| and the largest logit of any row and text, (N, H, bins)."""
    rows = diagnosis.rows[side]
    both = [r.largest for r in rows], [r.highest for r in rows]
    return tuple(torch.stack(x).amax(0) for x in both)


def beyond(diagnosis: Diagnosis) -> list[dict]:
    """Factor 1: the same maxima, of those keys alone that stand further away than the model was
    trained with."""
    far = torch.tensor(diagnosis.edges[:-1]) >= diagnosis.model.config.context_length
    found = []
    for side in SIDES if bool(far.any()) else ():
        largest, highest = (x[..., far].amax(-1) for x in maxima(diagnosis, side))
        for layer, here in by_layer(largest):
            above = highest if layer == "all" else highest[layer]
            found.append({
                "side": side, "layer": layer, **over_heads(here),
                **over_heads(above, "highest_"),
            })  # fmt: skip
    return found


def entropy(diagnosis: Diagnosis) -> list[dict]:
    """Factor 2: the entropy of the rows at positions first to last, in nats, beside what bounds
    it: ln of the visible keys, less 2B (Proposition 1), of each row its own; and from above,
    ln(n_local + n_global)."""
    found = []
    for side in ("vanilla", "lambda"):
        rows = diagnosis.rows[side]
        at = torch.cat([r.q_positions for r in rows])
        visible = torch.cat([r.visible for r in rows]).double()
        nats, bound = (
            torch.cat(x, -1) for x in ([r.entropy for r in rows], [r.bound for r in rows])
        )
        lowest = visible.log() - 2 * bound
        most = rows[0].lm.most_visible
        for first, last in zip(diagnosis.octaves, diagnosis.octaves[1:]):
            here = (at >= first) & (at < last)
            for layer, numbers in by_layer(nats):
                under = lowest if layer == "all" else lowest[layer]
                found.append({
                    "side": side, "layer": layer, "first": first, "last": last,
                    "visible": float(visible[here].mean()),
                    **over_heads(numbers[..., here].mean(-1)),
                    "ln_visible": float(visible[here].log().mean()),
                    "proposition_1": float(under[..., here].mean()),
                    "proposition_1_best": float(under[..., here].max()),
                    "ln_most_visible": None if most is None else math.log(most),
                })  # fmt: skip
    return found


def states(separations) -> list[dict]:
    """Factor 3: each layer's separation of the first positions."""
    return [
        {
            "layer": layer, "apart": s.apart, "in_plane": s.in_plane,
            "without_token_0": s.later, "largest_other": s.other,
            "explained_1": s.explained[0], "explained_2": s.explained[1],
        }
        for layer, s in enumerate(separations)
    ]  # fmt: skip


def positions(separations) -> list[dict]:
    """Factor 3: how far the states of each of the first positions lie from the rest's mean."""
    return [
        {"layer": layer, "position": position, "distance": distance}
        for layer, s in enumerate(separations)
        for position, distance in enumerate(s.by_position)
    ]


def plane(diagnosis: Diagnosis, separations) -> list[dict]:
    """Factor 3: the states in the plane of their first two principal components."""
    found = []
    for layer, s in enumerate(separations):
        for text, places in enumerate(diagnosis.places):
            pairs = zip(places.flatten().tolist(), s.plane[text].flatten(0, 1).tolist())
            for position, (x, y) in pairs:
                found.append(
                    {"layer": layer, "text": text, "position": position, "pc1": x, "pc2": y}
                )
    return found


def mass(diagnosis: Diagnosis) -> list[dict]:
    """Factor 3: the attention on the first n_starting tokens, and on the first alone, beside
    their share of the visible keys. Vanilla: the rows of the trained length's last octave;
    lambda: those from which they are out of the window."""
    first = diagnosis.octaves[diagnosis.octaves.index(diagnosis.n_trained) - 1]
    ranges = {
        "vanilla": (max(first, diagnosis.n_starting), diagnosis.n_trained),
        "lambda": (diagnosis.lm.n_local + diagnosis.n_starting, diagnosis.n),
    }
    found = []
    for side, (first, last) in ranges.items():
        rows = diagnosis.rows[side]
        at = torch.cat([r.q_positions for r in rows])
        here = (at >= first) & (at < last)
        if not bool(here.any()):
            continue
        visible = torch.cat([r.visible for r in rows])[here].double()
        seen = diagnosis.n_starting if side == "vanilla" else diagnosis.lm.n_global
        weights = torch.cat([r.mass for r in rows], -1)[..., here]
        alone = torch.cat([r.token_0 for r in rows], -1)[..., here]
        for layer, numbers in by_layer(weights):
            token_0 = alone if layer == "all" else alone[layer]
            found.append({
                "side": side, "layer": layer, "first": first, "last": last, "tokens": seen,
                "share": float((seen / visible).mean()), **over_heads(numbers.mean(-1)),
                "token_0": float(token_0.mean()),
            })  # fmt: skip
    return found


def theorem(diagnosis: Diagnosis) -> list[dict]:
    """Theorem 1: alpha(n), the bound and the observed supremum, by side: under the ceiling
    (lambda) there are no more than ceiling + 1 distances."""
    alpha, bound, sup, epsilon = diagnosis.theorems()
    found = []
    sides = [(side, n) for side in ("vanilla", "lambda") for n in diagnosis.lengths]
    for number, (side, n) in enumerate(sides):
        for layer, _ in by_layer(alpha):
            pick = slice(None) if layer == "all" else layer
            found.append({
                "side": side, "layer": layer, "n": n, "epsilon": float(epsilon[pick].mean()),
                **over_heads(alpha[pick][..., number], "alpha_"),
                **over_heads(bound[pick][..., number], "bound_"),
                **over_heads(sup[pick][..., number], "sup_"),
                "most_of_sup": float((bound / sup)[pick][..., number].nan_to_num(0).max()),
            })  # fmt: skip
    return found


def nll(diagnosis: Diagnosis) -> list[dict]:
    """Nats per token of each reading, within the trained length and beyond; and, from where the
    starting tokens are out of the window, what it costs to drop them, with its interval."""
    numbers = {name: torch.stack(x) for name, x in diagnosis.nll.items()}
    ranges = {"within": (0, diagnosis.n_trained), "beyond": (diagnosis.n_trained, diagnosis.n)}
    found = []
    for reading in ("vanilla", "lambda"):
        for where, (first, last) in ranges.items():
            if first < last:
                value = float(numbers[reading][:, first:last].mean())
                found.append({
                    "reading": reading, "where": where, "first": first, "last": last,
                    "nll": value, "interval": None,
                })  # fmt: skip
    if "dropped" in numbers:
        first, last = diagnosis.lm.n_local, diagnosis.n
        cost = (numbers["dropped"] - numbers["with"])[:, first:]
        edges = blocks(0, last - first).tolist()
        sums = torch.stack([cost[:, a:b].sum(-1) for a, b in zip(edges, edges[1:])], -1)
        sizes = torch.tensor(edges).diff().double().expand_as(sums)
        found.append({
            "reading": "dropped - with", "where": "beyond the window", "first": first,
            "last": last, "nll": float(cost.mean()),
            "interval": interval(
                sums.flatten().numpy(), sizes.flatten().numpy(), [diagnosis.seed]
            ),
        })  # fmt: skip
    return found

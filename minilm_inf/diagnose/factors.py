"""The three factors: what was read as numbers, as curves, and in words, by fixed rules.

The rules, on means over all heads and layers:

    factor 1    shown: the running maximum of |logit| grows at least GROWS-fold from the trained
                length to the end of the text. In part: it does not, but keys further away than
                any trained distance reach logits GROWS times as large as the same keys would,
                felt at the trained length: they gain weight, though not beyond the size that
                the negative logits of other keys had already.
    factor 2    shown: from the last octave within the trained length to the last of the text
                the vanilla rows' entropy grows by at least SHARE_OF_LOG of what it would, were
                the attention uniform, which is ln of how often more keys are visible.
    factor 3    apart: in some layer the first positions stand APART and more from the rest, in
                units of its spread, and OVER_OTHERS times as far as any other stretch.
                Costly: without the starting tokens the nll beyond the window is at least COST
                nats higher, and its interval lies above 0. Shown: both, or apart where the cost
                was not measured; in part: one of the two.

Where the text is no longer than the trained length, factors 1 and 2 are not measured.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..evaluate.intervals import blocks, interval
from .measure import SIDES, Diagnosis

GROWS = 1.25
SHARE_OF_LOG = 0.25
APART = 1.0
OVER_OTHERS = 2.0
COST = 0.05

SHOWN, IN_PART, NOT_SHOWN, NOT_MEASURED = "shown", "in part", "not shown", "not measured"


def factors_of(d: Diagnosis) -> tuple[dict[str, dict], dict[str, dict]]:
    """For each factor: verdict, the numbers that it rests on, and a line of words; and the
    curves that figures.py draws, by name."""
    curves = {
        "logits": logits(d), "entropy": entropy(d), "mass": mass(d), "theorem": theorem(d),
        "states": d.separations(), "nll": nll(d),
    }  # fmt: skip
    return {f"factor_{i}": make(d, curves) for i, make in enumerate(MAKERS, 1)}, curves


def result(verdict: str, numbers: dict, words: str) -> dict:
    return {"verdict": verdict, "numbers": numbers, "words": f"{verdict}: {words}"}


def too_short(d: Diagnosis) -> dict:
    return result(
        NOT_MEASURED, {},
        f"the text's {d.n:,} tokens are not beyond the trained length of {d.trained:,}; take a "
        "larger --length",
    )  # fmt: skip


# ---- factor 1


def over_heads(numbers: Tensor) -> dict[str, list[float]]:
    """Mean and deviation over all layers and heads: (N, H, M) -> M of each."""
    numbers = numbers.flatten(0, 1)
    deviation = numbers.std(0, correction=0)
    return {"mean": numbers.mean(0).tolist(), "deviation": deviation.tolist()}


def logits(d: Diagnosis) -> dict[str, dict]:
    """Of each side, up to each distance: the running maximum of |logit| over all texts and
    rows; as `highest` that of the logit itself, which a falling bias does not raise; and as
    `far` its largest at distances beyond the trained length, None where no key is seen."""
    found, is_far = {}, torch.tensor(d.edges[:-1]) >= d.trained
    for side in SIDES:
        largest = torch.stack([rows.largest for rows in d.rows[side]]).amax(0)
        highest = torch.stack([rows.highest for rows in d.rows[side]]).amax(0)
        found[side] = {"distance": d.edges[1:], **over_heads(largest.cummax(-1).values)}
        found[side]["highest"] = over_heads(highest.cummax(-1).values)["mean"]
        far = float(highest[..., is_far].amax(-1).mean()) if is_far.any() else math.inf
        found[side]["far"] = far if math.isfinite(far) else None
    return found


def theorem(d: Diagnosis) -> dict[str, dict]:
    """Theorem 1 at lengths n, means over heads: alpha(n), the bound and the observed supremum.
    Under the ceiling (lambda) there are no more than ceiling + 1 distances."""
    lengths = [n for n in d.octaves if n >= 2]
    most = d.n if d.lm.distance_ceiling is None else d.lm.distance_ceiling + 1
    both = {"vanilla": lengths, "lambda": [min(n, most) for n in lengths]}
    asked = sorted({n for some in both.values() for n in some})
    columns = {name: over_heads(x)["mean"] for name, x in zip(NAMES, d.theorems(asked))}
    return {
        side: {"n": lengths}
        | {name: [x[asked.index(n)] for n in some] for name, x in columns.items()}
        for side, some in both.items()
    }


NAMES = ("alpha", "bound", "sup")


def factor_1(d: Diagnosis, curves: dict) -> dict:
    if d.n <= d.trained:
        return too_short(d)
    inside, numbers = d.edges.index(d.trained) - 1, {}
    for side, curve in curves["logits"].items():
        mean = curve["mean"]
        numbers |= {f"{side}_within": mean[inside], side: mean[-1], f"{side}_far": curve["far"]}
    numbers |= {name: curves["theorem"]["vanilla"][name][-1] for name in NAMES}
    verdict, ours = verdict_1(numbers), numbers["lambda_far"]
    words = (
        f"the largest |logit| goes from {numbers['vanilla_within']:.1f} at {d.trained:,} "
        f"tokens to {numbers['vanilla']:.1f} at {d.n:,} (LM-Infinite {numbers['lambda']:.1f}); "
        f"keys {d.trained:,} and more away reach a logit of {numbers['vanilla_far']:.1f} (felt "
        f"at {d.trained:,} the same keys {numbers['capped_far']:.1f}"
        f"{'' if ours is None else f'; LM-Infinite {ours:.1f}'})"
    )
    if verdict == SHOWN and not rises(numbers):
        words += ", so it grows downward only"
        words += ", as ALiBi's bias does" if d.model.scheme.has_bias else ""
    words += (
        f"; since {numbers['alpha']:.0f} distances are told apart, Theorem 1 asks for a "
        f"|logit| of {numbers['bound']:.2f}, and its sample has {numbers['sup']:.1f}"
    )
    return result(verdict, numbers, words)


def rises(numbers: dict) -> bool:
    """Whether far keys reach larger logits than they would, felt at the trained length."""
    return (
        numbers["vanilla_far"] > 0 and numbers["vanilla_far"] >= GROWS * numbers["capped_far"]
    )


def verdict_1(numbers: dict) -> str:
    if numbers["vanilla"] >= GROWS * numbers["vanilla_within"] > 0:
        return SHOWN
    return IN_PART if rises(numbers) else NOT_SHOWN


# ---- factor 2


def joined(d: Diagnosis, side: str, name: str) -> Tensor:
    """What the rows of all texts have of one kind, side by side."""
    return torch.cat([getattr(rows, name) for rows in d.rows[side]], -1)


def entropy(d: Diagnosis) -> dict[str, dict]:
    """Of each side and octave of positions: the entropy of its rows in nats, how many keys they
    see, and what bounds it: ln of those, less 2B (Proposition 1), of each row its own; and from
    above, as `ln_most`, ln(n_local + n_global)."""
    found = {}
    for side in ("vanilla", "lambda"):
        at, visible = joined(d, side, "q_positions"), joined(d, side, "visible").double()
        nats = joined(d, side, "entropy")
        lowest = visible.log() - 2 * joined(d, side, "bound")
        most = d.settings[side].most_visible
        octaves = list(zip(d.octaves, d.octaves[1:]))
        each = [(at >= first) & (at < last) for first, last in octaves]
        found[side] = {
            "first": d.octaves[:-1], "last": d.octaves[1:],
            **over_heads(torch.stack([nats[..., here].mean(-1) for here in each], -1)),
            "visible": [float(visible[here].mean()) for here in each],
            "ln_visible": [float(visible[here].log().mean()) for here in each],
            "proposition_1": [float(lowest[..., here].mean()) for here in each],
            "ln_most": None if most is None else math.log(most),
        }  # fmt: skip
    return found


def factor_2(d: Diagnosis, curves: dict) -> dict:
    if d.n <= d.trained:
        return too_short(d)
    curve, flat = curves["entropy"]["vanilla"], curves["entropy"]["lambda"]
    inside = curve["last"].index(d.trained)
    early, late = ({name: curve[name][i] for name in ("mean", "visible", "ln_visible")}
                   for i in (inside, -1))  # fmt: skip
    numbers = {
        "within": early["mean"], "beyond": late["mean"], "lambda": flat["mean"][-1],
        "grows": late["mean"] - early["mean"],
        "uniform_would_grow": late["ln_visible"] - early["ln_visible"],
        "proposition_1": curve["proposition_1"][-1], "ln_most_visible": flat["ln_most"],
    }  # fmt: skip
    shown = numbers["grows"] >= SHARE_OF_LOG * numbers["uniform_would_grow"]
    words = (
        f"the entropy of attention goes from {early['mean']:.2f} nats over "
        f"{early['visible']:,.0f} keys to {late['mean']:.2f} over {late['visible']:,.0f} "
        f"({numbers['grows']:+.2f}; uniform attention {numbers['uniform_would_grow']:+.2f}); "
        f"LM-Infinite {flat['mean'][-1]:.2f} over {flat['visible'][-1]:,.0f}"
    )
    return result(SHOWN if shown else NOT_SHOWN, numbers, words)


# ---- factor 3


def mass(d: Diagnosis) -> dict[str, dict]:
    """The attention on the starting tokens, of each layer, beside their share of the visible
    keys. Vanilla: the rows of the trained length's last octave; lambda: those from which they
    are out of the window."""
    n, count, found = min(d.n, d.trained), d.n_starting, {}
    octave = d.octaves[d.octaves.index(n) - 1]
    ranges = {"vanilla": (max(octave, count), n), "lambda": (d.lm.n_local + count, d.n)}
    for side, (first, last) in ranges.items():
        at = joined(d, side, "q_positions")
        here = (at >= first) & (at < last)
        if bool(here.any()):
            tokens = count if side == "vanilla" else d.lm.n_global
            share = (tokens / joined(d, side, "visible")[here]).mean()
            by_layer = joined(d, side, "mass")[..., here].mean((1, 2)).tolist()
            found[side] = {"first": first, "last": last, "tokens": tokens,
                           "share": float(share), "mean": by_layer}  # fmt: skip
    return found


def nll(d: Diagnosis) -> dict:
    """Nats per token of each reading beyond the trained length; and from where the starting
    tokens are out of the window, what it costs to drop them, with its interval."""
    numbers = {name: torch.stack(x) for name, x in d.nll.items()}
    beyond = min(d.trained, d.n - 1)
    found = {name: float(x[:, beyond:].mean()) for name, x in numbers.items()}
    if "dropped" in numbers:
        cost = (numbers["dropped"] - numbers["with"])[:, d.lm.n_local :]
        edges = blocks(0, cost.shape[1]).tolist()
        sums = torch.stack([cost[:, a:b].sum(-1) for a, b in zip(edges, edges[1:])], -1)
        sizes = torch.tensor(edges).diff().double().expand_as(sums)
        units = sums.flatten().numpy(), sizes.flatten().numpy()
        found["cost"], found["interval"] = float(cost.mean()), interval(*units, [d.seed])
    return found


def factor_3(d: Diagnosis, curves: dict) -> dict:
    layer, best = max(enumerate(curves["states"]), key=lambda row: row[1]["apart"])
    apart = best["apart"] >= max(APART, OVER_OTHERS * best["largest_other"])
    numbers = {"layer": layer, **best}
    words = (
        f"after layer {layer} the first positions stand {best['apart']:.2f} spreads from the "
        f"rest (other stretches at most {best['largest_other']:.2f}; without token 0 "
        f"{best['without_token_0']:.2f})"
    )
    seen = curves["mass"].get("vanilla")
    if seen:
        numbers["mass"], numbers["share"] = sum(seen["mean"]) / len(seen["mean"]), seen["share"]
        words += (
            f"; {numbers['mass']:.1%} of the attention is on the first {seen['tokens']} tokens "
            f"({seen['share']:.1%} were it uniform)"
        )
    if "cost" not in curves["nll"]:
        words += f"; what they are worth is not measured: the window holds all {d.n:,}"
        return result(SHOWN if apart else NOT_SHOWN, numbers, words)
    cost, ends = curves["nll"]["cost"], curves["nll"]["interval"]
    numbers["cost"], numbers["cost_interval"] = cost, ends
    costly = cost >= COST and (ends is None or ends[0] > 0)
    between = f" ({ends[0]:+.3f} to {ends[1]:+.3f})" if ends else ""
    words += f"; dropping them costs {cost:+.3f} nat{between} at n_local {d.lm.n_local:,}"
    return result((NOT_SHOWN, IN_PART, SHOWN)[apart + costly], numbers, words)


MAKERS = (factor_1, factor_2, factor_3)

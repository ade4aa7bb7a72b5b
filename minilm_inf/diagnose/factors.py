"""The three factors: what was read as numbers, as curves, and in words, by fixed rules.

The rules, on means over all heads and layers:

    factor 1    shown: the largest |logit| is at least GROWS times as large over all distances
                as over the trained ones. In part: it is not, but keys further away than any
                trained distance reach logits GROWS times as large as the same keys would at
                the trained length: they gain weight, though not beyond the size that the
                negative logits of other keys had already.
    factor 2    shown: from the last octave within the trained length to the last of the text
                the vanilla rows' entropy grows by at least SHARE_OF_LOG of what it would, were
                the attention uniform, which is ln of how often more keys are visible.
    factor 3    apart: in some layer the mean of the first positions' hidden states stands APART
                and more from that of the rest, in units of the rest's spread. Costly: without
                the starting tokens the nll beyond the window is at least COST nats higher, and
                its interval lies above 0. Shown: both; in part: one of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..evaluate.intervals import blocks, interval
from .measure import SIDES, Diagnosis

GROWS = 1.25
SHARE_OF_LOG = 0.25
APART = 1.0
COST = 0.05

VERDICTS = NOT_SHOWN, IN_PART, SHOWN = "not shown", "in part", "shown"


def factors_of(d: Diagnosis) -> tuple[dict[str, dict], dict[str, dict]]:
    """For each factor: verdict, the numbers that it rests on, and a line of words; and the
    curves that figures.py draws, by name."""
    factors, curves = {}, {}
    makers = {"logits": factor_1, "entropy": factor_2, "mass": factor_3}
    for number, (name, make) in enumerate(makers.items(), 1):
        verdict, numbers, words, curves[name] = make(d)
        words = f"{verdict}: {words}"
        factors[f"factor_{number}"] = {"verdict": verdict, "numbers": numbers, "words": words}
    return factors, curves


def joined(d: Diagnosis, side: str, name: str) -> Tensor:
    """What the rows of all texts have of one kind, side by side."""
    return torch.cat([getattr(rows, name) for rows in d.rows[side]], -1)


def factor_1(d: Diagnosis) -> tuple[str, dict, str, dict]:
    """Logits by distance. Means over layers and heads: the largest |logit| and the highest
    logit up to each distance, and as `far` the highest at distances beyond the trained ones."""
    curves, is_far, trained = {}, torch.tensor(d.edges[:-1]) >= d.trained, d.trained
    for side in SIDES:
        highest, largest = (
            torch.stack([getattr(rows, name) for rows in d.rows[side]]).amax(0)
            for name in ("highest", "largest")
        )
        curves[side] = {
            "far": float(highest[..., is_far].amax(-1).mean()),
            "distance": d.edges[1:],
            "highest": highest.cummax(-1).values.mean((0, 1)).tolist(),
            "largest": largest.cummax(-1).values.mean((0, 1)).tolist(),
        }
    vanilla, capped, ours = (curves[side] for side in SIDES)
    far, at_ceiling, ours_far = (side["far"] for side in (vanilla, capped, ours))
    near, most = vanilla["largest"][d.edges.index(trained) - 1], vanilla["largest"][-1]
    numbers = {
        "vanilla_within": near, "vanilla": most, "lambda": ours["largest"][-1],
        "vanilla_far": far, "capped_far": at_ceiling, "lambda_far": ours_far,
    }  # fmt: skip
    words = (
        f"the largest |logit| goes from {near:.1f} at distances below {trained:,} to "
        f"{most:.1f} below {d.n:,} (LM-Infinite {ours['largest'][-1]:.1f}); keys {trained:,} "
        f"and more away reach a logit of {far:.1f} (as if {trained:,} away the same keys "
        f"{at_ceiling:.1f}; LM-Infinite {ours_far:.1f})"
    )
    rises = far > 0 and far >= GROWS * at_ceiling
    grows = most >= GROWS * near > 0
    return SHOWN if grows else IN_PART if rises else NOT_SHOWN, numbers, words, curves


def factor_2(d: Diagnosis) -> tuple[str, dict, str, dict]:
    """Entropy by number of keys. Of each side and octave of positions: the mean entropy of its
    rows in nats, how many keys they see, and ln of those."""
    curves, octaves = {}, list(zip(d.octaves, d.octaves[1:]))
    for side in ("vanilla", "lambda"):
        at, visible = joined(d, side, "q_positions"), joined(d, side, "visible").double()
        each, nats = [(at >= a) & (at < b) for a, b in octaves], joined(d, side, "entropy")
        curves[side] = {
            "first": d.octaves[:-1], "last": d.octaves[1:],
            "mean": [float(nats[..., here].mean()) for here in each],
            "visible": [float(visible[here].mean()) for here in each],
            "ln_visible": [float(visible[here].log().mean()) for here in each],
        }  # fmt: skip
    inside = d.octaves.index(d.trained) - 1
    (within, beyond), (few, many), (low, high) = (
        (curves["vanilla"][name][inside], curves["vanilla"][name][-1])
        for name in ("mean", "visible", "ln_visible")
    )
    ours, seen = curves["lambda"]["mean"][-1], curves["lambda"]["visible"][-1]
    numbers = {"within": within, "beyond": beyond, "lambda": ours, "grows": beyond - within,
               "uniform_would_grow": high - low}  # fmt: skip
    words = (
        f"the entropy of attention goes from {within:.2f} nats over {few:,.0f} keys to "
        f"{beyond:.2f} over {many:,.0f} ({beyond - within:+.2f}; uniform attention "
        f"{high - low:+.2f}); LM-Infinite {ours:.2f} over {seen:,.0f}"
    )
    shown = beyond - within >= SHARE_OF_LOG * (high - low)
    return SHOWN if shown else NOT_SHOWN, numbers, words, curves


def factor_3(d: Diagnosis) -> tuple[str, dict, str, dict]:
    """The starting tokens. How far they stand apart, in the layer where that is most; the
    vanilla attention on them, of each layer, beside their share of the visible keys, in the
    trained length's last octave; and what it costs to drop them."""
    states = [torch.stack(texts) for texts in d.states]  # (texts, n_first + OTHERS, E) of each
    far = [apart(x[:, : d.n_first], x[:, d.n_first :]) for x in states]
    layer = max(range(len(far)), key=far.__getitem__)
    # The very first token, mostly BOS, can draw the mean along alone.
    later = apart(states[layer][:, 1 : d.n_first], states[layer][:, d.n_first :])
    at = joined(d, "vanilla", "q_positions")
    here = (at >= d.octaves[d.octaves.index(d.trained) - 1]) & (at < d.trained)
    share = float((d.lm.n_global / (at[here] + 1)).clamp(max=1).mean())
    by_layer = joined(d, "vanilla", "mass")[..., here].mean((1, 2))
    weight, (cost, ends) = float(by_layer.mean()), cost_of_dropping(d)
    numbers = {
        "layer": layer, "apart": far[layer], "without_token_0": later, "mass": weight,
        "share": share, "cost": cost, "cost_interval": ends,
    }  # fmt: skip
    words = (
        f"after layer {layer} the first {d.n_first} positions stand {far[layer]:.2f} spreads "
        f"from the rest (without token 0 {later:.2f}); {weight:.1%} of the attention is on the "
        f"first {d.lm.n_global} tokens ({share:.1%} were it uniform); dropping them costs "
        f"{cost:+.3f} nat ({ends[0]:+.3f} to {ends[1]:+.3f}) at n_local {d.lm.n_local:,}"
    )
    verdict = VERDICTS[(far[layer] >= APART) + (cost >= COST and ends[0] > 0)]
    return verdict, numbers, words, {"share": share, "mean": by_layer.tolist()}


def apart(some: Tensor, rest: Tensor) -> float:
    """How far the mean of some states (..., E) lies from the rest's, in units of the rest's
    spread: |mean(some) - mean(rest)| / sqrt(mean |x - mean(rest)|^2)."""
    some, rest = (x.flatten(0, -2).double() for x in (some, rest))
    spread = (rest - rest.mean(0)).square().sum(-1).mean().sqrt()
    return float((some.mean(0) - rest.mean(0)).norm() / spread)


def cost_of_dropping(d: Diagnosis) -> tuple[float, list[float]]:
    """Nats per token that it costs to drop the starting tokens, from where they are out of the
    window, and its interval, over blocks of all texts."""
    cost = torch.stack(d.nll["dropped"]) - torch.stack(d.nll["lambda"])
    cost = cost[:, d.lm.n_local :]
    pieces = cost.tensor_split(torch.tensor(blocks(0, cost.shape[1]))[1:-1], -1)
    sums = torch.stack([piece.sum(-1) for piece in pieces]).flatten()
    sizes = torch.tensor([[piece.shape[1]] * len(cost) for piece in pieces]).flatten()
    return float(cost.mean()), interval(sums.numpy(), sizes.numpy(), [0])

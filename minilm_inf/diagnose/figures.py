"""The curves of a diagnosis as one picture: a panel for each factor, both sides in each.

They differ in colour (orange and blue, which colour-blind readers tell apart), in lightness and
in line, so that greyscale shows them too.
"""

from __future__ import annotations

from pathlib import Path

from ..evaluate.figure import GREY, by_tokens, new, png

SIDES = {
    "vanilla": dict(color="#e69f00", marker="o", linestyle="-", label="vanilla"),
    "lambda": dict(color="#0a4f82", marker="s", linestyle="--", label="LM-Infinite"),
}


def draw(factors: dict, curves: dict, facts: dict) -> bytes:
    """The picture, as PNG."""
    figure = new(15, 4.6, (
        f"{Path(facts['model']).name}: trained on {facts['context_length']:,} tokens, read to "
        f"{facts['n']:,}; LM-Infinite with n_local {facts['n_local']:,}, n_global "
        f"{facts['n_global']}"
    ))  # fmt: skip
    panels = zip(figure.subplots(1, 3), (logits, entropy, mass), curves.values())
    for (axes, fill, curve), (name, factor) in zip(panels, factors.items()):
        title = fill(axes, curve, facts)
        axes.set_title(f"{name.replace('_', ' ')}, {factor['verdict']}: {title}")
        low, high = axes.get_ylim()
        axes.set_ylim(low, low + 1.35 * (high - low))  # the legend lies on no data
        axes.legend(loc="upper left")
    return png(figure)


def logits(axes, curves, facts) -> str:
    for side, style in SIDES.items():
        for kind, thin in (("largest |logit|", 2), ("highest logit", 1)):
            style = style | {"label": f"{SIDES[side]['label']}, {kind}", "linewidth": thin}
            curve = curves[side][kind.partition(" ")[0]]
            axes.plot(curves[side]["distance"][1:], curve[1:], **style)
    by_tokens(axes, facts["context_length"], "distance up to, tokens")
    axes.set_ylabel("logit, mean over heads")
    return "logits by distance"


def entropy(axes, curves, facts) -> str:
    for side, curve in curves.items():
        x = [(a * (b - 1)) ** 0.5 for a, b in zip(curve["first"], curve["last"])][1:]
        axes.plot(x, curve["mean"][1:], **SIDES[side])
    uniform = curves["vanilla"]["ln_visible"][1:]
    axes.plot(x, uniform, color=GREY, linestyle="-.", label="ln n: uniform attention")
    by_tokens(axes, facts["context_length"], "tokens read: n, the keys that vanilla sees")
    axes.set(ylabel="entropy of attention, nats", ylim=(0, None))
    return "entropy by visible keys"


def mass(axes, curve, facts) -> str:
    axes.plot(curve["mean"], **SIDES["vanilla"])
    axes.axhline(curve["share"], color=GREY, linestyle=":", label="their share of the keys")
    axes.set(xlabel="layer", ylabel="share of attention within the trained length")
    axes.set_ylim(0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return f"the first {facts['n_global']} tokens"

"""The curves of a diagnosis as one picture: a panel for each factor, in the usual colours."""

from __future__ import annotations

from pathlib import Path

from ..evaluate.figure import GREY, STYLES, by_tokens, new, png

SIDES = {
    "vanilla": dict(zip(("color", "linestyle", "marker"), STYLES["full"]), label="vanilla"),
    "lambda": dict(zip(("color", "linestyle"), STYLES["lambda"]), label="LM-Infinite"),
}


def draw(factors: dict, curves: dict, facts: dict) -> bytes:
    """The picture, as PNG."""
    verdicts = [f"factor {i} {f['verdict']}" for i, f in enumerate(factors.values(), 1)]
    figure = new(15, 4.6, (
        f"{Path(facts['model']).name}, trained on {facts['context_length']:,} tokens, read to "
        f"{facts['n']:,}: {', '.join(verdicts)}"
    ))  # fmt: skip
    panels = zip(figure.subplots(1, 3), (logits, entropy, mass), curves.values())
    for (axes, fill, curve), (number, factor) in zip(panels, enumerate(factors.values(), 1)):
        axes.set_title(f"{number}. {fill(axes, curve, facts, factor['numbers'])}", fontsize=10)
        low, high = axes.get_ylim()
        axes.set_ylim(low, low + 1.35 * (high - low))  # the legend lies on no data
        axes.legend(loc="upper left")
    return png(figure)


def logits(axes, curves, facts, found) -> str:
    for side, style in SIDES.items():
        for kind, thin in (("largest |logit|", 2), ("highest logit", 1)):
            style = style | {"label": f"{SIDES[side]['label']}, {kind}", "linewidth": thin}
            curve = curves[side][kind.partition(" ")[0]]
            axes.plot(curves[side]["distance"][1:], curve[1:], **style)
    by_tokens(axes, facts["context_length"], "distance up to, tokens")
    axes.set_ylabel("logit, mean over heads")
    within, most, far = (found[x] for x in ("vanilla_within", "vanilla", "vanilla_far"))
    return f"The largest |logit| goes from {within:.1f} to {most:.1f}; far keys reach {far:.1f}"


def entropy(axes, curves, facts, found) -> str:
    for side, curve in curves.items():
        x = [(a * (b - 1)) ** 0.5 for a, b in zip(curve["first"], curve["last"])][1:]
        axes.plot(x, curve["mean"][1:], **SIDES[side])
    uniform = curves["vanilla"]["ln_visible"][1:]
    axes.plot(x, uniform, color=GREY, linestyle=":", label="ln n: uniform attention")
    by_tokens(axes, facts["context_length"], "tokens read: n, the keys that vanilla sees")
    axes.set(ylabel="entropy of attention, nats", ylim=(0, None))
    nats = (found[x] for x in ("within", "beyond", "lambda"))
    return "Entropy goes from {:.2f} to {:.2f} nats, or to {:.2f} with LM-Infinite".format(
        *nats
    )


def mass(axes, curve, facts, found) -> str:
    axes.plot(curve["mean"], **SIDES["vanilla"])
    axes.axhline(curve["share"], color=GREY, linestyle=":", label="their share of the keys")
    axes.set(xlabel="layer", ylabel="share of attention within the trained length")
    axes.set_ylim(0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    some = f"First {facts['n_global']} tokens: {found['mass']:.1%} of attention"
    return f"{some}; {found['cost']:+.2f} nat if dropped"

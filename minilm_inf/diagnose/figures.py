"""The curves of a diagnosis as one picture: a panel for each factor, both sides in each.

They differ in colour (orange and blue, which colour-blind readers tell apart), in lightness and
in line, so that greyscale shows them too.
"""

from __future__ import annotations

from ..evaluate.figure import GREY, by_tokens, new, png

SIDES = {
    "vanilla": dict(color="#e69f00", marker="o", linestyle="-", label="vanilla"),
    "lambda": dict(color="#0a4f82", marker="s", linestyle="--", label="LM-Infinite"),
}


def draw(factors: dict, curves: dict, facts: dict) -> bytes:
    """The picture, as PNG."""
    name = facts["model"].rstrip("/").rpartition("/")[2]
    figure = new(15, 4.6, (
        f"{name}: trained on {facts['context_length']:,} tokens, read to {facts['n']:,}; "
        f"LM-Infinite with n_local {facts['n_local']:,}, n_global {facts['n_global']}"
    ))  # fmt: skip
    panels, kinds = figure.subplots(1, 3), {"logits": logits, "entropy": entropy, "mass": mass}
    for number, (panel, (kind, fill)) in enumerate(zip(panels, kinds.items()), 1):
        title, verdict = (
            fill(panel, curves[kind], facts),
            factors[f"factor_{number}"]["verdict"],
        )
        panel.set_title(f"Factor {number}, {verdict}: {title}")
        low, high = panel.get_ylim()
        panel.set_ylim(low, low + 1.35 * (high - low))  # the legend lies on no data
        panel.legend(loc="upper left")
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
        if side == "vanilla":
            axes.plot(x, curve["ln_visible"][1:], color=GREY, linewidth=1, linestyle="-.",
                      label="ln n: uniform attention")  # fmt: skip
    by_tokens(axes, facts["context_length"], "tokens read: n, the keys that vanilla sees")
    axes.set(ylabel="entropy of attention, nats", ylim=(0, None))
    return "entropy by visible keys"


def mass(axes, curve, facts) -> str:
    within = SIDES["vanilla"] | {"label": "vanilla, within the trained length"}
    axes.plot(range(facts["n_layer"]), curve["mean"], **within)
    axes.axhline(curve["share"], color=GREY, linestyle=":", label="their share of the keys")
    axes.set(xlabel="layer", ylabel="share of the attention", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    return f"the first {facts['n_global']} tokens"

"""The curves of a diagnosis as one picture, for a slide and for print.

A panel for each factor, vanilla beside LM-Infinite. They differ in colour (orange and blue,
which colour-blind readers tell apart), in lightness and in line, so that greyscale shows them
too. No time is written into the file: the same numbers give the same bytes.
"""

from __future__ import annotations

import io

SIDES = {
    "vanilla": dict(color="#e69f00", marker="o", linestyle="-", label="vanilla"),
    "lambda": dict(color="#0a4f82", marker="s", linestyle="--", label="LM-Infinite"),
}
GREY = "#767676"
STYLE = {"font.size": 11, "axes.titlesize": 12, "lines.linewidth": 2, "lines.markersize": 5,
         "axes.spines.top": False, "axes.spines.right": False}  # fmt: skip


def draw(factors: dict, curves: dict, facts: dict) -> bytes:
    """The picture, as PNG."""
    import matplotlib
    from matplotlib.figure import Figure

    content = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(15, 4.6), layout="constrained")
        panels = figure.subplots(1, 3)
        titles = (
            _logits(panels[0], curves["logits"], facts),
            _entropy(panels[1], curves["entropy"], facts),
            _mass(panels[2], curves["mass"], facts),
        )
        for number, (panel, title) in enumerate(zip(panels, titles), 1):
            verdict = factors[f"factor_{number}"]["verdict"]
            panel.set_title(f"Factor {number}, {verdict}: {title}")
            low, high = panel.get_ylim()
            panel.set_ylim(low, low + 1.35 * (high - low))  # the legend lies on no data
            panel.legend(loc="upper left")
        name = facts["model"].rstrip("/").rpartition("/")[2]
        figure.suptitle(
            f"{name}: trained on {facts['context_length']:,} tokens, read to {facts['n']:,}; "
            f"LM-Infinite with n_local {facts['n_local']:,}, n_global {facts['n_global']}",
            fontsize=13,
        )
        figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    return content.getvalue()


def _trained(axes, facts: dict):
    """A line at the trained length, on a logarithmic axis of tokens."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{round(x):,}")
    axes.axvline(facts["context_length"], color=GREY, linewidth=1, linestyle=":",
                 label="trained length")  # fmt: skip


def _logits(axes, curves, facts) -> str:
    for side, style in SIDES.items():
        for kind, thin in (("largest |logit|", 2), ("highest logit", 1)):
            style = style | {"label": f"{SIDES[side]['label']}, {kind}", "linewidth": thin}
            curve = curves[side][kind.partition(" ")[0]]
            axes.plot(curves[side]["distance"][1:], curve[1:], **style)
    _trained(axes, facts)
    axes.set(xlabel="distance up to, tokens", ylabel="logit, mean over heads")
    return "logits by distance"


def _entropy(axes, curves, facts) -> str:
    for side, curve in curves.items():
        x = [(a * (b - 1)) ** 0.5 for a, b in zip(curve["first"], curve["last"])]
        axes.plot(x[1:], curve["mean"][1:], **SIDES[side])
        if side == "vanilla":
            axes.plot(x[1:], curve["ln_visible"][1:], color=GREY, linewidth=1, linestyle="-.",
                      label="ln n: uniform attention")  # fmt: skip
    _trained(axes, facts)
    axes.set(xlabel="tokens read: n, the keys that vanilla sees", ylim=(0, None),
             ylabel="entropy of attention, nats")  # fmt: skip
    return "entropy by visible keys"


def _mass(axes, curve, facts) -> str:
    within = SIDES["vanilla"] | {"label": "vanilla, within the trained length"}
    axes.plot(range(facts["n_layer"]), curve["mean"], **within)
    axes.axhline(curve["share"], color=GREY, linestyle=":", label="their share of the keys")
    axes.set(xlabel="layer", ylabel="share of the attention", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    return f"the first {facts['n_global']} tokens"

"""The curves of a diagnosis as one picture, for a slide and for print.

The three factors and Theorem 1, vanilla beside LM-Infinite. They differ in colour (orange and
blue, which colour-blind readers tell apart), in lightness and in line, so that greyscale shows
them too. No time is written into the file: the same numbers give the same bytes.

This room alone needs matplotlib; the program imports it where figures are drawn.
"""

from __future__ import annotations

import io

SIDES = {
    "vanilla": dict(color="#e69f00", marker="o", linestyle="-", label="vanilla"),
    "lambda": dict(color="#0a4f82", marker="s", linestyle="--", label="LM-Infinite"),
}
GREY = "#767676"
STYLE = {
    "font.size": 11, "axes.titlesize": 12, "axes.spines.top": False, "lines.linewidth": 2,
    "axes.spines.right": False, "lines.markersize": 5, "legend.edgecolor": "none",
    "axes.titlelocation": "left", "legend.fontsize": 9.5,
}  # fmt: skip


def draw(factors: dict, curves: dict, facts: dict) -> bytes:
    """The picture, as PNG."""
    import matplotlib
    from matplotlib.figure import Figure

    content = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 8), layout="constrained")
        panels = figure.subplots(2, 2).flatten()
        for number, panel in enumerate((_logits, _entropy, _mass), 1):
            panel(panels[number - 1], curves, facts, factors[f"factor_{number}"])
        _theorem(panels[3], curves["theorem"], facts)
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
    if facts["context_length"] <= facts["n"]:
        axes.axvline(facts["context_length"], color=GREY, linewidth=1, linestyle=":")
        axes.annotate(
            " trained", (facts["context_length"], 0.02), xycoords=("data", "axes fraction"),
            color=GREY, fontsize=9.5,
        )  # fmt: skip


def _with_spread(axes, x, curve: dict, side: str):
    """A line through means, and a band of one deviation; without the first bin, which is one
    token."""
    x, both = x[1:], list(zip(curve["mean"], curve["deviation"]))[1:]
    axes.plot(x, curve["mean"][1:], **SIDES[side])
    low, high = ([m + sign * s for m, s in both] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=SIDES[side]["color"], alpha=0.18, linewidth=0)


def _logits(axes, curves, facts, factor):
    found = [curves["logits"][side] for side in SIDES]
    for side, curve in zip(SIDES, found):
        _with_spread(axes, curve["distance"], curve, side)
        style = SIDES[side] | {"label": None, "linestyle": ":", "marker": ""}
        axes.plot(curve["distance"][1:], curve["highest"][1:], **style)
    axes.plot([], [], color=GREY, linestyle=":", label="the largest logit, without | |")
    means = [mean for curve in found for mean in curve["mean"] if mean]
    if max(means) > 20 * min(means):
        axes.set_yscale("log")
        axes.set_ylim(bottom=min(means) / 2)
    axes.plot([], [], color=GREY, alpha=0.3, linewidth=8, label="one deviation over heads")
    _trained(axes, facts)
    axes.set(title=f"Factor 1, {factor['verdict']}: logits by distance",
             xlabel="distance up to, tokens", ylabel="running maximum of |logit|")  # fmt: skip
    axes.legend(loc="upper left")


def _entropy(axes, curves, facts, factor):
    for side, curve in curves["entropy"].items():
        x = [(a * (b - 1)) ** 0.5 for a, b in zip(curve["first"], curve["last"])]
        _with_spread(axes, x, curve, side)
        if side == "vanilla":
            axes.plot(x[1:], curve["ln_visible"][1:], color=GREY, linewidth=1, linestyle="-.",
                      label="ln n")  # fmt: skip
            lower = [point for point in zip(x, curve["proposition_1"]) if point[1] > 0]
            label = "ln n - 2B" if lower else "ln n - 2B is below 0"
            axes.plot(*(zip(*lower) if lower else ([], [])), color=GREY, linewidth=1,
                      label=label)  # fmt: skip
        if curve["ln_most"] is not None and facts["n"] > facts["n_local"]:
            axes.axhline(curve["ln_most"], color=SIDES[side]["color"], linewidth=1,
                         linestyle=":", label="ln(n_local + n_global)")  # fmt: skip
    _trained(axes, facts)
    axes.set(title=f"Factor 2, {factor['verdict']}: entropy by visible keys", ylim=(0, None),
             xlabel="tokens read: n, the keys that vanilla sees",
             ylabel="entropy of attention, nats")  # fmt: skip
    axes.legend(loc="upper left")


def _mass(axes, curves, facts, factor):
    labels = {"vanilla": "vanilla, within the trained length",
              "lambda": "LM-Infinite, beyond its window"}  # fmt: skip
    for side, curve in curves["mass"].items():
        style = SIDES[side]
        axes.plot(range(facts["n_layer"]), curve["mean"], **style | {"label": labels[side]})
        axes.axhline(curve["share"], color=style["color"], linewidth=1, linestyle=":")
    axes.plot([], [], color=GREY, linestyle=":", label="their share of the keys")
    if "cost" in factor["numbers"]:
        axes.plot(
            [], [], " ", label=f"dropping them costs {factor['numbers']['cost']:+.3f} nat"
        )
    count = facts["n_global"] or 10
    axes.set(title=f"Factor 3, {factor['verdict']}: the first {count} tokens", xlabel="layer",
             ylabel="share of the attention", ylim=(0, None))  # fmt: skip
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="best")


def _theorem(axes, curves, facts):
    for side, style in SIDES.items():
        curve = curves[side]
        axes.plot(curve["n"][1:], curve["sup"][1:],
                  **style | {"label": f"sup |w|, {style['label']}"})  # fmt: skip
        asked = [(n, low) for n, low in zip(curve["n"], curve["bound"]) if n > 2 and low > 0]
        if asked:
            axes.plot(*zip(*asked), **style | {"label": "what the theorem asks", "alpha": 0.55})
    axes.set_yscale("log")
    _trained(axes, facts)
    told = {side: curves[side]["alpha"][-1] for side in SIDES}
    title = "Theorem 1: {vanilla:.0f} distances told apart (LM-Infinite {lambda:.0f})"
    axes.set(title=title.format(**told), xlabel="distances below n", ylabel="|logit|")
    axes.legend(loc="best")

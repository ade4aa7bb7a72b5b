"""Results as pictures: nll by position, a line for each method; and shares by length and depth,
a panel for each.

This is the palette of all figures, the lessons' too: a method, or a kind of key, has one
colour. Lightness, dashes and markers tell them apart in greyscale and for the colour-blind.
"""

from __future__ import annotations

import io
import math

KEYS = {"window": "#1f67a6", "starting": "#741408", "ceiling": "#25a883", "hidden": "#d9d9d9"}
STYLES = {  # method -> colour, dashes, marker
    "full": ("#f0ad1d", (0, (6, 1.5, 1, 1.5)), "o"),
    "no-lambda": (KEYS["ceiling"], (0, (1, 1)), "s"),  # it has the ceiling alone
    "no-ceiling": ("#6a3d9a", (0, (3, 1.5)), "^"),
    "window": (KEYS["window"], (0, (1.5, 1.2)), "D"),
    "truncate": ("#8a8a8a", (0, (5, 1.5)), "v"),
    "streaming": ("#cc79a7", (0, (3, 1, 1, 1, 1, 1)), "P"),
    "lambda": ("#08306b", (0, ()), None),
    "topk": ("#7a1f5c", (0, (2.5, 1)), "X"),
}
GREY = "#767676"


def new(width: float, height: float, title: str):
    """An empty figure, which is laid out by itself."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    figure.suptitle(title, x=0.02, ha="left", fontsize=13, fontweight="bold")
    return figure


def png(figure) -> bytes:
    """A figure as the content of a file."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def by_tokens(axis, context_length: int, what: str):
    """A logarithmic axis of tokens, with a line at the trained length."""
    axis.set_xscale("log", base=2)
    axis.set_xlabel(what)
    axis.xaxis.set_major_formatter(lambda x, _: f"{round(x):,}")
    axis.axvline(context_length, color=GREY, linewidth=1, linestyle=":", label="trained length")
    axis.spines[["top", "right"]].set_visible(False)


def curves(title: str, methods: list[dict], context_length: int) -> bytes:
    """nll by position: entries of a result of comparison."""
    figure = new(11, 6, title)
    axis = figure.subplots()
    for entry in methods:
        colour, dashes, marker = STYLES[entry["name"]]
        rows = entry["curve"]
        x = [math.sqrt(max(row["first"], row["last"] / 4) * row["last"]) for row in rows]
        mean = f": {entry['beyond']['nll']:.2f}" if entry["beyond"] else ""
        axis.plot(x, [row["nll"] for row in rows], color=colour, linestyle=dashes,
                  marker=marker, markersize=4.5, markevery=2, label=entry["label"] + mean,
                  linewidth=2.6 if entry["name"] == "lambda" else 1.7)  # fmt: skip
    by_tokens(axis, context_length, "position (log scale)")
    axis.set_ylabel("nll, nats per token (lower is better)")
    title = f"method: mean nll beyond {context_length:,}"
    figure.legend(loc="outside right center", frameon=False, handlelength=4, title=title)
    return png(figure)


def heatmaps(title: str, needle: str, panels: dict[str, list[dict]]) -> bytes:
    """Shares as percent, depths down and lengths across: cells of retrieval by panel. needle:
    what is looked for."""
    lengths, depths = (
        list(dict.fromkeys(cell[axis] for cells in panels.values() for cell in cells))
        for axis in ("length", "depth")
    )
    rows = -(-len(panels) // 2)
    figure = new(10.4, (0.27 * len(depths) + 1.2) * rows + 0.8, title)
    axes = figure.subplots(rows, 2, sharex=True, sharey=True).flatten()
    axes[-1].set_axis_off()  # unless there is a panel for it
    for axis, (label, cells) in zip(axes, panels.items()):
        axis.set_axis_on()
        found = {(cell["depth"], cell["length"]): cell["accuracy"] for cell in cells}
        shares = [[found.get((depth, n), math.nan) for n in lengths] for depth in depths]
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (depth, n), share in found.items():
            place = lengths.index(n), depths.index(depth)
            axis.text(*place, f"{100 * share:.0f}", fontsize=8, ha="center", va="center",
                      color="white" if share > 0.6 else "black")  # fmt: skip
        axis.set_title(label, fontsize=10)
        axis.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths], rotation=45)
        axis.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
    figure.supylabel(f"depth of the {needle} (0 = start of the text)", fontsize=9)
    figure.supxlabel("length in tokens", fontsize=9)
    return png(figure)

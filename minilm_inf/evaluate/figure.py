"""The methods as a picture: nll by position, and beside it what the good ones differ by.

What the lessons draw too, the vanilla model, LM-Infinite and its two ablations, has their
colours; the others have their own. Dashes and markers tell the lines apart in a greyscale print
and for colour-blind readers, and each line has its name at its end.
"""

from __future__ import annotations

import io
import math

from .table import all_seeing

STYLES = {  # method -> colour, dashes, marker
    "full": ("#f0ad1d", (0, (6, 1.5, 1, 1.5)), "o"),
    "no-lambda": ("#25a883", (0, (1, 1)), "s"),
    "no-ceiling": ("#5f5f5f", (0, (3, 1.5)), "^"),
    "window": ("#56b4e9", (0, (1.5, 1.2)), "D"),
    "truncate": ("#8a8a8a", (0, (5, 1.5)), "v"),
    "streaming": ("#cc79a7", (0, (3, 1, 1, 1, 1, 1)), "P"),
    "lambda": ("#08306b", (0, ()), None),
    "topk": ("#7a1f5c", (0, (2.5, 1)), "X"),
}
NEAR = 0.25  # nats: what is drawn beside
DPI = 160


def png(result: dict) -> bytes:
    """The picture of a result of task.py, with one panel or two."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    near = close_by(result["methods"])
    figure = Figure(figsize=(13.3 if near else 9.0, 6.0), dpi=DPI)
    widths = {"width_ratios": [1, 1]} if near else {}
    axes = figure.subplots(1, 2 if near else 1, squeeze=False, gridspec_kw=widths)[0]
    figure.subplots_adjust(0.05, 0.125, 0.865 if near else 0.8, 0.83, wspace=0.6)
    far = [x for x in result["methods"] if x["name"] == "lambda" or x not in near]
    draw(axes[0], far, "curve", result, alike=len(near) - 1)
    axes[0].set_ylabel("nats per token")
    axes[0].set_title("Next-token loss by position", loc="left", fontsize=12, pad=10)
    if near:
        draw(axes[1], near, "curve_less_lm_infinite", result)
        axes[1].set_ylabel("nats per token, less LM-Infinite")
        axes[1].set_title("Close up: the same documents, less LM-Infinite", loc="left",
                          fontsize=12, pad=10)  # fmt: skip
    name = result["model"].rpartition("/")[2]
    figure.suptitle(
        f"{name}, trained on {result['context_length']:,} tokens: what a token costs "
        "further on",
        x=0.05, y=0.965, ha="left", fontsize=14, fontweight="bold",
    )  # fmt: skip
    n = len(result["documents"])
    words = f"{n} document{'s' * (n > 1)}" + (
        ", bands: 95% intervals over them" if n > 1 else ""
    )
    words += f". Every token sees at most {result['budget']:,} keys"
    words += all_seeing(result["methods"], ", but for {}, which see{} all") + "."
    figure.text(0.05, 0.02, words, fontsize=9, color="0.35")
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()


def close_by(methods: list[dict]) -> list[dict]:
    """The methods that end near LM-Infinite; none where it is not there, or nothing else is."""
    found = []
    for entry in methods:
        last = entry.get("curve_less_lm_infinite", [{"nll": None}])[-1]["nll"]
        if last is not None and abs(last) <= NEAR:
            found.append(entry)
    return found if len(found) > 1 else []


def draw(axis, methods: list[dict], curve: str, result: dict, alike: int = 0):
    """One line per method, its band, and its name at its end; LM-Infinite's stands for so many
    others as well."""
    ends = {}
    for entry in methods:
        colour, dashes, marker = STYLES[entry["name"]]
        rows = [row for row in entry[curve] if row["nll"] is not None]
        x = [math.sqrt(max(row["first"], row["last"] / 4) * row["last"]) for row in rows]
        y = [row["nll"] for row in rows]
        if not rows:
            continue
        is_ours = entry["name"] == "lambda"
        axis.plot(x, y, color=colour, linestyle=dashes, marker=marker, markersize=4.5,
                  markevery=2, linewidth=2.6 if is_ours else 1.7, zorder=3)  # fmt: skip
        if all(row["interval"] and None not in row["interval"] for row in rows):
            bounds = zip(*(row["interval"] for row in rows))
            axis.fill_between(x, *bounds, color=colour, alpha=0.13, linewidth=0, zorder=1)
        label = entry["label"] + (f", and {alike} more" if is_ours and alike > 0 else "")
        ends[entry["name"]] = (x[-1], y[-1], label)
    axis.set_xscale("log", base=2)
    context, n = result["context_length"], result["length"]
    ticks = [context * 2**k for k in range(40) if context * 2**k <= n]
    ticks = [context // 2**k for k in (3, 2, 1) if context // 2**k >= 2] + ticks
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=9)
    axis.tick_params(labelsize=9)
    axis.minorticks_off()
    axis.set_xlabel("position")
    axis.set_xlim(right=n)
    axis.axvline(context, color="0.45", linewidth=1, linestyle=(0, (2, 2)), zorder=0)
    axis.annotate("trained length ", (context, 1), xycoords=("data", "axes fraction"),
                  xytext=(-2, -4), textcoords="offset points", rotation=90, ha="right",
                  va="top", fontsize=9, color="0.35")  # fmt: skip
    axis.grid(axis="y", color="0.92", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    name_ends(axis, ends)


def name_ends(axis, ends: dict):
    """Write each label after its line's end, at a height of its own, and join the two."""
    low, high = axis.get_ylim()
    axis.set_ylim(low, high)
    wanted = {name: (y - low) / (high - low) for name, (_, y, _) in ends.items()}
    for name, height in apart(wanted, 0.052).items():
        x, y, label = ends[name]
        colour = STYLES[name][0]
        axis.annotate(
            label, (x, y), xytext=(1.06, height), textcoords="axes fraction", va="center",
            fontsize=10.5, color=colour, fontweight="bold" if name == "lambda" else "normal",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "alpha": 0.8,
                        "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 2},
        )  # fmt: skip


def apart(wanted: dict[str, float], gap: float) -> dict[str, float]:
    """Heights near the wanted ones, none closer to its neighbour than the gap, all within 0 to
    1 as far as they fit: each is raised above the one below, and lowered again from the top.

    >>> {name: round(y, 2) for name, y in apart({"a": 0.5, "b": 0.5, "c": 1.0}, 0.1).items()}
    {'a': 0.5, 'b': 0.6, 'c': 1.0}
    """
    names = sorted(wanted, key=wanted.get)
    found, low = {}, 0.0
    for name in names:
        found[name] = max(wanted[name], low)
        low = found[name] + gap
    high = 1.0
    for name in reversed(names):
        found[name] = min(found[name], high)
        high = found[name] - gap
    return found

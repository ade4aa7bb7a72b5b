"""The tables of a diagnosis as two pictures, for a slide and for print.

factors.png: the three factors and Theorem 1, vanilla beside LM-Infinite. states.png: hidden
states of some layers in the plane of their first two principal components. Vanilla and
LM-Infinite differ in colour (orange and blue, which colour-blind readers tell apart), in
lightness and in line, so that greyscale shows them too. No time is written into the files: the
same numbers give the same bytes.

This room alone needs matplotlib; the program imports it where figures are drawn.
"""

from __future__ import annotations

import io

from .verdict import pick

SIDES = {
    "vanilla": dict(color="#e69f00", marker="o", linestyle="-", label="vanilla"),
    "lambda": dict(color="#0a4f82", marker="s", linestyle="--", label="LM-Infinite"),
}
GREY = "#767676"
NAMES = ("pc1", "pc2")
MOST_LAYERS = 6  # of states.png
FAR = 20  # spreads from which on states.png is drawn on a logarithmic scale
STYLE = {
    "font.size": 11, "axes.titlesize": 12, "axes.spines.top": False, "lines.linewidth": 2,
    "axes.spines.right": False, "lines.markersize": 5, "legend.edgecolor": "none",
    "axes.titlelocation": "left", "legend.fontsize": 9.5,
}  # fmt: skip


def draw(tables: dict, facts: dict, factors: dict) -> dict[str, bytes]:
    """The pictures, as PNG, by their files' names."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        wide = Figure(figsize=(12, 8), layout="constrained")
        panels = wide.subplots(2, 2).flatten()
        _logits(panels[0], tables, facts, factors["factor_1"])
        _entropy(panels[1], tables, facts, factors["factor_2"])
        _mass(panels[2], tables, facts, factors["factor_3"])
        _theorem(panels[3], tables, facts)
        wide.suptitle(_what(facts), fontsize=13)
        return {"factors.png": _png(wide), "states.png": _png(_states(Figure, tables, facts))}


def _what(facts: dict) -> str:
    name = facts["model"].rstrip("/").rpartition("/")[2]
    return (
        f"{name}: trained on {facts['context_length']:,} tokens, read to {facts['n']:,}; "
        f"LM-Infinite with n_local {facts['n_local']:,}, n_global {facts['n_global']}"
    )


def _png(figure) -> bytes:
    content = io.BytesIO()
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


def _with_spread(axes, x, rows, side: str, prefix: str = ""):
    """A line through means, and a band of one deviation."""
    kept = [(a, row) for a, row in zip(x, rows) if row[f"{prefix}mean"] is not None]
    x = [a for a, _ in kept]
    mean = [row[f"{prefix}mean"] for _, row in kept]
    spread = [row[f"{prefix}deviation"] for _, row in kept]
    axes.plot(x, mean, **SIDES[side])
    low, high = ([m + sign * s for m, s in zip(mean, spread)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=SIDES[side]["color"], alpha=0.18, linewidth=0)


def _logits(axes, tables, facts, factor):
    for side in SIDES:
        rows = [r for r in pick(tables["logits"], side=side, layer="all") if r["last"] > 1]
        x = [row["last"] for row in rows]
        _with_spread(axes, x, rows, side)
        up = [row["highest_mean"] for row in rows]
        style = SIDES[side] | {"label": None, "linestyle": ":", "marker": ""}
        axes.plot(x, up, **style)
    axes.plot([], [], color=GREY, linestyle=":", label="the largest logit, without | |")
    means = [row["mean"] for row in pick(tables["logits"], layer="all") if row["mean"]]
    if max(means) > 20 * min(means):
        axes.set_yscale("log")
        axes.set_ylim(bottom=min(means) / 2)
    axes.plot([], [], color=GREY, alpha=0.3, linewidth=8, label="one deviation over heads")
    _trained(axes, facts)
    axes.set(title=f"Factor 1, {factor['verdict']}: logits by distance",
             xlabel="distance up to, tokens", ylabel="running maximum of |logit|")  # fmt: skip
    axes.legend(loc="upper left")


def _entropy(axes, tables, facts, factor):
    tops = []
    for side in SIDES:
        rows = [r for r in pick(tables["entropy"], side=side, layer="all") if r["last"] > 1]
        x = [(row["first"] * (row["last"] - 1)) ** 0.5 for row in rows]
        _with_spread(axes, x, rows, side)
        tops += [row["mean"] + row["deviation"] for row in rows]
        if side == "vanilla":
            uniform = [row["ln_visible"] for row in rows]
            axes.plot(x, uniform, color=GREY, linewidth=1, linestyle="-.", label="ln n")
            lower = [(a, row["proposition_1"]) for a, row in zip(x, rows)]
            lower = [point for point in lower if point[1] > 0]
            label = "ln n - 2B" if lower else "ln n - 2B is below 0"
            axes.plot(*(zip(*lower) if lower else ([], [])), color=GREY, linewidth=1,
                      label=label)  # fmt: skip
        most = rows[-1]["ln_most_visible"]
        if most is not None and facts["n"] > facts["n_local"]:
            axes.axhline(most, color=SIDES[side]["color"], linewidth=1, linestyle=":",
                         label="ln(n_local + n_global)")  # fmt: skip
    _trained(axes, facts)
    axes.set(title=f"Factor 2, {factor['verdict']}: entropy by visible keys", ylim=(0, None),
             xlabel="tokens read: n, the keys that vanilla sees",
             ylabel="entropy of attention, nats")  # fmt: skip
    axes.legend(loc="upper left")


def _mass(axes, tables, facts, factor):
    labels = {
        "vanilla": "vanilla, within the trained length",
        "lambda": "LM-Infinite, behind its window",
    }
    for side, style in SIDES.items():
        rows = [row for row in pick(tables["mass"], side=side) if row["layer"] != "all"]
        if not rows:
            continue
        x = [row["layer"] for row in rows]
        axes.plot(x, [row["mean"] for row in rows], **style | {"label": labels[side]})
        axes.axhline(rows[0]["share"], color=style["color"], linewidth=1, linestyle=":")
    axes.plot([], [], color=GREY, linestyle=":", label="their share of the keys")
    cost = factor["numbers"].get("cost")
    if cost is not None:
        axes.plot([], [], " ", label=f"dropping them costs {cost:+.3f} nat")
    count = facts["n_global"] or 10
    axes.set(title=f"Factor 3, {factor['verdict']}: the first {count} tokens", xlabel="layer",
             ylabel="share of the attention", ylim=(0, None))  # fmt: skip
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="best")


def _theorem(axes, tables, facts):
    for side, style in SIDES.items():
        rows = [r for r in pick(tables["theorem"], side=side, layer="all") if r["n"] > 2]
        x = [row["n"] for row in rows]
        axes.plot(x, [row["sup_mean"] for row in rows],
                  **style | {"label": f"sup |w|, {style['label']}"})  # fmt: skip
        low = [(row["n"], row["bound_mean"]) for row in rows if row["bound_mean"] > 0]
        if low:
            axes.plot(*zip(*low), **style | {"label": "what the theorem asks", "alpha": 0.55})
    axes.set_yscale("log")
    _trained(axes, facts)
    told = {s: pick(tables["theorem"], side=s, layer="all")[-1]["alpha_mean"] for s in SIDES}
    axes.set_title(
        f"Theorem 1: {told['vanilla']:.0f} distances told apart (LM-Infinite "
        f"{told['lambda']:.0f})"
    )
    axes.set(xlabel="distances below n", ylabel="|logit|")
    axes.legend(loc="best")


def _states(new, tables: dict, facts: dict):
    """The figure of hidden states: a panel for each of some layers."""
    layers = _some_layers(tables["states"])
    columns = 2 if len(layers) in (2, 4) else min(3, len(layers))
    lines = -(-len(layers) // columns)
    figure = new(figsize=(4 * columns + 0.8, 3.7 * lines + 0.7), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in panels[len(layers) :]:
        axes.set_visible(False)
    last = max(row["position"] for row in tables["plane"])
    for axes, layer in zip(panels, layers):
        dots = _panel(axes, pick(tables["plane"], layer=layer), tables["states"][layer], last,
                      _n_first(tables))  # fmt: skip
    bar = figure.colorbar(dots, ax=panels.tolist(), shrink=0.7, aspect=30)
    bar.set_label("position")
    figure.suptitle(
        f"{facts['model'].rstrip('/').rpartition('/')[2]}: hidden states within the trained "
        f"length\ntriangles: the first {_n_first(tables)} positions; ringed: token 0",
        fontsize=13,
    )
    return figure


def _n_first(tables: dict) -> int:
    return 1 + max(row["position"] for row in tables["positions"])


def _some_layers(rows: list[dict]) -> list[int]:
    """All layers, or the first three, the one where the first positions stand furthest apart,
    and the last two of quarters."""
    count = len(rows)
    if count <= MOST_LAYERS:
        return list(range(count))
    best = max(rows, key=lambda row: row["apart"])["layer"]
    found = {0, 1, 2, best, count // 2, count - 1}
    for layer in (count // 4, 3 * count // 4, count - 2, 3):  # where some were the same
        if len(found) < MOST_LAYERS:
            found.add(layer)
    return sorted(found)


def _panel(axes, points: list[dict], row: dict, last: int, n_first: int):
    """One layer's states, around the rest's mean, in units of the rest's spread there."""
    rest = [p for p in points if p["position"] >= n_first]
    middle = [sum(p[name] for p in rest) / len(rest) for name in NAMES]
    squares = [(p["pc1"] - middle[0]) ** 2 + (p["pc2"] - middle[1]) ** 2 for p in rest]
    unit = (sum(squares) / len(rest)) ** 0.5 or 1.0
    style = dict(cmap="cividis", vmin=0, vmax=last)
    groups = (
        (rest, dict(s=9, marker="o", alpha=0.7, linewidths=0)),
        ([p for p in points if 0 < p["position"] < n_first],
         dict(s=34, marker="^", edgecolors="black", linewidths=0.7)),
        ([p for p in points if p["position"] == 0],
         dict(s=90, marker="o", edgecolors="#d55e00", linewidths=2)),
    )  # fmt: skip
    far = [0.0, 0.0]
    for some, own in groups:
        x, y = ([(p[name] - middle[i]) / unit for p in some] for i, name in enumerate(NAMES))
        far = [max([before, *map(abs, new)]) for before, new in zip(far, (x, y))]
        dots = axes.scatter(x, y, c=[p["position"] for p in some], **style, **own)
    if far[0] > FAR:
        axes.set_xscale("symlog", linthresh=2)
    if far[1] > FAR:
        axes.set_yscale("symlog", linthresh=2)
    axes.set_title(
        f"after layer {row['layer']}: apart {row['apart']:.2f}\n(others up to "
        f"{row['largest_other']:.2f}; without token 0 {row['without_token_0']:.2f})",
        fontsize=10,
    )
    axes.set_xlabel(f"component 1 ({row['explained_1']:.0%}), spreads of the rest")
    axes.set_ylabel(f"component 2 ({row['explained_2']:.0%})")
    return dots

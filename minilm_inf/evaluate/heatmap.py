"""Accuracy as a picture: a panel for each method, two in a row, lengths across, depths down."""

from __future__ import annotations

import io
from pathlib import Path

from ..terminal.files import write_beside
from .methods import LABELS
from .report import Results, brief


def write(path: Path, title: str, results: Results):
    """Write the results as a PNG; a cell that was left out has a dash.

    Dark is found: a single hue from white on, so that a greyscale print reads the same.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    blues = matplotlib.colormaps["Blues"].with_extremes(bad="0.93")
    lengths, depths, methods = results.lengths, results.depths, results.methods
    columns = min(2, len(methods))
    rows = -(-len(methods) // columns)
    width = max(2.3, 0.55 * len(lengths)) * columns + 1.4
    height = (max(1.6, 0.3 * len(depths)) + 0.7) * rows + 0.8
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    figure.suptitle(f"{title}: % of answers that are right", fontsize=11)
    grids = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    axes = grids.flatten()
    for axis in axes[len(methods) :]:
        axis.set_axis_off()
    for axis, method in zip(axes, methods):
        cells = [[results.of(method, [n], [d]) for n in lengths] for d in depths]
        grid = [[x["accuracy"] if x else float("nan") for x in row] for row in cells]
        image = axis.imshow(grid, cmap=blues, vmin=0, vmax=1, aspect="auto")
        for y, row in enumerate(grid):
            for x, share in enumerate(row):
                colour = "white" if share > 0.6 else "0.15"
                words = brief(cells[y][x])
                axis.text(x, y, words, ha="center", va="center", color=colour, fontsize=8)
        axis.set_title(LABELS[method], fontsize=10)
        axis.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths], rotation=45,
                        ha="right", rotation_mode="anchor")  # fmt: skip
        axis.set_yticks(range(len(depths)), [f"{d:g}" for d in depths])
        axis.set_xticks([x - 0.5 for x in range(1, len(lengths))], minor=True)
        axis.set_yticks([y - 0.5 for y in range(1, len(depths))], minor=True)
        axis.grid(which="minor", color="0.85", linewidth=0.8)
        axis.tick_params(which="both", length=0, labelsize=8)
        axis.spines[:].set_visible(False)
    figure.supylabel("depth: share of the filler before it", fontsize=9)
    figure.supxlabel("length in tokens", fontsize=9)
    bar = figure.colorbar(image, ax=list(axes), ticks=[0, 0.5, 1], pad=0.01, aspect=30)
    bar.set_ticklabels(["0%", "50%", "100%"], fontsize=8)
    bar.outline.set_visible(False)
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    write_beside(path, content.getvalue())

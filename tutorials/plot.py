"""How the lessons draw: one palette, one size, one way to show a figure.

A colour means the same thing in every lesson, in explorer.html and in the figures of weights/.
The five differ in lightness as well as in hue (a test measures it), and a line has its own
dashes too, so that greyscale and colour-blind readers lose nothing. What is none of the five,
another ablation or something to compare with, is one of the greys, "other" and "third"; only
the eight curves of weights/methods.png have further colours. The same numbers give the same
bytes: no time is written into a file.

Where matplotlib is missing, all that draws does nothing, and a lesson still runs: its numbers
and its asserts need no picture. Importing this also makes the package beside this folder
importable, wherever a lesson is started from, and keeps PyTorch to one thread.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import torch

try:
    import matplotlib
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
except ImportError:
    matplotlib = None

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)  # tensors this small gain nothing from more, and sums stay the same

COLOURS = {
    "window": "#08306b",  # the last n_local tokens, and LM-Infinite as a whole
    "start": "#b03a26",  # the first n_global tokens
    "ceiling": "#25a883",  # what stands at the ceiling, and a ceiling without the Λ
    "vanilla": "#f0ad1d",  # the plain model
    "middle": "#d9d9d9",  # what is not seen
    "other": "#5f5f5f",
    "third": "#9a9a9a",
}
DASHES = {
    "window": "-",
    "start": (0, (5, 1.5)),
    "ceiling": (0, (1, 1)),
    "vanilla": (0, (6, 1.5, 1, 1.5)),
    "middle": "-",
    "other": (0, (3, 1.5)),
    "third": (0, (1.5, 1.5)),
}
UNSEEN, WINDOW, START, CEILING = range(1, 5)  # the values of `cells`; 0 stays white
CELLS = ("#ffffff", *(COLOURS[name] for name in ("middle", "window", "start", "ceiling")))
INK = "#333333"
SIZE, DPI = (9, 4.2), 130
STYLE = {
    "font.size": 11, "axes.titlesize": 12, "axes.titlelocation": "left", "text.color": INK,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 2,
    "legend.edgecolor": "none", "legend.fontsize": 10, "image.interpolation": "nearest",
    "image.cmap": "Blues", "figure.facecolor": "white",
}  # fmt: skip

lesson: str | None = None  # whose figure is drawn, when another program runs the lesson
shown: list[tuple[str, str]] = []  # the files written so far, and their captions


class Nothing:
    """What figures and axes are without matplotlib: every use of it is nothing again."""

    def __getattr__(self, name):
        return self

    def __call__(self, *args, **kwargs):
        return self

    def __getitem__(self, index):
        return self


def figure(columns: int = 1, **kwargs):
    """A figure of the course's size, and its axes side by side: a list, or one for one column.

    kwargs: as for Figure.subplots, such as sharey and width_ratios.
    """
    if matplotlib is None:
        return Nothing(), [Nothing() for _ in range(columns)] if columns > 1 else Nothing()
    matplotlib.rcParams.update(STYLE)
    drawing = Figure(figsize=SIZE, layout="constrained")
    axes = drawing.subplots(1, columns, **kwargs)
    return drawing, list(axes) if columns > 1 else axes


def line(axes, x, y, role: str, label: str | None = None, **kwargs):
    """A curve in the colour and the dashes of its role."""
    style = {"color": COLOURS[role], "linestyle": DASHES[role]} | kwargs
    axes.plot([float(v) for v in x], [float(v) for v in y], label=label, **style)


def cells(axes, values):
    """A matrix of UNSEEN, WINDOW, START and CEILING (0: white), a square for each entry."""
    if matplotlib is None:
        return
    axes.imshow(torch.as_tensor(values).tolist(), cmap=ListedColormap(CELLS), vmin=0, vmax=4)
    grid(axes, *torch.as_tensor(values).shape)


def grid(axes, rows: int, columns: int):
    """White lines between the squares of a small matrix; the axes' own lines go."""
    if matplotlib is None:
        return
    axes.set_xticks([x - 0.5 for x in range(columns)], minor=True)
    axes.set_yticks([y - 0.5 for y in range(rows)], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def numbers(axes, values, seen, ceiling: int | None = None):
    """A matrix of distances, a number in each entry that is seen; those at the ceiling stand
    out in its colour."""
    if matplotlib is None:
        return
    shades = [[v if s else float("nan") for v, s in zip(*row)] for row in zip(values, seen)]
    axes.imshow(shades, vmin=-2, vmax=20)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if seen[i][j]:
                ink = "white" if value == ceiling or value > 9 else INK
                if value == ceiling:
                    square = Rectangle((j - 0.5, i - 0.5), 1, 1, color=COLOURS["ceiling"])
                    axes.add_patch(square)
                axes.text(j, i, value, ha="center", va="center", fontsize=8, color=ink)
    grid(axes, len(values), len(values[0]))
    axes.set(xticks=[], yticks=[])


def trained(axes, length: int):
    """A dotted line where the texts of the training ended."""
    axes.axvline(length, color=INK, linewidth=1, linestyle=":")
    where = ("data", "axes fraction")
    axes.annotate(" trained length", (length, 0.01), xycoords=where, va="bottom", fontsize=9)


def show(drawing, caption: str):
    """Show a figure: in a notebook at once, elsewhere as figures/LESSON.png."""
    if matplotlib is None:
        return
    name = lesson or Path(getattr(sys.modules["__main__"], "__file__", "") or "").stem
    if lesson is None and "IPython" in sys.modules:
        from IPython.display import Image, display

        content = io.BytesIO()
        drawing.savefig(content, dpi=DPI)
        display(Image(content.getvalue(), width=9 * 96))
        return
    path = HERE / "figures" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    drawing.savefig(path, dpi=DPI, metadata={"Software": None})
    shown.append((path.name, caption))
    if lesson is None:
        print(f"the figure is in {path}", file=sys.stderr)

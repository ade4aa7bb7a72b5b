"""How the lessons draw: one palette, one size, one way to show a figure.

The palette is that of minilm_inf/evaluate/figure.py, which draws the figures of weights/, and
of explorer.html: a method has one name and one colour wherever it is drawn, and so has what a
key is to a query. What is neither is grey, "other" or "third". Colours differ in lightness as
well as in hue, and lines have dashes of their own, so that greyscale and colour-blind readers
lose nothing. A figure's title says what is found; its legend stands below the panels. The
same numbers give the same bytes: no time is written into a file.

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
    from matplotlib.ticker import ScalarFormatter
except ImportError:
    matplotlib = None

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)  # tensors this small gain nothing from more, and sums stay the same

from minilm_inf.evaluate.figure import KEYS, STYLES  # noqa: E402

METHODS = {  # as the lessons call them -> as the programs' flags do
    "vanilla": "full", "re-encoding": "truncate", "sliding window": "window",
    "Λ without ceiling": "no-ceiling", "ceiling without Λ": "no-lambda",
    "StreamingLLM": "streaming", "LM-Infinite": "lambda", "LM-Infinite + top-k": "topk",
}  # fmt: skip
STYLE_OF = {name: STYLES[flag][:2] for name, flag in METHODS.items()}
STYLE_OF |= {"other": ("#5f5f5f", (0, (4, 1))), "third": ("#9a9a9a", (0, (1.5, 1.5)))}
COLOURS = KEYS | {name: colour for name, (colour, _) in STYLE_OF.items()}
UNSEEN, WINDOW, START, CEILING = range(1, 5)  # the values of `cells`; 0 stays white
CELLS = {"not seen": "hidden", "window": "window", "starting token": "starting"}
CELLS |= {"at the ceiling": "ceiling"}  # what a key is, as legends say it -> its colour
INK = "#333333"
SIZE, DPI = (9, 4.7), 180
STYLE = {
    "font.size": 10.5, "axes.titlesize": 11, "axes.titlelocation": "left", "text.color": INK,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.xmargin": 0.02,
    "lines.linewidth": 2, "legend.frameon": False, "legend.handlelength": 2.4,
    "legend.columnspacing": 1.5, "image.interpolation": "nearest", "image.cmap": "Blues",
    "figure.facecolor": "white", "figure.titlesize": 13, "figure.titleweight": "bold",
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
    """A curve in the colour and the dashes of its role: a method, whose name is its label, or
    one of the greys."""
    colour, dashes = STYLE_OF[role]
    style = {"color": colour, "linestyle": dashes} | kwargs
    label = label or (role if role in METHODS else None)
    axes.plot([float(v) for v in x], [float(v) for v in y], label=label, **style)


def steps(axes, edges, values, role: str, **kwargs):
    """A line of steps, each of which spans what its value is the mean of."""
    if matplotlib is not None:
        line(axes, edges, [*values, values[-1]], role, drawstyle="steps-post", **kwargs)


def cells(axes, values, **names):
    """A matrix of UNSEEN, WINDOW, START and CEILING (0: white), a square for each entry. names:
    what the legend says, by role, where that is not what CELLS says."""
    if matplotlib is None:
        return
    values = torch.as_tensor(values)
    colours = ListedColormap(["#ffffff", *(COLOURS[role] for role in CELLS.values())])
    axes.imshow(values.tolist(), cmap=colours, vmin=0, vmax=4)
    for value, (name, role) in enumerate(CELLS.items(), 1):
        if (values == value).any():
            name = names.get(role, name)
            style = {"marker": "s", "markersize": 10, "linestyle": "", "label": name}
            axes.plot([], [], color=COLOURS[role], **style)  # for the legend
    grid(axes, *values.shape)


def grid(axes, rows: int, columns: int):
    """White lines between the squares of a small matrix; the axes' own lines go."""
    if matplotlib is None:
        return
    axes.set_xticks([x - 0.5 for x in range(columns)], minor=True)
    axes.set_yticks([y - 0.5 for y in range(rows)], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def numbers(axes, values, kinds):
    """`cells` of some kinds, with a distance in each entry that is none of 0 and UNSEEN."""
    start = "starting token, "
    cells(axes, kinds, starting=start + "true distance", ceiling=start + "at the ceiling")
    for (i, row), kind in zip(enumerate(values.tolist()), kinds.tolist()):
        for j, value in enumerate(row):
            if kind[j] > UNSEEN:
                ink = INK if kind[j] == CEILING else "white"
                axes.text(j, i, value, ha="center", va="center", color=ink, weight="bold")


def shares(axes, values: list[list[float]], rows, columns):
    """A matrix of shares, each written in its square as a percentage."""
    if matplotlib is None:
        return
    axes.imshow(values, vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            ink = "white" if value > 0.6 else INK
            axes.text(x, y, f"{100 * value:.0f}%", ha="center", va="center", color=ink)
    grid(axes, len(rows), len(columns))
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), [f"{n:,}" for n in columns])


def trained(axes, length: int):
    """A dotted line where the texts of the training ended."""
    axes.axvline(length, color=INK, linewidth=1, linestyle=":")
    where = ("data", "axes fraction")
    axes.annotate(" trained length", (length, 0.01), xycoords=where, va="bottom", fontsize=9)


def finish(drawing, title: str):
    """Give a figure its title, one legend below all panels, and commas in thousands."""
    drawing.suptitle(title, x=0.01, ha="left")
    labels = {}
    for axes in drawing.axes:
        handles, names = axes.get_legend_handles_labels()
        for name, handle in zip(names, handles):
            labels.setdefault(name, handle)
        for axis in (axes.xaxis, axes.yaxis):
            plain = isinstance(axis.get_major_formatter(), ScalarFormatter)
            if plain and max(axis.get_view_interval()) >= 1000:
                axis.set_major_formatter("{x:,.0f}")
    if labels:
        drawing.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=5)


def show(drawing, title: str, part: str = ""):
    """Show a figure, whose title says what is found: in a notebook at once, elsewhere as
    figures/LESSON.png, and a further one of a lesson, `part`, as figures/NN_PART.png."""
    if matplotlib is None:
        return
    finish(drawing, title)
    name = lesson or Path(getattr(sys.modules["__main__"], "__file__", "") or "").stem
    if lesson is None and "IPython" in sys.modules:
        from IPython.display import Image, display

        content = io.BytesIO()
        drawing.savefig(content, dpi=DPI)
        display(Image(content.getvalue(), width=9 * 96))
        return
    if part:
        name = f"{name.partition('_')[0]}_{part}"
    path = HERE / "figures" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    drawing.savefig(path, dpi=DPI, metadata={"Software": None})
    shown.append((path.name, title))
    if lesson is None:
        print(f"the figure is in {path}", file=sys.stderr)

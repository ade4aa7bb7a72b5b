"""Run lessons, and write each as a page that a repository shows: prose, code, output, figures.

    python tutorials/render.py                       all of them
    python tutorials/render.py 05_lambda_mask.py     one

A lesson is a Python file in percent format: a line `# %%` opens a cell of code, a line
`# %% [markdown]` a cell of prose, whose lines are comments. Its page, NN_title.md, has the same
cells in the same order, what each cell of code printed, and the figures that it showed. The
same lesson on the same machine gives the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
CODE, OUTPUT, FIGURE = "```python\n{}\n```\n", "```text\n{}\n```\n", "![{1}](figures/{0})\n"


class Cell(NamedTuple):
    """A piece of a lesson. kind: "prose" or "code"; text: without comment signs."""

    kind: str
    text: str
    first_line: int


def lessons() -> list[Path]:
    """The course in order: the numbers, then the lettered appendices."""
    return sorted(path for path in HERE.glob("*.py") if re.match(r"(\d\d|[A-Z])_", path.name))


def cells(source: str) -> list[Cell]:
    """The cells of a lesson in percent format.

    Raises ValueError for text before the first cell, and for prose that is no comment.
    """
    found, kind, lines, first = [], None, [], 0

    def close():
        text = "\n".join(lines).strip("\n")
        if kind is None and text:
            raise ValueError("a lesson begins with a cell: put # %% [markdown] above its text")
        if kind and text:
            found.append(Cell(kind, text, first))

    for number, line in enumerate(source.splitlines(), 1):
        if line.startswith("# %%"):
            close()
            kind, lines, first = "prose" if "[markdown]" in line else "code", [], number + 1
        elif kind == "prose" and line:
            if not re.match(r"#( |$)", line):
                raise ValueError(f"line {number} is no comment, but stands in prose: {line}")
            lines.append(line[2:])
        else:
            lines.append(line)
    close()
    return found


def page(lesson: Path, made: list[tuple[str, list]], others: list[Path]) -> str:
    """A lesson as Markdown. made: for each cell what it printed, and the (file, caption) of
    each figure that it showed; others: the course, for the links to its neighbours."""
    parts = []
    for cell, (printed, figures) in zip(cells(lesson.read_text(encoding="utf-8")), made):
        parts.append(cell.text + "\n" if cell.kind == "prose" else CODE.format(cell.text))
        if printed.strip():
            parts.append(OUTPUT.format(printed.strip("\n")))
        parts += [FIGURE.format(*figure) for figure in figures]
    place = others.index(lesson)
    links = [f"[this lesson as a program]({lesson.name})"]
    links += [f"[solutions](solutions/{lesson.name})", "[all lessons](README.md)"]
    if place + 1 < len(others):
        following = others[place + 1]
        links.append(f"next: [{title(following)}]({following.stem}.md)")
    return "\n".join([*parts, "---\n", " · ".join(links) + "\n"])


def title(lesson: Path) -> str:
    """What a lesson's first line of prose says, without its sign."""
    return cells(lesson.read_text(encoding="utf-8"))[0].text.splitlines()[0].lstrip("# ")


def run(lesson: Path) -> list[tuple[str, list]]:
    """Run a lesson cell by cell: for each, what it printed, and the figures that it showed."""
    sys.path.insert(0, str(HERE))
    import plot

    plot.lesson = lesson.stem
    names, made = {"__name__": "__main__", "__file__": str(lesson)}, []
    for cell in cells(lesson.read_text(encoding="utf-8")):
        printed, before = io.StringIO(), len(plot.shown)
        if cell.kind == "code":
            lifted = "\n" * (cell.first_line - 1) + cell.text  # so that errors name the line
            with contextlib.redirect_stdout(printed):
                exec(compile(lifted, str(lesson), "exec"), names)
        made.append((printed.getvalue(), plot.shown[before:]))
    return made


def main():
    parser = argparse.ArgumentParser(description="Run lessons, and write their pages.")
    parser.add_argument("lesson", nargs="*", help="NN_title.py; all of them if none is given")
    asked = [HERE / Path(name).name for name in parser.parse_args().lesson] or lessons()
    for lesson in asked:
        if lesson not in lessons():
            names = ", ".join(path.name for path in lessons())
            sys.exit(f"there is no lesson {lesson.name}: the lessons are {names}")
    if len(asked) > 1:  # a process for each, so that none finds what another left
        for lesson in asked:
            begun = time.perf_counter()
            done = subprocess.run([sys.executable, __file__, lesson.name])
            if done.returncode:
                sys.exit(f"{lesson.name} failed: what it says stands above")
            print(f"{lesson.name}: {time.perf_counter() - begun:.1f} s", file=sys.stderr)
        return
    import plot

    if plot.matplotlib is None:
        sys.exit("a page has figures, which need matplotlib: call `make tutorials`")
    made = run(asked[0])
    text = page(asked[0], made, lessons())
    target = asked[0].with_suffix(".md")
    beside = target.with_suffix(".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(target)


if __name__ == "__main__":
    main()

"""What a run over cells found: shares with their intervals by length, depth and place."""

from __future__ import annotations

from collections.abc import Callable

from ..terminal.tables import markdown
from .cells import WHERE, Run
from .intervals import share
from .methods import LABELS
from .trials import ABSENT, ALONE

PLACES = {"starting": "starting tokens", "middle": "middle", "window": "window"}


class Results:
    """The shares of a run that is done.

    lengths, depths, methods: the axes that were asked for. inside: context_length. beyond: the
    lengths that are longer, if there are any. sweeps: the values of each thing that was swept.
    """

    def __init__(self, run: Run, lengths, depths, methods, inside: int, sweeps):
        self.run, self.lengths, self.depths, self.methods = run, lengths, depths, methods
        self.inside = inside
        self.sweeps = {name: {f"{name}={x}": f"{x}" for x in values} for name, values in sweeps}
        self.beyond = [n for n in lengths if n > inside] or lengths

    def of(self, method: str, lengths, depths, where: str | None = None) -> dict | None:
        """The share of all trials of these cells, or of those whose needle lies there; None
        where there are none."""
        here = [
            cell.method == method and cell.length in lengths and cell.depth in depths
            for cell in self.run.cells
        ]
        right = self.run.right[here]
        if where is not None:
            right = right[self.run.where[here] == WHERE.index(where)]
        found = int((right == self.run.maker.width).sum())
        return share(found, right.size) if right.size else None

    def by_length(self, method: str, length: int) -> dict | None:
        return self.of(method, [length], self.depths)

    def by_depth(self, method: str, depth: float) -> dict | None:
        return self.of(method, self.beyond, [depth])

    def by_place(self, method: str, where: str) -> dict | None:
        return self.of(method, self.beyond, self.depths, where)

    def absent(self, method: str) -> dict | None:
        return self.of(method, self.lengths, [ABSENT])

    def within(self, depth: float | None = None) -> dict:
        """The model's own accuracy inside the trained length, at a depth or at all."""
        return self.of("full", [self.inside], self.depths if depth is None else [depth])

    def alone(self) -> dict:
        return self.of("full", [0], [ALONE])

    def as_json(self) -> dict:
        """All shares, and how many ids of its answer each trial got right."""

        def rows(methods, name: str, values, of) -> list[dict]:
            pairs = [(method, value) for method in methods for value in values]
            return [{"method": m, name: x, **of(m, x)} for m, x in pairs if of(m, x)]

        absent = {method: self.absent(method) for method in self.methods}
        return {
            "controls": {
                "inside": self.within(),
                "inside_by_depth": [{"depth": d, **self.within(d)} for d in self.depths],
                "question_alone": self.alone(),
                "needle_absent": [{"method": m, **x} for m, x in absent.items() if x],
            },
            "by_length": rows(self.methods, "length", self.lengths, self.by_length),
            "by_depth": rows(self.methods, "depth", self.depths, self.by_depth),
            "by_place": rows(self.methods, "where", WHERE, self.by_place),
            "by_depth_and_by_place_are_over": self.beyond,
            "sweeps": {
                name: rows(swept, "length", self.lengths, self.by_length)
                for name, swept in self.sweeps.items()
            },
            "answer_tokens": self.run.maker.width,
            "cells": [
                {
                    **cell._asdict(), **self.of(cell.method, [cell.length], [cell.depth]),
                    "right": right.tolist(),
                    "where": [WHERE[at] if at >= 0 else None for at in where],
                }
                for cell, right, where in zip(self.run.cells, self.run.right, self.run.where)
            ],
        }  # fmt: skip

    # ---- as tables

    def tables(self) -> str:
        """All of it, in Markdown."""
        over = ", ".join(f"{n:,}" for n in self.beyond)
        titles = {method: LABELS[method] for method in self.methods}
        lengths = {n: f"{n:,}" for n in self.lengths}
        depths = {d: f"{d:g}" for d in self.depths}
        parts = [
            self._controls(),
            "By length, all depths:\n\n"
            + grid("length", lengths, titles, lambda n, m: percent(self.by_length(m, n))),
            f"By depth, lengths {over}:\n\n"
            + grid("depth", depths, titles, lambda d, m: percent(self.by_depth(m, d))),
            f"By where the needle lies for LM-Infinite, lengths {over}:\n\n"
            + grid("lies in", PLACES, titles, lambda w, m: percent(self.by_place(m, w))),
        ]
        for method in self.methods:
            cells = grid(
                "depth", depths, lengths, lambda d, n, m=method: brief(self.of(m, [n], [d]))
            )
            parts.append(f"{LABELS[method]}, % by depth and length:\n\n{cells}")
        for name, swept in self.sweeps.items():
            cells = grid(name, swept, lengths, lambda m, n: percent(self.by_length(m, n)))
            parts.append(f"LM-Infinite + top-k by {name}, all depths:\n\n{cells}")
        return "\n\n".join([*parts, *self._notes()])

    def _controls(self) -> str:
        worst = min(self.depths, key=lambda d: self.within(d)["accuracy"])
        low = f"; least at depth {worst:g}: {percent(self.within(worst))}"
        lines = [
            [f"inside the context, {self.inside:,} tokens", percent(self.within()) + low],
            ["question alone", percent(self.alone())],
        ]
        lines += [[f"needle absent, {LABELS[m]}", percent(self.absent(m))]
                  for m in self.methods]  # fmt: skip
        return "Controls:\n\n" + markdown(["control", "answers that are right"], lines)

    def _notes(self) -> list[str]:
        notes = [
            "In brackets Wilson's 95% interval; an answer counts if greedy decoding writes all "
            f"of its {self.run.maker.width} tokens."
        ]
        if not (self.run.where == WHERE.index("starting")).any():
            notes.append(
                "No needle lies in the starting tokens: its digits end after the first "
                f"{self.run.sight.n_global}; a larger --n-global would hold them at depth 0."
            )
        return notes


def grid(corner: str, rows: dict, columns: dict, cell: Callable) -> str:
    """A Markdown table of cell(row, column); rows, columns: their titles by what they are."""
    lines = [[title, *(cell(row, column) for column in columns)] for row, title in rows.items()]
    return markdown([corner, *columns.values()], lines)


def percent(found: dict | None) -> str:
    """A share with its interval.

    >>> percent({"accuracy": 0.9, "interval": [0.699, 0.972]})
    '90.0% (69.9 to 97.2)'
    """
    if found is None:
        return "-"
    low, high = (100 * x for x in found["interval"])
    return f"{100 * found['accuracy']:.1f}% ({low:.1f} to {high:.1f})"


def brief(found: dict | None) -> str:
    return "-" if found is None else f"{100 * found['accuracy']:.0f}"

"""What a run found: shares with their intervals by length, depth and place, and as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..intervals import wilson
from .axes import METHODS
from .cells import ABSENT, ALONE, Cell, Run
from .reading import WHERE


def share(pairs: Iterable[tuple[int, int]]) -> dict | None:
    """What (found, trials) of some cells add up to; None of none."""
    pairs = list(pairs)
    found, trials = sum(f for f, _ in pairs), sum(n for _, n in pairs)
    if not trials:
        return None
    low, high = wilson(found, trials)
    return {"found": found, "trials": trials, "accuracy": found / trials,
            "interval": [low, high]}  # fmt: skip


class Results:
    """The shares of a run that is done.

    lengths, depths, methods: the axes that were asked for. inside: context_length.
    sweeps: the values of each thing that was swept.
    """

    def __init__(self, run: Run, lengths, depths, methods, inside: int, sweeps, left_out):
        self.run, self.lengths, self.depths, self.methods = run, lengths, depths, methods
        self.inside, self.sweeps, self.left_out = inside, sweeps, left_out
        self.width = run.maker.width
        self.beyond = [n for n in lengths if n > inside] or lengths

    def of(self, wanted: Callable[[Cell], bool], where: str | None = None) -> dict | None:
        """The share of all trials of some cells, or of those whose needle lies there."""
        pairs = []
        for cell in filter(wanted, self.run.cells):
            known = zip(self.run.right[cell], self.run.where[cell])
            hits = [right == self.width for right, at in known if where in (None, at)]
            pairs.append((sum(hits), len(hits)))
        return share(pairs)

    def by_length(self, method: str, length: int) -> dict | None:
        return self.of(lambda c: c[:2] == (method, length) and c.depth in self.depths)

    def by_depth(self, method: str, depth: float) -> dict | None:
        return self.of(
            lambda c: c.method == method and c.depth == depth and c.length in self.beyond
        )

    def by_place(self, method: str, where: str) -> dict | None:
        return self.of(
            lambda c: c.method == method and c.length in self.beyond and c.depth in self.depths,
            where,
        )

    def cell(self, method: str, length: int, depth) -> dict | None:
        return self.of(lambda c: c == (method, length, depth))

    def absent(self, method: str) -> dict | None:
        return self.of(lambda c: (c.method, c.depth) == (method, ABSENT))

    def within(self, depth: float | None = None) -> dict:
        """The model's own accuracy inside the trained length, at a depth or at all."""
        depths = self.depths if depth is None else [depth]
        return self.of(lambda c: c[:2] == ("full", self.inside) and c.depth in depths)

    def alone(self) -> dict:
        return self.of(lambda c: c.depth == ALONE)

    def as_json(self) -> dict:
        """All shares, and how many ids of its answer each trial got right."""
        return {
            "controls": {
                "inside": self.within(),
                "inside_by_depth": [{"depth": d, **self.within(d)} for d in self.depths],
                "question_alone": self.alone(),
                "needle_absent": rows(self.methods, [None], lambda m, _: self.absent(m), ""),
            },
            "by_length": rows(self.methods, self.lengths, self.by_length, "length"),
            "by_depth": rows(self.methods, self.depths, self.by_depth, "depth"),
            "by_place": rows(self.methods, WHERE, self.by_place, "where"),
            "by_depth_and_by_place_are_over": self.beyond,
            "sweeps": {
                name: [
                    row
                    for value in values
                    for row in rows([f"{name}={value}"], self.lengths, self.by_length, "length")
                ]
                for name, values in self.sweeps
            },
            "left_out": [{"method": m, "length": n} for m, n in self.left_out],
            "answer_tokens": self.width,
            "cells": [
                {
                    **cell._asdict(), **share([self._counts(cell)]),
                    "right": self.run.right[cell], "where": self.run.where[cell],
                }
                for cell in self.run.cells
            ],
        }  # fmt: skip

    def _counts(self, cell: Cell) -> tuple[int, int]:
        right = self.run.right[cell]
        return right.count(self.width), len(right)

    # ---- as tables

    def tables(self) -> str:
        """All of it, in Markdown."""
        titles = [METHODS[m] for m in self.methods]
        parts = [self._controls()]
        parts.append("By length, all depths:\n\n" + table(
            ["length", *titles],
            [[f"{n:,}", *(self._by_length(m, n) for m in self.methods)]
             for n in self.lengths]))  # fmt: skip
        over = ", ".join(f"{n:,}" for n in self.beyond)
        parts.append(f"By depth, lengths {over}:\n\n" + table(
            ["depth", *titles],
            [[f"{d:g}", *(percent(self.by_depth(m, d)) for m in self.methods)]
             for d in self.depths]))  # fmt: skip
        parts.append(f"By where the needle lies for LM-Infinite, lengths {over}:\n\n" + table(
            ["lies in", *titles],
            [[PLACES[w], *(percent(self.by_place(m, w)) for m in self.methods)]
             for w in WHERE]))  # fmt: skip
        for method in self.methods:
            parts.append(f"{METHODS[method]}, % by depth and length:\n\n" + table(
                ["depth", *(f"{n:,}" for n in self.lengths)],
                [[f"{d:g}", *(brief(self.cell(method, n, d)) for n in self.lengths)]
                 for d in self.depths]))  # fmt: skip
        for name, values in self.sweeps:
            parts.append(f"LM-Infinite + top-k by {name}, all depths:\n\n" + table(
                [name, *(f"{n:,}" for n in self.lengths)],
                [[f"{value}",
                  *(percent(self.by_length(f"{name}={value}", n)) for n in self.lengths)]
                 for value in values]))  # fmt: skip
        return "\n\n".join([*parts, *self._notes()])

    def _by_length(self, method: str, length: int) -> str:
        return percent(self.by_length(method, length))

    def _controls(self) -> str:
        worst = min(self.depths, key=lambda d: self.within(d)["accuracy"])
        low = f"; least at depth {worst:g}: {percent(self.within(worst))}"
        lines = [
            [f"inside the context, {self.inside:,} tokens", percent(self.within()) + low],
            ["question alone", percent(self.alone())],
        ]
        lines += [[f"needle absent, {METHODS[m]}", percent(self.absent(m))]
                  for m in self.methods]  # fmt: skip
        return "Controls:\n\n" + table(["control", "answers that are right"], lines)

    def _notes(self) -> list[str]:
        notes = [
            "In brackets Wilson's 95% interval; an answer counts if greedy decoding writes all "
            f"of its {self.width} tokens."
        ]
        if self.left_out:
            longest = f"{min(n for _, n in self.left_out):,}"
            notes.append(f"A dash: --full-up-to left full attention out from {longest} on.")
        everywhere = {where for places in self.run.where.values() for where in places}
        if "starting" not in everywhere:
            notes.append(
                "No needle lies in the starting tokens: its digits end behind the first "
                f"{self.run.sight.n_global}; a larger --n-global would hold them at depth 0."
            )
        return notes


PLACES = {"starting": "starting tokens", "middle": "middle", "window": "window"}


def rows(methods, values, of, name: str) -> list[dict]:
    """A row for each method and value of which there is a share."""
    found = []
    for method in methods:
        for value in values:
            what = of(method, value)
            axis = {name: value} if name else {}
            if what is not None:
                found.append({"method": method, **axis, **what})
    return found


def table(head: list[str], lines: list[list[str]]) -> str:
    marks = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, marks, *lines])


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

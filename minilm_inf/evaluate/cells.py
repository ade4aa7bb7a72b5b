"""Cells that are asked: each method at each length and depth, and the controls, trial by trial.

All methods are asked the same questions. Trials of one cell are read side by side, and which
answers are known is remembered, so a run can be stopped between any two calls of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from ..config import LMInfinite
from .intervals import share
from .methods import Method, answers
from .resume import Run
from .trials import Maker, Trial

WHERE = ("starting", "middle", "window")
CPU_TOKENS, GPU_TOKENS = 4096, 65536  # of trials that are read side by side


class Cell(NamedTuple):
    """depth: of the needle, or a control: trials.ABSENT, nothing states the answer; ALONE,
    there is only the question, and length is 0."""

    method: str
    length: int
    depth: float | str


class Asked(Run):
    """Some cells, `trials` questions each.

    methods: by the cells' names. trial_of(cell, number): the number-th question. sight: the
    setting that says where a needle lies. right: for each cell and trial, whether the answer is
    right; -1 where that is not known. where: an index of WHERE; -1 where nothing states it.
    """

    def __init__(self, model, methods: dict[str, Method], cells: list[Cell],
                 trial_of: Callable[[Cell, int], Trial], sight: LMInfinite, trials: int,
                 chunk=512, middle="ram"):  # fmt: skip
        self.model, self.methods, self.cells, self.trial_of = model, methods, cells, trial_of
        self.sight, self.chunk, self.middle = sight, chunk, middle
        self.right, self.where = np.full((2, len(cells), trials), -1)
        self.lengths = np.array([cell.length or 1 for cell in cells])
        self.total = int(trials * self.lengths.sum())

    def arrays(self) -> dict[str, np.ndarray]:
        return {"right": self.right, "where": self.where}

    @property
    def done(self) -> int:
        return int(self.lengths @ (self.right >= 0).sum(1))

    def step(self):
        """Read some trials of the first cell that is not complete, in one go."""
        at, device = (self.right >= 0).all(1).argmin(), self.model.embed.weight.device
        cell, known = self.cells[at], int((self.right[at] >= 0).sum())
        tokens = GPU_TOKENS if device.type == "cuda" else CPU_TOKENS
        # A question alone may be longer in one trial than in another.
        some = max(1, tokens // cell.length) if cell.length else 1
        here = range(known, min(self.right.shape[1], known + some))
        trials = [self.trial_of(cell, number) for number in here]
        rows = torch.tensor([trial.ids for trial in trials], device=device)
        method = self.methods[cell.method]
        width = trials[0].width
        right = answers(self.model, method, rows, width, self.chunk, self.middle)
        self.where[at, here] = [where_it_lies(trial, self.sight) for trial in trials]
        self.right[at, here] = np.array(right) == width

    def rows(self) -> list[dict]:
        """What was found: a row for each cell and place of the needle in it."""
        rows = []
        for cell, right, where in zip(self.cells, self.right, self.where):
            for place in np.unique(where).tolist():
                here = right[where == place]
                told = {"where": WHERE[place] if place >= 0 else None}
                told |= {"found": int(here.sum()), "trials": here.size}
                rows.append(cell._asdict() | told)
        return rows


def pooled(rows: list[dict], *axes: str) -> list[dict]:
    """The shares of right answers of rows that are alike in some axes, taken together."""
    counts = {}
    for row in rows:
        key = tuple(row[axis] for axis in axes)
        found, trials = counts.get(key, (0, 0))
        counts[key] = found + row["found"], trials + row["trials"]
    return [dict(zip(axes, key)) | share(*count) for key, count in counts.items()]


def share_found(model, lm: LMInfinite | None, maker: Maker, length: int, depth, count=10):
    """The share of `count` questions of one length and depth that a model answers rightly."""
    rows = [maker.trial(length, depth, [length, number]).ids for number in range(count)]
    rows = torch.tensor(rows, device=model.embed.weight.device)
    right = answers(model, Method("", lm), rows, maker.width)
    return sum(n == maker.width for n in right) / count


def where_it_lies(trial: Trial, lm: LMInfinite) -> int:
    """How the queries that write the answer see what states it: as an index of WHERE; -1 where
    the text does not state it.

    Each digit is written by a query that is as far from where it is stated as the others', so
    the window holds all of them or none; the starting tokens must hold all.
    """
    if not trial.stated:
        return -1
    first = len(trial.ids) - trial.width - 1  # the query that writes the first digit
    if lm.n_local is None or first - trial.stated[0] < lm.n_local:
        return WHERE.index("window")
    return WHERE.index("starting" if trial.stated[-1] < lm.n_global else "middle")

"""A run over cells: each method at each length and depth, and the controls, trial by trial.

The text of a trial depends on seed, length, depth and its number only, so all methods are asked
the same questions. A run takes one call of the model at a time and remembers which answers are
known, so it can be stopped between any two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ...config import LMInfinite
from .reading import WHERE, Method, answering, rows_at_once, where_it_lies
from .trials import Maker, Trial

ABSENT, ALONE = "absent", "alone"
MOST_TRIED = 1000


class Cell(NamedTuple):
    """depth: of the needle, or a control: ABSENT, nothing states the answer; ALONE, there is
    only the question, and length is 0."""

    method: str
    length: int
    depth: float | str


class Run:
    """The trials of some cells, `trials` each.

    methods: by the names that the cells use. rows: how many trials are read side by side
    (rows_at_once). sight: the setting that says where a needle lies. right, where: for each
    cell, how many ids of the answer each trial got right before a wrong one, and where_it_lies.
    """

    def __init__(
        self,
        model,
        maker: Maker,
        methods: dict[str, Method],
        sight: LMInfinite,
        cells: list[Cell],
        trials: int,
        seed: int,
        chunk: int = 512,
        rows: int | None = None,
        middle: str = "ram",
    ):
        self.model, self.maker, self.methods, self.cells = model, maker, methods, cells
        self.sight, self.trials, self.seed, self.chunk = sight, trials, seed, chunk
        self.rows, self.middle = rows, middle
        self.device = model.embed.weight.device
        self.right: dict[Cell, list[int]] = {cell: [] for cell in cells}
        self.where: dict[Cell, list[str | None]] = {cell: [] for cell in cells}
        self.cost = {cell: self._length(cell) for cell in cells}
        self.total = trials * sum(self.cost.values())
        self.now: Iterator[int] | None = None
        self.read = 0  # ids of the batch at hand

    def _length(self, cell: Cell) -> int:
        """How many ids one trial makes the model read, about."""
        return self.methods[cell.method].length(cell.length or 32)

    def trial(self, cell: Cell, number: int) -> Trial:
        """The number-th trial of a cell; the same for every method."""
        if cell.depth == ALONE:
            return self.maker.alone([self.seed, number])
        if cell.depth == ABSENT:
            return self.maker.absent(cell.length, [self.seed, cell.length, number, 1])
        place = [self.seed, cell.length, number, 0, round(1e6 * cell.depth)]
        return self.maker.trial(cell.length, cell.depth, place)

    def check(self):
        """Raise ValueError, before anything is read, where a trial would have no room.

        How much its facts and question take differs from trial to trial: of the short ones all
        are tried, up to MOST_TRIED, and of the others one for each depth.
        """
        lengths = [cell.length for cell in self.cells if cell.length]
        for cell in {cell[1:]: cell for cell in self.cells if cell.length}.values():
            count = min(self.trials, MOST_TRIED) if cell.length < 2 * min(lengths) else 1
            for number in range(count):
                self.trial(cell, number)

    @property
    def cell(self) -> Cell | None:
        """The first cell that is not complete."""
        return next((c for c in self.cells if len(self.right[c]) < self.trials), None)

    @property
    def is_done(self) -> bool:
        return self.cell is None

    @property
    def done(self) -> int:
        """How many ids of `total` were read."""
        return self.read + sum(n * len(self.right[cell]) for cell, n in self.cost.items())

    def step(self):
        """Call the model once."""
        if self.now is None:
            self.now = self._batch(self.cell)
        try:
            self.read += next(self.now)
        except StopIteration:
            self.now, self.read = None, 0

    def _batch(self, cell: Cell) -> Iterator[int]:
        method, known = self.methods[cell.method], self.right[cell]
        some = self.rows or rows_at_once(self.model, method, self._length(cell), self.chunk)
        numbers = range(len(known), min(self.trials, len(known) + some))
        trials = [self.trial(cell, number) for number in numbers]
        right: dict[int, int] = {}
        # The question alone may be longer in one trial than in another; nothing else is.
        for length in sorted({len(trial.ids) for trial in trials}):
            here = [i for i, trial in enumerate(trials) if len(trial.ids) == length]
            rows = method.rows([trials[i] for i in here], self.device)
            answers: list[int] = []
            yield from answering(
                self.model,
                rows,
                self.maker.width,
                method.lm,
                self.chunk,
                answers,
                self.middle,
            )
            right.update(zip(here, answers))
        known.extend(right[i] for i in range(len(trials)))
        self.where[cell].extend(where_it_lies(trial, self.sight) for trial in trials)

    def state(self) -> tuple[dict, dict]:
        """What resume.save_state takes: no tensors, and the answers that are known."""
        known = {"right": self.right, "where": self.where}
        return {}, {name: [found[cell] for cell in self.cells] for name, found in known.items()}

    def restore(self, facts: dict):
        """Be where `state` was. Raises ValueError for one of other cells."""
        known = [facts.get("right"), facts.get("where")]
        if not all(isinstance(x, list) and len(x) == len(self.cells) for x in known):
            raise ValueError("these answers are of other cells")
        for cell, right, where in zip(self.cells, *known):
            lists = isinstance(right, list) and isinstance(where, list)
            if not lists or not len(right) == len(where) <= self.trials:
                raise ValueError("these answers are of other cells")
            if any(type(x) is not int or not 0 <= x <= self.maker.width for x in right):
                raise ValueError("these answers are of another task")
            if any(x not in (None, *WHERE) for x in where):
                raise ValueError("these places are of another task")
            self.right[cell], self.where[cell] = right, where

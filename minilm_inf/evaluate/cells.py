"""A run over cells: each method at each length and depth, and the controls, trial by trial.

The text of a trial depends on seed, length, depth and its number only, so all methods are asked
the same questions. Trials of one length are read side by side. A run takes one call of the
model at a time and remembers which answers are known, so it can be stopped between any two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from ..config import LMInfinite
from .methods import Method, answering
from .resume import put_back
from .trials import ABSENT, ALONE, Maker, Trial

WHERE = ("starting", "middle", "window")
CPU_TOKENS, GPU_TOKENS = 4096, 65536  # read by one call, in all rows
CPU_BYTES = 1 << 30  # of cache, in all rows


class Cell(NamedTuple):
    """depth: of the needle, or a control: ABSENT, nothing states the answer; ALONE, there is
    only the question, and length is 0."""

    method: str
    length: int
    depth: float | str


class Run:
    """The trials of some cells, `trials` each.

    methods: by the names that the cells use. rows: how many trials are read side by side
    (rows_at_once). sight: the setting that says where a needle lies. right: for each cell and
    trial, how many ids of the answer are right before a wrong one; -1 where it is not known.
    where: where the needle lies, as an index of WHERE; -1 where nothing states the answer.
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
        self.right = np.full((len(cells), trials), -1)
        self.where = np.full((len(cells), trials), -1)
        self.cost = np.array([self._length(cell) for cell in cells])
        self.total = int(trials * self.cost.sum())
        self.now: Iterator[int] | None = None
        self.read = 0  # ids of the batch at hand

    def _length(self, cell: Cell) -> int:
        """How many ids one trial makes the model read, about."""
        method, length = self.methods[cell.method], cell.length or 32
        return method.rows(torch.empty(1, length, device="meta")).shape[1]

    def trial(self, cell: Cell, number: int) -> Trial:
        """The number-th trial of a cell; the same for every method."""
        place = [self.seed, cell.length, number, 0]
        if cell.depth == ALONE:
            place = [self.seed, number]
        elif cell.depth == ABSENT:
            place[-1] = 1
        else:
            place.append(round(1e6 * cell.depth))
        return self.maker.trial(cell.length, cell.depth, place)

    def check(self):
        """Raise ValueError, before anything is read, where a trial would have no room.

        How much its facts and question take differs from trial to trial: of the shortest ones
        all are tried, and of the others one for each depth.
        """
        least = min(cell.length for cell in self.cells if cell.length)
        for cell in {cell[1:]: cell for cell in self.cells if cell.length}.values():
            for number in range(self.trials if cell.length == least else 1):
                self.trial(cell, number)

    @property
    def at(self) -> int:
        """The first cell that is not complete."""
        return int((self.right < 0).any(1).argmax())

    @property
    def is_done(self) -> bool:
        return bool((self.right >= 0).all())

    @property
    def done(self) -> int:
        """How many ids of `total` were read."""
        return self.read + int(self.cost @ (self.right >= 0).sum(1))

    def fact(self) -> str:
        """What is read now, in words."""
        cell = self.cells[self.at]
        return "all cells" if self.is_done else f"{cell.method}, {cell.length:,} tokens"

    def step(self):
        """Call the model once."""
        if self.now is None:
            self.now = self._batch(self.at)
        try:
            self.read += next(self.now)
        except StopIteration:
            self.now, self.read = None, 0

    def _batch(self, at: int) -> Iterator[int]:
        cell, device = self.cells[at], self.model.embed.weight.device
        method, first = self.methods[cell.method], int((self.right[at] >= 0).sum())
        some = self.rows or rows_at_once(self.model, method, self.cost[at], self.chunk)
        if cell.depth == ALONE:  # which may be longer in one trial than in another
            some = 1
        trials = [self.trial(cell, n) for n in range(first, min(self.trials, first + some))]
        rows = torch.tensor([trial.ids for trial in trials], device=device)
        right = yield from answering(
            self.model, method, rows, self.maker.width, self.chunk, self.middle
        )
        here = slice(first, first + len(trials))
        self.where[at, here] = [where_it_lies(trial, self.sight) for trial in trials]
        self.right[at, here] = right

    def state(self) -> dict[str, torch.Tensor]:
        """The answers that are known."""
        return {"right": torch.from_numpy(self.right), "where": torch.from_numpy(self.where)}

    def restore(self, tensors: dict[str, torch.Tensor]):
        """Be where `state` was. Raises ValueError for one of other cells."""
        put_back({"right": self.right, "where": self.where}, tensors)
        for found, most in ((self.right, self.maker.width), (self.where, len(WHERE) - 1)):
            if found.min() < -1 or found.max() > most:
                raise ValueError("these answers are of another task")


def where_it_lies(trial: Trial, lm: LMInfinite) -> int:
    """How the queries that write the answer see what states it: as an index of WHERE; -1 where
    the text does not state it.

    The t-th digit of the answer is written by the query before it, and is stated by the t-th of
    trial.stated. A needle of which any digit cannot be seen without top_k lies in the middle.
    """
    if not trial.stated:
        return -1
    first = len(trial.ids) - trial.width - 1  # the query that writes the first digit
    places = set()
    for t, j in enumerate(trial.stated):
        i = first + min(t, trial.width - 1)
        if lm.n_local is None or i - j < lm.n_local:
            places.add("window")
        else:
            places.add("starting" if j < lm.n_global else "middle")
    return WHERE.index("middle" if "middle" in places else min(places))


def rows_at_once(model, method: Method, length: int, chunk: int) -> int:
    """How many rows to read side by side: as the memory for their keys allows, and no more than
    keep the machine busy."""
    config, weight = model.config, model.embed.weight
    kept = method.kept(length, config.n_layer - 1) or length
    token = 2 * config.n_layer * config.n_kv_head * config.head_dim * weight.element_size()
    on_gpu = weight.device.type == "cuda"
    room = torch.cuda.mem_get_info(weight.device)[0] // 4 if on_gpu else CPU_BYTES
    tokens = GPU_TOKENS if on_gpu else CPU_TOKENS
    return int(max(1, min(room // (token * kept), tokens // min(chunk, length))))

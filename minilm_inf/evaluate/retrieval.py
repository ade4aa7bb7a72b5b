"""The tasks `evaluate passkey` and `evaluate recall`: whether something said early in a long
text is found when it is asked for at the end.

    python -m minilm_inf.evaluate passkey --lengths 1,2,4,8 --trials 50 --out run.json
    python -m minilm_inf.evaluate recall --task pairs
    python -m minilm_inf.evaluate passkey --methods topk --sweep k=1,3,5,10 from-layer=0,1,2
    python -m minilm_inf.evaluate passkey --resume run.json

Every text is exactly as long as asked for, its filler repeats nothing, and each method is asked
the same questions: vanilla; re-encoding (the vanilla model on BOS, if the tokenizer has one,
and the last tokens, at most context_length with the answer); LM-Infinite, without and with the
top-k middle tokens. An answer is right if greedy decoding writes all of its tokens. In the same
run, as controls: the model inside its trained length, and texts that do not state the answer.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
import torch

from ..config import LMInfinite, ModelConfig
from ..terminal import options as flags
from ..train.practice import Practice
from . import figure
from .intervals import share
from .methods import LABELS, Method, Truncated, answers
from .resume import Run
from .table import grid
from .trials import ABSENT, Maker, Pairs, PassKey, Trial

WHERE = ("starting", "middle", "window")
CPU_TOKENS, GPU_TOKENS = 4096, 65536  # of trials that are read side by side
METHODS = ("full", "truncate", "lambda", "topk")
SWEEPS = {"k": "top_k_middle", "distance": "top_k_distance", "from-layer": "top_k_from_layer"}
MAKERS = {"passkey": PassKey, "recall": Pairs}
TITLES = {"passkey": "pass key", "recall": "key-value recall"}


class Cell(NamedTuple):
    """Trials of one length, read by one method. depth: of the needle, or trials.ABSENT; None
    where each trial has its own."""

    method: str
    length: int
    depth: float | str | None


class Asked(Run):
    """Some cells, `trials` questions each.

    methods: by the cells' names. trial_of(cell, number): the number-th question. sight: the
    setting that says where a needle lies. right: for each cell and trial, whether the answer is
    right; -1 where that is not known. where: an index of WHERE; -1 where nothing states it.
    """

    def __init__(self, model, methods: dict[str, Method], cells: list[Cell],
                 trial_of: Callable[[Cell, int], Trial], sight: LMInfinite, trials: int,
                 chunk=512):  # fmt: skip
        self.model, self.methods, self.cells, self.trial_of = model, methods, cells, trial_of
        self.sight, self.chunk = sight, chunk
        self.right, self.where = np.full((2, len(cells), trials), -1)
        self.arrays = {"right": self.right, "where": self.where}
        self.divided = [(self.right, 0)]
        self.lengths = np.array([cell.length for cell in cells])
        self.total = int(trials * self.lengths.sum())

    @property
    def done(self) -> int:
        return int(self.lengths @ (self.right >= 0).sum(1))

    def step(self):
        """Read some trials of the first cell that is not complete, in one go."""
        at, device = (self.right >= 0).all(1).argmin(), self.model.embed.weight.device
        cell, unknown = self.cells[at], np.flatnonzero(self.right[at] < 0)
        some = max(1, (CPU_TOKENS if device.type == "cpu" else GPU_TOKENS) // cell.length)
        here = unknown[:some]
        trials = [self.trial_of(cell, number) for number in here.tolist()]
        rows, width = [trial.ids for trial in trials], trials[0].width
        how = self.methods[cell.method], torch.tensor(rows, device=device), width, self.chunk
        self.where[at, here] = [where_it_lies(trial, self.sight) for trial in trials]
        self.right[at, here] = np.array(answers(self.model, *how)) == width

    def rows(self) -> list[dict]:
        """What was found: a row for each trial."""
        places = [*WHERE, None]  # None for -1
        return [
            cell._asdict() | {"where": places[where], "found": right, "trials": 1}
            for cell, *found in zip(self.cells, self.right.tolist(), self.where.tolist())
            for right, where in zip(*found)
        ]


def share_found(model, lm: LMInfinite | None, maker: Maker, length: int, depth, count=10):
    """The share of `count` questions of one length and depth that a model answers correctly."""
    rows = [maker.trial(length, depth, [length, number]).ids for number in range(count)]
    rows = torch.tensor(rows, device=model.embed.weight.device)
    right = answers(model, Method("", lm), rows, maker.width)
    return sum(n == maker.width for n in right) / count


def where_it_lies(trial: Trial, lm: LMInfinite) -> int:
    """How the queries that write the answer see what states it: as an index of WHERE; -1 where
    the text does not state it. Each is as far from its digit as the others, so the window holds
    all digits or none; the starting tokens must hold all."""
    if not trial.stated:
        return -1
    first = len(trial.ids) - trial.width - 1  # the query that writes the first digit
    if lm.n_local is None or first - trial.stated[0] < lm.n_local:
        return WHERE.index("window")
    return WHERE.index("starting" if trial.stated[-1] < lm.n_global else "middle")


# ---- what the flags ask for


def prepared(options, texts, model, tokenizer) -> Asked:
    """The run that the flags ask for."""
    config, depths = model.config, options.depths
    lengths = sorted({round(x * config.context_length) for x in options.lengths})
    text = np.array([id for x in texts.values() for id in tokenizer.encode(x, bos=False)])
    practice = Practice(tokenizer, text)
    maker = MAKERS[options.task](practice, tokenizer)
    methods = methods_of(options, config, len(practice.bos))
    found = cells(options.methods, methods, lengths, depths, config.context_length)
    trial_of = partial(trial, maker)
    for cell in found:
        trial_of(cell, 0)  # or it says now that there is no room
    sight = methods["lambda"].lm
    run = Asked(model, methods, found, trial_of, sight, options.trials, options.chunk)
    run.settings = {
        "lengths": lengths, "asked": options.methods, "methods": {
            name: {"lm_infinite": method.lm and vars(method.lm)}
            for name, method in methods.items()
        },
    }  # fmt: skip
    return run


def methods_of(options, config: ModelConfig, n_bos: int) -> dict[str, Method]:
    """All methods by name, asked for or not, and one for each setting of a sweep."""
    settings = {"topk": options} | {
        f"{name}={value}": Namespace(**vars(options) | {SWEEPS[name]: value})
        for name, values in options.sweep
        for value in values
    }
    lms = {name: flags.attention(setting, config) for name, setting in settings.items()}
    return {
        "full": Method(LABELS["full"], None),
        "truncate": Truncated(LABELS["truncate"], None, config.context_length, n_bos),
        "lambda": Method(LABELS["lambda"], replace(lms["topk"], top_k=0)),
        **{name: Method(LABELS["topk"], lm, middle=options.middle) for name, lm in lms.items()},
    }


def cells(asked: list[str], methods, lengths, depths, inside: int) -> list[Cell]:
    """All cells, the shorter ones first."""
    found = [Cell("full", inside, d) for d in depths]
    swept = [name for name in methods if "=" in name]
    for length in lengths:
        found += [Cell(method, length, d) for method in [*asked, *swept] for d in depths]
        found += [Cell(method, length, ABSENT) for method in asked]
    return list(dict.fromkeys(found))


def trial(maker: Maker, cell: Cell, number: int) -> Trial:
    """The number-th trial of a cell; the same for every method."""
    where = [1] if cell.depth == ABSENT else [0, round(1e6 * cell.depth)]
    return maker.trial(cell.length, cell.depth, [0, cell.length, number, *where])


# ---- what was found


def pooled(rows: list[dict], *axes: str) -> list[dict]:
    """The shares of right answers of rows that are alike in some axes, taken together."""
    counts = {}
    for row in rows:
        key = tuple(row[axis] for axis in axes)
        found, trials = counts.get(key, (0, 0))
        counts[key] = found + row["found"], trials + row["trials"]
    return [dict(zip(axes, key)) | share(*count) for key, count in counts.items()]


def result(asked: Asked) -> dict:
    """The share of each cell; and of all beyond the trained length, if there are any, by where
    the needle lies for LM-Infinite."""
    told, rows = asked.settings, asked.rows()
    inside = told["context_length"] if told["lengths"][-1] > told["context_length"] else 0
    far = [row for row in needles(rows, told["asked"]) if row["length"] > inside]
    far.sort(key=lambda row: WHERE.index(row["where"]))
    cells = pooled(rows, "method", "length", "depth")
    return {"results": {"cells": cells, "by_place": pooled(far, "where", "method")}}


def needles(cells: list[dict], methods) -> list[dict]:
    """The cells of some methods in which the answer is told."""
    return [c for c in cells if c["method"] in methods and c["depth"] != ABSENT]


def sweeps(result: dict) -> dict[str, list[dict]]:
    """The shares of each sweep, k, distance or from-layer, by value and length."""
    found = {}
    for cell in result["results"]["cells"]:
        name, _, value = cell["method"].partition("=")
        if value:
            found.setdefault(name, []).append(cell)
    return {name: pooled(cells, "method", "length") for name, cells in found.items()}


def words(result: dict) -> str:
    """The same for a reader."""
    found, told = result["results"], result["settings"]
    by_length = pooled(needles(found["cells"], METHODS), "length", "method")
    parts = [
        f"{TITLES[result['task']]}, {Path(told['model']).name}, {told['trials']} trials a cell",
        f"Trained on {told['context_length']:,} tokens; by length:",
        grid(by_length, "length", "method"),
        "By where it lies for LM-Infinite, in the longer texts:",
        grid(found["by_place"], "where", "method", corner="lies in"),
    ]
    for name, rows in sweeps(result).items():
        parts += [f"LM-Infinite + top-k by {name}:"]
        parts += [grid(rows, "method", "length", corner=name)]
    note = "In brackets Wilson's 95% interval; an answer counts if all of it is written."
    return "\n\n".join([*parts, note])


def picture(result: dict) -> bytes:
    """The shares by depth and length, a panel for each method."""
    told, cells = result["settings"], result["results"]["cells"]
    panels = {LABELS[method]: needles(cells, [method]) for method in told["asked"]}
    longest = max(cell["length"] for found in panels.values() for cell in found)
    shares = {
        label: mean([cell["accuracy"] for cell in found if cell["length"] == longest])
        for label, found in panels.items()
    }
    worst, best = min(shares, key=shares.get), max(shares, key=shares.get)
    needle = "pass key" if result["task"] == "passkey" else "pair"
    title = f"{Path(told['model']).name}, % of {told['trials']} {needle}s found: in "
    title += f"{longest:,} tokens by {worst} {100 * shares[worst]:.0f}"
    if best != worst:
        title += f", by {best} {100 * shares[best]:.0f}"
    return figure.heatmaps(title, needle, panels)

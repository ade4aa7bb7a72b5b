"""The tasks `evaluate passkey` and `evaluate recall`: whether something said early in a long
text is found when it is asked for at the end.

    python -m minilm_inf.evaluate passkey --lengths 1,2,4,8 --trials 50 --out run.json
    python -m minilm_inf.evaluate recall --task pairs
    python -m minilm_inf.evaluate passkey --methods topk --sweep k=1,3,5,10 from-layer=0,1,2
    python -m minilm_inf.evaluate passkey --resume run.json

Every text is exactly as long as asked for, filler that occurs nowhere twice in it, and each
method is asked the same questions: full attention, truncation (the vanilla model on BOS, if the
tokenizer has one, and the last tokens, answer included no more than context_length),
LM-Infinite, and it with the top-k middle tokens. An answer is right if greedy decoding writes
all of its tokens. In the same run, as controls: the model inside its trained length, the
question alone, and texts that do not state the answer.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ..config import ModelConfig
from ..terminal import options as flags
from ..train.practice import Practice
from . import figure
from .cells import WHERE, Asked, Cell, pooled
from .documents import digest, texts_of
from .methods import LABELS, Method, Truncated
from .resume import model_facts
from .table import grid
from .trials import ABSENT, ALONE, Maker, Pairs, PassKey, check_filler

METHODS = ("full", "truncate", "lambda", "topk")
SWEEPS = {"k": "top_k_middle", "distance": "top_k_distance", "from-layer": "top_k_from_layer"}
TITLES = {"passkey": "pass key", "recall": "key-value recall"}


def prepared(options) -> Asked:
    """The run that the flags ask for."""
    model, tokenizer = flags.load(options)
    config, depths = model.config, options.depths
    lengths = sorted({round(x * config.context_length) for x in options.lengths})
    texts = texts_of(options).values()
    text = np.array([id for text in texts for id in tokenizer.encode(text, bos=False)])
    check_filler(text, max(*lengths, config.context_length))
    practice = Practice(tokenizer, text)
    maker = PassKey(practice, tokenizer)
    if options.task == "recall":
        maker = Pairs(practice, tokenizer, options.pairs)
    methods = methods_of(options, config, practice)
    found = cells(options.methods, methods, lengths, depths, config.context_length)
    trial_of = partial(trial, maker, options.seed)
    for cell in found:
        trial_of(cell, 0)  # or it says now that there is no room
    sight, middle = methods["lambda"].lm, options.middle or "ram"
    run = Asked(model, methods, found, trial_of, sight, options.trials, options.chunk, middle)
    run.settings = model_facts(options, model) | {
        "ids_sha256": digest(text), "seed": options.seed, "trials": options.trials,
        "lengths": lengths, "depths": depths, "asked": options.methods,
        "methods": {
            name: {"lm_infinite": method.lm and vars(method.lm)}
            for name, method in methods.items()
        },
        "pairs": getattr(options, "pairs", None), "chunk": options.chunk,
        "context_length": config.context_length,
    }  # fmt: skip
    return run


def methods_of(options, config: ModelConfig, practice: Practice) -> dict[str, Method]:
    """All methods by name, asked for or not, and one for each setting of a sweep."""
    reaching, n_bos = flags.attention(options, config), len(practice.bos)
    found = {
        "full": Method(LABELS["full"], None),
        "truncate": Truncated(LABELS["truncate"], None, config.context_length, n_bos),
        "lambda": Method(LABELS["lambda"], replace(reaching, top_k=0)),
        "topk": Method(LABELS["topk"], reaching),
    }
    for name, values in options.sweep:
        for value in values:
            swept = Namespace(**{**vars(options), SWEEPS[name]: value})
            found[f"{name}={value}"] = Method(LABELS["topk"], flags.attention(swept, config))
    return found


def cells(asked: list[str], methods, lengths, depths, inside: int) -> list[Cell]:
    """All cells, the shorter ones first."""
    found = [Cell("full", 0, ALONE), *(Cell("full", inside, d) for d in depths)]
    swept = [name for name in methods if "=" in name]
    for length in lengths:
        for method in [*asked, *swept]:
            found += [Cell(method, length, depth) for depth in depths]
            if method in asked:
                found.append(Cell(method, length, ABSENT))
    return list(dict.fromkeys(found))


def trial(maker: Maker, seed: int, cell: Cell, number: int):
    """The number-th trial of a cell; the same for every method."""
    controls = {ALONE: [seed, number], ABSENT: [seed, cell.length, number, 1]}
    drawn = controls.get(cell.depth) or [seed, cell.length, number, 0, round(1e6 * cell.depth)]
    return maker.trial(cell.length, cell.depth, drawn)


# ---- what was found


def result(asked: Asked) -> dict:
    """The share of each cell; and of all beyond the trained length, if there are any, by where
    the needle lies for LM-Infinite."""
    told, rows = asked.settings, asked.rows()
    inside = told["context_length"] if told["lengths"][-1] > told["context_length"] else 0
    far = [row for row in needles(rows, told["asked"]) if row["length"] > inside]
    far.sort(key=lambda row: WHERE.index(row["where"]))
    cells = pooled(rows, "method", "length", "depth")
    return {"results": {"cells": cells, "by_place": pooled(far, "where", "method")}}


def needles(cells: list[dict], methods: list[str]) -> list[dict]:
    """The cells of some methods in which the answer is told."""
    controls = ABSENT, ALONE
    return [c for c in cells if c["method"] in methods and c["depth"] not in controls]


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
    cells = [cell for cell in found["cells"] if "=" not in cell["method"]]
    by_length = pooled(needles(cells, told["methods"]), "length", "method")
    tables = {
        f"Trained on {told['context_length']:,} tokens; by length:": grid(
            by_length, "length", "method"
        ),
        "By depth, and the question alone, and where nothing states the answer:": grid(
            pooled(cells, "depth", "method"), "depth", "method"
        ),
        "By where it lies for LM-Infinite, in the longer texts:": grid(
            found["by_place"], "where", "method", corner="lies in"
        ),
    }
    for name, rows in sweeps(result).items():
        tables[f"LM-Infinite + top-k by {name}:"] = grid(rows, "method", "length", corner=name)
    head = (
        f"{TITLES[result['task']]}, {Path(told['model']).name}, {told['trials']} trials a cell"
    )
    note = "In brackets Wilson's 95% interval; an answer counts if all of it is written."
    return "\n\n".join([head, *(f"{x}\n\n{table}" for x, table in tables.items()), note])


def picture(result: dict) -> bytes:
    """The shares by depth and length, a panel for each method."""
    told, cells = result["settings"], result["results"]["cells"]
    panels = {LABELS[method]: needles(cells, [method]) for method in told["asked"]}
    name = Path(told["model"]).name
    return figure.heatmaps(f"{TITLES[result['task']]}, {name}: % that are right", panels)

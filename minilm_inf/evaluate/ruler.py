"""The task `evaluate needles`: RULER's synthetic tasks (Hsieh et al., COLM 2024, arXiv
2404.06654), made at any length from their published definitions.

    python -m minilm_inf.evaluate needles --suite ruler --lengths 2,4 --trials 10

    single, multikey, multivalue, multiquery    the number of a key; of one of four keys; four
                                                numbers of one key; the numbers of four keys
    variables           the five that have one value, each but the first by the one before it
    common, frequent    the ten words that a list has most often; the three of a coded text

A score is RULER's "string match, all": the share of an answer's parts that occur in what is
written, greedily. It is comparable in definition, but not with the numbers of RULER's
leaderboard: wording, words and filler (--corpus) are ours, nothing is put into a chat's form,
and RULER's two tasks of question answering, whose texts must be fetched, are left out.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch

from ..train.practice import Practice
from ..writing.reply import Plain
from ..writing.session import Session
from .intervals import share
from .qa import written
from .retrieval import Asked, Cell, methods_of
from .table import grid

FEWEST = 100  # different words that tasks are made of
LETTERS = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]

# ---- what a task makes: facts to hide, a prompt's end, and the parts of its answer


def needles(rng, words, *_, keys=1, values=1, asked=1):
    """Numbers of some keys, of which those of the first few are asked for."""
    names = ["-".join(pair) for pair in rng.choice(words, (keys, 2))]
    numbers = rng.integers(10**6, 10**7, (keys, values)).astype(str)
    told = zip(np.repeat(names, values), numbers.flat)
    facts = [f"One of the magic numbers of {name} is {number}." for name, number in told]
    end = "\nWhich magic numbers of {0} does the text tell? The magic numbers of {0} are"
    end = end.format(", ".join(names[:asked]))
    return rng.permutation(facts).tolist(), end, numbers[:asked].flatten().tolist()


def variables(rng, words, *_):
    """Five variables, the first of which has a value, and each other that of the one before."""
    names = ["".join(letters) for letters in rng.choice(LETTERS, (5, 5))]
    value = str(rng.integers(10**4, 10**5))
    sides = zip(names, [value, *(f"VAR {name}" for name in names)])
    facts = [f"VAR {name} = {side}." for name, side in sides]
    return facts, f"\nThe five variables that have the value {value} are", names


# ---- the same of a list, which hides nothing: the longer, the larger its size


def common(rng, words, is_long, size=None):
    """Ten words that a list has often, and others, `size` of them, that it has rarely; the
    example where there is no size."""
    often, rarely = (30, 3) if is_long else (6, 1)
    if size is None:
        size, often, rarely = (40, 10, 3) if is_long else (20, 3, 1)
    n, needed = len(words), 10 + size
    endings = ["", *words[1:]]  # where words run out, two of them in one
    some = rng.permutation(max(n, needed))[:needed]
    some = [words[at % n] + endings[at // n] for at in some]
    listed = rng.permutation(some[:10] * often + some[10:] * rarely)
    text = " ".join(f"{number}. {word}" for number, word in enumerate(listed, 1))
    return [], f"{text}\nThe ten words that stand there most often are", some[:10]


def frequent(rng, words, is_long, size):
    """Words as often as a zeta distribution has them (alpha 2), the commonest as dots; at least
    60 in all, so that the third is more frequent than the fourth."""
    coded = ["".join(letters).lower() for letters in rng.choice(LETTERS, (2000, 6))]
    counts = ((59 + size) / np.arange(1, 2001) ** 2 * 6 / np.pi**2).astype(int)
    text = " ".join(rng.permutation(np.repeat(["...", *coded[1:]], counts)))
    return [], f"{text}\nBut for the dots, the three most frequent words are", coded[1:4]


TASKS = {  # what makes it, an answer's parts, tokens that may be written, is there an example
    "single": (needles, 1, 128, False),
    "multikey": (partial(needles, keys=4), 1, 128, False),
    "multivalue": (partial(needles, values=4), 4, 128, False),
    "multiquery": (partial(needles, keys=4, asked=4), 4, 128, False),
    "variables": (variables, 5, 30, True),
    "common": (common, 10, 120, True),
    "frequent": (frequent, 3, 50, False),
}


def trial(practice: Practice, words: list[str], cell: Cell, number: int):
    """The ids of a cell's number-th prompt, the same for every method, and the parts of its
    answer. With what may be written it has the cell's length, or of a list a few tokens less.
    Raises ValueError where there is no room."""
    make, _, new, has_example = TASKS[cell.depth]
    room, is_long, bos = cell.length - new, cell.length >= 4096, practice.bos  # as RULER has it

    def prompt(size: int) -> tuple[list[int], list[str]]:
        rng, ids = np.random.default_rng([cell.length, number]), list(bos)
        if has_example:
            facts, end, answer = make(rng, words, is_long)
            ids += practice.encode(f"{' '.join(facts)}{end} {', '.join(answer)}.\n")
        facts, end, answer = make(rng, words, is_long, size)
        if not facts:
            return ids + practice.encode(end), answer
        rest = practice.hidden(rng, room - len(ids) + len(bos), facts, end)
        return ids + rest[len(bos) :], answer

    shortest = prompt(1)
    if len(shortest[0]) > room:
        raise ValueError("even the shortest list is longer")
    if len(shortest[0]) == room:  # facts in a text, which has its length already
        return shortest
    sizes = range(1, cell.length)
    return prompt(bisect_right(sizes, room, key=lambda size: len(prompt(size)[0])))


class Run(Asked):
    """Asked, where prompts are answered freely. right: how many parts of an answer were
    written. The depth of a cell is its task."""

    def __init__(self, turns: Plain, *asked):
        super().__init__(*asked)
        self.turns = turns

    def step(self):
        """Have one prompt answered."""
        at = (self.right >= 0).all(1).argmin()
        cell, number = self.cells[at], int(self.right[at].argmin())  # the first -1
        (ids, answer), new = self.trial_of(cell, number), TASKS[cell.depth][2]
        method = self.methods[cell.method]
        row = torch.tensor([ids + [0] * new])  # with room for what is written
        ids = method.rows(row)[0, :-new].tolist()
        session = Session(self.model, method.lm, self.chunk, middle=method.middle)
        text = written(session, self.turns, ids, new).text.lower()
        self.right[at, number] = sum(part.lower() in text for part in answer)


def prepared(options, texts, model, tokenizer) -> Run:
    """The run that the flags ask for."""
    context, text = model.config.context_length, "\n".join(texts.values())
    practice = Practice(tokenizer, np.array(tokenizer.encode(text, bos=False)))
    words = sorted(set(re.findall(r"\b[a-z]{5,9}\b", text)))
    methods = methods_of(options, model.config, len(practice.bos))
    lengths = [round(x * context) for x in sorted(options.lengths)]
    axes = product(lengths, options.tasks, options.methods)
    cells = [Cell(method, length, task) for length, task, method in axes]
    if len(words) < max(FEWEST, max(lengths) ** 0.5 + 1):  # two of them in one are enough then
        raise ValueError("the texts have too few different words: give more")
    trial_of = partial(trial, practice, words)
    for cell in cells:
        try:
            trial_of(cell, 0)
        except ValueError as error:
            raise ValueError(
                f"{cell.length} tokens have no room for {cell.depth}, or the texts have fewer: "
                "choose other --lengths"
            ) from error
    asked = model, methods, cells, trial_of, None, options.trials, options.chunk
    run = Run(Plain(tokenizer), *asked)
    lms = {name: methods[name].lm for name in options.methods}
    run.settings = {"methods": {name: lm and vars(lm) for name, lm in lms.items()}}
    return run


def result(run: Run) -> dict:
    """The mean score of each cell; its interval is as wide as if an answer had one part."""
    cells = []
    for (method, length, task), right in zip(run.cells, run.right):
        score = share(float(right.sum()) / TASKS[task][1], len(right))
        cells.append({"task": task, "length": length, "method": method} | score)
    return {"results": {"cells": cells}}


def words(result: dict) -> str:
    """The same for a reader."""
    told, by_length = result["settings"], {}
    for cell in result["results"]["cells"]:
        by_length.setdefault(cell["length"], []).append(cell)
    tables = [f"{n:,} tokens:\n\n{grid(x, 'task', 'method')}" for n, x in by_length.items()]
    title = f"RULER's tasks, {Path(told['model']).name}, trained on {told['context_length']:,} "
    title += f"tokens, {told['trials']} trials a cell; in brackets 95% intervals"
    return "\n\n".join([title, *tables])

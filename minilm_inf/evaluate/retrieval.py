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

import argparse
import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ..config import LMInfinite, ModelConfig
from ..terminal import options as flags
from ..terminal.files import shown
from ..train.practice import Practice
from . import heatmap
from .cells import Cell, Run
from .documents import texts_of
from .methods import LABELS, Method, Truncated
from .report import Results
from .resume import carry_out, model_facts
from .trials import ABSENT, ALONE, REPEATED, Pairs, PassKey, check_filler

METHODS = ("full", "truncate", "lambda", "topk")
TOP_K = 5  # the paper's
LONGEST = 2**24  # tokens of a trial
SWEEPS = {"k": "top_k", "distance": "top_k_distance", "from-layer": "top_k_from_layer"}
TITLES = {"passkey": "pass key", "pairs": "key-value recall"}


def check(options):
    """Raise ValueError for flags that contradict each other."""
    if options.attention == "full":
        raise ValueError("--attention is that of lambda and topk: full is a method of its own")
    if "topk" in options.methods or options.sweep:
        options.top_k_middle = options.top_k_middle or TOP_K
    flags.check_attention(options)
    names = [name for name, _ in options.sweep]
    if len(set(names)) < len(names):
        raise ValueError("--sweep names one thing twice: give all its values together")


def evaluate(options) -> int:
    """A task, from its flags to the result; a signal's exit code where one ended it."""
    return carry_out(options, prepared, result_of)


def prepared(options) -> tuple[Run, dict]:
    """The run that the flags ask for, and all that its numbers depend on."""
    flags.check_drawing(options, "heatmap")
    model, tokenizer = flags.load(options)
    config = model.config
    found = cells(options, config)
    longest = max(cell.length for cell in found)
    text = filler(options, tokenizer, longest)
    check_filler(text, longest)  # however little of it is the question
    practice = Practice(tokenizer, text)
    maker = PassKey(practice, tokenizer)
    if options.kind == "pairs":
        maker = Pairs(practice, tokenizer, options.pairs)
    methods = settings(options, config, practice)
    run = Run(model, maker, methods, sight(options, config), found, options.trials,
              options.seed, options.prefill_chunk, options.rows,
              options.middle or "ram")  # fmt: skip
    run.check()
    return run, model_facts(options, model) | {
        "task": options.kind,
        "ids_sha256": hashlib.sha256(text.astype("<i8").tobytes()).hexdigest(),
        "filler": options.filler, "seed": options.seed, "trials": options.trials,
        "lengths": lengths(options, config), "depths": options.depths,
        "methods": {
            name: {"lm_infinite": method.lm and dict(vars(method.lm)),
                   "reads_last": getattr(method, "length", None)}
            for name, method in methods.items()
        },
        "digits": maker.digits, "pairs": options.pairs,
        "context_length": config.context_length, "prefill_chunk": options.prefill_chunk,
    }  # fmt: skip


# ---- what the flags ask for


def numbers(convert, low, high, what: str):
    """An argparse type: numbers with commas between them, each from low to high, once."""

    def parse(text: str) -> list:
        try:
            found = [convert(part) for part in text.split(",")]
        except ValueError:
            found = []
        if not found or not all(low <= x <= high for x in found):
            raise argparse.ArgumentTypeError(
                f"{shown(text)} is no list of {what}, as 1,2,4 is one"
            )
        return list(dict.fromkeys(found))

    return parse


def swept(text: str) -> tuple[str, list[int]]:
    """An argparse type: k=1,3,5, distance=... or from-layer=..."""
    name, _, values = text.partition("=")
    if name not in SWEEPS:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} names none of {', '.join(SWEEPS)}: write k=1,3,5"
        )
    least = 1 if name == "k" else 0
    return name, numbers(int, least, flags.MOST, f"whole numbers of at least {least}")(values)


def sight(options, config: ModelConfig) -> LMInfinite:
    """The setting of the method lambda."""
    return replace(flags.attention(options, config), top_k=0)


def settings(options, config: ModelConfig, practice: Practice) -> dict[str, Method]:
    """All methods by name, asked for or not, and one for each setting of a sweep."""
    reaching, inside = flags.attention(options, config), config.context_length
    found = {
        "full": Method(LABELS["full"], None),
        "truncate": Truncated(LABELS["truncate"], None, inside, len(practice.bos)),
        "lambda": Method(LABELS["lambda"], sight(options, config)),
        "topk": Method(LABELS["topk"], reaching),
    }
    for name, values in options.sweep:
        if name == "from-layer" and max(values) >= config.n_layer:
            raise ValueError(
                f"--sweep from-layer={max(values)}: the model has the layers 0 to "
                f"{config.n_layer - 1}"
            )
        for value in values:
            swept = replace(reaching, **{SWEEPS[name]: value})
            found[f"{name}={value}"] = Method(LABELS["topk"], swept)
    return found


def lengths(options, config: ModelConfig) -> list[int]:
    """The lengths of the trials in tokens. Raises ValueError for one that is out of range."""
    found = sorted({round(x * config.context_length) for x in options.lengths})
    for length in found:
        if not 1 <= length <= LONGEST:
            raise ValueError(
                f"--lengths asks for {length:,} tokens, of a model that was trained on "
                f"{config.context_length:,}: a trial has 1 to {LONGEST:,}"
            )
    return found


def cells(options, config: ModelConfig) -> list[Cell]:
    """All cells, the shorter ones first."""
    inside = config.context_length
    found = [Cell("full", 0, ALONE), *(Cell("full", inside, d) for d in options.depths)]
    swept = [f"{name}={value}" for name, values in options.sweep for value in values]
    for length in lengths(options, config):
        for method in [*options.methods, *swept]:
            found += [Cell(method, length, depth) for depth in options.depths]
            if method in METHODS:
                found.append(Cell(method, length, ABSENT))
    return list(dict.fromkeys(found))


def filler(options, tokenizer, longest: int) -> np.ndarray:
    """The ids (N,) that texts are filled with."""
    if options.filler == "repeat":
        plain, spaced = (tokenizer.encode(text, bos=False) for text in ("a", " a"))
        space = "" if plain == spaced else " "  # not practice's: so its numbers were made
        once = tokenizer.encode(space + REPEATED, bos=False)
        return np.array(once * (longest // len(once) + 2))
    texts = texts_of(options).values()
    return np.array([id for text in texts for id in tokenizer.encode(text, bos=False)])


# ---- what was found


def result_of(options, run: Run, settings: dict):
    """What was measured, for JSON, for readers, and as a picture."""
    results = Results(
        run, settings["lengths"], options.depths, options.methods,
        settings["context_length"], options.sweep,
    )  # fmt: skip
    title = f"{TITLES[options.kind]}, {Path(options.model).name}"
    result = {"task": options.kind, "settings": settings, "results": results.as_json()}
    words = f"{title}, {options.trials} trials a cell\n\n{results.tables()}"
    draw = partial(heatmap.write, options.heatmap, title, results)
    return result, words, draw if options.heatmap else lambda: None

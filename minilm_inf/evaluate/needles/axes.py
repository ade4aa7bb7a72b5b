"""What the flags of a retrieval run ask for: lengths, depths, methods, settings and cells."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ...config import LMInfinite, ModelConfig
from ...terminal import options as flags
from ...terminal.files import shown
from .cells import ABSENT, ALONE, Cell
from .reading import Method

METHODS = {
    "full": "full attention",
    "truncate": "truncation",
    "lambda": "LM-Infinite",
    "topk": "LM-Infinite + top-k",
}
TOP_K = 5  # the paper's
LONGEST = 2**24  # tokens of a trial
MOST_TRIALS = 10**6
SWEEPS = {"k": "top_k", "distance": "top_k_distance", "from-layer": "top_k_from_layer"}


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


def sweep(text: str) -> tuple[str, list[int]]:
    """An argparse type: k=1,3,5, distance=... or from-layer=..."""
    name, _, values = text.partition("=")
    if name not in SWEEPS:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} names none of {', '.join(SWEEPS)}: write k=1,3,5"
        )
    least = 1 if name == "k" else 0
    return name, numbers(int, least, flags.MOST, f"whole numbers of at least {least}")(values)


def add_axes(task):
    """The flags of what is asked, and how often."""
    group = task.add_argument_group("what is asked")
    lengths = group.add_mutually_exclusive_group()
    lengths.add_argument("--lengths", type=numbers(float, 1e-9, 1e9, "positive numbers"),
                         default=[1, 2, 4, 8], metavar="X,X",
                         help="tokens of a trial, BOS, question and answer among them, as "
                         "multiples of context_length (1,2,4,8)")  # fmt: skip
    lengths.add_argument("--length-tokens", type=numbers(int, 1, LONGEST, "lengths"),
                         metavar="N,N", help="the same in tokens")  # fmt: skip
    group.add_argument("--depths", type=numbers(float, 0, 1, "numbers from 0 to 1"),
                       default=[i / 10 for i in range(11)], metavar="X,X",
                       help="shares of the filler before what is asked for "
                       "(0,0.1,...,1)")  # fmt: skip
    group.add_argument("--trials", type=flags.at_least(1, MOST_TRIALS), default=20, metavar="N",
                       help="per length, depth and method (%(default)s)")  # fmt: skip
    group.add_argument("--seed", type=flags.seed, default=0, metavar="N",
                       help="of all texts, which are the same for every method "
                       "(%(default)s)")  # fmt: skip
    group.add_argument("--filler", choices=("text", "repeat"), default="text",
                       help="ordinary text, or the paper's sentences over and over "
                       "(%(default)s)")  # fmt: skip
    one = group.add_mutually_exclusive_group()
    one.add_argument("--corpus", type=Path, default=Path("corpus"), metavar="FOLDER",
                     help="filler: held-out documents of minilm_inf.corpus "
                     "(%(default)s)")  # fmt: skip
    one.add_argument("--text", type=Path, nargs="+", metavar="FILE",
                     help="filler: your own UTF-8 files")  # fmt: skip


def add_methods(task):
    """The flags of who is asked."""
    group = task.add_argument_group("who is asked")
    group.add_argument("--methods", type=flags.some_of(METHODS), default=list(METHODS),
                       metavar="NAME,NAME",
                       help=f"of {', '.join(METHODS)} (all); topk takes --top-k-middle "
                       f"{TOP_K} unless told")  # fmt: skip
    group.add_argument("--full-up-to", type=flags.at_least(1), metavar="X",
                       help="the largest multiple of context_length that full attention reads, "
                       "since that is O(n^2) (all)")  # fmt: skip
    group.add_argument("--sweep", type=sweep, nargs="+", default=[], metavar="NAME=N,N",
                       help="topk once more with each of these k, distance or "
                       "from-layer, a table each")  # fmt: skip
    group.add_argument("--prefill-chunk", type=flags.at_least(1), default=512, metavar="N",
                       help="tokens of a row read at a time (%(default)s)")  # fmt: skip
    group.add_argument("--rows", type=flags.at_least(1), metavar="N",
                       help="trials read side by side (as memory allows)")  # fmt: skip
    flags.add_model(task)
    flags.add_sight(task)


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


def sight(options, config: ModelConfig) -> LMInfinite:
    """The setting of the method lambda."""
    return replace(flags.attention(options, config), top_k=0)


def settings(options, config: ModelConfig, n_bos: int) -> dict[str, Method]:
    """All methods by name, asked for or not, and one for each setting of a sweep.

    n_bos: ids that every trial begins with, which truncation keeps: BOS, or none.
    """
    alone, reaching = sight(options, config), flags.attention(options, config)
    found = {
        "full": Method(None), "truncate": Method(None, config.context_length, n_bos),
        "lambda": Method(alone), "topk": Method(reaching),
    }  # fmt: skip
    for name, values in options.sweep:
        if name == "from-layer" and max(values) >= config.n_layer:
            raise ValueError(
                f"--sweep from-layer={max(values)}: the model has the layers 0 to "
                f"{config.n_layer - 1}"
            )
        for value in values:
            found[f"{name}={value}"] = Method(replace(reaching, **{SWEEPS[name]: value}))
    return found


def lengths(options, config: ModelConfig) -> list[int]:
    """The lengths of the trials in tokens. Raises ValueError for one that is out of range."""
    if options.length_tokens:
        return sorted(options.length_tokens)
    found = sorted({round(x * config.context_length) for x in options.lengths})
    for length in found:
        if not 1 <= length <= LONGEST:
            raise ValueError(
                f"--lengths asks for {length:,} tokens, of a model that was trained on "
                f"{config.context_length:,}: a trial has 1 to {LONGEST:,}"
            )
    return found


def cells(options, config: ModelConfig) -> tuple[list[Cell], list[tuple[str, int]]]:
    """All cells, the shorter ones first, and what is left out: (method, length)."""
    inside = config.context_length
    most = (options.full_up_to or 2**40) * inside
    found = [Cell("full", 0, ALONE), *(Cell("full", inside, d) for d in options.depths)]
    left_out = []
    swept = [f"{name}={value}" for name, values in options.sweep for value in values]
    for length in lengths(options, config):
        for method in [*options.methods, *swept]:
            if method == "full" and length > most:
                left_out.append((method, length))
                continue
            found += [Cell(method, length, depth) for depth in options.depths]
            if method in METHODS:
                found.append(Cell(method, length, ABSENT))
    return list(dict.fromkeys(found)), left_out

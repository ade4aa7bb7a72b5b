"""What the programs share: flags for model and attention."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import sys
from pathlib import Path

import torch

from ..config import LMInfinite, ModelConfig
from .blocks import KINDS
from .files import named, shown

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = PACKAGE / "tiny_llama"  # where pip puts the model; a clone has it in weights/
SHIPPED = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent / "weights" / "tiny-llama"
NAMES = "float32", "float64", "bfloat16", "float16", "int8"
DTYPES = {"auto": None} | {name: getattr(torch, name) for name in NAMES}
MOST = 2**40  # tokens, keys, trials: more than any machine can count or hold


class Parser(argparse.ArgumentParser):
    """A parser whose help tells defaults by that name, and whose errors take two lines: where
    help is, and what is wrong, in no more than 250 characters."""

    def _get_formatter(self):
        return Help(prog=self.prog)

    def error(self, message: str):
        message = " ".join(message.split())
        message = message if len(message) <= 250 else message[:200] + "..."
        usage = f"usage: {self.prog} ...; --help lists its flags"
        self.exit(2, f"{usage}\n{self.prog}: error: {message}\n")

    def parse_known_args(self, args=None, namespace=None):
        for word in sys.argv[1:] if args is None else args:
            # argparse drops such a value, and hands on an empty list.
            if word.startswith("-") and word.endswith("=--"):
                self.error(f"argument {word[:-3]}: expected one argument")
        return super().parse_known_args(args, namespace)


class Help(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written, and "default: 256" for a flag's "(%(default)s"."""

    def _get_help_string(self, action):
        return action.help.replace("(%(default)s", "(default: %(default)s")


def between(low, high, kind=float):
    """An argparse type: a number from `low` to `high`, of a kind, float or int."""

    def number(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            whole = "whole " * (kind is int)
            raise argparse.ArgumentTypeError(
                f"{shown(text)} is not a {whole}number from {low} to {high}"
            )
        return value

    return number


def at_least(least: int, most: int = MOST):
    """An argparse type: a whole number from `least` to `most`."""
    return between(least, most, int)


seed = at_least(0, 2**63 - 1)
threads = at_least(1, max(256, os.cpu_count() or 1))


def add_counts(group, *rows):
    """Flags that take whole numbers: names, least, default, words, and most, where there is."""
    for names, least, default, words, *most in rows:
        whole = dict(type=at_least(least, *most), default=default, metavar="N", help=words)
        group.add_argument(*names.split(), **whole)


def add_model(parser: argparse.ArgumentParser):
    add = parser.add_argument_group("model").add_argument
    add("-m", "--model", type=Path, default=SHIPPED, metavar="FOLDER",
        help="a checkpoint with its tokenizer (%(default)s)")  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, ...; auto: CUDA, if any (%(default)s)")
    add("--dtype", choices=DTYPES, default="auto",
        help="auto: as stored, but float32 on the CPU; int8: weights rounded to eight bits, a "
        "quarter of float32's memory (%(default)s)")  # fmt: skip
    add("--threads", type=threads, metavar="N",
        help="CPU threads (default: PyTorch's own choice)")  # fmt: skip


def add_sight(parser: argparse.ArgumentParser, queries: str = "last"):
    """The flags of what a token sees. queries: which tokens reach back with --top-k-middle, a
    prompt's last and all that are written ("last"), or every one ("all")."""
    group = parser.add_argument_group("attention")
    group.add_argument("--attention", choices=("lambda", "full"), default="lambda",
                       help="LM-Infinite, or vanilla (%(default)s)")  # fmt: skip
    add_counts(
        group,
        ("--n-local", 1, None, "keys of the window (default: the model's context length)"),
        ("--n-global", 0, None, "starting tokens that are always seen (default: 10)"),
        ("--distance-ceiling", 0, None, "the largest distance of any key (default: as many as "
         "the window's keys)"),
        ("--top-k-middle", 0, 0, "how many tokens that have left the window come back in each "
         "head; the whole text is then kept (%(default)s)"),
        ("--top-k-distance", 0, None, "how far away these seem (default: half the window)"),
        ("--top-k-from-layer", 0, None, "the first layer, from 0, in which they come back "
         "(default: an eighth of the layers)"),
    )  # fmt: skip
    group.add_argument("--middle", choices=KINDS,
                       help="where --top-k-middle keeps the text: in memory, or in a file in "
                       "the folder that TMPDIR names (default: ram)")  # fmt: skip
    parser.set_defaults(top_k_queries=queries)


def check_attention(options):
    """Raise ValueError for flags that contradict --attention."""
    is_full, reaches = options.attention == "full", options.top_k_middle
    for name, wrong, why in (
        ("n-local", is_full, "with --attention full"),
        ("n-global", is_full, "with --attention full"),
        ("top-k-middle", is_full and reaches, "with --attention full"),
        ("top-k-distance", not reaches, "without --top-k-middle"),
        ("top-k-from-layer", not reaches, "without --top-k-middle"),
        ("middle", not reaches, "without --top-k-middle"),
    ):
        if wrong and getattr(options, name.replace("-", "_")) is not None:
            raise ValueError(f"--{name} has no meaning {why}")


def attention(options, config: ModelConfig) -> LMInfinite | None:
    """The setting that the flags describe; None is the vanilla model."""
    top = options.distance_ceiling
    if options.attention == "full":
        return None if top is None else LMInfinite(None, 0, top)
    n_local = options.n_local or config.context_length
    n_global = 10 if options.n_global is None else options.n_global
    top = n_local if top is None else top
    if not options.top_k_middle:
        return LMInfinite(n_local, n_global, top)
    first = options.top_k_from_layer
    first = config.n_layer // 8 if first is None else first  # the paper's 4 of 32
    if first >= config.n_layer:
        raise ValueError(
            f"--top-k-from-layer {first} is beyond the model's {config.n_layer} layers, which "
            f"are counted from 0: give at most {config.n_layer - 1}"
        )
    back = options.top_k_middle, options.top_k_distance, first, options.top_k_queries
    return LMInfinite(n_local, n_global, top, *back)


def device(name: str) -> torch.device:
    """The torch device of --device. Raises ValueError for one that is unknown or not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
        torch.empty(1, device=found).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {named(name)} cannot be used here: try cpu") from error
    return found


def can_draw() -> bool:
    """Whether there is something to draw with."""
    return importlib.util.find_spec("matplotlib") is not None


def load(options):
    """The model and tokenizer that the flags name."""
    from .. import load

    if options.threads:
        torch.set_num_threads(options.threads)
    return load(options.model, device(options.device), DTYPES[options.dtype])

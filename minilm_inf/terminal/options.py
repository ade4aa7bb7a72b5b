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
DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and echo no more than 200 characters."""

    def error(self, message: str):
        message = " ".join(message.split())
        super().error(message if len(message) <= 250 else message[:200] + "...")

    def parse_known_args(self, args=None, namespace=None):
        for word in sys.argv[1:] if args is None else args:
            # argparse drops such a value, and hands on an empty list.
            if word.startswith("-") and word.endswith("=--"):
                self.error(f"argument {word[:-3]}: expected one argument")
        return super().parse_known_args(args, namespace)


MOST = 2**40  # tokens, keys, trials: more than any machine can count or hold
THREADS = max(256, os.cpu_count() or 1)


def at_least(least: int, most: int = MOST):
    """An argparse type: a whole number from `least` to `most`."""

    def whole_number(text: str) -> int:
        try:
            value = int(text) if len(text) < 100 else most + 1
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"{shown(text)} is not a whole number of at least {least} and at most {most}"
            )
        return value

    return whole_number


seed = at_least(0, 2**63 - 1)
threads = at_least(1, THREADS)


def between(low: float, high: float):
    """An argparse type: a number from `low` to `high`."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{shown(text)} is not a number from {low:g} to {high:g}"
            )
        return value

    return number


def ceiling(text: str) -> int | str:
    """An argparse type: a whole number of at least 0, or none."""
    return text if text == "none" else at_least(0)(text)


def add_model(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", type=Path, default=SHIPPED, metavar="FOLDER",
                       help="a checkpoint with its tokenizer (%(default)s)")  # fmt: skip
    group.add_argument(
        "--device", default="auto", help="cpu, cuda, ... (%(default)s: CUDA where there is one)"
    )
    group.add_argument("--dtype", choices=DTYPES, default="auto",
                       help="(%(default)s: as stored, but float32 on the CPU)")  # fmt: skip
    group.add_argument("--threads", type=threads, metavar="N",
                       help="CPU threads (PyTorch's own choice)")  # fmt: skip


def add_sight(parser: argparse.ArgumentParser, queries: str = "last"):
    """The flags of what a token sees. queries: the default of --top-k-queries."""
    group = parser.add_argument_group("attention")
    group.add_argument("--attention", choices=("lambda", "full", "window"), default="lambda",
                       help="LM-Infinite, vanilla, or a window (%(default)s)")  # fmt: skip
    group.add_argument("--n-local", type=at_least(1), metavar="N",
                       help="keys of the window (the model's context length)")  # fmt: skip
    group.add_argument("--n-global", type=at_least(0), metavar="N",
                       help="starting tokens that are always seen (10)")  # fmt: skip
    group.add_argument("--distance-ceiling", type=ceiling, metavar="N|none",
                       help="the largest distance of any key (the window's size)")  # fmt: skip
    group.add_argument("--top-k-middle", type=at_least(0), default=0, metavar="K",
                       help="how many tokens that the window has left come back in each head; "
                       "all of the text is then kept (%(default)s: none)")  # fmt: skip
    group.add_argument("--top-k-distance", type=at_least(0), metavar="N",
                       help="how far away these seem (half the window)")  # fmt: skip
    group.add_argument("--top-k-from-layer", type=at_least(0), metavar="N",
                       help="the first layer, from 0, in which they come back (an eighth of "
                       "the layers)")  # fmt: skip
    group.add_argument("--top-k-queries", choices=("last", "all"), default=queries,
                       help="who reaches back: a prompt's last token and all that are written, "
                       "or every token (%(default)s)")  # fmt: skip
    group.add_argument("--middle", choices=KINDS,
                       help="where --top-k-middle keeps the text: in memory, or in a file in "
                       "the folder for temporary files, which TMPDIR names (ram)")  # fmt: skip
    return group


def add_attention(parser: argparse.ArgumentParser):
    """The flags of what a token sees, and of how a text is read."""
    group = add_sight(parser)
    group.add_argument("--path", choices=("chunked", "reference"), default="chunked",
                       help="in O(n), or by the slow definition (%(default)s)")  # fmt: skip
    group.add_argument("--prefill-chunk", type=at_least(1), default=512, metavar="N",
                       help="tokens read at a time (%(default)s)")  # fmt: skip


def some_of(known):
    """An argparse type: names of `known`, with commas between them."""

    def names(text: str) -> list[str]:
        found = list(dict.fromkeys(text.split(",")))
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return found

    return names


def add_saving(group):
    """The flags of a long run that can be interrupted, and go on."""
    group.add_argument("--out", type=Path, metavar="RUN.json",
                       help="write it there, and while it runs a state beside it; without "
                       "--out nothing is saved, and an interrupted run is lost")  # fmt: skip
    group.add_argument("--save-every", type=at_least(0), default=60, metavar="SECONDS",
                       help="how often the state is saved (%(default)s)")  # fmt: skip
    group.add_argument("--resume", type=Path, metavar="RUN.json",
                       help="go on with an interrupted run; takes no other flag")  # fmt: skip


def inputs(options) -> list[Path]:
    """The files and folders that a run's flags have it read, which it must not write to."""
    tokens = getattr(options, "tokens", None)
    texts = options.text or [tokens or options.corpus]
    return [options.model, *texts]


def add_plan(group):
    """The flag that asks what a run takes."""
    group.add_argument("--plan", action="store_true",
                       help="print the memory and the arithmetic that this would take, and run "
                       "nothing")  # fmt: skip


def check_attention(options):
    """Raise ValueError for flags that contradict --attention."""
    kind, reaches = options.attention, options.top_k_middle
    for name, wrong, why in (
        ("n-local", kind == "full", f"with --attention {kind}"),
        ("n-global", kind != "lambda", f"with --attention {kind}"),
        ("top-k-distance", not reaches, "without --top-k-middle"),
        ("top-k-from-layer", not reaches, "without --top-k-middle"),
        ("middle", not reaches, "without --top-k-middle"),
    ):
        if wrong and getattr(options, name.replace("-", "_")) is not None:
            raise ValueError(f"--{name} has no meaning {why}")
    if kind == "full" and reaches:
        raise ValueError("--top-k-middle has no meaning with --attention full: all is seen")


def attention(options, config: ModelConfig) -> LMInfinite | None:
    """The setting that the flags describe; None is the vanilla model."""
    n_local = config.context_length if options.n_local is None else options.n_local
    n_global = 10 if options.n_global is None else options.n_global
    if options.attention == "full":
        n_local, n_global = None, 0
    if options.attention == "window":
        n_global = 0
    top = n_local if options.distance_ceiling is None else options.distance_ceiling
    top = None if top == "none" else top
    if n_local is None and top is None:
        return None
    if not options.top_k_middle:
        return LMInfinite(n_local, n_global, top)
    first = options.top_k_from_layer
    first = config.n_layer // 8 if first is None else first  # the paper's 4 of 32
    if first >= config.n_layer:
        raise ValueError(
            f"--top-k-from-layer {first} is beyond the model's {config.n_layer} layers, which "
            f"are counted from 0: give at most {config.n_layer - 1}"
        )
    return LMInfinite(
        n_local, n_global, top, options.top_k_middle, options.top_k_distance, first,
        options.top_k_queries,
    )  # fmt: skip


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


def check_drawing(options, *names: str):
    """Raise ValueError where one of these flags asks for a picture, and nothing can draw it."""
    for name in names:
        if getattr(options, name) and not can_draw():
            raise ValueError(
                f"--{name} draws with matplotlib: install it, or leave out --{name}"
            )


def load(options):
    """The model and tokenizer that the flags name."""
    from .. import load

    if options.threads:
        torch.set_num_threads(options.threads)
    return load(options.model, device(options.device), DTYPES[options.dtype])

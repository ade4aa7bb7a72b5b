"""What LM-Infinite costs on this machine: one table, of attention, of reading and of decoding.

    python -m minilm_inf.benchmark             # everything, about ten minutes on two cores
    python -m minilm_inf.benchmark --quick     # smaller sizes, under a minute
    python -m minilm_inf.benchmark --only attention --lengths 16384

All rows are measured in one run, and those that are compared take turns in it, so that the
ratios hold even where the times are another machine's. What cannot run here says why. Progress
goes to stderr. For the rows of transformers and of FlexAttention on a CPU, that package and a
C++ compiler must be there; nothing else needs them.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from ..checkpoint.checkpoint import load_model
from ..terminal import options as flags
from ..terminal.ending import guarded
from ..writing.sampling import require_numbers
from .attention import attention_rows
from .models import CHUNK, decoding_rows, prefill_rows, random_ids
from .race import Row
from .table import table

PARTS = ("attention", "prefill", "decoding")


@dataclass(frozen=True)
class Sizes:
    """How large everything is. quick: whether compiled decoding is left out."""

    lengths: tuple[int, ...] = (4096, 16_384, 65_536)  # tokens of attention alone
    heads: int = 8
    head_dim: int = 128
    n_local: int = 2048  # of attention alone; a model's is its context length
    n_global: int = 16
    tokens: tuple[int, ...] = (16_384, 262_144)  # that a model reads
    contexts: tuple[int, ...] = (256, 16_384)  # tokens read before decoding
    positions: tuple[int, ...] = (1000, 1_000_000)  # where decoding is timed
    steps: int = 60  # tokens of a round of decoding
    rounds: int = 5
    decoding_rounds: int = 7
    quick: bool = False


FULL = Sizes()
QUICK = Sizes((1024, 4096), 1, tokens=(2048, 8192), contexts=(256, 4096), steps=20, quick=True)


def main(arguments: list[str] | None = None) -> int:
    line = flags.Parser(prog="python -m minilm_inf.benchmark", description=__doc__)
    line.add_argument("--quick", action="store_true",
                      help="smaller sizes; under a minute on two cores")  # fmt: skip
    line.add_argument("--only", choices=PARTS, help="one part of the table")
    line.add_argument("--lengths", type=flags.at_least(1, 2**20), nargs="+", metavar="N",
                      help="tokens of attention alone (default: 4096 16384 65536)")  # fmt: skip
    flags.add_model(line)
    options = line.parse_args(arguments)
    return guarded(lambda: run(options), "--lengths")


def run(options) -> int:
    if options.threads:
        torch.set_num_threads(options.threads)
    sizes = QUICK if options.quick else FULL
    sizes = replace(sizes, lengths=tuple(options.lengths or sizes.lengths))
    device, dtype = flags.device(options.device), flags.DTYPES[options.dtype]
    parts = [options.only] if options.only else PARTS
    model = None if parts == ["attention"] else load_model(options.model, device, dtype)
    if model is not None:
        require_numbers(model(random_ids(model, 8)))
    facts = facts_of(device, model, options, sizes)
    report = partial(print, file=sys.stderr, flush=True)
    rows: list[Row] = []
    try:
        if "attention" in parts:
            rows += attention_rows(sizes, device, dtype or torch.float32, report)
        if "prefill" in parts:
            rows += prefill_rows(model, sizes, report)
        if "decoding" in parts:
            rows += decoding_rows(model, options.model, sizes, report)
    finally:  # what was measured is not lost with what was not
        if rows:
            print(table(facts, rows), flush=True)
    return 0


def facts_of(device: torch.device, model, options, sizes: Sizes) -> dict:
    """What must be known of a run to compare it with another."""
    rounds = f"{sizes.rounds}, decoding {sizes.decoding_rounds} of {sizes.steps} tokens"
    facts = {
        "PyTorch": torch.__version__, "device": device_name(device),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} CPUs",
        "rounds": rounds + ", --quick" * options.quick,
    }  # fmt: skip
    if options.only in (None, "attention"):
        facts["attention"] = (
            f"B 1, H {sizes.heads}, D {sizes.head_dim}, n_local {sizes.n_local}, n_global "
            f"{sizes.n_global}, {str(flags.DTYPES[options.dtype] or torch.float32)[6:]}"
        )
    if model is not None:
        config, dtype = model.config, str(model.embed.weight.dtype)[6:]  # after "torch."
        facts["model"] = (
            f"{options.model.name}, {config.n_layer} layers, H {config.n_head}, D "
            f"{config.head_dim}, n_local {config.context_length}, n_global 10, {dtype}, read "
            f"in chunks of {CHUNK}"
        )
    return facts


def device_name(device: torch.device) -> str:
    """The processor's own name, where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    known = Path("/proc/cpuinfo")
    text = known.read_text(encoding="utf-8", errors="replace") if known.exists() else ""
    names = re.findall(r"^model name\s*: *(.+)$", text, re.MULTILINE)
    return names[0] if names else platform.machine() or "CPU"


if __name__ == "__main__":
    sys.exit(main())

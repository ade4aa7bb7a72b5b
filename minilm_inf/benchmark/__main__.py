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

import argparse
import dataclasses
import functools
import json
import os
import platform
import re
import sys
from pathlib import Path

import torch

from ..checkpoint.checkpoint import load_model
from ..terminal import options as flags
from ..terminal.ending import guarded
from ..terminal.progress import available_memory, scaled
from ..writing.sampling import require_numbers
from .attention import Shape, attention_rows
from .memory import memory_of
from .models import decoding_rows, prefill_rows, random_ids
from .race import Row, as_dicts
from .sizes import FULL, QUICK, Sizes
from .table import table

PARTS = ("attention", "prefill", "decoding")
FLAGS = [size for size in dataclasses.fields(Sizes) if size.metadata]


def main(arguments: list[str] | None = None) -> int:
    line = flags.Parser(prog="python -m minilm_inf.benchmark", description=__doc__)
    line.formatter_class = argparse.RawDescriptionHelpFormatter
    line.add_argument("--quick", action="store_true",
                      help="smaller sizes; under a minute on two cores")  # fmt: skip
    line.add_argument("--only", choices=PARTS, help="one part of the table")
    line.add_argument("--json", action="store_true",
                      help="print one JSON object, with the times of every round")  # fmt: skip
    flags.add_model(line)
    group = line.add_argument_group("sizes (the defaults: of the full run)")
    for size in FLAGS:
        default = getattr(FULL, size.name)
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        group.add_argument(
            f"--{size.name.replace('_', '-')}", metavar="N",
            nargs="+" if isinstance(default, tuple) else None,
            type=flags.at_least(size.metadata["least"], size.metadata["most"]),
            help=f"{size.metadata['words']} ({shown})",
        )  # fmt: skip
    options = line.parse_args(arguments)
    try:
        sizes = sizes_of(options)
    except ValueError as error:
        line.error(str(error))
    smaller = "--lengths, --tokens or --contexts"
    return guarded(lambda: run(options, sizes), smaller)


def sizes_of(options) -> Sizes:
    """The sizes that the flags ask for. Raises ValueError for those that make no sense."""
    given = {}
    for size in FLAGS:
        value = getattr(options, size.name)
        if value is not None:
            given[size.name] = tuple(sorted(set(value))) if isinstance(value, list) else value
    if options.rounds is not None:
        given["decoding_rounds"] = options.rounds
    sizes = dataclasses.replace(QUICK if options.quick else FULL, **given)
    if sizes.head_dim % 2:
        raise ValueError(f"--head-dim must be even, as RoPE turns pairs, not {sizes.head_dim}")
    if 0 < sizes.endurance < 100:
        raise ValueError("--endurance must be 0, or at least 100, to have an early and a late "
                         "part")  # fmt: skip
    return sizes


def run(options, sizes: Sizes) -> int:
    if options.threads:
        torch.set_num_threads(options.threads)
    device, dtype = flags.device(options.device), flags.DTYPES[options.dtype]
    shape = Shape(
        sizes.heads, sizes.head_dim, sizes.n_local, sizes.n_global,
        str(dtype or torch.float32).removeprefix("torch."), str(device),
    )  # fmt: skip
    parts = [options.only] if options.only else PARTS
    if "attention" in parts:
        check_room(sizes, shape)
    model = None if parts == ["attention"] else load_model(options.model, device, dtype)
    if model is not None:
        require_numbers(model(random_ids(model, 8)))
    facts = facts_of(device, shape, model, options, sizes)
    report = functools.partial(print, file=sys.stderr, flush=True)
    rows: list[Row] = []
    try:
        if "attention" in parts:
            rows += attention_rows(sizes, shape, memory_of, report)
        if "prefill" in parts:
            rows += prefill_rows(model, sizes, report)
        if "decoding" in parts:
            rows += decoding_rows(model, options.model, sizes, report)
    finally:  # what was measured is not lost with what was not
        if rows and options.json:
            found = {"facts": facts, "sizes": dataclasses.asdict(sizes), "rows": as_dicts(rows)}
            print(json.dumps(found), flush=True)
        elif rows:
            print(table(facts, as_dicts(rows)), flush=True)
    return 0


def check_room(sizes: Sizes, shape: Shape):
    """Raise ValueError where q, k and v, and the first two placed twice, do not fit."""
    itemsize = getattr(torch, shape.dtype).itemsize
    needed = 7 * max(sizes.lengths) * shape.heads * shape.head_dim * itemsize
    available = available_memory() if shape.device == "cpu" else None
    if available is not None and needed > available:
        raise ValueError(
            f"--lengths, --heads and --head-dim ask for vectors of {scaled(needed)}, and "
            f"{scaled(available)} of memory is available: take smaller ones"
        )


def facts_of(device: torch.device, shape: Shape, model, options, sizes: Sizes) -> dict:
    """What must be known of a run to compare it with another."""
    rounds = f"{sizes.rounds}, decoding {sizes.decoding_rounds} of {sizes.steps} tokens"
    facts = {
        "PyTorch": torch.__version__,
        "device": device_name(device),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} CPUs",
        "rounds": rounds + ", --quick" * options.quick,
    }
    if options.only in (None, "attention"):
        facts["attention"] = (
            f"B 1, H {shape.heads}, D {shape.head_dim}, n_local {shape.n_local}, n_global "
            f"{shape.n_global}, {shape.dtype}"
        )
    if model is not None:
        config = model.config
        facts["model"] = (
            f"{options.model.name}, {config.n_layer} layers, H {config.n_head}, D "
            f"{config.head_dim}, n_local {config.context_length}, n_global 10, "
            f"{str(model.embed.weight.dtype).removeprefix('torch.')}, read in chunks of "
            f"{sizes.prefill_chunk}"
        )
    return facts


def device_name(device: torch.device) -> str:
    """The processor's own name, where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        return re.search(r"^model name\s*: *(.+)$", text, re.MULTILINE)[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine() or "CPU"


if __name__ == "__main__":
    sys.exit(main())

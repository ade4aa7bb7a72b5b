"""What LM-Infinite costs on this machine: one table, of attention, of reading and of decoding.

    python -m minilm_inf.benchmark             # everything, about ten minutes on two cores
    python -m minilm_inf.benchmark --quick     # smaller sizes, under a minute
    python -m minilm_inf.benchmark --only attention --lengths 16384
    python -m minilm_inf.benchmark --only shares    # one process against two, by torchrun

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
from pathlib import Path

import torch

from ..checkpoint.checkpoint import dtype_name, load_model
from ..terminal import options as flags
from ..terminal.ending import guarded
from ..writing.sampling import require_numbers
from .attention import attention_rows
from .models import CHUNK, decoding_rows, prefill_rows, random_ids, share_rows
from .race import Row

PARTS = ("attention", "prefill", "decoding")
HEADINGS = ["", "n", "time", "rate", "time / base", "rate / base", "extra memory"]
LEGEND = (
    "Times are medians of rounds in which all rows of a group and an n took turns. Base: the "
    "first.\nThe rate of attention is of useful work: 4 x D x H operations for each pair that "
    "is seen.\nExtra memory: of one call of attention, beyond inputs and output; or the cache."
)


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

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
    compiled: bool = True  # 20 seconds, once


FULL = Sizes()
QUICK = Sizes(
    (1024, 4096), 1, tokens=(2048, 8192), contexts=(256, 4096), steps=20, compiled=False
)


def main(arguments: list[str] | None = None) -> int:
    line = flags.Parser(prog="python -m minilm_inf.benchmark", description=__doc__)
    line.add_argument("--quick", action="store_true",
                      help="smaller sizes; under a minute on two cores")  # fmt: skip
    line.add_argument("--only", choices=(*PARTS, "shares"), help="one part of the table")
    line.add_argument("--lengths", type=flags.at_least(1, 2**20), nargs="+", metavar="N",
                      help="tokens of attention alone (default: 4096 16384 65536); with --only "
                      "decoding, tokens read before it (default: 256 16384)")  # fmt: skip
    flags.add_model(line)
    options = line.parse_args(arguments)
    return guarded(lambda: run(options), "--lengths")


def run(options) -> int:
    if options.threads:
        torch.set_num_threads(options.threads)
    sizes = QUICK if options.quick else FULL
    if options.lengths:
        what = "contexts" if options.only == "decoding" else "lengths"
        sizes = replace(sizes, **{what: tuple(options.lengths)})
    device, dtype = flags.device(options.device), flags.DTYPES[options.dtype]
    of_vectors = dtype if dtype and dtype.is_floating_point else torch.float32
    parts = [options.only] if options.only else PARTS
    model = None if parts == ["attention"] else load_model(options.model, device, dtype)
    if model is not None:
        require_numbers(model(torch.tensor([random_ids(model, 8)], device=device)))
    facts = facts_of(device, model, options, sizes)
    rows: list[Row] = []
    try:
        if "attention" in parts:
            rows += attention_rows(sizes, device, of_vectors)
        if "prefill" in parts:
            rows += prefill_rows(model, sizes)
        if "decoding" in parts:
            rows += decoding_rows(model, options.model, sizes)
        if "shares" in parts:
            rows += share_rows(options.model, sizes)
    finally:  # what was measured is not lost with what was not
        if rows:
            print(table(facts, rows), flush=True)
    return 0


# ---- the table


def facts_of(device: torch.device, model, options, sizes: Sizes) -> dict:
    """What must be known of a run to compare it with another."""
    rounds = f"{sizes.rounds}, decoding {sizes.decoding_rounds} of {sizes.steps} tokens"
    facts = {
        "PyTorch": torch.__version__, "device": device_name(device),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} CPUs",
        "rounds": rounds + ", --quick" * options.quick,
    }  # fmt: skip
    if options.only in (None, "attention"):
        dtype = str(flags.DTYPES[options.dtype] or torch.float32)[6:]  # after "torch."
        facts["attention"] = (
            f"B 1, H {sizes.heads}, D {sizes.head_dim}, n_local {sizes.n_local}, n_global "
            f"{sizes.n_global}, {dtype}"
        )
    if model is not None:
        config, dtype = model.config, dtype_name(model)
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
    name = re.search(r"^model name\s*: *(.+)$", text, re.MULTILINE)
    return name[1] if name else platform.machine()


def table(facts: dict, rows: list[Row]) -> str:
    """Header, table, footnotes and legend: plain text that is Markdown too. facts: of the run,
    by name."""
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    lines = [HEADINGS] + [cells(row, notes) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]])
    text = [" ".join([f"{name}: {value}." for name, value in facts.items()]), ""]
    for name, *values in lines:
        aligned = [name.ljust(widths[0]), *map(str.rjust, values, widths[1:])]
        text.append(f"| {' | '.join(aligned)} |")
    text += ["", *(f"[{number}] {note}." for number, note in enumerate(notes, 1))]
    spread = max([1, *(max(row.seconds) / min(row.seconds) for row in rows if row.seconds)])
    slowest = (
        f"The slowest round of a row took up to {spread:.2f} times as long as its fastest."
    )
    return "\n".join([*text, slowest, "", LEGEND])


def cells(row: Row, notes: list[str]) -> list[str]:
    """A row's cells, with the number of its note."""
    name = f"{row.name} [{notes.index(row.note) + 1}]" if row.note else row.name
    if not row.seconds:
        return [name, f"{row.n:,}", *"-----"]
    one, ratios = row.median / row.steps, ["-", "-"]
    rate = f"{row.rate:,.0f} tokens/s"
    if row.unit == "FLOP":
        rate = f"{row.rate / 1e9:,.1f} GFLOP/s"
    if row.base.seconds:
        both = row.median / row.base.median, row.rate / row.base.rate
        ratios = [f"{x:.2f}" if x >= 0.1 else f"{x:.2g}" for x in both]
    memory = "-" if row.extra_bytes is None else f"{row.extra_bytes / 2**20:,.1f} MiB"
    time = f"{one:.2f} s" if one >= 1 else f"{one * 1e3:.2f} ms"
    return [name, f"{row.n:,}", time, rate, *ratios, memory]


if __name__ == "__main__":
    sys.exit(main())

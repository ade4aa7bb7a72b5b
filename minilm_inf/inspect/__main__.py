"""Look into a checkpoint's folder: what it holds, where it goes, how much memory it takes.

    python -m minilm_inf.inspect FOLDER

reads config.json, the tokenizer and the headers of the weights, not the weights, so a folder of
any size takes a second. It ends with the sentence, and the exit code 1, with which load_model
would refuse the folder; only whether a tied head that is stored too is the embedding is left.

    python -m minilm_inf.inspect FOLDER --probe

loads the model instead and asks whether another reading of the same numbers would suit it
better.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ..terminal import options as flags
from ..terminal.ending import guarded
from ..terminal.progress import scaled
from .folder_facts import Found, look, memory_rows, summary, tensor_rows
from .probe import SOURCE, Reading, probe, suspicion


def report(found: Found) -> str:
    """A folder's facts as aligned text."""
    parts = [f"{found.folder}\n{aligned(summary(found))}"]
    if found.model:
        dtype = str(found.dtype).removeprefix("torch.")
        weights = scaled(found.parameters * found.dtype.itemsize)
        parts += [
            f"cache of one text in {dtype}, beside {weights} of weights\n"
            + aligned(memory_rows(found), right=True),
            "tensors\n" + aligned(tensor_rows(found)),
        ]
    return "\n\n".join(part.rstrip() for part in parts)


def aligned(rows: list[list[str]], right: bool = False) -> str:
    """Rows of cells as lines, each indented; right: numbers, after their name."""
    first, *widths = [max(map(len, column)) for column in zip(*rows)]
    side, lines = str.rjust if right else str.ljust, []
    for name, *cells in rows:
        padded = [side(cell, width) for cell, width in zip(cells, widths)]
        lines.append("  ".join(["", name.ljust(first), *padded]).rstrip())
    return "\n".join(lines)


def probe_table(readings: list[Reading]) -> str:
    """The nll of each reading, and what it costs against the layout as read."""
    rows = [["", "nll", ""]]
    for what, nll in readings:
        more = f"{nll - readings[0].nll:+.2f}" if len(rows) > 1 else ""
        rows.append([what, f"{nll:.2f}", more])
    return f"probe: {SOURCE}, nats per token\n{aligned(rows, right=True)}"


def main(arguments: list[str] | None = None) -> int:
    line = flags.Parser(prog="python -m minilm_inf.inspect", description=__doc__)
    line.add_argument("model", type=Path, metavar="FOLDER", help="a checkpoint")
    line.add_argument("--dtype", choices=flags.DTYPES, default="auto",
                      help="in memory; auto: float32 (%(default)s)")  # fmt: skip
    line.add_argument("--probe", action="store_true",
                      help="load the model, and score a text as read and misread")  # fmt: skip
    line.add_argument("--device", default="auto",
                      help="for --probe: cpu, cuda, ... (default: auto)")  # fmt: skip
    line.set_defaults(threads=None)
    options = line.parse_args(arguments)
    return guarded(lambda: run(options))


def run(options) -> int:
    found = look(options.model, flags.DTYPES[options.dtype] or torch.float32)
    if found.refused or not options.probe:
        print(report(found), flush=True)
    if found.refused:
        raise ValueError(found.refused)
    if options.probe:
        print("loading the weights", file=sys.stderr)
        readings = probe(*flags.load(options))
        print(probe_table(readings), flush=True)
        warning = suspicion(readings)
        if warning:
            print(f"warning: {warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Look into a checkpoint's folder: what it holds, and where each tensor goes.

    python -m minilm_inf.inspect FOLDER

reads config.json, the tokenizer and the headers of the weights, not the weights, so a folder of
any size takes a second. What load_model would refuse is refused with the same sentence, except
a tied head that is stored too but is not the embedding: that shows on loading.

    python -m minilm_inf.inspect FOLDER --probe

loads the model instead, and asks whether another reading of the same numbers would fit better.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..checkpoint.checkpoint import from_headers
from ..terminal import options as flags
from ..terminal.ending import guarded
from .folder_facts import summary, tensor_rows
from .probe import SOURCE, Reading, probe, suspicion


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
    line.add_argument("--probe", action="store_true",
                      help="load the model, and score a text as read and misread")  # fmt: skip
    line.add_argument("--device", default="auto",
                      help="for --probe: cpu, cuda, ... (default: auto)")  # fmt: skip
    line.set_defaults(threads=None, dtype="auto")
    options = line.parse_args(arguments)
    return guarded(lambda: run(options))


def run(options) -> int:
    folder = options.model
    if not options.probe:
        model, stored = from_headers(folder)
        print(f"{folder}\n{aligned(summary(folder, model, stored))}\n")
        print(f"tensors\n{aligned(tensor_rows(model, stored))}", flush=True)
        return 0
    print("loading the weights", file=sys.stderr)
    readings = probe(*flags.load(options))
    print(probe_table(readings), flush=True)
    warning = suspicion(readings)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

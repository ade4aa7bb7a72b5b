"""Look into a checkpoint's folder: what it holds, where it goes, how much memory it takes.

    python -m minilm_inf.inspect FOLDER

reads config.json, the tokenizer and the headers of the weights, not the weights, so a folder of
any size takes a second. It ends with the sentence, and the exit code 1, with which load_model
would refuse the folder. One thing takes the weights to know: whether a tied head that is stored
too is the embedding.

    python -m minilm_inf.inspect FOLDER --probe

loads the model and asks whether another reading of the same numbers would suit it better.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import torch

from ..terminal import options as flags
from ..terminal.ending import guarded
from ..terminal.files import named
from ..terminal.progress import scaled
from .folder_facts import LENGTHS, look
from .probe import load_and_probe


def report(facts: dict, every: bool) -> str:
    """A folder's facts as aligned text; every: each tensor on a line of its own."""
    parts = [facts["folder"] + "\n" + aligned([["", *line] for line in summary(facts)])]
    if "memory" in facts:
        parts.append(memory_table(facts["memory"], facts["sizes"]["context_length"]))
    if facts.get("tensors"):
        parts.append("tensors\n" + aligned(tensor_rows(facts["tensors"], every)))
    return "\n\n".join(part.rstrip() for part in parts)


def summary(facts: dict) -> list[tuple[str, str]]:
    """(label, words) of what is known."""
    lines = []
    if "sizes" in facts:
        words = (
            "{n_layer} layers, width {n_embd:,}, {n_head} heads and {n_kv_head} key heads of "
            "{head_dim}, MLP {n_inner:,}, vocabulary {vocab_size:,}"
        )
        lines += [("family", facts["family"]), ("sizes", words.format(**facts["sizes"]))]
        lines += [("context", f"{facts['sizes']['context_length']:,} tokens")]
    if "parameters" in facts:
        tied = ", the head being the embedding" if facts["tied"] else ""
        lines += [("positions", facts["positions"]["words"])]
        lines += [("parameters", f"{facts['parameters']:,}{tied}")]
    if "stored" in facts:
        stored = facts["stored"]
        dtypes = ", ".join(f"{n:,} {named(dtype)}" for dtype, n in stored["dtypes"].items())
        files = f"{len(stored['files'])} file{'s' * (len(stored['files']) > 1)}"
        words = f"{scaled(stored['bytes'])} in {files}, tensors: {dtypes or 'none'}"
        ignored = f", {stored['ignored']} ignored" if stored["ignored"] else ""
        lines += [("stored", words + ignored)]
    if "memory" in facts:
        lines += [("in float32", scaled(facts["memory"]["float32_bytes"]))]
    if "tokenizer" in facts:
        found = facts["tokenizer"]
        words = "not loaded"
        if "kind" in found:
            ids = f"BOS {found['bos_id']}, EOS {found['eos_id']}".replace("None", "none")
            words = f"{found['kind']}, {found['vocab_size']:,} ids, {ids}"
        problem = f": {found['problem']}" if "problem" in found else ""
        lines += [("tokenizer", words + problem)]
    return lines


def memory_table(memory: dict, context_length: int) -> str:
    """The cache of each reading and length, and whether it fits beside the weights."""
    names = {"vanilla": "vanilla", "lm_infinite": f"LM-Infinite, {context_length:,} + 10"}
    verdicts = {True: "fits", False: "too large", None: "unknown"}
    rows = [["", "", *(f"{length:,} tokens" for length in LENGTHS)]]
    for name, words in names.items():
        cells = [cell for cell in memory["cache"] if cell["reading"] == name]
        rows.append(["", words, *(scaled(cell["bytes"]) for cell in cells)])
        rows.append(["", "  with the weights", *(verdicts[cell["fits"]] for cell in cells)])
    available = memory["available_bytes"]
    words = "unknown memory" if available is None else f"{scaled(available)} of memory"
    return (
        f"cache of one text in {memory['dtype']}, beside {scaled(memory['weights_bytes'])} of "
        f"weights; {words} available here\n{aligned(rows, right=True)}"
    )


def tensor_rows(tensors: list[dict], every: bool) -> list[list[str]]:
    """A line for each tensor, or for each kind: name, layers, parameter, shape, dtype, file."""
    kinds: dict[tuple, list[dict]] = {}
    for number, place in enumerate(tensors):
        goes = place["parameter"] or "not known"
        if not every:  # what is the same in all layers becomes the same line
            goes = re.sub(r"\.\d+\.", ".{}.", goes, count=1)
        kind = (place["pattern"], goes, tuple(place["shape"]), place["dtype"])
        kinds.setdefault((number if every else None, *kind), []).append(place)
    rows = []
    for (_, pattern, goes, shape, dtype), group in kinds.items():
        layers = [place["layer"] for place in group if place["layer"] is not None]
        files = list(dict.fromkeys(place["file"] for place in group))
        rows.append([
            "",
            named(group[0]["name"] if every else pattern),
            "" if every else ranges(layers),
            goes,
            named(" x ".join(str(n) for n in shape)),
            named(dtype),
            named(files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else ""),
        ])  # fmt: skip
    return rows


def ranges(numbers: list[int]) -> str:
    """Ascending numbers in few words.

    >>> ranges([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def aligned(rows: list[list[str]], right: bool = False) -> str:
    """Rows of cells as lines, two spaces between columns; right: numbers, after their name."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right and number > 1 else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def probe_table(facts: dict) -> str:
    """The nll of each reading, and what it costs against the layout as read."""
    first, rows = facts["readings"][0]["nll"], [["", "", "nll", ""]]
    for number, row in enumerate(facts["readings"]):
        known = first is not None and row["nll"] is not None
        more = f"{row['nll'] - first:+.2f}" if known and number else ""
        nll = "no number" if row["nll"] is None else f"{row['nll']:.2f}"
        rows.append(["", row["reading"], nll, more])
    return f"probe: {facts['text']}, nats per token\n{aligned(rows, right=True)}"


def main(arguments: list[str] | None = None) -> int:
    line = flags.Parser(prog="python -m minilm_inf.inspect", description=__doc__)
    line.formatter_class = argparse.RawDescriptionHelpFormatter
    line.add_argument("model", type=Path, metavar="FOLDER", help="a checkpoint")
    line.add_argument("--all", action="store_true", help="every tensor on a line of its own")
    line.add_argument("--json", action="store_true", help="print one JSON object")
    line.add_argument("--dtype", choices=flags.DTYPES, default="auto",
                      help="in memory (%(default)s: float32)")  # fmt: skip
    group = line.add_argument_group("probe")
    group.add_argument("--probe", action="store_true",
                       help="load the model, and score a text as read and misread")  # fmt: skip
    group.add_argument("--device", help="cpu, cuda, ... (CUDA where there is one)")
    group.add_argument("--threads", type=flags.threads, metavar="N",
                       help="CPU threads (PyTorch's own choice)")  # fmt: skip
    options = line.parse_args(arguments)
    if not options.probe and (options.device or options.threads):
        line.error("--device and --threads have a meaning with --probe only")
    options.device = options.device or "auto"
    return guarded(lambda: run(options))


def run(options) -> int:
    facts = look(options.model, flags.DTYPES[options.dtype] or torch.float32)
    if not options.json:
        print(report(facts, options.all), flush=True)
    problem = facts["refused"]
    if options.probe and not problem:
        try:
            facts["probe"] = load_and_probe(options, facts["memory"])
        except ValueError as error:
            problem = str(error)
    if options.json:
        print(json.dumps(facts), flush=True)
    elif "probe" in facts:
        print("\n" + probe_table(facts["probe"]), flush=True)
    if problem:
        raise ValueError(problem)
    return 0


if __name__ == "__main__":
    sys.exit(main())

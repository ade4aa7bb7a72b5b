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
import dataclasses
import json
import re
import sys
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch

from . import options as flags
from .checkpoint import (
    FAMILIES,
    build_on_meta,
    check,
    check_tied_head,
    named_pieces,
    read_config,
)
from .config import ModelConfig
from .probe import LENGTHS, load_and_probe, memory, positions, scaled
from .shards import Stored, find_tensors
from .tokenizer import load as load_tokenizer
from .transformer import Transformer

NOWHERE, IGNORED = "no place", "ignored"
SIZES = "n_layer n_embd n_head n_kv_head head_dim n_inner vocab_size context_length".split()


def look(folder: Path, dtype: torch.dtype) -> dict:
    """All that the headers tell of a folder; "refused" is load_model's sentence, or None.

    dtype: of the weights in memory and of the cache. What a refusal leaves unknown is absent.
    """
    refusals: list[str] = []
    config = _tried(refusals, read_config, folder)
    stored = _tried(refusals, find_tensors, folder) if folder.is_dir() else None
    facts: dict = {"folder": str(folder)}
    layer = config and one_layer(config)
    if config:
        facts |= {"family": config.family, "tied": config.tied}
        facts["sizes"] = {name: getattr(config, name) for name in SIZES}
    if layer:
        facts["parameters"] = count_parameters(config, layer)
        facts["positions"] = positions(config, layer.scheme)
        facts["memory"] = memory(config, facts["parameters"], dtype)
    if folder.is_dir():
        facts["tokenizer"] = tokenizer_facts(folder, config)
    if stored is not None:
        found = places(config, layer, stored)
        facts["stored"] = stored_facts(found)
        facts["tensors"] = [place._asdict() for place in found]
    if not refusals:
        _tried(refusals, _fit, config, stored, folder)
    return facts | {"refused": refusals[0] if refusals else None}


def _tried(refusals: list[str], function, *arguments):
    """The function's result; None, and its sentence among the refusals, for a ValueError."""
    try:
        return function(*arguments)
    except ValueError as error:
        refusals.append(" ".join(str(error).split()))
        return None


def _fit(config: ModelConfig, stored: dict[str, Stored], folder: Path):
    """Raise load_model's ValueError where config and headers do not fit."""
    check(build_on_meta(config, stored, folder), stored, folder)
    keys = FAMILIES[config.family].KEYS
    head, embedding = stored.get(keys["head.weight"]), stored[keys["embed.weight"]]
    if head and (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
        check_tied_head(config, stored)  # which reads no numbers to tell these two apart


def one_layer(config: ModelConfig) -> Transformer | None:
    """The network without memory and with one layer, which stands for all of them.

    None for sizes that no memory could address.
    """
    try:
        with torch.device("meta"):
            return FAMILIES[config.family].build(dataclasses.replace(config, n_layer=1))
    except RuntimeError:
        return None


def count_parameters(config: ModelConfig, layer: Transformer) -> int:
    """Numbers to learn in the whole network; a tied head has none of its own."""
    each = sum(parameter.numel() for parameter in layer.blocks.parameters())
    return sum(p.numel() for p in layer.parameters()) + (config.n_layer - 1) * each


def tokenizer_facts(folder: Path, config: ModelConfig | None) -> dict:
    """Kind, size and ids of the tokenizer; "problem" is a sentence where there is one."""
    try:
        found = load_tokenizer(folder)
    except (ValueError, OSError) as error:
        return {"problem": " ".join(str(error).split())}
    facts = {
        "kind": type(found).__name__,
        "vocab_size": found.vocab_size,
        "bos_id": found.bos_id,
        "eos_id": found.eos_id,
    }
    if config and found.vocab_size > config.vocab_size:
        facts["problem"] = f"it has more ids than the model's {config.vocab_size:,}"
    return facts


# Where each tensor goes


class Place(NamedTuple):
    """A tensor of the files and where it goes.

    parameter: ours, with the rows that it fills where several of theirs share it; or IGNORED,
        or NOWHERE; None where there is no config to tell.
    pattern, layer: its name with {} for the layer, and the layer, None outside of them.
    """

    name: str
    pattern: str
    layer: int | None
    parameter: str | None
    shape: tuple[int, ...]
    dtype: str
    file: str
    bytes: int


def places(
    config: ModelConfig | None, layer: Transformer | None, stored: dict[str, Stored]
) -> list[Place]:
    """Every stored tensor: kind by kind as our network is built, each by layers, the rest last.

    config and layer None: where they go is not known.
    """
    ours = destinations(layer) if layer else {}
    found = []
    for name, where in stored.items():
        match = re.search(r"\.(0|[1-9][0-9]{0,8})\.", name)
        number = int(match[1]) if match else None
        pattern = name.replace(match[0], ".{}.", 1) if match else name
        goes = ours.get(pattern, NOWHERE) if layer else None
        if layer and number is not None and number >= config.n_layer:
            goes = NOWHERE
        if goes and number is not None:
            goes = goes.replace("{}", str(number))
        size = where.end - where.begin
        facts = (where.shape, where.dtype, where.path.name, size)
        found.append(Place(name, pattern, number, goes, *facts))
    rank = {pattern: number for number, pattern in enumerate(ours)}
    found.sort(key=lambda place: (place.pattern, place.layer or 0))
    return sorted(found, key=lambda place: rank.get(place.pattern, len(rank)))


def destinations(layer: Transformer) -> dict[str, str]:
    """The patterns of a checkpoint's names, and where each goes, in the network's order."""
    family = FAMILIES[layer.config.family]
    held, found = named_pieces(layer), {}
    for ours, theirs in family.KEYS.items():
        if isinstance(theirs, str):
            goes = {theirs: ours}
        else:
            rows = layer.get_submodule(ours.format(0).rpartition(".")[0]).rows
            ends = accumulate(rows)
            goes = {t: f"{ours}[{end - n}:{end}]" for t, n, end in zip(theirs, rows, ends)}
        found |= {t: where for t, where in goes.items() if t.format(0) in held}
    if layer.config.tied:
        found[family.KEYS["head.weight"]] = "embed.weight, compared on loading"
    return found | dict.fromkeys(family.IGNORED, IGNORED)


def stored_facts(found: list[Place]) -> dict:
    """Count, bytes, files and dtypes (tensors of each); "ignored" counts those that are."""
    kept = [place for place in found if place.parameter != IGNORED]
    dtypes = dict.fromkeys(place.dtype for place in kept)
    return {
        "tensors": len(kept),
        "bytes": sum(place.bytes for place in kept),
        "dtypes": {dtype: sum(place.dtype == dtype for place in kept) for dtype in dtypes},
        "files": sorted({place.file for place in found}),
        "ignored": len(found) - len(kept),
    }


# What is printed


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
        dtypes = ", ".join(f"{count:,} {dtype}" for dtype, count in stored["dtypes"].items())
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
            group[0]["name"] if every else pattern,
            "" if every else ranges(layers),
            goes,
            " x ".join(str(n) for n in shape),
            dtype,
            files[0] + (f" and {len(files) - 1} more" if len(files) > 1 else ""),
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
    """Rows of cells as lines, two spaces between columns; right: numbers, behind their name."""
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
    line = argparse.ArgumentParser(prog="python -m minilm_inf.inspect", description=__doc__)
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
    group.add_argument("--threads", type=flags.at_least(1), metavar="N",
                       help="CPU threads (PyTorch's own choice)")  # fmt: skip
    options = line.parse_args(arguments)
    if not options.probe and (options.device or options.threads):
        line.error("--device and --threads have a meaning with --probe only")
    options.device = options.device or "auto"
    return flags.guarded(lambda: run(options))


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

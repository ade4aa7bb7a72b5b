"""What a checkpoint's folder holds, where its tensors go, and whether memory holds it, told
from headers and by formulas before anything is loaded."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from itertools import accumulate
from pathlib import Path

import torch

from ..checkpoint.checkpoint import (
    FAMILIES,
    build_on_meta,
    check,
    check_tied_head,
    is_computed,
    named_pieces,
    read_config,
    settled,
)
from ..checkpoint.shards import Stored, find_tensors
from ..config import LMInfinite, ModelConfig
from ..terminal.progress import available_memory
from ..text.tokenizer import load as load_tokenizer
from ..transformer import Transformer
from ..writing.costs import cache_bytes
from .probe import positions

NOWHERE, IGNORED = "no place", "ignored"
LENGTHS = (4096, 32_768, 1_048_576)  # tokens for which the cache is told
SIZES = "n_layer n_embd n_head n_kv_head head_dim n_inner vocab_size context_length".split()


def look(folder: Path, dtype: torch.dtype) -> dict:
    """All that the headers tell of a folder; "refused" is load_model's sentence, or None.

    dtype: of the weights in memory and of the cache. What a refusal leaves unknown is absent.
    """
    refusals: list[str] = []
    config = _tried(refusals, read_config, folder)
    stored = _tried(refusals, find_tensors, folder) if folder.is_dir() else None
    if config and stored is not None:
        config, stored = _tried(refusals, settled, config, stored) or (config, stored)
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
        facts["tensors"] = places(config, layer, stored)
        facts["stored"] = stored_facts(facts["tensors"])
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

    None for sizes that make no model.
    """
    try:
        with torch.device("meta"):
            return FAMILIES[config.family].build(dataclasses.replace(config, n_layer=1))
    except ValueError:
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


def memory(config: ModelConfig, parameters: int, dtype: torch.dtype) -> dict:
    """Bytes of the weights and of one text's cache in a dtype, and whether both together fit.

    float32_bytes, of the weights, is told whatever the dtype; "fits" is None where the system
    does not tell its available memory.
    """
    available, weights = available_memory(), parameters * dtype.itemsize
    settings = {"vanilla": None, "lm_infinite": LMInfinite.for_model(config, n_global=10)}
    cache = []
    for name, lm in settings.items():
        for length in LENGTHS:
            n_bytes = cache_bytes(config, length, lm, dtype)
            fits = None if available is None else weights + n_bytes <= available
            cache.append({"reading": name, "tokens": length, "bytes": n_bytes, "fits": fits})
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "weights_bytes": weights,
        "float32_bytes": 4 * parameters,
        "available_bytes": available,
        "cache": cache,
    }


def places(
    config: ModelConfig | None, layer: Transformer | None, stored: dict[str, Stored]
) -> list[dict]:
    """Every stored tensor: kind by kind as our network is built, each by layers, the rest last.

    config and layer None: where they go is not known. pattern, layer: a name with {} for the
    layer, and the layer. parameter: ours, with the rows that it fills where several of theirs
    share it; or IGNORED, or NOWHERE; None where there is no config to tell.
    """
    ours = destinations(layer) if layer else {}
    found = []
    for name, where in stored.items():
        match = re.search(r"\.(0|[1-9][0-9]{0,8})\.", name)
        number = int(match[1]) if match else None
        pattern = name.replace(match[0], ".{}.", 1) if match else name
        goes = ours.get(pattern, NOWHERE) if layer else None
        goes = IGNORED if is_computed(name) else goes
        if layer and number is not None and number >= config.n_layer:
            goes = NOWHERE
        if goes and number is not None:
            goes = goes.replace("{}", str(number))
        found.append({
            "name": where.name, "pattern": pattern, "layer": number, "parameter": goes,
            "shape": where.shape, "dtype": where.dtype, "file": where.path.name,
            "bytes": where.nbytes,
        })  # fmt: skip
    rank = {pattern: number for number, pattern in enumerate(ours)}

    def order(place: dict) -> tuple:
        pattern = place["pattern"]
        return rank.get(pattern, len(rank)), pattern, place["layer"] or 0

    return sorted(found, key=order)


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
    return found


def stored_facts(found: list[dict]) -> dict:
    """Count, bytes, files and dtypes (tensors of each); "ignored" counts those that are."""
    kept = [place for place in found if place["parameter"] != IGNORED]
    return {
        "tensors": len(kept),
        "bytes": sum(place["bytes"] for place in kept),
        "dtypes": dict(Counter(place["dtype"] for place in kept)),
        "files": sorted({place["file"] for place in found}),
        "ignored": len(found) - len(kept),
    }

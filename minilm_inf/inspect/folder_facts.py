"""What a checkpoint's folder holds, where its tensors go, and whether memory holds it, told
from headers and by formulas before anything is loaded."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch

from ..checkpoint.checkpoint import (
    FAMILIES,
    build_on_meta,
    check,
    is_computed,
    named_pieces,
    read_config,
    settled,
)
from ..checkpoint.shards import Stored, find_tensors
from ..config import LMInfinite, ModelConfig
from ..terminal.files import named
from ..terminal.progress import available_memory, scaled
from ..text.tokenizer import load as load_tokenizer
from ..transformer import Transformer
from ..writing.costs import cache_bytes
from .probe import described

LENGTHS = (4096, 32_768, 1_048_576)  # tokens for which the cache is told


@dataclass
class Found:
    """What the headers tell of a folder; None is what a refusal leaves unknown.

    model: without memory for its weights. refused: load_model's sentence. dtype: of the weights
    in memory, and of the cache.
    """

    folder: Path
    dtype: torch.dtype
    config: ModelConfig | None = None
    stored: dict[str, Stored] | None = None
    model: Transformer | None = None
    refused: str | None = None

    @property
    def parameters(self) -> int:
        """Numbers to learn; a tied head has none of its own."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def look(folder: Path, dtype: torch.dtype) -> Found:
    """All that the headers of a folder's files tell."""
    found, refusals = Found(folder, dtype), []

    def attempt(function, *arguments):
        try:
            return function(*arguments)
        except ValueError as error:
            refusals.append(" ".join(str(error).split()))

    found.config = attempt(read_config, folder)
    found.stored = attempt(find_tensors, folder) if folder.is_dir() else None
    if found.config and found.stored is not None:
        found.stored = settled(found.config, found.stored)
        path = folder / "config.json"
        found.model = attempt(build_on_meta, found.config, found.stored, path)
    if found.model:
        attempt(check, found.model, found.stored, folder)
    found.refused = refusals[0] if refusals else None
    return found


def summary(found: Found) -> list[tuple[str, str]]:
    """(label, words) of what is known."""
    config, lines = found.config, []
    if config:
        sizes = (
            f"{config.n_layer} layers, width {config.n_embd:,}, {config.n_head} heads and "
            f"{config.n_kv_head} key heads of {config.head_dim}, MLP {config.n_inner:,}, "
            f"vocabulary {config.vocab_size:,}"
        )
        lines += [("family", config.family), ("sizes", sizes)]
        lines += [("context", f"{config.context_length:,} tokens")]
    if found.model:
        tied = ", the head being the embedding" if config.tied else ""
        lines += [("positions", described(config, found.model.scheme))]
        lines += [("parameters", f"{found.parameters:,}{tied}")]
    if found.stored is not None:
        lines += [("stored", stored_words(found.stored))]
    if found.model:
        lines += [("in float32", scaled(4 * found.parameters))]
    if found.folder.is_dir():
        lines += [("tokenizer", tokenizer_words(found))]
    return lines


def stored_words(stored: dict[str, Stored]) -> str:
    """Bytes, files and dtypes; what a network computes itself is only counted."""
    kept = [place for name, place in stored.items() if not is_computed(name)]
    counts = Counter(place.dtype for place in kept)
    dtypes = ", ".join(f"{n:,} {named(dtype)}" for dtype, n in counts.items()) or "none"
    files, ignored = len({place.path for place in stored.values()}), len(stored) - len(kept)
    return (
        f"{scaled(sum(place.nbytes for place in kept))} in {files} file{'s' * (files > 1)}, "
        f"tensors: {dtypes}" + (f", {ignored} ignored" if ignored else "")
    )


def tokenizer_words(found: Found) -> str:
    """Kind, size and ids of the tokenizer, or why there is none."""
    try:
        tokenizer = load_tokenizer(found.folder)
    except (ValueError, OSError) as error:
        return "not loaded: " + " ".join(str(error).split())
    ids = f"BOS {tokenizer.bos_id}, EOS {tokenizer.eos_id}".replace("None", "none")
    words = f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} ids, {ids}"
    if found.config and tokenizer.vocab_size > found.config.vocab_size:
        words += f": it has more ids than the model's {found.config.vocab_size:,}"
    return words


def memory_rows(found: Found) -> list[list[str]]:
    """The cache of one text by length, without and with LM-Infinite, and whether it fits beside
    the weights."""
    available, weights = available_memory(), found.parameters * found.dtype.itemsize
    length = found.config.context_length
    settings = {
        "vanilla": None,
        f"LM-Infinite, {length:,} + 10": LMInfinite.for_model(found.config, n_global=10),
    }
    rows = [["", "", *(f"{n:,} tokens" for n in LENGTHS)]]
    for name, lm in settings.items():
        rows.append(["", name])
        for n in LENGTHS:
            size = cache_bytes(found.config, n, lm, found.dtype)
            too_large = available is not None and weights + size > available
            rows[-1].append(scaled(size) + (", too large" if too_large else ""))
    return rows


def tensor_rows(found: Found) -> list[list[str]]:
    """Name, layers, parameter, shape and dtype, kind by kind as our network is built, the rest
    last. parameter: ours, with the rows that it fills where several of theirs share it."""
    ours = destinations(found.model) if found.model else {}
    kinds: dict[tuple, list[int]] = {}
    for name, place in found.stored.items():
        layer = re.search(r"\.(0|[1-9][0-9]{0,8})\.", name)
        pattern = name.replace(layer[0], ".{}.", 1) if layer else name
        number = int(layer[1]) if layer else 0
        goes = ours.get(pattern, "no place") if found.model else "not known"
        if found.model and number >= found.config.n_layer:
            goes = "no place"
        goes = "ignored" if is_computed(name) else goes
        kind = pattern, goes, " x ".join(map(str, place.shape)), place.dtype
        kinds.setdefault(kind, []).extend([number] if layer else [])
    rank = {pattern: number for number, pattern in enumerate(ours)}
    rows = []
    for kind in sorted(kinds, key=lambda kind: (rank.get(kind[0], len(rank)), kind)):
        pattern, goes, shape, dtype = kind
        layers = f"{min(kinds[kind])}-{max(kinds[kind])}" if kinds[kind] else ""
        rows.append(["", named(pattern), layers, goes, named(shape), named(dtype)])
    return rows


def destinations(model: Transformer) -> dict[str, str]:
    """The patterns of a checkpoint's names, and where each goes, in the network's order."""
    family, held, found = FAMILIES[model.config.family], named_pieces(model), {}
    for ours, theirs in family.KEYS.items():
        if isinstance(theirs, str):
            goes = {theirs: ours}
        else:
            rows = model.get_submodule(ours.format(0).rpartition(".")[0]).rows
            ends = accumulate(rows)
            goes = {t: f"{ours}[{end - n}:{end}]" for t, n, end in zip(theirs, rows, ends)}
        found |= {t: where for t, where in goes.items() if t.format(0) in held}
    if model.config.tied:
        found[family.KEYS["head.weight"]] = "embed.weight, compared on loading"
    return found

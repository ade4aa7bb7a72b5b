"""What a checkpoint's folder holds, where its tensors go, and whether memory holds it, told
from headers and by formulas before anything is loaded."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from ..checkpoint import checkpoint
from ..checkpoint.shards import Stored, find_tensors
from ..config import LMInfinite, ModelConfig
from ..terminal.files import named
from ..terminal.progress import available_memory, scaled
from ..text.tokenizer import load as load_tokenizer
from ..transformer import Transformer
from ..writing.plan import cache_bytes
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
    """All that the headers of a folder's files tell, up to what is refused. Raises ValueError
    where there is no folder."""
    found = Found(checkpoint.existing_folder(folder), dtype)
    try:
        found.config = checkpoint.read_config(folder)
        found.stored = checkpoint.settled(found.config, find_tensors(folder))
        found.model = checkpoint.build_on_meta(
            found.config, found.stored, folder / "config.json"
        )
        checkpoint.check(found.model, found.stored, folder)
    except ValueError as error:
        found.refused = str(error)
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
    return [*lines, ("tokenizer", tokenizer_words(found))]


def stored_words(stored: dict[str, Stored]) -> str:
    """Bytes, files and dtypes; what a network computes itself is only counted."""
    kept = [place for name, place in stored.items() if not checkpoint.is_computed(name)]
    counts = Counter(place.dtype for place in kept)
    dtypes = [f"{n:,} {named(dtype)}" for dtype, n in counts.items()]
    ignored = [f"{len(stored) - len(kept)} ignored"] * (len(kept) < len(stored))
    size, files = sum(place.nbytes for place in kept), len({place.path for place in kept})
    what = f"{scaled(size)} in {files} file{'s' * (files > 1)}"
    return f"{what}, tensors: {', '.join(dtypes + ignored)}"


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
    rows = [["", *(f"{n:,} tokens" for n in LENGTHS)]]
    for name, lm in settings.items():
        rows.append([name])
        for n in LENGTHS:
            size = cache_bytes(found.config, n, lm, found.dtype)
            too_large = available is not None and weights + size > available
            rows[-1].append(scaled(size) + ", too large" * too_large)
    return rows


def tensor_rows(found: Found) -> list[list[str]]:
    """Name, layers, parameter, shape and dtype, kind by kind as our network is built, the rest
    last."""
    ours, kinds = destinations(found.model), {}
    order = {name: number for number, name in enumerate(ours)}
    for name in sorted(found.stored, key=lambda name: order.get(name, len(order))):
        place, layer = found.stored[name], re.search(r"\.(\d{1,9})\.", name)
        goes = "ignored" if checkpoint.is_computed(name) else ours.get(name, "no place")
        if layer:
            name, goes = (x.replace(layer[0], ".{}.", 1) for x in (name, goes))
        kind = name, goes, " x ".join(map(str, place.shape)), place.dtype
        kinds.setdefault(kind, []).extend([int(layer[1])] if layer else [])
    rows = []
    for (name, *cells), layers in kinds.items():
        span = f"{min(layers)}-{max(layers)}" if layers else ""
        rows.append([named(name), span, *map(named, cells)])
    return rows


def destinations(model: Transformer) -> dict[str, str]:
    """The checkpoint's names in the order of the network, and which parameter of ours each
    fills; where several share one, which of its rows."""
    ours, found = {id(weight): name for name, weight in model.named_parameters()}, {}
    for name, piece in checkpoint.named_pieces(model).items():
        whole = piece if piece._base is None else piece._base
        first = piece.storage_offset() // piece.stride(0)
        rows = f"[{first}:{first + len(piece)}]" if len(piece) < len(whole) else ""
        found[name] = ours[id(whole)] + rows
    if model.config.tied:
        found[checkpoint.head_of(model)] = "embed.weight, compared on loading"
    return found

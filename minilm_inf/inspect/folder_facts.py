"""What a checkpoint's folder holds, and where its tensors go, told from headers before anything
is loaded."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import torch

from ..checkpoint import checkpoint
from ..checkpoint.shards import Stored
from ..config import ModelConfig
from ..terminal.files import named
from ..terminal.progress import scaled
from ..text.tokenizer import check_fits
from ..text.tokenizer import load as load_tokenizer
from ..transformer import Transformer
from .probe import described


def summary(folder: Path, model: Transformer, stored: dict[str, Stored]) -> list[list[str]]:
    """(label, words) of a folder, whose network and tensors checkpoint.from_headers gives."""
    config, parameters = model.config, sum(weight.numel() for weight in model.parameters())
    sizes = (
        f"{config.n_layer} layers, width {config.n_embd:,}, {config.n_head} heads and "
        f"{config.n_kv_head} key heads of {config.head_dim}, MLP {config.n_inner:,}, "
        f"vocabulary {config.vocab_size:,}"
    )
    tied = ", the head being the embedding" if config.tied else ""
    return [
        ["family", config.family],
        ["sizes", sizes],
        ["context", f"{config.context_length:,} tokens"],
        ["positions", described(config, model.scheme)],
        ["parameters", f"{parameters:,}{tied}"],
        ["stored", stored_words(stored)],
        ["in float32", scaled(4 * parameters)],
        ["in int8", scaled(checkpoint.nbytes(model, torch.int8))],
        ["tokenizer", tokenizer_words(folder, config)],
    ]


def stored_words(stored: dict[str, Stored]) -> str:
    """Bytes, files and dtypes; what a network computes itself is only counted."""
    kept = [place for name, place in stored.items() if not checkpoint.is_computed(name)]
    counts = Counter(place.dtype for place in kept)
    dtypes = [f"{n:,} {named(dtype)}" for dtype, n in counts.items()]
    ignored = [f"{len(stored) - len(kept)} ignored"] * (len(kept) < len(stored))
    size, files = sum(place.nbytes for place in kept), len({place.path for place in kept})
    what = f"{scaled(size)} in {files} file{'s' * (files > 1)}"
    return f"{what}, tensors: {', '.join(dtypes + ignored)}"


def tokenizer_words(folder: Path, config: ModelConfig) -> str:
    """Kind, size and ids of the tokenizer, or why the folder has none of its own."""
    try:
        tokenizer = load_tokenizer(folder)
        check_fits(tokenizer, config.vocab_size, folder)
    except (ValueError, OSError) as error:
        return "not loaded: " + " ".join(str(error).split())
    ids = f"BOS {tokenizer.bos_id}, EOS {tokenizer.eos_id}".replace("None", "none")
    ids = ids.replace("BOS none", "BOS none (its files put none before a text)")
    return f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} ids, {ids}"


def tensor_rows(model: Transformer, stored: dict[str, Stored]) -> list[list[str]]:
    """Name, layers, parameter, shape and dtype, kind by kind as our network is built, what is
    ignored last."""
    ours, kinds = destinations(model), {}
    for name in filter(stored.get, ours | stored):
        place, layer = stored[name], re.search(r"\.(\d{1,9})\.", name)
        goes = ours.get(name, "ignored")
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

"""A folder of safetensors to a model, and back.

    config.json              what the network is, in Hugging Face's keys
    generation_config.json   which ids end a text, where it is there
    model.safetensors        the weights, in Hugging Face's names; or shards, and their index.
                             NAME.weight may be int8, beside NAME.weight_scale, one number a row

Loading is strict in both directions: a tensor without a place and a place without a tensor are
refused by name, before any number is read. Only what a network computes itself, such as angles
and masks, is passed over. Weights are then read one by one, so that no more than the model
and one tensor is ever in memory. Every failure is a ValueError of one sentence.
"""

from __future__ import annotations

import copy
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..config import ModelConfig
from ..models import gptj, int8, llama, mpt
from ..models.raw_config import special_ids
from ..terminal.files import named, read_json, write_beside
from ..terminal.json_parts import Part, part_of
from ..transformer import Transformer
from .shards import FLOATS, WEIGHTS, Stored, find_tensors, with_scales, write_tensors

# model_type -> the file that knows it
FAMILIES = {"llama": llama, "mistral": llama, "mpt": mpt, "gptj": gptj}
COMPUTED = (  # how the names of buffers end, which are no weights: angles, masks, biases
    ".inv_freq", ".original_inv_freq", ".cos_cached", ".sin_cached", "attn.bias",
    ".masked_bias", ".attn_bias", ".causal_mask", ".position_ids", ".alibi",
)  # fmt: skip


def read_config(folder) -> ModelConfig:
    """The config of a checkpoint's folder. Raises ValueError with the key that does not fit.

    The ids of a generation_config.json that end a text stand in place of config.json's; BOS
    only where that has none. So transformers reads them.
    """
    folder = existing_folder(folder)
    path = folder / "config.json"
    raw = read_json(path)
    family = FAMILIES[Part(raw, path)["model_type"].only(*FAMILIES)]
    config = said_of(path, family.config_from_hf, raw)
    ids = special_ids(part_of(folder / "generation_config.json"))
    bos_id = ids["bos_id"] if config.bos_id is None else config.bos_id
    return replace(config, bos_id=bos_id, eos_ids=ids["eos_ids"] or config.eos_ids)


def said_of(file: Path | str, function, *arguments):
    """The function's result; its ValueError begins with the file that it is about."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def existing_folder(folder) -> Path:
    """The path of a model's folder. Raises ValueError where there is none."""
    if isinstance(folder, str | os.PathLike) and os.path.isdir(folder):
        return Path(folder)
    raise ValueError(
        f"{named(folder)} is not a folder: give the one on this disk that holds config.json (a "
        ".gguf is converted first, with python -m minilm_inf.convert)"
    )


def load_model(folder, device="cpu", dtype: torch.dtype | None = None) -> Transformer:
    """The model of a checkpoint's folder, ready to be read from: no dropout, no gradients.

    dtype None: as stored (as the embedding is, should they differ), but float32 on the CPU.
    torch.int8: the linear layers' weights are rounded (models/int8.py), all else is float32; so
    it is with None where a folder holds such weights.
    Raises ValueError for whatever is missing, surplus, misshapen, damaged or not implemented.
    """
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f'the device {named(device)} is not available here: try "cpu"'
        ) from error
    if dtype not in (None, torch.int8, *FLOATS.values()):
        listed = ", ".join(str(x) for x in (torch.int8, *FLOATS.values()))
        raise ValueError(f"dtype must be None or one of {listed}, not {named(dtype)}")
    model, stored = from_headers(folder)
    fill(model, stored, device, dtype or own_dtype(model.config, stored, device))
    return model.eval()


def from_headers(folder) -> tuple[Transformer, dict[str, Stored]]:
    """The network of a checkpoint's folder, without memory, and the tensors that belong to it.

    Raises load_model's ValueError for whatever config.json and the files' headers show.
    """
    config, folder = read_config(folder), Path(folder)
    stored, keys = with_scales(find_tensors(folder)), FAMILIES[config.family].KEYS
    embedding, head = keys["embed.weight"], keys["head.weight"]
    if config.tied and head in stored and embedding not in stored:  # either name will do
        stored[embedding] = stored.pop(head)
    model = build_on_meta(config, stored, folder / "config.json")
    check(model, stored, folder)
    return model, stored


def is_computed(name: str) -> bool:
    """Whether a tensor's name is that of a buffer, wherever it stands."""
    return f".{name}".endswith(COMPUTED)


def own_dtype(config: ModelConfig, stored: dict[str, Stored], device: torch.device):
    """The dtype in which load_model loads where none is asked for."""
    if any(place.scale for place in stored.values()):
        return torch.int8
    embedding = stored[FAMILIES[config.family].KEYS["embed.weight"]]
    return torch.float32 if device.type == "cpu" else FLOATS[embedding.dtype]


def set_dtype(model: Transformer, dtype: torch.dtype):
    """Let a model on the meta device have the parameters of one that is loaded in a dtype."""
    model.to(torch.float32 if dtype == torch.int8 else dtype)
    if dtype == torch.int8:
        int8.round_layers(model)


def nbytes(model: Transformer, dtype: torch.dtype) -> int:
    """The memory that the weights of a model on the meta device will take in a dtype."""
    other = copy.deepcopy(model)
    set_dtype(other, dtype)
    return sum(x.nbytes for x in other.parameters())


def dtype_name(model: Transformer) -> str:
    """A loaded model's dtype, as --dtype names it."""
    is_int8 = isinstance(model.head, int8.Int8Linear)
    return "int8" if is_int8 else str(model.embed.weight.dtype).removeprefix("torch.")


def build_on_meta(config: ModelConfig, stored: dict[str, Stored], path: Path) -> Transformer:
    """The network without memory for its weights: shapes only. path: the file of the config."""
    if config.n_layer > len(stored):  # a mistaken number must not build layers without end
        raise ValueError(
            f"{path} asks for {config.n_layer} layers, but only {len(stored)} tensors are "
            "stored: the two do not belong together"
        )
    with torch.device("meta"):
        return said_of(path, FAMILIES[config.family].build, config)


def named_pieces(model: Transformer) -> dict[str, Tensor]:
    """The tensors that a checkpoint of this model holds, by its names, as views of ours.

    Where one parameter of ours stacks several of theirs, each is a view of its rows; of rounded
    weights it is int8.Rows. A tied head is none, unless it is rounded.
    """
    keys, pieces = FAMILIES[model.config.family].KEYS, {}
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if leaf == "scale":  # of what its Rows round
            continue
        layer = re.search(r"\.(\d+)\.", name)
        theirs = keys[name if layer is None else name.replace(layer[0], ".{}.", 1)]
        theirs = (theirs,) if isinstance(theirs, str) else theirs
        if leaf == "weight" and isinstance(module, int8.Int8Linear):
            views = module.pieces()
        else:
            views = parameter.split(module.rows) if len(theirs) > 1 else (parameter,)
        for pattern, view in zip(theirs, views, strict=True):
            pieces[pattern.format(layer and layer[1])] = view
    return pieces


def check(model: Transformer, stored: dict[str, Stored], where: Path):
    """Raise ValueError, with the tensor's name, where the files and the model do not fit.

    That is a tensor which is missing, surplus, of another shape, or of a dtype that holds no
    plain floats.
    """
    pieces = named_pieces(model)
    for name in pieces:
        if name not in stored:
            raise ValueError(
                f"the tensor {name} is missing from {where}: fetch the whole checkpoint, with "
                "the config that belongs to it"
            )
    if model.config.tied:  # which may be stored twice
        pieces[head_of(model)] = model.embed.weight
    for name, place in stored.items():
        if is_computed(name):
            continue
        if name not in pieces:
            wrong = "has no place in the model that the config describes"
        elif place.shape != tuple(pieces[name].shape):
            asked = tuple(pieces[name].shape)
            wrong = f"has the shape {named(place.shape)}, but the config asks for {asked}"
        elif place.dtype not in FLOATS and not place.scale:
            wrong = f"is stored as {named(place.dtype)}, which is none of {', '.join(FLOATS)}"
        else:
            continue
        raise ValueError(
            f"the tensor {named(place.name)} in {place.path} {wrong}: the two do not belong "
            "together, or it is not implemented"
        )


def head_of(model: Transformer) -> str:
    """The checkpoint's name of the head's weights."""
    return FAMILIES[model.config.family].KEYS["head.weight"]


def fill(
    model: Transformer, stored: dict[str, Stored], device: torch.device, dtype: torch.dtype
):
    """Give a model on the meta device its memory, then its numbers, one tensor at a time.

    Raises ValueError where a tied head is stored too, but is not the embedding.
    """
    set_dtype(model, dtype)
    model.to_empty(device=device).requires_grad_(False)
    if model.config.tied and dtype != torch.int8:
        model.head.weight = model.embed.weight
    embedding = stored[FAMILIES[model.config.family].KEYS["embed.weight"]]  # and a tied head
    for name, piece in named_pieces(model).items():
        stored.get(name, embedding).read_into(piece)
    head = stored.get(head_of(model))
    if model.config.tied and head is not None:
        own = torch.empty_like(model.embed.weight)
        head.read_into(own)
        if not own.equal(model.embed.weight):
            raise ValueError(
                f"config.json ties the head to the embedding, but {head.name} in {head.path} "
                "is another: set tie_word_embeddings to false to use it"
            )


def save(model: Transformer, folder):
    """Write config.json and model.safetensors, from which load_model makes the same model.

    A tied head is not stored. Each file appears when it is whole. Raises ValueError where the
    folder cannot be written, and for a model with int8 weights.
    """
    folder, dtype = Path(folder), dtype_name(model)
    if dtype == "int8":
        raise ValueError(
            "a model that was loaded in int8 is not saved: python -m minilm_inf.convert --int8 "
            "writes the folder of one"
        )
    raw = FAMILIES[model.config.family].config_to_hf(model.config) | {"torch_dtype": dtype}
    write_tensors(folder / WEIGHTS, named_pieces(model), {"format": "pt"})
    write_beside(folder / "config.json", (json.dumps(raw, indent=2) + "\n").encode())

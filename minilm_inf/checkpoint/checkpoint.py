"""A folder of safetensors to a model, and back.

    config.json              what the network is, in Hugging Face's keys
    generation_config.json   which ids end a text, where it is there
    model.safetensors        the weights, in Hugging Face's names; or shards, and their index

Loading is strict in both directions: a tensor without a place and a place without a tensor are
refused by name, before any number is read. Only what a network computes itself, such as angles
and masks, is passed over. Weights are then read one by one, so that no more
than the model and one tensor is ever in memory. Every failure is a ValueError of one sentence.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ..config import ModelConfig
from ..models import gptj, llama, mpt, mpt_config
from ..models.raw_config import special_ids
from ..terminal.files import named, read_json, shown, write_beside
from ..terminal.json_parts import Part
from ..transformer import Transformer
from .shards import FLOATS, LARGEST_HEADER, WEIGHTS, Stored, find_tensors
from .tensor_file import write_tensors

FAMILIES = {
    "llama": llama,
    "mistral": llama,
    "mpt": mpt,
    "gptj": gptj,
}  # model_type -> the file that knows it
COMPUTED = (  # how the names of buffers end, which are no weights: angles, masks, biases
    ".inv_freq", ".original_inv_freq", ".cos_cached", ".sin_cached", "attn.bias",
    ".masked_bias", ".attn_bias", ".causal_mask", ".position_ids", ".alibi",
)  # fmt: skip
WRAPPERS = re.compile(r"((module|_orig_mod|base_model|model|transformer)\.)*")


def read_config(folder) -> ModelConfig:
    """The config of a checkpoint's folder. Raises ValueError with the key that does not fit."""
    folder = existing_folder(folder)
    path = folder / "config.json"
    raw = read_json(path, LARGEST_HEADER)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ValueError(f"{path}: model_type must be one of {known}, not {shown(model_type)}")
    config = _of(path, FAMILIES[model_type].config_from_hf, raw)
    path = folder / "generation_config.json"
    if not path.is_file():
        return config
    return with_ends(config, Part(read_json(path, LARGEST_HEADER), path))


def _of(path: Path, function, *arguments):
    """The function's result; its ValueError begins with the file that it is about."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def existing_folder(folder) -> Path:
    """The path of a model's folder. Raises ValueError where there is none, with what to do."""
    if not isinstance(folder, str | os.PathLike):
        raise ValueError(f"a model's folder must be a path, not {shown(folder)}")
    folder = Path(folder)
    if os.path.isdir(folder):
        return folder
    advice = "give the folder that holds config.json"
    if folder.suffix == ".gguf":
        advice = f"convert it first, with python -m minilm_inf.convert {named(folder)}"
    elif not os.path.exists(folder) and re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)):
        advice = "models are read from disk, not from a hub: " + advice
    raise ValueError(f"{named(folder)} is not a folder: {advice}")


def with_ends(config: ModelConfig, keys: Part) -> ModelConfig:
    """The config with the special ids of a generation_config.json, read as transformers does.

    The ids that end a text stand in place of config.json's; BOS only where that has none.
    Raises ValueError with the key's name for what is no id.
    """
    ids = special_ids(keys, bos=(), eos=())
    bos_id = ids["bos_id"] if config.bos_id is None else config.bos_id
    return replace(config, bos_id=bos_id, eos_ids=ids["eos_ids"] or config.eos_ids)


def load_model(folder, device="cpu", dtype: torch.dtype | None = None) -> Transformer:
    """The model of a checkpoint's folder, ready to be read from: no dropout, no gradients.

    dtype None: as stored (as the embedding is, should they differ), but float32 on the CPU.
    Raises ValueError for whatever is missing, surplus, misshapen, damaged or not implemented.
    """
    device = _checked_device(device)
    if dtype not in (None, *FLOATS.values()):
        listed = ", ".join(str(x) for x in FLOATS.values())
        raise ValueError(f"dtype must be None or one of {listed}, not {named(dtype)}")
    model, stored = from_headers(folder)
    check_tied_head(model.config, stored)
    fill(model, stored, device, dtype or own_dtype(model.config, stored, device))
    return model.eval()


def from_headers(folder) -> tuple[Transformer, dict[str, Stored]]:
    """The network of a checkpoint's folder, without memory, and the tensors that belong to it.

    Raises load_model's ValueError for whatever config.json and the files' headers show.
    """
    folder = existing_folder(folder)
    config, stored = settled(read_config(folder), find_tensors(folder))
    model = build_on_meta(config, stored, folder)
    check(model, stored, folder)
    return model, stored


def settled(
    config: ModelConfig, stored: dict[str, Stored]
) -> tuple[ModelConfig, dict[str, Stored]]:
    """A config and its tensors in one spelling, whichever program wrote them.

    Names lose what wrappers put before them and get the family's own beginning; a tied pair
    that is stored as the head is the embedding; an MPT has what is stored of it. Raises
    ValueError for two names of one tensor.
    """
    family, found = FAMILIES[config.family], {}
    embedding, head = (family.KEYS[name] for name in ("embed.weight", "head.weight"))
    for name, place in stored.items():
        bare = name[WRAPPERS.match(name).end() :]
        beginning = "" if bare.startswith("lm_head.") else embedding.partition(".")[0] + "."
        ours = name if is_computed(name) else beginning + bare
        if ours in found:
            raise ValueError(
                f"{named(name)} in {place.path} and {named(found[ours].name)} are two names of "
                "one tensor: remove one"
            )
        found[ours] = place
    if config.tied and embedding not in found and head in found:
        found[embedding] = found.pop(head)
    if family is mpt:
        shapes = {name: place.shape for name, place in found.items()}
        config = mpt_config.as_stored(config, shapes)
    return config, found


def is_computed(name: str) -> bool:
    """Whether a tensor's name is that of a buffer, wherever it stands."""
    return f".{name}".endswith(COMPUTED)


def own_dtype(config: ModelConfig, stored: dict[str, Stored], device: torch.device):
    """The dtype in which load_model loads where none is asked for."""
    embedding = stored[FAMILIES[config.family].KEYS["embed.weight"]]
    return torch.float32 if device.type == "cpu" else FLOATS[embedding.dtype]


def named_pieces(model: Transformer) -> dict[str, torch.Tensor]:
    """The tensors that a checkpoint of this model holds, by its names, as views of ours.

    Where one parameter of ours stacks several of theirs, each is a view of its rows. A tied
    head is none.
    """
    keys, pieces = FAMILIES[model.config.family].KEYS, {}
    for name, parameter in model.named_parameters():
        layer = re.search(r"\.(\d+)\.", name)
        theirs = keys[name if layer is None else name.replace(layer[0], ".{}.", 1)]
        if isinstance(theirs, str):
            theirs, views = (theirs,), (parameter,)
        else:
            views = parameter.split(model.get_submodule(name.rpartition(".")[0]).rows)
        for pattern, view in zip(theirs, views, strict=True):
            pieces[pattern.format(layer and layer[1])] = view
    return pieces


def check(model: Transformer, stored: dict[str, Stored], folder: Path):
    """Raise ValueError, with the tensor's name, where the files and the model do not fit.

    That is a tensor which is missing, surplus, of another shape, or of a dtype that holds no
    plain floats.
    """
    family = FAMILIES[model.config.family]
    pieces = named_pieces(model)
    for name in pieces:
        if name not in stored:
            raise ValueError(
                f"the tensor {name} is missing from {folder}: fetch the whole checkpoint, "
                "with the config.json that belongs to it"
            )
    allowed = {*pieces, family.KEYS["head.weight"] if model.config.tied else None}
    for name, place in stored.items():
        if name in allowed or is_computed(name):
            continue
        raise ValueError(
            f"the tensor {named(place.name)} in {place.path} has no place in the model that "
            "config.json describes: the two do not belong together, or it is not implemented"
        )
    for name, piece in pieces.items():
        place = stored[name]
        if place.shape != tuple(piece.shape):
            raise ValueError(
                f"the tensor {name} in {place.path} has the shape {named(place.shape)}, but "
                f"config.json asks for {tuple(piece.shape)}: the two do not belong together"
            )
        if place.dtype not in FLOATS:
            raise ValueError(
                f"the tensor {name} in {place.path} is stored as {named(place.dtype)}, which "
                f"is not implemented: use a checkpoint in one of {', '.join(FLOATS)}"
            )


def fill(
    model: Transformer, stored: dict[str, Stored], device: torch.device, dtype: torch.dtype
):
    """Give a model on the meta device its memory, then its numbers, one tensor at a time."""
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        memory = torch.empty(parameter.shape, dtype=dtype, device=device)
        setattr(model.get_submodule(owner), leaf, nn.Parameter(memory, requires_grad=False))
    if model.config.tied:
        model.head.weight = model.embed.weight
    for name, piece in named_pieces(model).items():
        stored[name].read_into(piece)


def build_on_meta(config: ModelConfig, stored: dict[str, Stored], folder: Path) -> Transformer:
    """The network without memory for its weights: shapes only."""
    if config.n_layer > len(stored):  # a mistaken number must not build layers without end
        raise ValueError(
            f"config.json asks for {config.n_layer} layers, but {folder} holds only "
            f"{len(stored)} tensors: the two do not belong together"
        )
    with torch.device("meta"):
        return _of(folder / "config.json", FAMILIES[config.family].build, config)


def check_tied_head(config: ModelConfig, stored: dict[str, Stored]):
    """A tied head may be stored too, but only as the embedding that it is."""
    keys = FAMILIES[config.family].KEYS
    head = stored.get(keys.get("head.weight"))
    if config.tied and head is not None and not head.equals(stored[keys["embed.weight"]]):
        raise ValueError(
            f"config.json ties the head to the embedding, but {head.name} in {head.path} "
            f"differs from {keys['embed.weight']}: set tie_word_embeddings to false to use it"
        )


def _checked_device(device) -> torch.device:
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f'the device {named(device)} is not available here: try "cpu"'
        ) from error
    return device


def save(model: Transformer, folder):
    """Write config.json and model.safetensors, from which load_model makes the same model.

    A tied head is not stored. Each file appears when it is whole. Raises ValueError where the
    folder cannot be written.
    """
    folder = Path(folder)
    family = FAMILIES[model.config.family]
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    raw = {**family.config_to_hf(model.config), "torch_dtype": dtype}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror}") from error
    write_tensors(folder / WEIGHTS, named_pieces(model), {"format": "pt"})
    write_beside(folder / "config.json", (json.dumps(raw, indent=2) + "\n").encode())

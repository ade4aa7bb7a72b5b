"""A folder of floats becomes one of int8 weights, tensor by tensor: what --dtype int8 rounds
each time it loads is then rounded once.

All matrices but the embedding are stored as int8, NAME.weight (rows, columns), beside
NAME.weight_scale (rows,) in float32: a weight is the product of both. All else stays as it is,
and so do the other files, but for weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import safe_open

from ..checkpoint.checkpoint import from_headers, is_computed, matrices_of
from ..checkpoint.shards import DTYPES, INDEX, WEIGHTS
from ..checkpoint.tensor_file import write_tensors
from ..models.int8 import rounded


def write_int8(source: Path, folder: Path):
    """Write the int8 folder of a checkpoint's folder. Raises ValueError where that has int8
    weights already, or load_model would refuse it."""
    model, stored = from_headers(source)
    if any(place.scale for place in stored.values()):
        raise ValueError(f"{source} holds int8 weights already: there is nothing to convert")
    stored = {name: place for name, place in stored.items() if not is_computed(name)}
    shapes, round_these = {}, matrices_of(model)
    for name, place in stored.items():
        dtype = torch.int8 if name in round_these else DTYPES[place.dtype]
        shapes[name] = torch.empty(place.shape, dtype=dtype, device="meta")
        if name in round_these:
            shapes[f"{name}_scale"] = torch.empty(place.shape[0], device="meta")

    def blocks(name: str):
        place = stored[name.removesuffix("_scale")]
        with safe_open(place.path, framework="pt") as file:
            numbers = file.get_tensor(place.name)
        if place.name not in round_these:
            yield numbers
            return
        for block in numbers.split(256):
            yield rounded(block)[name.endswith("_scale")]

    write_tensors(folder / WEIGHTS, shapes, {"format": "pt"}, blocks)
    for path in sorted(source.iterdir()):
        if path.suffix in (".json", ".model", ".txt", ".jinja") and path.name != INDEX:
            shutil.copy(path, folder)

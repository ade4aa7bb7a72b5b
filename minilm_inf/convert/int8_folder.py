"""A folder of floats as one of int8 weights, so that what --dtype int8 rounds each time it
loads is rounded once.

All matrices but the embedding are stored as int8, NAME.weight (rows, columns), beside
NAME.weight_scale (rows,) in float32: a weight is the product of both. All else stays as it is.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..checkpoint.checkpoint import from_headers, named_pieces
from ..checkpoint.shards import DTYPES, INDEX, opened
from ..models.int8 import TILE, rounded


class Int8:
    """What the folder will hold: files that are no weights, and shapes of tensors; `blocks`
    yields their numbers. Raises load_model's ValueError, and one for int8 weights."""

    def __init__(self, source: Path):
        model, self.stored = from_headers(source)
        if any(place.scale for place in self.stored.values()):
            raise ValueError(f"{source} holds int8 weights already: load it as it is")
        pieces, embedding = named_pieces(model).items(), model.embed.weight
        self.matrices = {name for name, x in pieces if x.dim() == 2 and x is not embedding}
        self.shapes = {}
        for name, place in self.stored.items():
            dtype = torch.int8 if name in self.matrices else DTYPES[place.dtype]
            self.shapes[name] = torch.empty(place.shape, dtype=dtype, device="meta")
            if name in self.matrices:
                self.shapes[f"{name}_scale"] = torch.empty(place.shape[0], device="meta")
        kinds = ".json", ".model", ".txt", ".jinja"
        files = [path for path in source.iterdir() if path.suffix in kinds]
        self.files = {path.name: path.read_bytes() for path in files if path.name != INDEX}

    def blocks(self, name: str):
        """The numbers of a tensor, in order."""
        place = self.stored[name.removesuffix("_scale")]
        with opened(place.path) as file:
            numbers = file.get_tensor(place.name)
        for block in numbers.split(TILE) if numbers.dim() else [numbers]:
            is_rounded = place.name in self.matrices
            yield rounded(block)[name.endswith("_scale")] if is_rounded else block

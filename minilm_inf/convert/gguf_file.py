"""A Llama in a GGUF file (llama.cpp's format) as a config, and tensors in a checkpoint's names.

A GGUF holds metadata (general.architecture, llama.block_count, ...), the tokenizer, and tensors
whose rows are quantised one by one. Its queries and keys lie in another order: llama.cpp turns
the pairs of coordinates (2m, 2m + 1), Llama's own weights the pairs (m, m + D/2), so that the
rows of a head were interleaved when the file was made:

    row in the checkpoint   0 1 2 3 4 5 6 7      (D = 8)
    row in the GGUF         0 2 4 6 1 3 5 7

The package gguf reads the file; it is asked for here only. gguf_tokenizer.py does the tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.checkpoint import named_pieces
from ..checkpoint.tensor_file import Pending
from ..models import llama
from ..models.raw_config import close
from ..positions import SCALINGS, Rotary
from ..terminal.files import LFS_POINTER, named, refuse_pointer, shown
from ..terminal.json_parts import Part

BLOCK = 2**22  # numbers that are dequantised at a time
NAMES = {  # the GGUF's name -> the checkpoint's; {} is the layer
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
HEADS = "attention.head_count"
ROPE_FACTORS = "rope_freqs.weight"  # what each frequency is divided by, (D/2,)
# The numbers of every Llama 3.1 to 3.3; a GGUF keeps only the factors that follow from them.
LLAMA3 = {
    "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


class GGUF:
    """An opened file: metadata by name, and tensors by their names in the checkpoint.

    Raises ValueError where the package gguf is missing, for a damaged file, another
    architecture than llama, and a tensor that is unknown.
    """

    def __init__(self, path: Path):
        self.path, (self.fields, tensors, self.dequantize) = path, read(path)
        architecture = self.fields.get("general.architecture")
        if architecture != "llama":
            raise ValueError(
                f'{path} holds the architecture {shown(architecture)}; only "llama" is '
                "implemented"
            )
        self.factors, self.tensors = None, {}
        for tensor in tensors:
            if tensor.name == ROPE_FACTORS:
                self.factors = self.rows(tensor, slice(None)).reshape(-1)
            else:
                self.tensors[_their_name(path, tensor.name)] = tensor

    def rows(self, tensor, numbers) -> np.ndarray:
        """Some rows of a tensor in float32; of a vector, some of its numbers."""
        try:
            if len(tensor.shape) > 1:
                return self.dequantize(tensor.data[numbers], tensor.tensor_type)
            return self.dequantize(tensor.data, tensor.tensor_type)[numbers]
        except (ValueError, KeyError, NotImplementedError) as error:
            raise ValueError(
                f"{self.path}: the tensor {named(tensor.name)} is stored in a way that the "
                f"package gguf does not read ({tensor.tensor_type!r})"
            ) from error

    def config(self) -> llama.LlamaConfig:
        """The network's config. Raises ValueError for metadata that is missing or unknown."""
        facts = {name: _shortest(value) for name, value in self.fields.items()}
        ids, prefix = Part(facts, self.path), "llama."
        own = {n.removeprefix(prefix): v for n, v in facts.items() if n.startswith(prefix)}
        keys = Part(own, self.path, "llama")
        n_embd, n_head = (keys[name].integer() for name in ("embedding_length", HEADS))
        head_dim = keys["attention.key_length"].integer(n_embd // n_head)
        if head_dim % 2:
            raise keys["attention.key_length"].wrong("even")
        for name in ("attention.value_length", "rope.dimension_count"):
            keys[name].only(None, head_dim)
        for name in ("expert_count", "expert_used_count"):
            keys[name].only(None, 0)
        bos, *eos = (
            ids[f"tokenizer.ggml.{n}_token_id"].id_list() for n in ("bos", "eos", "eot")
        )
        embedding = self.tensors.get("model.embed_tokens.weight")
        if embedding is None:
            raise keys.error("the tensor token_embd.weight is missing")
        rows = shape_of(embedding)[0]
        theta = keys["rope.freq_base"].number(10000.0)
        keys["vocab_size"].only(None, rows)
        config = llama.LlamaConfig(
            family="llama",
            vocab_size=rows,
            n_layer=keys["block_count"].integer(),
            n_head=n_head,
            n_kv_head=keys["attention.head_count_kv"].integer(n_head),
            n_embd=n_embd,
            head_dim=head_dim,
            n_inner=keys["feed_forward_length"].integer(),
            context_length=keys["context_length"].integer(at_most=2**62),
            norm_eps=keys["attention.layer_norm_rms_epsilon"].number(),
            tied="lm_head.weight" not in self.tensors,
            bos_id=bos[0] if bos else None,
            eos_ids=tuple(dict.fromkeys(eos[0] + eos[1])),
            rope_theta=theta,
            rope_scaling=self._scaling(keys, head_dim, theta),
            attention_bias="model.layers.0.self_attn.q_proj.bias" in self.tensors,
            mlp_bias="model.layers.0.mlp.gate_proj.bias" in self.tensors,
        )
        close(keys, {"tensor_data_layout"})
        return config

    def _scaling(self, keys: Part, head_dim: int, theta: float) -> tuple | None:
        """LlamaConfig.rope_scaling, from the metadata or from the factors of Llama 3.1."""
        # A factor without a type means "linear", as it does in llama.cpp.
        kind = keys["rope.scaling.type"].only(None, "none", "linear")
        old = keys["rope.scale_linear"].number(1)  # the factor's first name
        factor = keys["rope.scaling.factor"].number(old)
        if kind != "none" and factor != 1:
            return ("rope_type", "linear"), ("factor", factor)
        if self.factors is None or (self.factors == 1).all():
            return None
        scaling = {**LLAMA3, "factor": float(self.factors.max())}
        plain = Rotary(head_dim, theta).frequencies
        scaled = Rotary(head_dim, theta, scaling=scaling).frequencies
        theirs = torch.tensor(self.factors, dtype=torch.float64)
        if plain.shape != theirs.shape or not torch.allclose(plain / scaled, theirs, rtol=1e-5):
            raise keys.error(f"the factors of {ROPE_FACTORS} are not those of Llama 3.1")
        return tuple((name, scaling[name]) for name in ("rope_type", *SCALINGS["llama3"]))

    def pending(self, config: llama.LlamaConfig) -> list[Pending]:
        """The tensors in float16, in the checkpoint's names, shapes and order of rows.

        Raises ValueError by name for a tensor that is missing, surplus or misshapen.
        """
        if config.n_layer > len(self.tensors):  # a mistaken number must not build without end
            raise ValueError(
                f"{self.path} tells of {config.n_layer} layers, but holds only "
                f"{len(self.tensors)} tensors"
            )
        try:
            with torch.device("meta"):
                pieces = named_pieces(llama.build(config))
        except ValueError as error:
            raise ValueError(f"{self.path} tells of sizes that make no model") from error
        for name in [*pieces, *self.tensors]:
            if name not in self.tensors:
                raise ValueError(
                    f"{self.path} lacks the tensor that is called {name} elsewhere"
                )
            if name not in pieces:
                raise ValueError(
                    f"{self.path} holds {self.tensors[name].name}, which has no place in "
                    "the model that its metadata describe"
                )
        return [
            self._pending(name, tuple(piece.shape), config) for name, piece in pieces.items()
        ]

    def _pending(self, name: str, shape: tuple[int, ...], config) -> Pending:
        tensor = self.tensors[name]
        if shape_of(tensor) != shape:
            raise ValueError(
                f"{self.path}: the tensor {tensor.name} has the shape {shape_of(tensor)}, but "
                f"the metadata ask for {shape}"
            )
        self.rows(tensor, slice(0, 1))  # is its kind of numbers known?
        order = np.arange(shape[0])
        if re.search(r"\.[qk]_proj\.", name):
            order = rows_in_halves(shape[0], config.head_dim)
        step = max(1, BLOCK // math.prod(shape[1:]))

        def blocks() -> Iterator[Tensor]:
            for start in range(0, len(order), step):
                # A row is quantised by itself, so rows may be ordered before they are read.
                yield self._half(tensor.name, self.rows(tensor, order[start : start + step]))

        return Pending(name, torch.float16, shape, blocks)

    def _half(self, name: str, rows: np.ndarray) -> Tensor:
        with np.errstate(over="ignore"):
            half = rows.astype(np.float16)
        if not np.isfinite(half).all():
            raise ValueError(
                f"{self.path}: the tensor {name} holds numbers that float16 cannot"
            )
        return torch.from_numpy(half)


def read(path: Path) -> tuple[dict, list, object]:
    """A file's metadata, its tensors, and what makes float32 of their numbers, all as the
    package gguf has them. Raises ValueError where it is missing, or cannot read the file."""
    try:
        from gguf import GGUFReader
        from gguf.quants import dequantize
    except ImportError as error:
        raise ValueError(
            f"reading {path} takes the package gguf: install it (pip install gguf)"
        ) from error

    class Bounded(GGUFReader):
        """A reader that takes no count or length for true which the file only claims."""

        def _get(self, offset, dtype, count=1, *more, **named):
            if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise ValueError("it ends too soon")
            return super()._get(offset, dtype, count, *more, **named)

    if not path.is_file():
        raise ValueError(f"{named(path)} does not exist: give a .gguf file")
    with open(path, "rb") as file:
        refuse_pointer(path, file.read(len(LFS_POINTER)))
    try:
        reader = Bounded(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        if not all(len(tensor.shape) for tensor in reader.tensors):
            raise ValueError("it holds a tensor without sizes")
    except Exception as error:  # a stranger's file may end in any of them
        what = named(" ".join(str(error).split()))
        raise ValueError(f"{path} is not a whole GGUF file ({what}): fetch it again") from error
    return fields, reader.tensors, dequantize


def shape_of(tensor) -> tuple[int, ...]:
    """A tensor's shape as PyTorch counts; a GGUF has the shortest step first."""
    return tuple(map(int, reversed(tensor.shape)))


def rows_in_halves(rows: int, head_dim: int) -> np.ndarray:
    """Which row of the GGUF is each row of a query's or key's weights in the checkpoint.

    >>> rows_in_halves(8, 8).tolist()
    [0, 2, 4, 6, 1, 3, 5, 7]
    """
    pairs = np.arange(rows).reshape(-1, head_dim // 2, 2)  # head, pair, first or second
    return pairs.swapaxes(1, 2).reshape(rows)


def _their_name(path: Path, name: str) -> str:
    """The checkpoint's name of a GGUF's tensor. Raises ValueError for one that is unknown."""
    stem, _, leaf = name.rpartition(".")
    layer = re.match(r"blk\.(\d+)\.", stem)
    pattern = stem.replace(layer[0], "blk.{}.", 1) if layer else stem
    if pattern not in NAMES or leaf not in ("weight", "bias"):
        raise ValueError(
            f"{path} holds the tensor {named(name)}, which is not known in a Llama"
        )
    return NAMES[pattern].format(layer and layer[1]) + "." + leaf


def _shortest(value):
    """A number as people wrote it: the float32 0.00000999999975 is 1e-05."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(value))) if isinstance(value, float) else value

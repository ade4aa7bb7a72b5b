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

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.checkpoint import build_on_meta, check, named_pieces, said_of
from ..checkpoint.shards import Stored
from ..models import llama
from ..models.raw_config import close
from ..positions import SCALINGS, Rotary
from ..terminal.files import named
from ..terminal.json_parts import Part
from .gguf_tokenizer import tokenizer_files

BLOCK = 2**22  # numbers that are dequantised at a time
MOST_VALUES = 2**21  # of the metadata; the vocabulary of Llama 3 with its merges takes half
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
FACTS = {  # llama.* of the metadata -> the key of config.json
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
ROPE_FACTORS = "rope_freqs.weight"  # what each frequency is divided by, (D/2,)
# The numbers of every Llama 3.1 to 3.3; a GGUF keeps only the factors that follow from them.
LLAMA3 = {
    "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


class GGUF:
    """An opened file of a Llama: its metadata, and its tensors by their names in a checkpoint.

    files: what stands beside the weights in the folder that it becomes, by name.
    shapes: the tensors in float16, without their numbers, which `blocks` yields.
    Raises ValueError where the package gguf is missing, for a damaged file, and for whatever is
    missing, unknown or not implemented.
    """

    def __init__(self, path: Path):
        self.path, (self.fields, tensors, self.dequantize) = path, read(path)
        Part(self.fields, path)["general.architecture"].only("llama")
        self.factors = next((x for x in tensors if x.name == ROPE_FACTORS), None)
        self.tensors = {their_name(x.name): x for x in tensors if x.name != ROPE_FACTORS}
        self.config = self._config()
        stored = {
            name: Stored(path, x.name, "F16", shape_of(x)) for name, x in self.tensors.items()
        }
        model = build_on_meta(self.config, stored, path)
        check(model, stored, path)
        self.shapes = {name: piece.half() for name, piece in named_pieces(model).items()}
        self.files = tokenizer_files(path, self.fields)
        raw = llama.config_to_hf(self.config) | {"torch_dtype": "float16"}
        self.files["config.json"] = (json.dumps(raw, indent=2) + "\n").encode()

    def _config(self) -> llama.LlamaConfig:
        """The network's config. Raises ValueError for metadata that is missing or unknown."""
        facts = {name: _shortest(value) for name, value in self.fields.items()}
        own = {name[6:]: x for name, x in facts.items() if name.startswith("llama.")}
        keys = Part(own, self.path, "llama")
        embedding = self.tensors.get("model.embed_tokens.weight")
        raw = {theirs: keys[name].value for name, theirs in FACTS.items()}
        ends = (facts.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
        raw |= {
            "model_type": "llama",
            "vocab_size": embedding and shape_of(embedding)[0],
            "bos_token_id": facts.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": [id for id in ends if id is not None],
            "tie_word_embeddings": "lm_head.weight" not in self.tensors,
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in self.tensors,
            "mlp_bias": "model.layers.0.mlp.gate_proj.bias" in self.tensors,
        }
        config = said_of(f"{self.path}, as a config.json", llama.config_from_hf, raw)
        implied = {
            "attention.value_length": config.head_dim, "rope.dimension_count": config.head_dim,
            "vocab_size": config.vocab_size, "expert_count": 0, "expert_used_count": 0,
        }  # fmt: skip
        for name, value in implied.items():
            keys[name].only(None, value)
        config = replace(config, rope_scaling=self._scaling(keys, config))
        close(keys, {"tensor_data_layout"})
        return config

    def _scaling(self, keys: Part, config: llama.LlamaConfig) -> tuple | None:
        """LlamaConfig.rope_scaling, from the metadata or from the factors of Llama 3.1."""
        # A factor without a type means "linear", as it does in llama.cpp.
        kind = keys["rope.scaling.type"].only(None, "none", "linear")
        factor = keys["rope.scaling.factor"].number(1)
        if kind != "none" and factor != 1:
            return ("rope_type", "linear"), ("factor", factor)
        if self.factors is None:
            return None
        theirs = torch.tensor(self.rows(self.factors, slice(None)), dtype=torch.float64)
        if (theirs == 1).all():
            return None
        scaling = {**LLAMA3, "factor": float(theirs.max())}
        rotary = config.head_dim, config.rope_theta
        ours = Rotary(*rotary).frequencies / Rotary(*rotary, scaling=scaling).frequencies
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-5):
            raise keys.error(f"the factors of {ROPE_FACTORS} are not those of Llama 3.1")
        return tuple((name, scaling[name]) for name in ("rope_type", *SCALINGS["llama3"]))

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

    def blocks(self, name: str) -> Iterator[Tensor]:
        """A tensor's numbers in float16, some rows at a time, in the checkpoint's order."""
        tensor, shape = self.tensors[name], self.shapes[name].shape
        order = np.arange(shape[0])
        if re.search(r"\.[qk]_proj\.", name):
            order = rows_in_halves(shape[0], self.config.head_dim)
        step = max(1, BLOCK // math.prod(shape[1:]))
        for start in range(0, len(order), step):
            # A row is quantised by itself, so rows may be ordered before they are read.
            with np.errstate(over="ignore"):
                half = self.rows(tensor, order[start : start + step]).astype(np.float16)
            if not np.isfinite(half).all():
                raise ValueError(
                    f"{self.path}: the tensor {tensor.name} holds numbers that float16 cannot"
                )
            yield torch.from_numpy(half)


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
    if not path.is_file():
        raise ValueError(f"{named(path)} does not exist: give a .gguf file")

    class Bounded(GGUFReader):
        """The package's reader, which believes any length of a list, and would read on where
        the file has ended, for ever."""

        left = MOST_VALUES

        def _get(self, offset, *arguments, **options):
            self.left -= 1
            if offset >= len(self.data) or self.left < 0:
                raise ValueError("it says that it has more values than there are")
            return super()._get(offset, *arguments, **options)

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


def their_name(name: str) -> str:
    """The checkpoint's name of a tensor; an unknown one stays, and finds no place."""
    stem, _, leaf = name.rpartition(".")
    layer = re.match(r"blk\.(\d+)\.", stem)
    number = layer[1] if layer else ""
    pattern = stem.replace(layer[0], "blk.{}.", 1) if layer else stem
    return NAMES.get(pattern, stem).replace("{}", number) + "." + leaf


def _shortest(value):
    """A number as people wrote it: the float32 0.00000999999975 is 1e-05."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(value))) if isinstance(value, float) else value

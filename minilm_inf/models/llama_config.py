"""Llama's config.json, whose model_type is llama or mistral.

Which positions are rotary, and how, has two spellings: rope_scaling, and the newer
rope_parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import ModelConfig
from ..positions import SCALINGS
from ..terminal.json_parts import Part
from .raw_config import close, decoder_facts, keys_of


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """A ModelConfig with Llama's own facts; rope_scaling is (key, value) pairs for Rotary."""

    rope_theta: float = 10000.0
    rope_scaling: tuple[tuple[str, object], ...] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False


FACTS = {  # our name -> config.json's, what takes it, and its default
    "vocab_size": ("vocab_size", Part.integer),
    "n_layer": ("num_hidden_layers", Part.integer),
    "n_head": ("num_attention_heads", Part.integer),
    "n_kv_head": ("num_key_value_heads", Part.integer),
    "n_embd": ("hidden_size", Part.integer),
    "head_dim": ("head_dim", Part.integer),
    "n_inner": ("intermediate_size", Part.integer),
    "context_length": ("max_position_embeddings", Part.integer),
    "norm_eps": ("rms_norm_eps", Part.number, 1e-6),
    "tied": ("tie_word_embeddings", Part.flag, False),
    "attention_bias": ("attention_bias", Part.flag, False),
    "mlp_bias": ("mlp_bias", Part.flag, False),
}
LLAMA_HARMLESS = {
    "is_llama_config",  # a note that SmolLM2 makes about itself
    "max_sequence_length",  # max_position_embeddings says it, or the default
}


def config_from_hf(raw: dict) -> LlamaConfig:
    """The config of a config.json whose model_type is llama or mistral.

    The sizes must be there; any other absent key takes the default that transformers documents.
    Raises ValueError with the key's name for whatever is missing, unknown or not implemented.
    """
    keys = Part(raw)
    mistral = keys["model_type"].value == "mistral"
    keys["hidden_act"].only(None, "silu", "swish")  # two names of one function
    keys["partial_rotary_factor"].only(None, 1)
    keys["rope_interleaved"].only(None, False)
    window = keys["sliding_window"]
    if mistral and "sliding_window" not in keys:
        window.value = "absent, which means 4096"
    if keys["use_sliding_window"].flag(True) and not window.is_null:
        raise window.wrong("null, as a model trained with a window is not implemented")
    context = {"context_length": 131072 if mistral else 2048}
    facts = decoder_facts(keys, FACTS, bos=(1,), eos=(2,), **context) | _rope_from_hf(keys)
    kinds, n_layer = keys["layer_types"], facts["n_layer"]
    if not kinds.is_null and kinds.value != ["full_attention"] * n_layer:
        raise keys.error(f'layer_types must be {n_layer} times "full_attention", or absent')
    if facts["head_dim"] % 2:
        raise keys["head_dim"].wrong("even, for rotary positions")
    close(keys, LLAMA_HARMLESS)
    return LlamaConfig(family="llama", **facts)


def _rope_from_hf(keys: Part) -> dict:
    """rope_theta and rope_scaling, from the old spelling or from rope_parameters.

    Old: rope_theta, and rope_scaling with "type" or "rope_type". New (transformers 5):
    rope_parameters, which holds rope_theta too and is never null.
    """
    old, new = keys["rope_scaling"], keys["rope_parameters"]
    rope = old if new.value in (None, {}) else new
    thetas = {part["rope_theta"].number(None) for part in (keys, rope)} - {None}
    if (rope is new and not old.is_null) or len(thetas) > 1:
        raise keys.error("rope_theta or rope_scaling and rope_parameters differ: keep one set")
    kinds = {rope[name].only(None, *SCALINGS) for name in ("rope_type", "type")} - {None}
    if len(kinds) > 1:
        raise rope.error(f"{rope.place}.type and {rope.place}.rope_type differ: keep one")
    kind = kinds.pop() if kinds else "default"
    rope["partial_rotary_factor"].only(None, 1)
    numbers = {name: rope[name].number() for name in SCALINGS[kind]}
    close(rope)
    if kind == "llama3" and numbers["high_freq_factor"] <= numbers["low_freq_factor"]:
        raise rope["high_freq_factor"].wrong("above low_freq_factor")
    scaling = None if kind == "default" else (("rope_type", kind), *numbers.items())
    return {"rope_theta": float(thetas.pop() if thetas else 10000), "rope_scaling": scaling}


def config_to_hf(config: LlamaConfig) -> dict:
    """The config.json of a config, in the keys that transformers reads."""
    return keys_of(config, FACTS) | {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling and dict(config.rope_scaling),
    }

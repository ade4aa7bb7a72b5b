"""Llama's config.json, whose model_type is llama or mistral.

Which positions are rotary, and how, has two spellings: rope_scaling, and the newer
rope_parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import ModelConfig
from ..positions import SCALINGS
from ..terminal.json_parts import Part
from .raw_config import close, heads, plain_decoder, shared_keys, special_ids


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """A ModelConfig with Llama's own facts; rope_scaling is (key, value) pairs for Rotary."""

    rope_theta: float = 10000.0
    rope_scaling: tuple[tuple[str, object], ...] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False


LLAMA_HARMLESS = {"is_llama_config"}  # a note that SmolLM2 makes about itself


def config_from_hf(raw: dict) -> LlamaConfig:
    """The config of a config.json whose model_type is llama or mistral.

    The sizes must be there; any other absent key takes the default that transformers documents.
    Raises ValueError with the key's name for whatever is missing, unknown or not implemented.
    """
    keys = Part(raw)
    mistral = keys["model_type"].only("llama", "mistral") == "mistral"
    _only_what_is_implemented(keys, mistral)
    theta, scaling = _rope_from_hf(keys)
    n_embd, n_head, head_dim = heads(keys, "hidden_size", "num_attention_heads", "head_dim")
    n_layer = keys["num_hidden_layers"].integer()
    kinds = keys["layer_types"].value
    plain = isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds)
    if kinds is not None and not (plain and len(kinds) == n_layer):
        raise keys.error(f'layer_types must be {n_layer} times "full_attention", or absent')
    if head_dim % 2:
        raise keys.error(f"head_dim must be even for rotary positions, not {head_dim}")
    # The first conversions of Llama 1 call the training length max_sequence_length.
    default_length = keys["max_sequence_length"].integer(131072 if mistral else 2048, 2**62)
    config = LlamaConfig(
        family="llama",
        vocab_size=keys["vocab_size"].integer(),
        n_layer=n_layer,
        n_head=n_head,
        n_kv_head=keys["num_key_value_heads"].integer(n_head),
        n_embd=n_embd,
        head_dim=head_dim,
        n_inner=keys["intermediate_size"].integer(),
        context_length=keys["max_position_embeddings"].integer(default_length, 2**62),
        norm_eps=keys["rms_norm_eps"].number(1e-6),
        tied=keys["tie_word_embeddings"].flag(False),
        rope_theta=theta,
        rope_scaling=scaling,
        attention_bias=keys["attention_bias"].flag(False),
        mlp_bias=keys["mlp_bias"].flag(False),
        **special_ids(keys, bos=(1,), eos=(2,)),
    )
    close(keys, LLAMA_HARMLESS)
    return config


def _only_what_is_implemented(keys: Part, mistral: bool):
    """Raises ValueError for a Llama that this file would compute wrongly."""
    keys["hidden_act"].only(None, "silu", "swish")  # two names of one function
    keys["partial_rotary_factor"].only(None, 1)
    keys["rope_interleaved"].only(None, False)
    plain_decoder(keys)
    window = keys["sliding_window"]
    if mistral and "sliding_window" not in keys:
        window.value = "absent, which means 4096"
    if keys["use_sliding_window"].flag(True) and not window.is_null:
        raise window.wrong("null, as a model trained with a window is not implemented")


def _rope_from_hf(keys: Part) -> tuple[float, tuple | None]:
    """rope_theta and rope_scaling, from the old spelling or from rope_parameters.

    Old: rope_theta, and rope_scaling with "type" or "rope_type". New (transformers 5):
    rope_parameters, which holds rope_theta too and is never null.
    """
    spellings = [keys[name] for name in ("rope_scaling", "rope_parameters")]
    spellings = [rope for rope in spellings if not rope.is_null and rope.value != {}]
    thetas = [rope["rope_theta"].number(None) for rope in (keys, *spellings)]
    thetas = {theta for theta in thetas if theta is not None} or {10000.0}
    scalings = {_scaling_from_hf(rope) for rope in spellings} or {None}
    if len(thetas) > 1 or len(scalings) > 1:
        raise ValueError(
            "rope_theta, rope_scaling and rope_parameters contradict each other: keep one set"
        )
    return float(thetas.pop()), scalings.pop()


def _scaling_from_hf(rope: Part) -> tuple[tuple[str, object], ...] | None:
    """The pairs that LlamaConfig.rope_scaling holds, None for positions as they are."""
    kinds = {rope[name].only(None, *SCALINGS) for name in ("rope_type", "type")} - {None}
    if len(kinds) > 1:
        raise rope.error(f"{rope.place}.type and {rope.place}.rope_type contradict each other")
    kind = kinds.pop() if kinds else "default"
    rope["partial_rotary_factor"].only(None, 1)
    facts = tuple((name, rope[name].number()) for name in SCALINGS[kind])
    close(rope)
    numbers = dict(facts)
    if kind == "llama3" and numbers["high_freq_factor"] <= numbers["low_freq_factor"]:
        raise rope["high_freq_factor"].wrong("above low_freq_factor")
    return None if kind == "default" else (("rope_type", kind), *facts)


def config_to_hf(config: LlamaConfig) -> dict:
    """The config.json of a config, in the keys that every version of transformers reads."""
    scaling = dict(config.rope_scaling) if config.rope_scaling else None
    if scaling:
        scaling["type"] = scaling["rope_type"]  # what transformers before 4.43 reads
    return shared_keys(config) | {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_inner,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }

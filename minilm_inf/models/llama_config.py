"""Llama's config.json, whose model_type is llama or mistral.

Which positions are rotary, and how, has two spellings: rope_scaling, and the newer
rope_parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import ModelConfig
from ..positions import SCALINGS
from ..terminal.files import shown
from .raw_config import RawConfig, shared_keys


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
    keys = RawConfig(raw)
    mistral = keys.only("model_type", ("llama", "mistral")) == "mistral"
    _only_what_is_implemented(keys, mistral)
    theta, scaling = _rope_from_hf(keys)
    n_embd, n_head, head_dim = keys.heads("hidden_size", "num_attention_heads", "head_dim")
    n_layer = keys.integer("num_hidden_layers")
    kinds = keys.take("layer_types", None)
    plain = isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds)
    if kinds is not None and not (plain and len(kinds) == n_layer):
        raise ValueError(f'layer_types must be {n_layer} times "full_attention", or absent')
    if head_dim % 2:
        raise ValueError(f"head_dim must be even for rotary positions, not {head_dim}")
    # The first conversions of Llama 1 call the training length max_sequence_length.
    default_length = keys.integer("max_sequence_length", 131072 if mistral else 2048, 2**62)
    config = LlamaConfig(
        family="llama",
        vocab_size=keys.integer("vocab_size"),
        n_layer=n_layer,
        n_head=n_head,
        n_kv_head=keys.integer("num_key_value_heads", n_head),
        n_embd=n_embd,
        head_dim=head_dim,
        n_inner=keys.integer("intermediate_size"),
        context_length=keys.integer("max_position_embeddings", default_length, 2**62),
        norm_eps=keys.number("rms_norm_eps", 1e-6),
        tied=keys.flag("tie_word_embeddings", False),
        bos_id=keys.bos_id(1),
        eos_ids=keys.ids("eos_token_id", 2),
        rope_theta=theta,
        rope_scaling=scaling,
        attention_bias=keys.flag("attention_bias", False),
        mlp_bias=keys.flag("mlp_bias", False),
    )
    keys.close(LLAMA_HARMLESS)
    return config


def _only_what_is_implemented(keys: RawConfig, mistral: bool):
    """Raises ValueError for a Llama that this file would compute wrongly."""
    keys.only("hidden_act", ("silu", "swish"), "silu")  # two names of one function
    keys.only("partial_rotary_factor", (1,), 1)
    keys.only("rope_interleaved", (False,), False)
    keys.plain_decoder()
    window = keys.take("sliding_window", "absent, which means 4096" if mistral else None)
    if keys.flag("use_sliding_window", True) and window is not None:
        raise ValueError(
            f"sliding_window must be null, not {shown(window)}: a model trained with a window "
            "is not implemented"
        )


def _rope_from_hf(keys: RawConfig) -> tuple[float, tuple | None]:
    """rope_theta and rope_scaling, from the old spelling or from rope_parameters.

    Old: rope_theta, and rope_scaling with "type" or "rope_type". New (transformers 5):
    rope_parameters, which holds rope_theta too and is never null.
    """
    spellings = [keys.inner(name, {}) for name in ("rope_scaling", "rope_parameters")]
    spellings = [rope for rope in spellings if rope.left]
    thetas = [rope.number("rope_theta", None) for rope in (keys, *spellings)]
    thetas = {theta for theta in thetas if theta is not None} or {10000.0}
    scalings = {_scaling_from_hf(rope) for rope in spellings} or {None}
    if len(thetas) > 1 or len(scalings) > 1:
        raise ValueError(
            "rope_theta, rope_scaling and rope_parameters contradict each other: keep one set"
        )
    return float(thetas.pop()), scalings.pop()


def _scaling_from_hf(rope: RawConfig) -> tuple[tuple[str, object], ...] | None:
    """The pairs that LlamaConfig.rope_scaling holds, None for positions as they are."""
    kinds = tuple(SCALINGS)
    kind = rope.only("rope_type", kinds, None)
    old_kind = rope.only("type", kinds, kind) or "default"
    if (kind or old_kind) != old_kind:
        raise ValueError(f"{rope.where}type and {rope.where}rope_type contradict each other")
    rope.only("partial_rotary_factor", (1,), 1)
    facts = tuple((name, rope.number(name)) for name in SCALINGS[old_kind])
    rope.close()
    numbers = dict(facts)
    if old_kind == "llama3" and numbers["high_freq_factor"] <= numbers["low_freq_factor"]:
        raise ValueError(f"{rope.where}high_freq_factor must be above low_freq_factor")
    return None if old_kind == "default" else (("rope_type", old_kind), *facts)


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

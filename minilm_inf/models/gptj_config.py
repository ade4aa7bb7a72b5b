"""GPT-J's config.json, whose model_type is gptj.

GPT-J-6B, and what was trained on from it, spell its keys in one way only.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import ModelConfig
from .raw_config import RawConfig, shared_keys


@dataclass(frozen=True)
class GptjConfig(ModelConfig):
    """A ModelConfig with GPT-J's own fact: how many of head_dim's coordinates turn."""

    rotary_dim: int = 64


GPTJ_HARMLESS = {"n_ctx"}  # n_positions says it


def config_from_hf(raw: dict) -> GptjConfig:
    """The config of a config.json whose model_type is gptj.

    The sizes must be there; any other absent key takes the default that transformers documents.
    Raises ValueError with the key's name for whatever is missing, unknown or not implemented.
    """
    keys = RawConfig(raw)
    keys.only("model_type", ("gptj",))
    keys.only("activation_function", ("gelu_new",), "gelu_new")
    for name in ("rotary", "scale_attn_weights"):
        keys.only(name, (True,), True)
    keys.plain_decoder()
    n_embd, n_head, head_dim = keys.heads("n_embd", "n_head")
    rotary_dim = keys.integer("rotary_dim")
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise keys.wrong("rotary_dim", f"even, and at most head_dim, {head_dim}", rotary_dim)
    config = GptjConfig(
        family="gptj",
        vocab_size=keys.integer("vocab_size"),
        n_layer=keys.integer("n_layer"),
        n_head=n_head,
        n_kv_head=n_head,
        n_embd=n_embd,
        head_dim=head_dim,
        n_inner=keys.integer("n_inner", 4 * n_embd),
        context_length=keys.integer("n_positions", 2048, 2**62),
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        tied=keys.flag("tie_word_embeddings", False),
        bos_id=keys.bos_id(50256),
        eos_ids=keys.ids("eos_token_id", 50256),
        rotary_dim=rotary_dim,
    )
    keys.close(GPTJ_HARMLESS)
    return config


def config_to_hf(config: GptjConfig) -> dict:
    """The config.json of a config, in the keys that every version of transformers reads."""
    return shared_keys(config) | {
        "architectures": ["GPTJForCausalLM"],
        "n_embd": config.n_embd,
        "n_inner": config.n_inner,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "rotary": True,
        "rotary_dim": config.rotary_dim,
        "n_positions": config.context_length,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
    }

"""GPT-J's config.json, whose model_type is gptj.

GPT-J-6B, and what was trained on from it, spell its keys in one way only.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import ModelConfig
from ..terminal.json_parts import Part
from .raw_config import close, heads, plain_decoder, shared_keys, special_ids


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
    keys = Part(raw)
    keys["model_type"].only("gptj")
    keys["activation_function"].only(None, "gelu_new")
    for name in ("rotary", "scale_attn_weights"):
        keys[name].only(None, True)
    plain_decoder(keys)
    n_embd, n_head, head_dim = heads(keys, "n_embd", "n_head")
    rotary_dim = keys["rotary_dim"].integer()
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise keys["rotary_dim"].wrong(f"even, and at most head_dim, {head_dim}")
    config = GptjConfig(
        family="gptj",
        vocab_size=keys["vocab_size"].integer(),
        n_layer=keys["n_layer"].integer(),
        n_head=n_head,
        n_kv_head=n_head,
        n_embd=n_embd,
        head_dim=head_dim,
        n_inner=keys["n_inner"].integer(4 * n_embd),
        context_length=keys["n_positions"].integer(2048, 2**62),
        norm_eps=keys["layer_norm_epsilon"].number(1e-5),
        tied=keys["tie_word_embeddings"].flag(False),
        rotary_dim=rotary_dim,
        **special_ids(keys, bos=(50256,), eos=(50256,)),
    )
    close(keys, GPTJ_HARMLESS)
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

"""GPT-J's config.json, whose model_type is gptj.

GPT-J-6B, and what was trained on from it, spell its keys in one way only.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import ModelConfig
from ..terminal.json_parts import Part
from .raw_config import close, decoder_facts, keys_of


@dataclass(frozen=True)
class GptjConfig(ModelConfig):
    """A ModelConfig with GPT-J's own fact: how many of head_dim's coordinates turn."""

    rotary_dim: int = 64


FACTS = {  # our name -> config.json's, what takes it, and its default
    "vocab_size": ("vocab_size", Part.integer),
    "n_layer": ("n_layer", Part.integer),
    "n_head": ("n_head", Part.integer),
    "n_embd": ("n_embd", Part.integer),
    "n_inner": ("n_inner", Part.integer),
    "rotary_dim": ("rotary_dim", Part.integer),
    "context_length": ("n_positions", Part.integer, 2048),
    "norm_eps": ("layer_norm_epsilon", Part.number, 1e-5),
    "tied": ("tie_word_embeddings", Part.flag, False),
}


def config_from_hf(raw: dict) -> GptjConfig:
    """The config of a config.json whose model_type is gptj.

    The sizes must be there; any other absent key takes the default that transformers documents.
    Raises ValueError with the key's name for whatever is missing, unknown or not implemented.
    """
    keys = Part(raw)
    keys["activation_function"].only(None, "gelu_new")
    for name in ("rotary", "scale_attn_weights"):
        keys[name].only(None, True)
    n_inner = 4 * keys["n_embd"].integer()
    facts = decoder_facts(keys, FACTS, bos=(50256,), eos=(50256,), n_inner=n_inner)
    if facts["rotary_dim"] % 2 or facts["rotary_dim"] > facts["head_dim"]:
        raise keys["rotary_dim"].wrong(f"even, and at most head_dim, {facts['head_dim']}")
    close(keys, {"n_ctx"})  # n_positions says it
    return GptjConfig(family="gptj", **facts)


def config_to_hf(config: GptjConfig) -> dict:
    """The config.json of a config, in the keys that every version of transformers reads."""
    return keys_of(config, FACTS) | {
        "architectures": ["GPTJForCausalLM"],
        "rotary": True,
        "activation_function": "gelu_new",
    }

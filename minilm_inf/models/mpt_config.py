"""MPT's config.json, whose model_type is mpt.

It is read in MosaicML's spelling and in that of transformers, and written so that both read it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import ModelConfig
from ..terminal.json_parts import Part
from .raw_config import close, decoder_facts, facts_of, keys_of


@dataclass(frozen=True)
class MptConfig(ModelConfig):
    """A ModelConfig with MPT's own facts; clip_qkv None is no bound."""

    alibi_bias_max: float = 8.0
    clip_qkv: float | None = None
    qk_ln: bool = False
    bias: bool = False


FACTS = {  # our name -> config.json's, what takes it, and its default
    "vocab_size": ("vocab_size", Part.integer),
    "n_layer": ("n_layers", Part.integer),
    "n_head": ("n_heads", Part.integer),
    "n_embd": ("d_model", Part.integer),
    "context_length": ("max_seq_len", Part.integer, 2048),
    "norm_eps": ("layer_norm_epsilon", Part.number),
    "tied": ("tie_word_embeddings", Part.flag, True),
}
ATTENTION = {  # the same of attn_config
    "softmax_scale": ("softmax_scale", Part.number, None),
    "alibi_bias_max": ("alibi_bias_max", Part.number, 8),
    "clip_qkv": ("clip_qkv", Part.number, None),
    "qk_ln": ("qk_ln", Part.flag, False),
}
MPT_HARMLESS = {
    "verbose", "name",  # what the file says of itself
    "param_init_fn",  # how an untrained model starts
    "embedding_fraction",  # shrinks the embedding's gradient, not the embedding
    "use_pad_tok_in_ffn",  # whether time is spent on padding
    "learned_pos_emb",  # beside ALiBi no code that reads this file learns positions
    "max_position_embeddings",  # max_seq_len says it
}  # fmt: skip
ATTENTION_HARMLESS = {
    "fused_qkv",  # a way to compute the same
    "attn_uses_sequence_id",  # texts packed into one row, in training only
    "is_encoder_decoder", "add_cross_attention", "tie_word_embeddings",
    "rope_theta", "rope_impl", "rope_dail_config", "rope_hf_config",  # for rope: true
}  # fmt: skip


def config_from_hf(raw: dict) -> MptConfig:
    """The config of a config.json whose model_type is mpt.

    The sizes must be there; any other absent key takes the default that transformers documents.
    Raises ValueError with the key's name for whatever is missing, unknown or not implemented.
    """
    keys = Part(raw)
    attention = keys["attn_config"]
    _only_what_is_implemented(keys, attention)
    norm_eps = keys["norm_eps"].number(1e-5)  # MosaicML's name; the other is transformers'
    facts = decoder_facts(keys, FACTS, bos=(), eos=(), norm_eps=norm_eps)
    attention["kv_n_heads"].only(None, facts["n_head"])
    n_inner = int(keys["expansion_ratio"].number(4) * facts["n_embd"])
    n_inner = Part(n_inner, keys.file, "expansion_ratio * d_model").integer()
    facts |= facts_of(attention, ATTENTION) | {"bias": not keys["no_bias"].flag(True)}
    close(attention, ATTENTION_HARMLESS)
    close(keys, MPT_HARMLESS)
    return MptConfig(family="mpt", n_inner=n_inner, **facts)


def _only_what_is_implemented(keys: Part, attention: Part):
    """ALiBi, plain heads and a plain MLP. Raises ValueError for any other MPT."""
    # Whether a norm runs in low precision is training's affair.
    keys["norm_type"].only(None, "low_precision_layernorm", "layernorm")
    mlp = keys["ffn_config"]  # newer files say there what the older ones leave unsaid
    for part in (keys, mlp):
        part["fc_type"].only(None, "torch", {"name": "torch"})
    mlp["ffn_type"].only(None, "mptmlp")
    close(mlp)
    # transformers 4 writes what differs from its defaults, of which ALiBi is one, and beside
    # it, as MosaicML does not, a model_type.
    if not attention["alibi"].flag("model_type" in attention):
        raise attention["alibi"].wrong("true, as learned positions are not implemented")
    attention["attn_type"].only(None, "multihead_attention")
    for name in ("prefix_lm", "rope", "qk_gn"):
        attention[name].only(None, False)
    attention["sliding_window_size"].only(None, -1)


def config_to_hf(config: MptConfig) -> dict:
    """The config.json of a config, in the keys that MosaicML's code and transformers read.

    transformers 5 tells 8 from 8.0 and refuses the wrong one, so each number has its kind.
    """
    ratio, rest = divmod(config.n_inner, config.n_embd)
    if rest:  # whoever reads it rounds down
        ratio = (config.n_inner + 0.5) / config.n_embd
    attention = {key: getattr(config, key) for key in ATTENTION}
    for name in ("clip_qkv", "softmax_scale"):
        attention[name] = attention[name] and float(attention[name])
    if config.alibi_bias_max == int(config.alibi_bias_max):
        attention["alibi_bias_max"] = int(config.alibi_bias_max)
    return keys_of(config, FACTS) | {
        "architectures": ["MPTForCausalLM"],
        "expansion_ratio": ratio,
        "norm_type": "low_precision_layernorm",
        "no_bias": not config.bias,
        "learned_pos_emb": False,
        "attn_config": {"attn_impl": "torch", "alibi": True, **attention},
    }

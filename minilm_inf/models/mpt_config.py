"""MPT's config.json, whose model_type is mpt.

It is read in MosaicML's spelling and in that of transformers, and written so that both read it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..config import ModelConfig
from .raw_config import LARGEST_SIZE, RawConfig, shared_keys


@dataclass(frozen=True)
class MptConfig(ModelConfig):
    """A ModelConfig with MPT's own facts; clip_qkv None is no bound."""

    alibi_bias_max: float = 8.0
    clip_qkv: float | None = None
    qk_ln: bool = False
    bias: bool = False


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
    "model_type", "is_encoder_decoder", "add_cross_attention", "tie_word_embeddings",
    "rope_theta", "rope_impl", "rope_dail_config", "rope_hf_config",  # for rope: true
}  # fmt: skip
PLAIN_LINEAR = ("torch", {"name": "torch"})  # two spellings of one kind


def config_from_hf(raw: dict) -> MptConfig:
    """The config of a config.json whose model_type is mpt.

    The sizes must be there; any other absent key takes the default that transformers documents.
    Raises ValueError with the key's name for whatever is missing, unknown or not implemented.
    """
    keys = RawConfig(raw)
    keys.only("model_type", ("mpt",))
    # Whether a norm runs in low precision is training's affair.
    keys.only("norm_type", ("low_precision_layernorm", "layernorm"), "layernorm")
    keys.plain_decoder()
    keys.only("fc_type", PLAIN_LINEAR, "torch")
    _only_plain_mlp(keys)
    attention = _attention_from_hf(keys)
    n_embd, n_head, head_dim = keys.heads("d_model", "n_heads")
    kv_n_heads = attention.integer("kv_n_heads", n_head)
    if kv_n_heads != n_head:
        raise attention.wrong("kv_n_heads", f"n_heads, {n_head}", kv_n_heads)
    ratio = keys.number("expansion_ratio", 4)
    if not 1 <= ratio * n_embd <= LARGEST_SIZE:
        raise keys.wrong("expansion_ratio", "a number that fits d_model", ratio)
    norm_eps = keys.number("norm_eps", 1e-5)  # MosaicML's name; the other is transformers'
    config = MptConfig(
        family="mpt",
        vocab_size=keys.integer("vocab_size"),
        n_layer=keys.integer("n_layers"),
        n_head=n_head,
        n_kv_head=n_head,
        n_embd=n_embd,
        head_dim=head_dim,
        n_inner=int(ratio * n_embd),
        context_length=keys.integer("max_seq_len", 2048, 2**62),
        norm_eps=keys.number("layer_norm_epsilon", norm_eps),
        tied=keys.flag("tie_word_embeddings", True),
        softmax_scale=attention.number("softmax_scale", None),
        bos_id=keys.bos_id(None),
        eos_ids=keys.ids("eos_token_id", None),
        alibi_bias_max=attention.number("alibi_bias_max", 8),
        clip_qkv=attention.number("clip_qkv", None),
        qk_ln=attention.flag("qk_ln", False),
        bias=not keys.flag("no_bias", True),
    )
    attention.close(ATTENTION_HARMLESS)
    keys.close(MPT_HARMLESS)
    return config


def _attention_from_hf(keys: RawConfig) -> RawConfig:
    """attn_config, of which only ALiBi and plain heads are implemented."""
    attention = keys.inner("attn_config")
    # transformers 4 writes what differs from its defaults, of which ALiBi is one, and beside
    # it, as MosaicML does not, a model_type.
    if not attention.flag("alibi", "model_type" in attention.left):
        raise ValueError(
            "attn_config.alibi must be true: an MPT with learned positions cannot be read past "
            "its trained length, and is not implemented"
        )
    attention.only("attn_type", ("multihead_attention",), "multihead_attention")
    for name in ("prefix_lm", "rope", "qk_gn"):
        attention.only(name, (False,), False)
    attention.only("sliding_window_size", (-1,), -1)
    for name in ("attn_logit_softcapping", "kv_dim"):
        attention.only(name, (None,), None)
    return attention


def _only_plain_mlp(keys: RawConfig):
    """Newer files say in ffn_config what the older ones leave unsaid."""
    ffn = keys.inner("ffn_config", {})
    ffn.only("ffn_type", ("mptmlp",), "mptmlp")
    ffn.only("fc_type", PLAIN_LINEAR, "torch")
    ffn.close()


def as_stored(config: MptConfig, shapes: dict[str, tuple[int, ...]]) -> MptConfig:
    """The config with what its tensors, by their names, say of three facts.

    MosaicML's own code obeys expansion_ratio, no_bias and qk_ln; transformers writes them and
    ignores them: its MLP is 4 times as wide as the model, without biases and such norms.
    """
    facts, width = {}, 4 * config.n_embd
    if shapes.get("transformer.blocks.0.ffn.up_proj.weight") == (width, config.n_embd):
        facts["n_inner"] = width
    if "transformer.norm_f.bias" not in shapes:
        facts["bias"] = False
    if "transformer.blocks.0.attn.q_ln.weight" not in shapes:
        facts["qk_ln"] = False
    return replace(config, **facts)


def config_to_hf(config: MptConfig) -> dict:
    """The config.json of a config, in the keys that MosaicML's code and transformers read.

    transformers 5 tells 8 from 8.0 and refuses the wrong one, so each number has its kind.
    """
    clip, scale = config.clip_qkv, config.softmax_scale
    ratio = config.n_inner / config.n_embd
    if int(ratio * config.n_embd) < config.n_inner:  # whoever reads it rounds down
        ratio = math.nextafter(ratio, math.inf)
    return shared_keys(config) | {
        "architectures": ["MPTForCausalLM"],
        "d_model": config.n_embd,
        "expansion_ratio": _whole(ratio),
        "n_layers": config.n_layer,
        "n_heads": config.n_head,
        "max_seq_len": config.context_length,
        "norm_type": "low_precision_layernorm",
        "layer_norm_epsilon": config.norm_eps,
        "no_bias": not config.bias,
        "learned_pos_emb": False,
        "logit_scale": None,
        "attn_config": {
            "attn_type": "multihead_attention",
            "attn_impl": "torch",
            "alibi": True,
            "alibi_bias_max": _whole(config.alibi_bias_max),
            "clip_qkv": None if clip is None else float(clip),
            "qk_ln": config.qk_ln,
            "softmax_scale": None if scale is None else float(scale),
            "prefix_lm": False,
        },
    }


def _whole(number: float):
    """The int that a number is equal to, or the number where there is none."""
    return int(number) if float(number).is_integer() else number

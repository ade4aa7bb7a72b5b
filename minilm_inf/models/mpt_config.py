"""MPT's config.json, whose model_type is mpt.

It is read in MosaicML's spelling and in that of transformers, and written so that both read it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..config import ModelConfig
from ..terminal.json_parts import LARGEST_SIZE, Part
from .raw_config import close, heads, plain_decoder, shared_keys, special_ids


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
    keys = Part(raw)
    keys["model_type"].only("mpt")
    # Whether a norm runs in low precision is training's affair.
    keys["norm_type"].only(None, "low_precision_layernorm", "layernorm")
    plain_decoder(keys)
    keys["fc_type"].only(None, *PLAIN_LINEAR)
    _only_plain_mlp(keys["ffn_config"])
    attention = keys["attn_config"]
    _only_alibi(attention)
    n_embd, n_head, head_dim = heads(keys, "d_model", "n_heads")
    kv_n_heads = attention["kv_n_heads"].integer(n_head)
    if kv_n_heads != n_head:
        raise attention["kv_n_heads"].wrong(f"n_heads, {n_head}")
    ratio = keys["expansion_ratio"].number(4)
    if not 1 <= ratio * n_embd <= LARGEST_SIZE:
        raise keys["expansion_ratio"].wrong("a number that fits d_model")
    norm_eps = keys["norm_eps"].number(1e-5)  # MosaicML's name; the other is transformers'
    config = MptConfig(
        family="mpt",
        vocab_size=keys["vocab_size"].integer(),
        n_layer=keys["n_layers"].integer(),
        n_head=n_head,
        n_kv_head=n_head,
        n_embd=n_embd,
        head_dim=head_dim,
        n_inner=int(ratio * n_embd),
        context_length=keys["max_seq_len"].integer(2048, 2**62),
        norm_eps=keys["layer_norm_epsilon"].number(norm_eps),
        tied=keys["tie_word_embeddings"].flag(True),
        softmax_scale=attention["softmax_scale"].number(None),
        alibi_bias_max=attention["alibi_bias_max"].number(8),
        clip_qkv=attention["clip_qkv"].number(None),
        qk_ln=attention["qk_ln"].flag(False),
        bias=not keys["no_bias"].flag(True),
        **special_ids(keys, bos=(), eos=()),
    )
    close(attention, ATTENTION_HARMLESS)
    close(keys, MPT_HARMLESS)
    return config


def _only_alibi(attention: Part):
    """Of attn_config, only ALiBi and plain heads are implemented."""
    # transformers 4 writes what differs from its defaults, of which ALiBi is one, and beside
    # it, as MosaicML does not, a model_type.
    if not attention["alibi"].flag("model_type" in attention):
        raise attention.error(
            "attn_config.alibi must be true: an MPT with learned positions cannot be read past "
            "its trained length, and is not implemented"
        )
    attention["attn_type"].only(None, "multihead_attention")
    for name in ("prefix_lm", "rope", "qk_gn"):
        attention[name].only(None, False)
    attention["sliding_window_size"].only(None, -1)
    for name in ("attn_logit_softcapping", "kv_dim"):
        attention[name].only(None)


def _only_plain_mlp(ffn: Part):
    """Newer files say in ffn_config what the older ones leave unsaid."""
    ffn["ffn_type"].only(None, "mptmlp")
    ffn["fc_type"].only(None, *PLAIN_LINEAR)
    close(ffn)


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

"""MPT: MPT-7B, its instruct and storywriter versions, MPT-30B.

    x ── LayerNorm ── qkv ── attention ── o ── + ── LayerNorm ── down(gelu(up)) ── + ── x
    └──────────────────────────────────────────┘ └─────────────────────────────────┘

    positions   ALiBi: a linear bias for each head, nothing is placed
    attention   as many key heads as query heads; clip_qkv bounds queries, keys and values;
                qk_ln normalises queries and keys over the whole width; softmax_scale
    biases      none, nor in the norms, unless the config says no_bias: false
    head        the embedding's (tied)

Its config.json says model_type mpt, in MosaicML's spelling or in that of transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from ..positions import Alibi
from ..transformer import Transformer
from .raw_config import LARGEST_SIZE, RawConfig


@dataclass(frozen=True)
class MptConfig(ModelConfig):
    """A ModelConfig with MPT's own facts; clip_qkv None is no bound."""

    alibi_bias_max: float = 8.0
    clip_qkv: float | None = None
    qk_ln: bool = False
    bias: bool = False


KEYS = {  # our name -> the checkpoint's; {} is the layer
    "embed.weight": "transformer.wte.weight",
    "blocks.{}.attention_norm.weight": "transformer.blocks.{}.norm_1.weight",
    "blocks.{}.attention_norm.bias": "transformer.blocks.{}.norm_1.bias",
    "blocks.{}.qkv.weight": "transformer.blocks.{}.attn.Wqkv.weight",
    "blocks.{}.qkv.bias": "transformer.blocks.{}.attn.Wqkv.bias",
    "blocks.{}.q_norm.weight": "transformer.blocks.{}.attn.q_ln.weight",
    "blocks.{}.q_norm.bias": "transformer.blocks.{}.attn.q_ln.bias",
    "blocks.{}.k_norm.weight": "transformer.blocks.{}.attn.k_ln.weight",
    "blocks.{}.k_norm.bias": "transformer.blocks.{}.attn.k_ln.bias",
    "blocks.{}.o.weight": "transformer.blocks.{}.attn.out_proj.weight",
    "blocks.{}.o.bias": "transformer.blocks.{}.attn.out_proj.bias",
    "blocks.{}.mlp_norm.weight": "transformer.blocks.{}.norm_2.weight",
    "blocks.{}.mlp_norm.bias": "transformer.blocks.{}.norm_2.bias",
    "blocks.{}.mlp.up.weight": "transformer.blocks.{}.ffn.up_proj.weight",
    "blocks.{}.mlp.up.bias": "transformer.blocks.{}.ffn.up_proj.bias",
    "blocks.{}.mlp.down.weight": "transformer.blocks.{}.ffn.down_proj.weight",
    "blocks.{}.mlp.down.bias": "transformer.blocks.{}.ffn.down_proj.bias",
    "norm.weight": "transformer.norm_f.weight",
    "norm.bias": "transformer.norm_f.bias",
    "head.weight": "lm_head.weight",
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
    keys.unquantised()
    for name in ("is_encoder_decoder", "add_cross_attention"):
        keys.only(name, (False,), False)
    keys.only("fc_type", PLAIN_LINEAR, "torch")
    _only_plain_mlp(keys)
    attention = _attention_from_hf(keys)
    n_embd, n_head = keys.integer("d_model"), keys.integer("n_heads")
    if n_embd % n_head:
        raise ValueError(f"d_model ({n_embd}) must be a multiple of n_heads ({n_head})")
    kv_n_heads = attention.integer("kv_n_heads", n_head)
    if kv_n_heads != n_head:
        raise attention.wrong("kv_n_heads", f"n_heads, {n_head}", kv_n_heads)
    bos_ids = keys.ids("bos_token_id", None)
    if len(bos_ids) > 1:
        raise ValueError(f"bos_token_id must be one token id or null, not {list(bos_ids)}")
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
        head_dim=n_embd // n_head,
        n_inner=int(ratio * n_embd),
        context_length=keys.integer("max_seq_len", 2048, 2**62),
        norm_eps=keys.number("layer_norm_epsilon", norm_eps),
        tied=keys.flag("tie_word_embeddings", True),
        softmax_scale=attention.number("softmax_scale", None),
        bos_id=bos_ids[0] if bos_ids else None,
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
    raw = keys.take("attn_config")
    if not isinstance(raw, dict):
        raise keys.wrong("attn_config", "an object", raw)
    attention = RawConfig(raw, "attn_config.")
    # transformers 4 writes what differs from its defaults, of which ALiBi is one, and beside
    # it, as MosaicML does not, a model_type.
    if not attention.flag("alibi", "model_type" in raw):
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
    raw = keys.take("ffn_config", None)
    if not isinstance(raw, dict | None):
        raise keys.wrong("ffn_config", "an object or null", raw)
    ffn = RawConfig(raw or {}, "ffn_config.")
    ffn.only("ffn_type", ("mptmlp",), "mptmlp")
    ffn.only("fc_type", PLAIN_LINEAR, "torch")
    ffn.close()


def as_stored(config: MptConfig, shapes: dict[str, tuple[int, ...]]) -> MptConfig:
    """The config with what its tensors, by their names, say of three facts.

    MosaicML's own code obeys expansion_ratio, no_bias and qk_ln; transformers writes them and
    ignores them: its MLP is 4 times as wide as the model, without biases and such norms.
    """
    facts, width = {}, 4 * config.n_embd
    if shapes.get(KEYS["blocks.{}.mlp.up.weight"].format(0)) == (width, config.n_embd):
        facts["n_inner"] = width
    if KEYS["norm.bias"] not in shapes:
        facts["bias"] = False
    if KEYS["blocks.{}.q_norm.weight"].format(0) not in shapes:
        facts["qk_ln"] = False
    return replace(config, **facts)


def config_to_hf(config: MptConfig) -> dict:
    """The config.json of a config, in the keys that MosaicML's code and transformers read.

    transformers 5 tells 8 from 8.0 and refuses the wrong one, so each number has its kind.
    """
    eos, clip, scale = list(config.eos_ids), config.clip_qkv, config.softmax_scale
    ratio = config.n_inner / config.n_embd
    if int(ratio * config.n_embd) < config.n_inner:  # whoever reads it rounds down
        ratio = math.nextafter(ratio, math.inf)
    return {
        "architectures": ["MPTForCausalLM"],
        "model_type": "mpt",
        "vocab_size": config.vocab_size,
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
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
    }


def _whole(number: float):
    """The int that a number is equal to, or the number where there is none."""
    return int(number) if float(number).is_integer() else number


class MLP(nn.Module):
    """down(gelu(up(x))), with the exact gelu."""

    def __init__(self, config: MptConfig):
        super().__init__()
        self.up = nn.Linear(config.n_embd, config.n_inner, bias=config.bias)
        self.down = nn.Linear(config.n_inner, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Attention, then the MLP, each on its own norm and added to x."""

    def __init__(self, config: MptConfig):
        super().__init__()
        width, bias = config.n_embd, config.bias
        self.head_dim, self.clip_qkv = config.head_dim, config.clip_qkv
        self.attention_norm = nn.LayerNorm(width, config.norm_eps, bias=bias)
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.q_norm = nn.LayerNorm(width, config.norm_eps, bias=bias) if config.qk_ln else None
        self.k_norm = nn.LayerNorm(width, config.norm_eps, bias=bias) if config.qk_ln else None
        self.o = nn.Linear(width, width, bias=bias)
        self.mlp_norm = nn.LayerNorm(width, config.norm_eps, bias=bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, attention) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(self.attention_norm(x))
        if self.clip_qkv is not None:
            qkv = qkv.clamp(-self.clip_qkv, self.clip_qkv)
        q, k, v = qkv.chunk(3, -1)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        heads = (batch, length, -1, self.head_dim)
        q, k, v = (x.view(heads).transpose(1, 2) for x in (q, k, v))  # (B, H, T, D)
        gathered = attention(q, k, v).transpose(1, 2).reshape(batch, length, -1)  # (B, T, E)
        x = x + self.o(gathered)
        return x + self.mlp(self.mlp_norm(x))


def build(config: MptConfig) -> Transformer:
    """The network of a config, with PyTorch's own random weights."""
    with torch.device("cpu"):  # the slopes are numbers even while the weights are still "meta"
        scheme = Alibi(config.n_head, config.alibi_bias_max)
    return Transformer(
        config,
        scheme=scheme,
        blocks=[Block(config) for _ in range(config.n_layer)],
        norm=nn.LayerNorm(config.n_embd, config.norm_eps, bias=config.bias),
        head=nn.Linear(config.n_embd, config.vocab_size, bias=False),
    )

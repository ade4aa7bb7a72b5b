"""Llama and what shares its block: Llama 1 to 3.2, TinyLlama, SmolLM2, windowless Mistral.

    x ── RMSNorm ── q, k, v ── attention ── o ── + ── RMSNorm ── down(silu(gate) * up) ── + ── x
    └───────────────────────────────────────────┘ └─────────────────────────────────────┘

    positions   rotary, in halves, on all of head_dim
    attention   grouped: n_head queries share n_kv_head keys and values
    biases      none, unless the config says attention_bias or mlp_bias
    head        own weights, or the embedding's (tied)

Its config.json says model_type llama or mistral.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from ..files import shown
from ..positions import SCALINGS, Rotary
from ..transformer import Transformer
from .raw_config import RawConfig
from .stacked import Stacked


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """A ModelConfig with Llama's own facts; rope_scaling is (key, value) pairs for Rotary."""

    rope_theta: float = 10000.0
    rope_scaling: tuple[tuple[str, object], ...] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False


KEYS = {  # our name -> the checkpoint's, or those whose rows ours stacks; {} is the layer
    "embed.weight": "model.embed_tokens.weight",
    "blocks.{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blocks.{}.qkv.weight": (
        "model.layers.{}.self_attn.q_proj.weight",
        "model.layers.{}.self_attn.k_proj.weight",
        "model.layers.{}.self_attn.v_proj.weight",
    ),
    "blocks.{}.o.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blocks.{}.qkv.bias": (
        "model.layers.{}.self_attn.q_proj.bias",
        "model.layers.{}.self_attn.k_proj.bias",
        "model.layers.{}.self_attn.v_proj.bias",
    ),
    "blocks.{}.o.bias": "model.layers.{}.self_attn.o_proj.bias",
    "blocks.{}.mlp_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.{}.mlp.gate_up.weight": (
        "model.layers.{}.mlp.gate_proj.weight",
        "model.layers.{}.mlp.up_proj.weight",
    ),
    "blocks.{}.mlp.down.weight": "model.layers.{}.mlp.down_proj.weight",
    "blocks.{}.mlp.gate_up.bias": (
        "model.layers.{}.mlp.gate_proj.bias",
        "model.layers.{}.mlp.up_proj.bias",
    ),
    "blocks.{}.mlp.down.bias": "model.layers.{}.mlp.down_proj.bias",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}

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
    n_embd, n_head = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    n_layer = keys.integer("num_hidden_layers")
    kinds = keys.take("layer_types", None)
    plain = isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds)
    if kinds is not None and not (plain and len(kinds) == n_layer):
        raise ValueError(f'layer_types must be {n_layer} times "full_attention", or absent')
    head_dim = keys.integer("head_dim", None)
    if head_dim is None and n_embd % n_head:
        raise ValueError(
            f"hidden_size ({n_embd}) must be a multiple of num_attention_heads ({n_head}) "
            "where there is no head_dim"
        )
    head_dim = head_dim or n_embd // n_head
    if head_dim % 2:
        raise ValueError(f"head_dim must be even for rotary positions, not {head_dim}")
    # The first conversions of Llama 1 call the training length max_sequence_length.
    default_length = keys.integer("max_sequence_length", 131072 if mistral else 2048, 2**62)
    bos_ids = keys.ids("bos_token_id", 1)
    if len(bos_ids) > 1:
        raise ValueError(f"bos_token_id must be one token id or null, not {list(bos_ids)}")
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
        bos_id=bos_ids[0] if bos_ids else None,
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
    for name in ("rope_interleaved", "is_encoder_decoder", "add_cross_attention"):
        keys.only(name, (False,), False)
    keys.unquantised()
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
    spellings = {}
    for name in ("rope_scaling", "rope_parameters"):
        raw = keys.take(name, None)
        if not isinstance(raw, dict | None):
            raise keys.wrong(name, "an object or null", raw)
        if raw:
            spellings[name] = RawConfig(raw, f"{name}.")
    thetas = [rope.number("rope_theta", None) for rope in (keys, *spellings.values())]
    thetas = {theta for theta in thetas if theta is not None} or {10000.0}
    scalings = {_scaling_from_hf(rope) for rope in spellings.values()} or {None}
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
    eos = list(config.eos_ids)
    scaling = dict(config.rope_scaling) if config.rope_scaling else None
    if scaling:
        scaling["type"] = scaling["rope_type"]  # what transformers before 4.43 reads
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
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
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
    }


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the width, in float32 at least.

    The root is the length of a hypotenuse: its sides are |x| / sqrt(width) and sqrt(eps).
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(Tensor(width))
        self.shrink, self.floor = width**-0.5, eps**0.5
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        mean = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) * self.shrink
        root = torch.hypot(mean, mean.new_full((), self.floor))
        return (wide * self.weight).div_(root).to(x.dtype)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_up = Stacked(config.n_embd, (config.n_inner, config.n_inner), config.mlp_bias)
        self.down = nn.Linear(config.n_inner, config.n_embd, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Attention, then the MLP, each on its own norm and added to x."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        width, bias = config.n_embd, config.attention_bias
        self.head_dim = config.head_dim
        self.heads = (config.n_head, config.n_kv_head, config.n_kv_head)
        self.attention_norm = RMSNorm(width, config.norm_eps)
        self.qkv = Stacked(width, tuple(n * config.head_dim for n in self.heads), bias)
        self.o = nn.Linear(config.n_head * config.head_dim, width, bias=bias)
        self.mlp_norm = RMSNorm(width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, attention) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, -1, self.head_dim)
        # (B, H, T, D), (B, H_kv, T, D) twice
        q, k, v = qkv.transpose(1, 2).split_with_sizes(self.heads, 1)
        gathered = (
            attention(q, k, v).transpose(1, 2).reshape(batch, length, -1)
        )  # (B, T, H * D)
        x = x + self.o(gathered)
        return x + self.mlp(self.mlp_norm(x))


def build(config: LlamaConfig) -> Transformer:
    """The network of a config, with PyTorch's own random weights."""
    scaling = dict(config.rope_scaling) if config.rope_scaling else None
    with torch.device("cpu"):  # the angles are numbers even while the weights are still "meta"
        scheme = Rotary(config.head_dim, config.rope_theta, layout="halves", scaling=scaling)
    return Transformer(
        config,
        scheme=scheme,
        blocks=[Block(config) for _ in range(config.n_layer)],
        norm=RMSNorm(config.n_embd, config.norm_eps),
        head=nn.Linear(config.n_embd, config.vocab_size, bias=False),
    )

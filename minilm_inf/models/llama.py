"""Llama, and what shares its block: Llama 1 to 3.2, TinyLlama, SmolLM2, Mistral without its window.

    x ── RMSNorm ── q, k, v ── attention ── o ── + ── RMSNorm ── down(silu(gate) * up) ── + ── x
    └───────────────────────────────────────────┘ └─────────────────────────────────────┘

    positions   rotary, in halves, on all of head_dim
    attention   grouped: n_head queries share n_kv_head keys and values
    biases      none, unless the config says attention_bias or mlp_bias
    head        own weights, or the embedding's (tied)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from ..positions import Rotary
from ..transformer import Transformer


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """A ModelConfig with Llama's own facts; rope_scaling holds (key, value) pairs for Rotary."""

    rope_theta: float = 10000.0
    rope_scaling: tuple[tuple[str, object], ...] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False


KEYS = {  # our name -> the checkpoint's; {} is the layer
    "embed.weight": "model.embed_tokens.weight",
    "blocks.{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blocks.{}.q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blocks.{}.k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blocks.{}.v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blocks.{}.o.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blocks.{}.q.bias": "model.layers.{}.self_attn.q_proj.bias",
    "blocks.{}.k.bias": "model.layers.{}.self_attn.k_proj.bias",
    "blocks.{}.v.bias": "model.layers.{}.self_attn.v_proj.bias",
    "blocks.{}.o.bias": "model.layers.{}.self_attn.o_proj.bias",
    "blocks.{}.mlp_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.{}.mlp.gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blocks.{}.mlp.up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blocks.{}.mlp.down.weight": "model.layers.{}.mlp.down_proj.weight",
    "blocks.{}.mlp.gate.bias": "model.layers.{}.mlp.gate_proj.bias",
    "blocks.{}.mlp.up.bias": "model.layers.{}.mlp.up_proj.bias",
    "blocks.{}.mlp.down.bias": "model.layers.{}.mlp.down_proj.bias",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
IGNORED = ("model.layers.{}.self_attn.rotary_emb.inv_freq",)  # angles, which positions.py computes


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the width, in float32 at least."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(Tensor(width))
        self.eps = eps
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate = nn.Linear(config.n_embd, config.n_inner, bias=config.mlp_bias)
        self.up = nn.Linear(config.n_embd, config.n_inner, bias=config.mlp_bias)
        self.down = nn.Linear(config.n_inner, config.n_embd, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention, then the MLP, each on its own norm and added to x."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        width, bias = config.n_embd, config.attention_bias
        self.head_dim = config.head_dim
        self.attention_norm = RMSNorm(width, config.norm_eps)
        self.q = nn.Linear(width, config.n_head * config.head_dim, bias=bias)
        self.k = nn.Linear(width, config.n_kv_head * config.head_dim, bias=bias)
        self.v = nn.Linear(width, config.n_kv_head * config.head_dim, bias=bias)
        self.o = nn.Linear(config.n_head * config.head_dim, width, bias=bias)
        self.mlp_norm = RMSNorm(width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, attention) -> Tensor:
        h = self.attention_norm(x)
        q, k, v = (self.by_head(project(h)) for project in (self.q, self.k, self.v))
        gathered = attention(q, k, v).transpose(1, 2).flatten(2)  # (B, T, H * D)
        x = x + self.o(gathered)
        return x + self.mlp(self.mlp_norm(x))

    def by_head(self, x: Tensor) -> Tensor:
        """(B, T, H * D) -> (B, H, T, D)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


def build(config: LlamaConfig) -> Transformer:
    """The network of a config, with PyTorch's own random weights."""
    scaling = dict(config.rope_scaling) if config.rope_scaling else None
    return Transformer(
        config,
        scheme=Rotary(config.head_dim, config.rope_theta, layout="halves", scaling=scaling),
        blocks=[Block(config) for _ in range(config.n_layer)],
        norm=RMSNorm(config.n_embd, config.norm_eps),
        head=nn.Linear(config.n_embd, config.vocab_size, bias=False),
    )

"""Llama and what shares its block: Llama 1 to 3.2, TinyLlama, SmolLM2, windowless Mistral.

x ── RMSNorm ── q, k, v ── attention ── o ── + ── RMSNorm ── down(silu(gate) * up) ── + ── x
└───────────────────────────────────────────┘ └─────────────────────────────────────┘

positions   rotary, in halves, on all of head_dim
attention   grouped: n_head queries share n_kv_head keys and values
biases      none, unless the config says attention_bias or mlp_bias
head        own weights, or the embedding's (tied)
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ..positions import Rotary
from ..transformer import Transformer
from .layers import RMSNorm, Stacked, weights_and_biases
from .llama_config import LlamaConfig, config_from_hf, config_to_hf  # noqa: F401

# Our name -> the checkpoint's, or those whose rows ours stacks; {} is the number of the layer.
KEYS = weights_and_biases({
    "embed": "model.embed_tokens",
    "blocks.{}.attention_norm": "model.layers.{}.input_layernorm",
    "blocks.{}.qkv": (
        "model.layers.{}.self_attn.q_proj",
        "model.layers.{}.self_attn.k_proj",
        "model.layers.{}.self_attn.v_proj",
    ),
    "blocks.{}.o": "model.layers.{}.self_attn.o_proj",
    "blocks.{}.mlp_norm": "model.layers.{}.post_attention_layernorm",
    "blocks.{}.mlp.gate_up": ("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"),
    "blocks.{}.mlp.down": "model.layers.{}.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
})  # fmt: skip


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_up = Stacked(config.n_embd, [config.n_inner, config.n_inner], config.mlp_bias)
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
        self.heads = [config.n_head, config.n_kv_head, config.n_kv_head]
        self.attention_norm = RMSNorm(width, config.norm_eps)
        self.qkv = Stacked(width, [heads * config.head_dim for heads in self.heads], bias)
        self.o = nn.Linear(config.n_head * config.head_dim, width, bias)
        self.mlp_norm = RMSNorm(width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, attention) -> Tensor:
        qkv = self.qkv(self.attention_norm(x)).view(*x.shape[:2], -1, self.head_dim)
        # (B, H, T, D), (B, H_kv, T, D) twice
        q, k, v = qkv.transpose(1, 2).split_with_sizes(self.heads, 1)
        gathered = attention(q, k, v).transpose(1, 2).flatten(2)  # (B, T, H * D)
        x = x + self.o(gathered)
        return x + self.mlp(self.mlp_norm(x))


def build(config: LlamaConfig) -> Transformer:
    """The network of a config, with PyTorch's own random weights."""
    scaling = dict(config.rope_scaling) if config.rope_scaling else None
    scheme = Rotary(config.head_dim, config.rope_theta, layout="halves", scaling=scaling)
    blocks = [Block(config) for _ in range(config.n_layer)]
    norm = RMSNorm(config.n_embd, config.norm_eps)
    head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
    return Transformer(config, scheme, blocks, norm, head)

"""MPT: MPT-7B, its instruct and storywriter versions, MPT-30B.

x ── LayerNorm ── qkv ── attention ── o ── + ── LayerNorm ── down(gelu(up)) ── + ── x
└──────────────────────────────────────────┘ └─────────────────────────────────┘

positions   ALiBi: a linear bias for each head, nothing is placed
attention   as many key heads as query heads; clip_qkv bounds queries, keys and values;
            qk_ln normalises queries and keys over the whole width; softmax_scale
biases      none, nor in the norms, unless the config says no_bias: false
head        own weights, or the embedding's (tied)
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ..positions import Alibi
from ..transformer import Transformer
from .layers import weights_and_biases
from .mpt_config import MptConfig, config_from_hf, config_to_hf  # noqa: F401

# Our name -> the checkpoint's, or those whose rows ours stacks; {} is the number of the layer.
KEYS = weights_and_biases({
    "embed": "transformer.wte",
    "blocks.{}.attention_norm": "transformer.blocks.{}.norm_1",
    "blocks.{}.qkv": "transformer.blocks.{}.attn.Wqkv",
    "blocks.{}.q_norm": "transformer.blocks.{}.attn.q_ln",
    "blocks.{}.k_norm": "transformer.blocks.{}.attn.k_ln",
    "blocks.{}.o": "transformer.blocks.{}.attn.out_proj",
    "blocks.{}.mlp_norm": "transformer.blocks.{}.norm_2",
    "blocks.{}.mlp.up": "transformer.blocks.{}.ffn.up_proj",
    "blocks.{}.mlp.down": "transformer.blocks.{}.ffn.down_proj",
    "norm": "transformer.norm_f",
    "head": "lm_head",
})  # fmt: skip


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
        self.qkv = nn.Linear(width, 3 * width, bias)
        self.q_norm = nn.LayerNorm(width, config.norm_eps, bias=bias) if config.qk_ln else None
        self.k_norm = nn.LayerNorm(width, config.norm_eps, bias=bias) if config.qk_ln else None
        self.o = nn.Linear(width, width, bias)
        self.mlp_norm = nn.LayerNorm(width, config.norm_eps, bias=bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, attention) -> Tensor:
        qkv = self.qkv(self.attention_norm(x))
        if self.clip_qkv is not None:
            qkv = qkv.clamp(-self.clip_qkv, self.clip_qkv)
        q, k, v = qkv.chunk(3, -1)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        # (B, H, T, D) three times
        by_head = *x.shape[:2], -1, self.head_dim
        q, k, v = q.view(by_head), k.view(by_head), v.view(by_head)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        gathered = attention(q, k, v).transpose(1, 2).flatten(2)  # (B, T, H * D)
        x = x + self.o(gathered)
        return x + self.mlp(self.mlp_norm(x))


def build(config: MptConfig) -> Transformer:
    """The network of a config, with PyTorch's own random weights."""
    scheme = Alibi(config.n_head, config.alibi_bias_max)
    blocks = [Block(config) for _ in range(config.n_layer)]
    norm = nn.LayerNorm(config.n_embd, config.norm_eps, bias=config.bias)
    head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
    return Transformer(config, scheme, blocks, norm, head)

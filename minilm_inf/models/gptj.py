"""GPT-J: GPT-J-6B and what was trained on from it.

x ── LayerNorm ──┬── q, k, v ── attention ── o ── + ── + ── x
│                └── down(gelu(up)) ──────────────┘    │
└──────────────────────────────────────────────────────┘

positions   rotary, in interleaved pairs, on the first rotary_dim of head_dim
attention   as many key heads as query heads, beside the MLP: both read one norm
biases      in the norms, the MLP and the head; none in attention
head        own weights, or the embedding's (tied), and a bias of its own
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ..positions import Rotary
from ..transformer import Transformer
from .gptj_config import GptjConfig, config_from_hf, config_to_hf  # noqa: F401
from .layers import Stacked, weights_and_biases

# Our name -> the checkpoint's, or those whose rows ours stacks; {} is the number of the layer.
KEYS = weights_and_biases({
    "embed": "transformer.wte",
    "blocks.{}.norm": "transformer.h.{}.ln_1",
    "blocks.{}.qkv": (
        "transformer.h.{}.attn.q_proj",
        "transformer.h.{}.attn.k_proj",
        "transformer.h.{}.attn.v_proj",
    ),
    "blocks.{}.o": "transformer.h.{}.attn.out_proj",
    "blocks.{}.mlp.up": "transformer.h.{}.mlp.fc_in",
    "blocks.{}.mlp.down": "transformer.h.{}.mlp.fc_out",
    "norm": "transformer.ln_f",
    "head": "lm_head",
})  # fmt: skip


class MLP(nn.Module):
    """down(gelu(up(x))), with the gelu that is computed by tanh."""

    def __init__(self, config: GptjConfig):
        super().__init__()
        self.up = nn.Linear(config.n_embd, config.n_inner)
        self.down = nn.Linear(config.n_inner, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and the MLP side by side on one norm, both added to x."""

    def __init__(self, config: GptjConfig):
        super().__init__()
        width = config.n_embd
        self.head_dim = config.head_dim
        self.norm = nn.LayerNorm(width, config.norm_eps)
        self.qkv = Stacked(width, [width, width, width], bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, attention) -> Tensor:
        normed = self.norm(x)
        qkv = self.qkv(normed).view(*x.shape[:2], -1, self.head_dim)
        q, k, v = qkv.transpose(1, 2).chunk(3, 1)  # (B, H, T, D) three times
        gathered = attention(q, k, v).transpose(1, 2).flatten(2)  # (B, T, H * D)
        return x + self.o(gathered) + self.mlp(normed)


def build(config: GptjConfig) -> Transformer:
    """The network of a config, with PyTorch's own random weights."""
    scheme = Rotary(config.rotary_dim, layout="pairs")
    blocks = [Block(config) for _ in range(config.n_layer)]
    norm = nn.LayerNorm(config.n_embd, config.norm_eps)
    head = nn.Linear(config.n_embd, config.vocab_size)
    return Transformer(config, scheme, blocks, norm, head)

"""GPT-J: GPT-J-6B and what was trained on from it.

    x ── LayerNorm ──┬── q, k, v ── attention ── o ── + ── + ── x
    │                └── down(gelu(up)) ──────────────┘    │
    └──────────────────────────────────────────────────────┘

    positions   rotary, in interleaved pairs, on the first rotary_dim of head_dim
    attention   as many key heads as query heads, beside the MLP: both read one norm
    biases      in the norms, the MLP and the head; none in attention
    head        own weights, or the embedding's (tied), and a bias of its own

Its config.json says model_type gptj.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from ..positions import Rotary
from ..transformer import Transformer
from .raw_config import RawConfig
from .stacked import Stacked


@dataclass(frozen=True)
class GptjConfig(ModelConfig):
    """A ModelConfig with GPT-J's own fact: how many of head_dim's coordinates turn."""

    rotary_dim: int = 64


KEYS = {  # our name -> the checkpoint's, or those whose rows ours stacks; {} is the layer
    "embed.weight": "transformer.wte.weight",
    "blocks.{}.norm.weight": "transformer.h.{}.ln_1.weight",
    "blocks.{}.norm.bias": "transformer.h.{}.ln_1.bias",
    "blocks.{}.qkv.weight": (
        "transformer.h.{}.attn.q_proj.weight",
        "transformer.h.{}.attn.k_proj.weight",
        "transformer.h.{}.attn.v_proj.weight",
    ),
    "blocks.{}.o.weight": "transformer.h.{}.attn.out_proj.weight",
    "blocks.{}.mlp.up.weight": "transformer.h.{}.mlp.fc_in.weight",
    "blocks.{}.mlp.up.bias": "transformer.h.{}.mlp.fc_in.bias",
    "blocks.{}.mlp.down.weight": "transformer.h.{}.mlp.fc_out.weight",
    "blocks.{}.mlp.down.bias": "transformer.h.{}.mlp.fc_out.bias",
    "norm.weight": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
    "head.weight": "lm_head.weight",
    "head.bias": "lm_head.bias",
}

GPTJ_HARMLESS = {"n_ctx"}  # n_positions says it


def config_from_hf(raw: dict) -> GptjConfig:
    """The config of a config.json whose model_type is gptj.

    The sizes must be there; any other absent key takes the default that transformers documents.
    Raises ValueError with the key's name for whatever is missing, unknown or not implemented.
    """
    keys = RawConfig(raw)
    keys.only("model_type", ("gptj",))
    keys.only("activation_function", ("gelu_new",), "gelu_new")
    for name in ("rotary", "scale_attn_weights"):
        keys.only(name, (True,), True)
    for name in ("is_encoder_decoder", "add_cross_attention"):
        keys.only(name, (False,), False)
    keys.unquantised()
    n_embd, n_head = keys.integer("n_embd"), keys.integer("n_head")
    if n_embd % n_head:
        raise ValueError(f"n_embd ({n_embd}) must be a multiple of n_head ({n_head})")
    head_dim, rotary_dim = n_embd // n_head, keys.integer("rotary_dim")
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise keys.wrong("rotary_dim", f"even, and at most head_dim, {head_dim}", rotary_dim)
    bos_ids = keys.ids("bos_token_id", 50256)
    if len(bos_ids) > 1:
        raise ValueError(f"bos_token_id must be one token id or null, not {list(bos_ids)}")
    config = GptjConfig(
        family="gptj",
        vocab_size=keys.integer("vocab_size"),
        n_layer=keys.integer("n_layer"),
        n_head=n_head,
        n_kv_head=n_head,
        n_embd=n_embd,
        head_dim=head_dim,
        n_inner=keys.integer("n_inner", 4 * n_embd),
        context_length=keys.integer("n_positions", 2048, 2**62),
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        tied=keys.flag("tie_word_embeddings", False),
        bos_id=bos_ids[0] if bos_ids else None,
        eos_ids=keys.ids("eos_token_id", 50256),
        rotary_dim=rotary_dim,
    )
    keys.close(GPTJ_HARMLESS)
    return config


def config_to_hf(config: GptjConfig) -> dict:
    """The config.json of a config, in the keys that every version of transformers reads."""
    eos = list(config.eos_ids)
    return {
        "architectures": ["GPTJForCausalLM"],
        "model_type": "gptj",
        "vocab_size": config.vocab_size,
        "n_embd": config.n_embd,
        "n_inner": config.n_inner,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "rotary": True,
        "rotary_dim": config.rotary_dim,
        "n_positions": config.context_length,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
    }


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
        self.qkv = Stacked(width, (width, width, width), bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, attention) -> Tensor:
        batch, length, _ = x.shape
        normed = self.norm(x)
        qkv = self.qkv(normed).view(batch, length, -1, self.head_dim)
        q, k, v = qkv.transpose(1, 2).chunk(3, 1)  # (B, H, T, D) three times
        gathered = attention(q, k, v).transpose(1, 2).reshape(batch, length, -1)  # (B, T, E)
        return x + self.o(gathered) + self.mlp(normed)


def build(config: GptjConfig) -> Transformer:
    """The network of a config, with PyTorch's own random weights."""
    with torch.device("cpu"):  # the angles are numbers even while the weights are still "meta"
        scheme = Rotary(config.rotary_dim, layout="pairs")
    return Transformer(
        config,
        scheme=scheme,
        blocks=[Block(config) for _ in range(config.n_layer)],
        norm=nn.LayerNorm(config.n_embd, config.norm_eps),
        head=nn.Linear(config.n_embd, config.vocab_size),
    )

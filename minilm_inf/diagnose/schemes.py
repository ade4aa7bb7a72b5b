"""Positions that no checkpoint here has, for experiments: xPos, none at all, and learned ones.

weights/pages/schemes.py trains the same small Llama with each of them. A text is read whole, as
training reads it; there is no cache and no decoding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..distance_ceiling import place_fixed
from ..fast.band import How
from ..fast.chunk import attend_chunks
from ..lambda_mask import distances
from ..models import llama
from ..positions import Alibi, Placed, Rotary
from ..transformer import Transformer


class XPos(Rotary):
    """Rotary positions that fade (Sun et al., arXiv 2212.10554, section 3): over a distance d
    what pair m adds to a logit shrinks by zeta_m^(d / base), zeta_m = (m / M + 0.4) / 1.4 of M
    pairs. base: the paper's 512 for a trained length of 1,024, half of it.

    Placed alone, a query would be taken times zeta^i and a key times zeta^-j, which no number
    holds for long. So `capped_logits` takes both at once, relative to the last of the queries:
    the keys of far distances fade to 0. In float64 the queries of one call may stand 500 bases
    apart, which with 700 nats is all that there is room for.
    """

    def __init__(self, rotary_dim: int, base: float):
        super().__init__(rotary_dim)
        pairs = torch.arange(rotary_dim // 2, dtype=torch.float64) / (rotary_dim // 2)
        self.fading = ((pairs + 0.4) / 1.4).log() / base  # of each pair and unit of distance

    def faded(self, x: Tensor, by: Tensor) -> Tensor:
        """x (B, H, T, D), each row by a distance of its own (T,), which may be negative."""
        factors = (by[:, None] * self.fading.to(x.device)).exp()
        return self._times(x, factors.to(x.dtype))

    def capped_logits(self, q, k, q_positions, k_positions, ceiling, scale) -> Tensor:
        """distance_ceiling.capped_logits of these positions, (T,) and (S,)."""
        own, last = q.dtype, q_positions.max()
        if (last - q_positions.min()) * -float(self.fading[0]) > 20:  # nats, of float32's 88
            q, k = q.double(), k.double()
        placed_q = self.faded(self.place(q, q_positions), q_positions - last)
        before = (last - k_positions).clamp(min=0)  # a key after the last query is not seen
        placed_k = self.faded(self.place(k, k_positions), before)
        logits = placed_q @ placed_k.mT * scale
        if ceiling is not None:
            there = torch.full_like(q_positions, ceiling)
            capped_q = self.faded(place_fixed(self, ceiling, q.dtype, q.device)(q), there)
            beyond = distances(q_positions, k_positions) > ceiling
            logits = torch.where(beyond, capped_q @ k.mT * scale, logits)
        return logits.to(own)


class Learned(nn.Module):
    """A first block that adds a learned vector to each position, as GPT-2's embedding does. A
    position that was never trained is given the last one that was."""

    def __init__(self, config: ModelConfig, block: nn.Module):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(config.context_length, config.n_embd))
        self.block = block

    def forward(self, x: Tensor, attention) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device).clamp(max=len(self.table) - 1)
        return self.block(x + self.table[places], attention)


class InBlocks(Transformer):
    """Reads by the definition, some queries at a time, which asks a scheme for logits alone."""

    def attention_of_a_text(self, path, positions, lm, n_reaching, layer, q, k, v) -> Tensor:
        how = How(self.scheme, lm.for_layer(layer), self.config.head_dim**-0.5)
        return attend_chunks(q, k, v, positions, positions, how)


SCHEMES = {
    "RoPE": lambda config: Rotary(config.head_dim),
    "RoPE, theta 500,000": lambda config: Rotary(config.head_dim, 500_000.0),
    "ALiBi": lambda config: Alibi(config.n_head),
    "xPos": lambda config: XPos(config.head_dim, config.context_length / 2),
    "NoPE": lambda config: Placed(),  # no positions: Kazemnejad et al., arXiv 2305.19466
    "learned": lambda config: Placed(),
}


def build(config: ModelConfig, name: str) -> Transformer:
    """A Llama of this config with one of SCHEMES, and PyTorch's own random weights."""
    plain, scheme = llama.build(config), SCHEMES[name](config)
    first, *blocks = plain.blocks
    if name == "learned":
        first = Learned(config, first)
    kind = InBlocks if isinstance(scheme, XPos) else Transformer
    return kind(config, scheme, [first, *blocks], plain.norm, plain.head)

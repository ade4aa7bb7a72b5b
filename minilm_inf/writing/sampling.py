"""Logits to id, in pure functions: each filter maps logits (V,) to logits (V,).

An id that a filter excludes gets -inf. The order is the usual one: temperature, top-k, top-p;
then one draw from what is left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import require_integer, require_number
from ..terminal.files import shown


def require_numbers(logits: Tensor):
    """Raise ValueError where a model's logits, of any shape, are not all finite numbers."""
    if not bool(logits.isfinite().all()):
        raise ValueError("the model's logits are not numbers: its weights or dtype overflow")


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits, and what equals the smallest of them; k = 0 keeps all."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[-1], -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the likeliest ids that add up to p, one at least (Holtzman et al., arXiv
    1904.09751)."""
    if p >= 1.0:
        return logits
    ordered, order = logits.sort(descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # what the likelier ids add up to
    enough = before >= p
    enough[0] = False  # where p is so small that float32 takes it for 0
    excluded = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, enough)
    return logits.masked_fill(excluded, -torch.inf)


def choose(
    logits: Tensor, temperature: float = 0.8, top_k: int = 50, top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> int:  # fmt: skip
    """One id from logits (V,); temperature 0 takes the largest.

    Raises ValueError for logits that are not finite numbers.
    """
    logits = logits.float()
    require_numbers(logits)
    if temperature == 0.0:
        return int(logits.argmax())
    logits = (logits - logits.max()) / max(temperature, 1e-30)  # the largest stays finite
    logits = keep_top_p(keep_top_k(logits, top_k), top_p)
    return int(torch.multinomial(logits.softmax(-1), 1, generator=generator))


def seeded(seed: int | None) -> torch.Generator | None:
    """A generator that draws the same for the same seed; None for PyTorch's own, without one.

    Raises ValueError for what is no seed.
    """
    if seed is None:
        return None
    require_integer("seed", seed, at_least=-(2**63), bits=64)
    return torch.Generator().manual_seed(seed)


def check(temperature: float, top_k: int, top_p: float):
    """Raise ValueError, with the setting's name, for one outside its range."""
    require_integer("top_k", top_k, at_least=0)
    require_number("temperature", temperature)
    require_number("top_p", top_p)
    if temperature < 0:
        raise ValueError(f"temperature must be 0 (greedy) or more, not {shown(temperature)}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {shown(top_p)}")

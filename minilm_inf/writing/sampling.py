"""Logits to id, in pure functions: each filter maps logits (V,) to logits (V,).

An id that a filter excludes gets -inf. The order is the usual one: repetition penalty,
temperature, top-k, top-p, min-p; then one draw from what is left.
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


def penalise(logits: Tensor, seen: set[int], penalty: float) -> Tensor:
    """Make the ids of a text less likely to return (Keskar et al., arXiv 1909.05858, section
    4.1).

    seen: the ids that occur. Their logits are divided by the penalty if positive, multiplied if
    negative; no further than numbers reach.
    """
    if penalty == 1.0 or not seen:
        return logits
    ids = torch.tensor(sorted(seen), device=logits.device)
    chosen = logits[ids].double()  # or 0 times a large penalty would be no number
    penalised = torch.where(chosen > 0, chosen / penalty, chosen * penalty)
    largest = min(torch.finfo(dtype).max for dtype in (logits.dtype, torch.float32))
    return logits.index_put((ids,), penalised.clamp(-largest, largest).to(logits.dtype))


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


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the ids at least p times as likely as the likeliest (Nguyen et al., 2407.01082)."""
    if p <= 0.0:
        return logits
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.max(), -torch.inf)


def choose(
    logits: Tensor,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 1.0,
    min_p: float = 0.0,
    generator: torch.Generator | None = None,
) -> int:
    """One id from logits (V,); temperature 0 takes the largest.

    Raises ValueError for logits that are not finite numbers.
    """
    logits = logits.float()
    require_numbers(logits)
    if temperature == 0.0:
        return int(logits.argmax())
    logits = (logits - logits.max()) / max(temperature, 1e-30)  # the largest stays finite
    logits = keep_min_p(keep_top_p(keep_top_k(logits, top_k), top_p), min_p)
    return int(torch.multinomial(logits.softmax(-1), 1, generator=generator))


def seeded(seed: int | None) -> torch.Generator | None:
    """A generator that draws the same for the same seed; None for PyTorch's own, without one.

    Raises ValueError for what is no seed.
    """
    if seed is None:
        return None
    require_integer("seed", seed, at_least=-(2**63), bits=64)
    return torch.Generator().manual_seed(seed)


def check(temperature: float, top_k: int, top_p: float, min_p: float, penalty: float):
    """Raise ValueError, with the setting's name, for one outside its range."""
    require_integer("top_k", top_k, at_least=0)
    ranges = (
        ("temperature", temperature, lambda x: x >= 0, "0 (greedy) or more"),
        ("top_p", top_p, lambda x: 0 < x <= 1, "above 0 and at most 1"),
        ("min_p", min_p, lambda x: 0 <= x < 1, "0 (off) or more, and below 1"),
        ("repetition_penalty", penalty, lambda x: x > 0, "above 0, and finite"),
    )
    for name, value, holds, wanted in ranges:
        require_number(name, value)
        if not holds(value):
            raise ValueError(f"{name} must be {wanted}, not {shown(value)}")

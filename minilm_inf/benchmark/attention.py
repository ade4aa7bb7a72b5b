"""Attention alone: LM-Infinite in O(n) beside full attention, FlexAttention and the definition.

chunked and reference get queries and keys that are not yet placed, and place them as part of
their work. Full SDPA and FlexAttention know no positions: theirs are rotated beforehand, for
free, and FlexAttention has the Λ-shaped mask only, without the ceiling. At each length all ways
take turns in one race.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import attend
from ..config import FULL_ATTENTION, LMInfinite
from ..fast.chunked import chunked_attend
from ..positions import Rotary
from ..terminal.progress import bytes_in
from ..writing.plan import visible_pairs
from .race import Row, race

SDPA, CHUNKED = "full causal SDPA", "chunked"
FLEX, REFERENCE = "FlexAttention, compiled", "reference"
WAYS = (SDPA, CHUNKED, FLEX, REFERENCE)
LARGE = 16_384  # tokens beyond which a mask of n x n booleans is not made


@torch.inference_mode()
def attention_rows(sizes, device: torch.device, dtype: torch.dtype) -> list[Row]:
    """A race of all ways at each length, of B = 1, `heads` query and as many key heads."""
    rows, heads, dim = [], sizes.heads, sizes.head_dim
    lm = LMInfinite(sizes.n_local, sizes.n_global, sizes.n_local)
    for n in sizes.lengths:
        generator = torch.Generator().manual_seed(n)
        vectors = torch.randn(3, 1, heads, n, dim, generator=generator).to(device, dtype)
        makers = []
        for way in WAYS:
            # Multiplications and additions that the visible pairs need: 4 D of each head.
            pairs = visible_pairs(n, FULL_ATTENTION if way == SDPA else lm)
            row = Row(f"attention: {way}", n, 4 * dim * heads * pairs, "FLOP")
            makers.append((row, partial(call, way, vectors, lm)))
        rows += race(makers, sizes.rounds, device)
    return rows


def call(way: str, vectors: Tensor, lm: LMInfinite) -> Callable[[], Tensor]:
    """A function of nothing that attends once, of q, k and v, not placed, (3, 1, H, n, D): ()
    -> (1, H, n, D). Raises ValueError where memory would not hold the reference."""
    (q, k, v), n = vectors, vectors.shape[3]
    positions, scheme = torch.arange(n), Rotary(q.shape[-1])
    if way == CHUNKED:
        return lambda: chunked_attend(q, k, v, positions, positions, scheme, lm)
    if way == REFERENCE:
        # The logits at true distances, those at the ceiling, and what masks make of both.
        needed = 4 * q.shape[1] * n * n * 4
        available = bytes_in("/proc/meminfo").get("MemAvailable", math.inf)
        if needed > available / 4:
            raise ValueError(
                f"O(n^2) memory: 4 tensors of H x n x n x 4 bytes are {needed / 1e9:,.0f} GB, "
                f"more than a quarter of the {available / 1e9:,.0f} GB available"
            )
        return lambda: attend(q, k, v, positions, positions, scheme, lm)
    place = scheme.at(positions, q.dtype, q.device)
    q, k = place(q), place(k)
    if way == SDPA:
        return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    from torch.nn.attention import flex_attention as flex  # slow to import

    def visible(batch, head, i, j):
        return (i >= j) & ((i - j < lm.n_local) | (j < lm.n_global))

    make = flex.create_block_mask if n <= LARGE else torch.compile(flex.create_block_mask)
    mask = make(visible, None, None, n, n, device=q.device)
    # fullgraph: where nothing more can be compiled it fails, and does not become another, slow
    # attention in silence.
    compiled = torch.compile(flex.flex_attention, dynamic=False, fullgraph=True)
    return lambda: compiled(q, k, v, block_mask=mask)

"""Attention alone: the vectors, the four ways to attend, and how much work they have to do.

chunked and reference get queries and keys that are not yet placed, and place them as part of
their work. Full SDPA and FlexAttention know no positions: theirs are rotated beforehand, for
free, and FlexAttention has the Λ-shaped mask only, without the ceiling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import attend
from ..config import LMInfinite
from ..fast.chunked import chunked_attend
from ..positions import Rotary
from ..terminal.progress import available_memory
from .timing import CannotRun

CHUNKED, SDPA = "chunked", "full causal SDPA"
FLEX, REFERENCE = "FlexAttention, compiled", "reference"
WAYS = (CHUNKED, SDPA, FLEX, REFERENCE)
BLOCK = 128  # FlexAttention's block of queries, and of keys


@dataclass(frozen=True)
class Shape:
    """B = 1, `heads` query and as many key heads. dtype: its name in torch."""

    heads: int
    head_dim: int
    n_local: int
    n_global: int
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def lm(self) -> LMInfinite:
        return LMInfinite(self.n_local, self.n_global, self.n_local)

    @property
    def itemsize(self) -> int:
        return getattr(torch, self.dtype).itemsize


def visible_pairs(n: int, lm: LMInfinite | None) -> int:
    """How many (query, key) pairs of a text of n tokens are visible: LMInfinite.visible, summed
    over its rows.

    >>> visible_pairs(8, LMInfinite(n_local=3, n_global=2))
    30
    """
    if lm is None or lm.n_local is None:
        return n * (n + 1) // 2
    return _sum_of_least(n, lm.n_local) + _sum_of_least(n - lm.n_local, lm.n_global)


def _sum_of_least(n: int, limit: int) -> int:
    """min(1, limit) + min(2, limit) + ... + min(n, limit); 0 for no n."""
    growing = max(0, min(n, limit))
    return growing * (growing + 1) // 2 + max(0, n - limit) * limit


def useful_flops(way: str, n: int, shape: Shape) -> int:
    """Multiplications and additions that the visible pairs need: 4 D for each, and head."""
    lm = None if way == SDPA else shape.lm
    return 4 * shape.head_dim * shape.heads * visible_pairs(n, lm)


def vectors(n: int, shape: Shape) -> list[Tensor]:
    """q, k and v, not placed: (1, H, n, D), always the same ones."""
    generator = torch.Generator().manual_seed(n)
    size, dtype = (1, shape.heads, n, shape.head_dim), getattr(torch, shape.dtype)
    return [torch.randn(size, generator=generator).to(shape.device, dtype) for _ in range(3)]


def rotated(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys as those ways need them that know no positions."""
    place = Rotary(q.shape[-1]).at(torch.arange(q.shape[2]), q.dtype, q.device)
    return place(q), place(k)


def call(way: str, q: Tensor, k: Tensor, v: Tensor, lm: LMInfinite) -> Callable[[], Tensor]:
    """A function of nothing that attends once: () -> (1, H, n, D). q and k as `way` needs them.

    Raises CannotRun where memory would not hold the reference.
    """
    n = q.shape[2]
    if way == SDPA:
        return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if way == FLEX:
        return flex_call(q, k, v, lm)
    positions, scheme = torch.arange(n), Rotary(q.shape[-1])
    if way == CHUNKED:
        return lambda: chunked_attend(q, k, v, positions, positions, scheme, lm)
    check_memory(reference_bytes(n, q.shape[1]), q.device)
    return lambda: attend(q, k, v, positions, positions, scheme, lm)


def reference_bytes(n: int, heads: int) -> int:
    """The least that the definition takes: four tensors of (H, n, n) in float32, which are the
    logits at true distances, those at the ceiling, and the two that masks make of them."""
    return 4 * heads * n * n * 4


def check_memory(needed: int, device: torch.device):
    """Raise CannotRun where `needed` bytes are more than a quarter of the available memory."""
    if device.type == "cuda":
        available = torch.cuda.mem_get_info(device)[0]
    else:
        available = available_memory()
    if available is not None and needed > available / 4:
        raise CannotRun(
            f"O(n^2) memory: 4 tensors of H x n x n x 4 bytes are {needed / 1e9:,.0f} GB, more "
            f"than a quarter of the {available / 1e9:,.0f} GB available"
        )


def flex_call(q: Tensor, k: Tensor, v: Tensor, lm: LMInfinite) -> Callable[[], Tensor]:
    """FlexAttention, compiled for this very shape when it is first called."""
    from torch.nn.attention.flex_attention import flex_attention  # slow to import

    mask = flex_mask(q.shape[2], lm, q.device)
    # fullgraph: where nothing more can be compiled it fails, and does not become another, slow
    # attention in silence.
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return lambda: compiled(q, k, v, block_mask=mask)


def flex_mask(n: int, lm: LMInfinite, device):
    """The Λ-shaped mask as FlexAttention's BlockMask.

    What create_block_mask would return (a test holds it to that), from a formula for each block
    instead of from n x n booleans, which at n = 65,536 would take gigabytes and half a minute.
    """
    from torch.nn.attention.flex_attention import BlockMask

    n_local, n_global = lm.n_local, lm.n_global

    def visible(batch, head, i, j):
        return (i >= j) & ((i - j < n_local) | (j < n_global))

    first = torch.arange(0, n, BLOCK, device=device)  # of each block
    last = (first + BLOCK - 1).clamp(max=n - 1)
    q_first, q_last = first[:, None], last[:, None]
    some = (q_last >= first) & ((q_first - last < n_local) | (first < n_global))
    whole = (q_first >= last) & ((q_last - first < n_local) | (last < n_global))
    whole &= (last - first == BLOCK - 1) & (q_last - q_first == BLOCK - 1)

    def listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
        """How many blocks each row has, and which: those first, in their order."""
        order = blocks.int().argsort(dim=-1, descending=True, stable=True)
        return blocks.sum(-1)[None, None].int(), order[None, None].int()

    return BlockMask.from_kv_blocks(
        *listed(some & ~whole),
        *listed(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(n, n),
    )

"""Attention alone: LM-Infinite in O(n) beside full attention, FlexAttention and the definition.

chunked and reference get queries and keys that are not yet placed, and place them as part of
their work. Full SDPA and FlexAttention know no positions: theirs are rotated beforehand, for
free, and FlexAttention has the Λ-shaped mask only, without the ceiling. At each length all ways
take turns in one race; then the memory of each is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import attend
from ..config import FULL_ATTENTION, LMInfinite
from ..fast.chunked import chunked_attend
from ..positions import Rotary
from ..terminal.progress import available_memory
from ..writing.costs import visible_pairs
from .race import CannotRun, Row, race
from .sizes import QUICK_REFERENCE, Sizes

GROUP = "attention"
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


@torch.inference_mode()
def attention_rows(sizes: Sizes, shape: Shape, memory_of, report) -> list[Row]:
    """A row for each length and way.

    memory_of: (way, lengths, shape) -> bytes beyond inputs and output for each length, or a
    sentence why they are not known. report is told how far it is.
    """
    rows = [row for n in sizes.lengths for row in rows_of_length(n, shape, sizes, report)]
    for way in WAYS:
        mine = [row for row in rows if row.name == way and row.seconds]
        mine = mine[-1:] if sizes.quick else mine
        if mine:
            report(f"{GROUP} memory: {way}")
            extras = memory_of(way, [row.n for row in mine], shape)
            for row, extra in zip(mine, extras):
                if isinstance(extra, str):
                    row.notes.append(f"memory not measured: {extra}")
                else:
                    row.extra_bytes = extra
    return rows


def rows_of_length(n: int, shape: Shape, sizes: Sizes, report) -> list[Row]:
    """A race of all ways at one length."""
    vectors = vectors_of(n, shape)

    def maker(way: str):
        def make():
            if sizes.quick and way == REFERENCE and n > QUICK_REFERENCE:
                raise CannotRun("O(n^2) time takes longer than --quick lasts")
            return call(way, vectors, shape.lm)

        return make

    each = {"base": (GROUP, SDPA, n), "rival": (GROUP, FLEX, n)}
    makers = [
        (Row(GROUP, way, n, flops=useful_flops(way, n, shape), **each), maker(way))
        for way in WAYS
    ]
    race(makers, sizes.rounds, lambda now: report(f"{GROUP} n={n:,}: {now}"), shape.device)
    return [row for row, _ in makers]


def useful_flops(way: str, n: int, shape: Shape) -> int:
    """Multiplications and additions that the visible pairs need: 4 D for each, and head."""
    lm = FULL_ATTENTION if way == SDPA else shape.lm
    return 4 * shape.head_dim * shape.heads * visible_pairs(n, lm)


def vectors_of(n: int, shape: Shape) -> list[Tensor]:
    """q, k and v, not placed: (1, H, n, D), always the same ones."""
    generator = torch.Generator().manual_seed(n)
    size, dtype = (1, shape.heads, n, shape.head_dim), getattr(torch, shape.dtype)
    return [torch.randn(size, generator=generator).to(shape.device, dtype) for _ in range(3)]


def call(way: str, vectors: list[Tensor], lm: LMInfinite) -> Callable[[], Tensor]:
    """A function of nothing that attends once: () -> (1, H, n, D). Raises CannotRun where
    memory would not hold the reference."""
    (q, k, v), n = vectors, vectors[0].shape[2]
    positions, scheme = torch.arange(n), Rotary(q.shape[-1])
    if way == CHUNKED:
        return lambda: chunked_attend(q, k, v, positions, positions, scheme, lm)
    if way == REFERENCE:
        check_memory(4 * q.shape[1] * n * n * 4, q.device)
        return lambda: attend(q, k, v, positions, positions, scheme, lm)
    place = scheme.at(positions, q.dtype, q.device)
    q, k = place(q), place(k)
    if way == SDPA:
        return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    from torch.nn.attention.flex_attention import flex_attention  # slow to import

    mask = flex_mask(n, lm, q.device)
    # fullgraph: where nothing more can be compiled it fails, and does not become another, slow
    # attention in silence.
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return lambda: compiled(q, k, v, block_mask=mask)


def check_memory(needed: int, device: torch.device):
    """Raise CannotRun where the definition's bytes are more than a quarter of the available
    memory: the logits at true distances, those at the ceiling, and what masks make of both."""
    is_cuda = device.type == "cuda"
    available = torch.cuda.mem_get_info(device)[0] if is_cuda else available_memory()
    if available is not None and needed > available / 4:
        raise CannotRun(
            f"O(n^2) memory: 4 tensors of H x n x n x 4 bytes are {needed / 1e9:,.0f} GB, more "
            f"than a quarter of the {available / 1e9:,.0f} GB available"
        )


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
        *listed(some & ~whole), *listed(whole), BLOCK_SIZE=BLOCK, mask_mod=visible,
        seq_lengths=(n, n),
    )  # fmt: skip

"""Attention alone: LM-Infinite in O(n) beside full attention, FlexAttention and the definition.

At each length all ways take turns in one race; then the memory of each is measured.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import memory
from .attention_calls import (
    FLEX,
    REFERENCE,
    SDPA,
    WAYS,
    Shape,
    call,
    rotated,
    useful_flops,
    vectors,
)
from .rows import Row
from .sizes import Sizes
from .timing import CannotRun, Contestant, race, reason, synchroniser

GROUP = "attention"


@torch.inference_mode()
def attention_rows(sizes: Sizes, shape: Shape, report: Callable[[str], None]) -> list[Row]:
    """A row for each length and way."""
    rows = []
    for n in sizes.lengths:
        rows += rows_of_length(n, shape, sizes, report)
    measured = [row for row in rows if row.seconds]
    for way in WAYS:
        mine = [row for row in measured if row.name == way]
        mine = mine if sizes.all_memory else mine[-1:]
        if not mine:
            continue
        report(f"{GROUP} memory: {way}")
        for row, extra in zip(mine, extra_memory(way, [row.n for row in mine], shape)):
            if isinstance(extra, str):
                row.notes.append(f"memory not measured: {extra}")
            else:
                row.extra_bytes = extra
    return rows


def rows_of_length(n: int, shape: Shape, sizes: Sizes, report) -> list[Row]:
    """A race of all ways at one length."""
    q, k, v = vectors(n, shape)
    q_placed, k_placed = rotated(q, k)
    rounds = sizes.rounds

    def too_long() -> Contestant:
        raise CannotRun("O(n^2) time takes longer than --quick lasts")

    def maker(way: str):
        if way == REFERENCE and n > sizes.reference_to:
            return too_long
        pair = (q_placed, k_placed) if way in (SDPA, FLEX) else (q, k)
        return lambda: Contestant(way, call(way, *pair, v, shape.lm))

    results = race(
        {way: maker(way) for way in WAYS},
        rounds,
        lambda number: report(f"{GROUP} n={n:,}: {told(number, rounds)}"),
        synchroniser(torch.device(shape.device)),
    )
    return [
        Row(
            GROUP,
            way,
            n,
            flops=useful_flops(way, n, shape),
            base=(GROUP, SDPA, n),
            rival=(GROUP, FLEX, n),
        ).take(results[way])
        for way in WAYS
    ]


def told(number: int, rounds: int) -> str:
    """A round's number in words; 0 is the one that is not counted."""
    return f"round {number}/{rounds}" if number else "warming up"


def extra_memory(way: str, lengths: list[int], shape: Shape) -> list[int | str]:
    """Bytes beyond inputs and output for each length, or a sentence why they are not known."""
    if torch.device(shape.device).type == "cpu":
        found = memory.in_child(way, lengths, shape, torch.get_num_threads())
        return [found[n] for n in lengths]
    extras: list[int | str] = []
    for n in lengths:
        try:
            extras.append(memory.one_way(way, n, shape))
        except (CannotRun, torch.OutOfMemoryError) as error:
            extras.append(reason(error))
    return extras

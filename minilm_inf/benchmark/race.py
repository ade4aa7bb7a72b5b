"""Time, taken so that it can be compared: contestants take turns, and the median counts.

A machine is faster in one minute than in the next. Whoever runs all of a, then all of b,
measures that too; here a round is one run of each, and what disturbs a round disturbs them all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .memory import extra_bytes


@dataclass
class Row:
    """What was measured of one contestant.

    n: a length, a context or a position, in tokens. work: what a run does, in floating-point
    operations or in tokens, as unit says. steps: how many equal parts a run has, of which one's
    time is told. seconds: of each round. base: the row that this one is compared with.
    extra_bytes: of memory, None where it is not known. note: why something is missing.
    """

    name: str
    n: int
    work: int
    unit: str = "tokens"
    steps: int = 1
    seconds: list[float] = field(default_factory=list)
    base: Row | None = None
    extra_bytes: int | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def rate(self) -> float | None:
        """Work per second of the median round."""
        return self.work / self.median if self.seconds else None


class CannotRun(Exception):
    """Why a contestant does not take part, in one sentence."""


def race(
    makers: list[tuple[Row, Callable]], rounds: int, report: Callable[[str], None],
    device: torch.device | str = "cpu", clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:  # fmt: skip
    """The rows, filled with the seconds of their contestants, which run in turns, a b c a b c
    ..., `rounds` times. The first is the base of all.

    makers: rows, each with a function that makes its contestant: a function that is timed. It
    may tell its extra_bytes; else they are measured once all is timed. Whoever cannot be made,
    or fails in the first round, says so in its row, and the others go on. The first round warms
    up (caches, compilers, thread pools) and is not counted. report is told of each round.
    """
    rows, present = [row for row, _ in makers], []
    report(f"{rows[0].name}, n={rows[0].n:,}, and others")
    for row, make in makers:
        row.base = rows[0]
        try:
            contestant = make()
            once(contestant, device, clock)
        except Exception as error:  # whatever it is, it is this contestant's own
            row.note = f"not run: {reason(error)}"
        else:
            present.append((row, contestant))
    for number in range(1, rounds + 1):
        report(f"round {number}/{rounds}")
        for row, contestant in present:
            row.seconds.append(once(contestant, device, clock))
    for row, contestant in present:
        known = getattr(contestant, "extra_bytes", None)
        row.extra_bytes = extra_bytes(contestant, device) if known is None else known
    return rows


def once(contestant, device, clock) -> float:
    """The seconds of one run, from an idle device to an idle device."""
    synchronise(device)
    began = clock()
    result = contestant()
    synchronise(device)
    seconds = clock() - began
    del result  # freed only now: giving memory back is not part of the run
    return seconds


def synchronise(device: torch.device | str):
    """Wait until a device has done all that it was given."""
    if torch.device(device).type != "cpu":
        torch.get_device_module(device).synchronize(device)


def reason(error: Exception) -> str:
    """Why a contestant could not run, in one sentence."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    if "C++ compiler" in str(error):
        return "torch.compile finds no C++ compiler (g++ or clang++)"
    return (str(error).strip().splitlines() or ["there is not enough memory"])[0]

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


@dataclass
class Row:
    """What was measured of one contestant in one setting.

    group, name, n: unique together; n is a length, a context or a position, in tokens.
    seconds: of each round. flops, tokens: what one round does of either; 0 where it is not what
    is told. extra_bytes: of memory, None where it is not known.
    base, rival: (group, name, n) of the row that this one is compared with, and of a second.
    notes: why something is missing, and what must be known to read the row.
    """

    group: str
    name: str
    n: int
    seconds: list[float] = field(default_factory=list)
    flops: int = 0
    tokens: int = 0
    extra_bytes: int | None = None
    base: tuple[str, str, int] | None = None
    rival: tuple[str, str, int] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, int]:
        return self.group, self.name, self.n

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def per_second(self) -> float | None:
        """Useful floating-point operations, or tokens, per second of the median round."""
        return (self.flops or self.tokens) / self.median if self.seconds else None


class CannotRun(Exception):
    """Why a contestant does not take part, in one sentence."""


def race(
    makers: list[tuple[Row, Callable]], rounds: int, report: Callable[[str], None],
    device: torch.device | str = "cpu", clock: Callable[[], float] = time.perf_counter,
):  # fmt: skip
    """Fill each row with the seconds of its contestant, in turns: a b c a b c ..., `rounds`
    times.

    makers: rows, each with a function that makes its contestant: a function that is timed. A
    contestant may have prepare(), which comes before each run and is not timed, and a number of
    bytes, extra_bytes. Whoever cannot be made, or fails in the first round, says so in its row,
    and the others go on. The first round warms up (caches, compilers, thread pools) and is not
    counted. report is told of each round.
    """
    report("warming up")
    present = []
    for row, make in makers:
        try:
            contestant = make()
            once(contestant, device, clock)
        except Exception as error:  # whatever it is, it is this contestant's own
            row.notes.append(f"not run: {reason(error)}")
        else:
            present.append((row, contestant))
    for number in range(1, rounds + 1):
        report(f"round {number}/{rounds}")
        for row, contestant in present:
            row.seconds.append(once(contestant, device, clock))
    for row, contestant in present:
        row.extra_bytes = getattr(contestant, "extra_bytes", None)


def once(contestant, device, clock) -> float:
    """The seconds of one run, from an idle device to an idle device."""
    getattr(contestant, "prepare", lambda: None)()
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
    text = str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    if "C++ compiler" in text:
        return "torch.compile finds no C++ compiler (g++ or clang++)"
    short = "can't allocate memory" in text
    if short or isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "there is not enough memory"
    return (text.strip().splitlines() or ["no more is known"])[0]


def as_dicts(rows: list[Row]) -> list[dict]:
    """The rows with their ratios, for JSON; the same keys in each, null for what there is not.

    time_ratio, rate_ratio: to the row `base`; rate_to_rival: to the row `rival`.
    """
    by_key = {row.key: row for row in rows if row.seconds}

    def ratio(of: str, row: Row, to: tuple | None) -> float | None:
        measured = row.seconds and to in by_key
        return getattr(row, of) / getattr(by_key[to], of) if measured else None

    return [
        {
            "group": row.group, "name": row.name, "n": row.n, "seconds": row.median,
            "least": min(row.seconds, default=None), "most": max(row.seconds, default=None),
            "rounds": row.seconds, "useful_flops": row.flops or None,
            "useful_gflops_per_s": row.per_second / 1e9 if row.seconds and row.flops else None,
            "tokens": row.tokens or None,
            "tokens_per_s": row.per_second if row.seconds and row.tokens else None,
            "base": row.base, "time_ratio": ratio("median", row, row.base),
            "rate_ratio": ratio("per_second", row, row.base), "rival": row.rival,
            "rate_to_rival": ratio("per_second", row, row.rival),
            "extra_bytes": row.extra_bytes, "notes": row.notes,
        }
        for row in rows
    ]  # fmt: skip

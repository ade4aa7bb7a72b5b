"""Time, taken so that it can be compared: contestants take turns, and the median counts.

A machine is faster in one minute than in the next. Whoever runs all of a, then all of b,
measures that too; here a round is one run of each, and what disturbs a round disturbs them all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch


class Contestant(NamedTuple):
    """name: its key in its race. run: what is timed. prepare: what comes before each run, and
    is not."""

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] | None = None


class Result(NamedTuple):
    """The seconds of each round; or none, and why not. notes: sentences, without their dots."""

    seconds: list[float]
    notes: list[str]


def race(
    makers: dict[str, Callable[[], Contestant]],
    rounds: int,
    report: Callable[[int], None] = lambda number: None,
    synchronise: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Result]:
    """Each contestant's result, in turns: a b c a b c ..., `rounds` times.

    makers: name -> a function that makes the contestant. Whoever cannot be made, or fails in
    the first round, is missing, and the others go on. The first round warms up (caches,
    compilers, thread pools) and is not counted. synchronise: waits until the device has done
    its work. report is told the number of each round, 0 for the first.
    """
    report(0)
    present, results = [], {}
    for name, make in makers.items():
        results[name] = Result([], [])
        try:
            contestant = make()
            once(contestant, synchronise, clock)
        except Exception as error:  # whatever it is, it is this contestant's own
            results[name] = Result([], [f"not run: {reason(error)}"])
        else:
            present.append(contestant)
    before = time.perf_counter(), others_busy()
    for number in range(1, rounds + 1):
        report(number)
        for contestant in present:
            results[contestant.name].seconds.append(once(contestant, synchronise, clock))
    note = disturbance(*before)
    for contestant in present * bool(note):
        results[contestant.name].notes.append(note)
    return results


def once(contestant: Contestant, synchronise, clock) -> float:
    """The seconds of one run, from an idle device to an idle device."""
    if contestant.prepare is not None:
        contestant.prepare()
    synchronise()
    began = clock()
    result = contestant.run()
    synchronise()
    seconds = clock() - began
    del result  # freed only now: giving memory back is not part of the run
    return seconds


def synchroniser(device: torch.device) -> Callable[[], None]:
    """A function that waits until `device` has done all that it was given."""
    if device.type == "cpu":
        return lambda: None
    module = torch.get_device_module(device)
    return lambda: module.synchronize(device)


def others_busy() -> float | None:
    """Seconds of CPU time that everything but this process has taken since the system began.

    None where there is no /proc/stat. Ended children count as this process; time that a host
    took from a virtual machine counts as others'.
    """
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()
        ticks = sum(int(fields[at]) for at in (1, 2, 3, 6, 7, 8))  # all but idle and waiting
        return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])
    except (OSError, IndexError, ValueError):
        return None


def disturbance(began: float, busy: float | None) -> str | None:
    """A sentence if others took more than a twentieth of the CPUs since then, or else None.

    began: time.perf_counter() of then. busy: others_busy() of then.
    """
    now = others_busy()
    if busy is None or now is None:
        return None
    available = (time.perf_counter() - began) * (os.cpu_count() or 1)
    taken = now - busy
    if taken < 0.1 or taken < available / 20:  # the clock of /proc/stat ticks every 10 ms
        return None
    share = min(100, 100 * taken / available)
    return f"other programs took {share:.0f}% of the CPUs meanwhile: measure again without them"


class CannotRun(Exception):
    """Why a contestant does not take part, in one sentence."""


def reason(error: Exception) -> str:
    """Why a contestant could not run, in one sentence."""
    text = str(error)
    if isinstance(error, CannotRun):
        return text
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    if "C++ compiler" in text:
        return "torch.compile finds no C++ compiler (g++ or clang++)"
    short = "can't allocate memory" in text
    if short or isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "there is not enough memory"
    lines = text.strip().splitlines() or ["no more is known"]
    return lines[0]

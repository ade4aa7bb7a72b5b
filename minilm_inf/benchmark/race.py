"""Time and memory, taken so that they can be compared: contestants take turns, and the median
counts.

A machine is faster in one minute than in the next. Running all of a, then all of b, measures
that too; here a round is one run of each, and what disturbs a round disturbs them all.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


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
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Work per second of the median round."""
        return self.work / self.median


def race(makers: list[tuple[Row, Callable]], rounds: int, device) -> list[Row]:
    """The rows, filled with the seconds of their contestants, which run in turns, a b c a b c
    ..., `rounds` times. The first is the base of all.

    makers: rows, each with a function that makes its contestant: a function that is timed. It
    may tell its extra_bytes; else they are measured once all is timed. One that cannot be made,
    or fails in the first round, says so in its row, and the others go on. The first round warms
    up (caches, compilers, thread pools) and is not counted. stderr is told of the race.
    """
    rows, present = [row for row, _ in makers], []
    print(f"{rows[0].name}, n={rows[0].n:,}, and others", file=sys.stderr, flush=True)
    for row, make in makers:
        row.base = rows[0]
        try:
            contestant = make()
            once(contestant, device)
        except Exception as error:  # whatever it is, it is this contestant's own
            row.note = "not run: " + (str(error).strip() or "out of memory").splitlines()[0]
        else:
            present.append((row, contestant))
    for _ in range(rounds):
        for row, contestant in present:
            row.seconds.append(once(contestant, device))
    for row, contestant in present:
        known = getattr(contestant, "extra_bytes", None)
        row.extra_bytes = extra_bytes(contestant, device) if known is None else known
    return rows


def once(contestant, device: torch.device) -> float:
    """The seconds of one run, from an idle device to an idle device."""
    wait = torch.get_device_module(device).synchronize
    wait(device)
    began = time.perf_counter()
    result = contestant()
    wait(device)
    seconds = time.perf_counter() - began
    del result  # freed only now: giving memory back is not part of the run
    return seconds


def extra_bytes(run: Callable[[], Tensor], device: torch.device | str) -> int | None:
    """Bytes that run() needs at its peak beyond what exists before it, and its output, as
    PyTorch's allocators count them; None on a device that does not tell.

    On CUDA they keep the peak, on the CPU the profiler notes what each operation, or the kernel
    within, asks for and gives back; not what a matrix library holds for its own use.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        output = run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before - output.nbytes
    if kind != "cpu":
        return None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        output = run()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return max(0, peak - output.nbytes)


def work(run: Callable[[], Tensor]) -> int:
    """Multiplications and additions in the products of run(), by PyTorch's own counter, which
    is told of the fused attention that it does not know, the CPU's."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    known = {fused: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    with FlopCounterMode(display=False, custom_mapping=known) as count:
        run()
    return count.get_total_flops()

"""How much memory one call of attention needs at its peak, beyond its inputs and its output.

On CUDA the allocator counts it. On the CPU nothing does: kernels and matrix libraries have
buffers of their own, which no PyTorch counter sees. There the number is the kernel's high-water
mark of resident memory (VmHWM in /proc/self/status), set back just before the call, less what
was resident then, less the output. Three things make it trustworthy:

- a process of its own for each way to attend, in which nothing else was ever computed;
- a short call first, so that threads, code and the libraries' lasting buffers are there;
- a C library that hands back what is freed: malloc_trim before the call, and a fixed
  M_MMAP_THRESHOLD during it, or what it keeps would seem to be needed, or to be there.

The kernel counts pages per thread and adds them up now and then: below a megabyte the number
says nothing.

    python -m minilm_inf.benchmark.memory JSON

is that process; it prints a line of JSON for each length.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ..terminal.progress import memory
from .attention import FLEX, Shape, call, vectors_of
from .race import CannotRun, reason, synchronise

CLEAR_REFS = Path("/proc/self/clear_refs")
WARM_UP = 4096  # tokens of the short call
M_MMAP_THRESHOLD, MAPPED_FROM = -3, 1 << 16  # mallopt's number; bytes


def memory_of(way: str, lengths: list[int], shape: Shape) -> list[int | str]:
    """extra_bytes of one way at each length, or a sentence where it failed; on the CPU measured
    in a process of its own."""
    if torch.device(shape.device).type != "cpu":
        return [measured(way, n, shape) for n in lengths]
    request = {"way": way, "lengths": lengths, "shape": asdict(shape),
               "threads": torch.get_num_threads()}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(request)],
        cwd=Path(__file__).resolve().parents[2], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    failure = f"the process that measures memory ended with {done.returncode}"
    return found + [failure] * (len(lengths) - len(found))


def main(arguments: list[str]) -> int:
    """The process of its own. Each line is bytes, or a sentence."""
    request = json.loads(arguments[0])
    torch.set_num_threads(request["threads"])
    keep_no_freed_memory()
    for n in request["lengths"]:
        print(json.dumps(measured(request["way"], n, Shape(**request["shape"]))), flush=True)
    return 0


@torch.inference_mode()
def measured(way: str, n: int, shape: Shape) -> int | str:
    """extra_bytes of one way at one length, or why there are none."""
    try:
        run = call(way, vectors_of(n, shape), shape.lm)
        # What is compiled for a shape must have run in it, or the compiler's memory counts.
        short = vectors_of(min(n, WARM_UP), shape)
        (run if way == FLEX else call(way, short, shape.lm))()
        return extra_bytes(run, torch.device(shape.device))
    except Exception as error:  # whatever it is, the other lengths are still to do
        return reason(error)


def extra_bytes(run: Callable[[], Tensor], device: torch.device) -> int:
    """Bytes that run() needs at its peak beyond what exists before it, and its output.

    Raises CannotRun where this system does not tell.
    """
    gc.collect()
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        output = run()
        synchronise(device)
        peak = torch.cuda.max_memory_allocated(device)
    elif device.type == "cpu":
        hand_back_freed_memory()
        before = reset_peak()
        output = run()
        peak = resident_peak()
    else:
        raise CannotRun(f"nobody counts the memory of {device.type}")
    return max(0, peak - before - output.nbytes)


def hand_back_freed_memory():
    """Have the C library return to the system what it keeps for later; glibc only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_no_freed_memory():
    """Have the C library return at once, from now on, what is freed of a tensor; glibc only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)


def reset_peak() -> int:
    """Set the mark of the resident memory's peak back to what is resident now: bytes.

    Raises CannotRun where there is no /proc.
    """
    try:
        CLEAR_REFS.write_text("5")
    except OSError as error:
        raise CannotRun("only Linux tells the peak of resident memory") from error
    return resident_peak()


def resident_peak() -> int:
    """The peak of resident memory since it was last set back, in bytes."""
    return memory()[1]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))

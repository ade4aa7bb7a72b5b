"""How much memory one call of attention needs at its peak, beyond its inputs and its output.

On CUDA the allocator counts it. On the CPU nothing does: kernels and matrix libraries have
buffers of their own, which no PyTorch counter sees. There the number is the kernel's high-water
mark of resident memory (VmHWM in /proc/self/status), set back just before the call, less what
was resident then, less the output. Three things make it trustworthy:

- a process of its own for each way to attend, in which nothing else was ever computed;
- a short call first, so that threads, code and the libraries' lasting buffers are there;
- malloc_trim, by which the C library hands back what it keeps of memory that was freed: a call
  that could use such a remainder would seem to need less;
- a fixed M_MMAP_THRESHOLD, by which it hands back at once what is freed during the call: what
  it keeps is for it to decide, differs from run to run, and would seem to be needed.

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

from .attention_calls import CHUNKED, FLEX, REFERENCE, Shape, call, rotated, vectors
from .timing import CannotRun, reason, synchroniser

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
WARM_UP = 4096  # tokens of the short call
M_MMAP_THRESHOLD, MAPPED_FROM = -3, 1 << 16  # mallopt's number; bytes


def extra_bytes(run: Callable[[], Tensor], device: torch.device) -> int:
    """Bytes that run() needs at its peak beyond what exists before it, and its output.

    Raises CannotRun where this system does not tell.
    """
    gc.collect()
    wait = synchroniser(device)
    if device.type == "cuda":
        wait()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        output = run()
        wait()
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
    """The peak of resident memory since it was last set back, in bytes. Raises CannotRun."""
    try:
        lines = STATUS.read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    except (OSError, StopIteration) as error:
        raise CannotRun("only Linux tells the peak of resident memory") from error


@torch.inference_mode()
def one_way(way: str, n: int, shape: Shape) -> int:
    """extra_bytes of one way at one length."""

    def prepared(length: int) -> Callable[[], Tensor]:
        q, k, v = vectors(length, shape)
        if way not in (CHUNKED, REFERENCE):
            q, k = rotated(q, k)
        return call(way, q, k, v, shape.lm)

    run = prepared(n)
    # What is compiled for a shape must have run in it, or the compiler's memory is measured.
    (run if way == FLEX else prepared(min(n, WARM_UP)))()
    return extra_bytes(run, torch.device(shape.device))


def in_child(way: str, lengths: list[int], shape: Shape, threads: int) -> dict[int, int | str]:
    """one_way for each length, measured in a process of its own; a sentence where it failed."""
    request = {"way": way, "lengths": lengths, "shape": asdict(shape), "threads": threads}
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(request)],
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    failure = f"the process that measures memory ended with {done.returncode}"
    found = dict.fromkeys(lengths, failure)
    for line in done.stdout.splitlines():
        answer = json.loads(line)
        found[answer["n"]] = answer["extra"]
    return found


def main(arguments: list[str]) -> int:
    """The process of its own. Each line says the length, and bytes or a sentence."""
    request = json.loads(arguments[0])
    torch.set_num_threads(request["threads"])
    keep_no_freed_memory()
    shape = Shape(**request["shape"])
    for n in request["lengths"]:
        try:
            extra = one_way(request["way"], n, shape)
        except Exception as error:  # whatever it is, the other lengths are still to do
            extra = reason(error)
        print(json.dumps({"n": n, "extra": extra}), flush=True)
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))

"""One line on stderr that says how far a long run has come, and the memory that it takes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

EVERY, EVERY_IN_A_LOG = 0.5, 30.0  # seconds between two lines


class Progress:
    """Progress towards `total` tokens, or other units, from `done`: one line of a terminal, or,
    rarely, one more line of a log."""

    def __init__(self, total: int, done: int = 0, unit: str = "tokens"):
        self.total, self.first, self.unit = total, done, unit
        self.began = self.shown = time.monotonic()
        self.redraws, self.width = sys.stderr.isatty(), 0

    def show(self, done: int, fact: str = "", now: bool = False):
        """Say that `done` are done, and one fact more, if it is time for it, or `now`."""
        clock = time.monotonic()
        if not now and clock - self.shown < (EVERY if self.redraws else EVERY_IN_A_LOG):
            return
        self.shown = clock
        speed = (done - self.first) / max(clock - self.began, 1e-9)
        seconds = (self.total - done) / max(speed, 1e-9)
        left = f"{seconds:,.0f} s" if seconds < 100 else f"{seconds / 60:,.0f} min"
        facts = f"{done:,}/{self.total:,} {self.unit}", fact, f"{speed:,.0f} {self.unit}/s"
        line = "  ".join([*filter(None, facts), f"{left} left"])
        if not self.redraws:
            print(line, file=sys.stderr, flush=True)
            return
        print("\r" + line.ljust(self.width), end="", file=sys.stderr, flush=True)
        self.width = len(line)

    def end(self):
        """Leave a terminal's line as it is, and begin another."""
        if self.width:
            print(file=sys.stderr, flush=True)
            self.width = 0


def bytes_in(path: str) -> dict[str, int]:
    """The sizes that a file of Linux's /proc tells, by name: what this process has, as VmRSS of
    /proc/self/status, or what a new one can have, MemAvailable of /proc/meminfo; none where
    there is no such file."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    sizes = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): 1024 * int(size) for name, size, _ in sizes}


def scaled(number: int, unit: str = "B") -> str:
    """A number of bytes, or of another unit, in thousands.

    >>> scaled(544_768), scaled(3_000_000_000, "FLOP")
    ('544.77 kB', '3.00 GFLOP')
    """
    power = min(5, (len(str(number)) - 1) // 3)
    return f"{number / 1000**power:.2f} {('', 'k', 'M', 'G', 'T', 'P')[power]}{unit}"

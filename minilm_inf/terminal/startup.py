"""The first moments of a program: before PyTorch is imported, which takes seconds.

A program that is started without a standard stream gets the null device in its place, before
any other file can take its number. Ctrl-C and SIGTERM end a program that is still importing
as they end one that runs: with "stopped" and an exit code of 128 and the signal's number.
"""

from __future__ import annotations

import os
import signal
import sys


def is_program() -> bool:
    """Whether this process was started to run a module of this package."""
    words = sys.orig_argv
    after = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    return bool(after) and after[0].partition(".")[0] == __package__.partition(".")[0]


def begin():
    """Open the streams that are closed, and let signals end the program until it runs."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def stop(number: int, _frame):
    """Say so and end."""
    os.write(2, b"\nstopped\n")
    os._exit(128 + number)

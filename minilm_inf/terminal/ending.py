"""How a program ends: with its exit code, and one sentence for whatever went wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

import torch

from .files import named


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a program as Ctrl-C does, with an exit code of its own."""


def guarded(run, smaller: str = "model") -> int:
    """run()'s exit code; 1 and one sentence for what goes wrong, 130 for Ctrl-C, 143 for
    SIGTERM.

    smaller: what takes less memory where it is smaller, for the sentence that says so.
    """
    with contextlib.suppress(AttributeError):  # a character that a terminal lacks ends nothing
        sys.stdout.reconfigure(errors="replace")
    with handled(interrupt):
        try:
            code = run()
            sys.stdout.flush()  # here, where a reader that left can be noticed
            return code
        except BrokenPipeError:  # the reader of our output left: not an error of ours
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt as stop:
            with handled(signal.SIG_IGN):  # one more changes nothing
                say("\nstopped")
            return 143 if isinstance(stop, Terminated) else 130
        except (ValueError, OSError) as error:
            text = str(error)
            if isinstance(error, OSError) and error.strerror:
                where = f"{named(error.filename)}: " if error.filename is not None else ""
                text = where + error.strerror
            say("error: " + " ".join(text.split()))
        except (MemoryError, RuntimeError) as error:
            # PyTorch's own for the CPU is a RuntimeError like others.
            short = isinstance(error, MemoryError | torch.OutOfMemoryError)
            if not short and "can't allocate memory" not in str(error):
                raise
            say(f"error: out of memory: take a smaller {smaller}")
        return 1


@contextlib.contextmanager
def handled(handler, *numbers: int):
    """Within it, Ctrl-C and SIGTERM, or the given signals, are handled so."""
    numbers = numbers or (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def interrupt(number: int, _frame):
    """A signal's handler: raise KeyboardInterrupt wherever the program is."""
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextlib.contextmanager
def signals_noted(*numbers: int):
    """Within it, these signals stop nothing, but enter the list that it gives."""
    came: list[int] = []
    with handled(lambda number, _: came.append(number), *numbers):
        yield came


def say(text):
    """A line on stderr, after what stdout still holds, if anybody reads them."""
    for stream, content in ((sys.stdout, ""), (sys.stderr, f"{text}\n")):
        with contextlib.suppress(OSError, ValueError):
            print(content, end="", file=stream, flush=True)

"""Files, flags, prompts and calls drawn at random, and a judge of what comes of them.

    python -m pytest tests/test_fuzz.py --fuzz 20000    as many cases, of all kinds
    python tests/fuzz.py --kind files --number 17       one of them, with its traceback

A case is right where it ends well, or in one sentence: a ValueError of the library, exit code 1
or 2 of a program. It is wrong with any other exception, without an end, with a Python word or
more than 200 characters of a user's value in its sentence, and where it leaves a file outside
of its folder. A case is drawn from the name of its kind and its number, so each can be repeated
alone.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import random
import re
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
import torch  # noqa: E402
from fuzz_calls import CALLS  # noqa: E402
from fuzz_draw import Refused, Wrong  # noqa: E402
from fuzz_files import FILES  # noqa: E402

KINDS = FILES | CALLS  # name -> a function of a random.Random: (description, call)
SEED = 0  # another one draws other cases
SECONDS = 5  # of processor time that a case may take
FAULTS = "traceback", "hang", "outside", "words", "wrong"
PYTHON_WORDS = re.compile(
    r"(Key|Type|Value|Index|Attribute|Runtime|Unicode\w*|OS|Overflow|Recursion|JSONDecode)Error"
    r"|NoneType|PosixPath|unpack|has no attribute|list ind|not subscriptable|<class|Traceback"
    r"|invalid literal|could not convert|unhashable|codec can't|\[Errno|not iterable|std::"
    r"|unexpected keyword|positional argument|<built-in|not supported between"
)


class Hang(BaseException):
    """What the alarm raises in a case that does not end."""


class Verdict(NamedTuple):
    """outcome: "clean", "sentence" or one of FAULTS. said: what went wrong."""

    outcome: str
    description: str
    said: str


def judged(kind: str, number: int, loud: bool = False) -> Verdict:
    """One case, run in a folder of its own, which is the working folder meanwhile."""
    rng, before = random.Random(f"{SEED} {kind} {number}"), tempfile.tempdir
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as room, contextlib.chdir(room):
        folder = Path(room, "a", "b", "case")  # from which ../.. is still in the room
        folder.mkdir(parents=True)
        os.chdir(folder)
        tempfile.tempdir, description = str(folder), "while it was drawn"
        try:
            description, call = KINDS[kind](rng)
            outcome, said = outcome_of(call, loud)
        finally:
            tempfile.tempdir = before
            torch.set_num_threads(threads)
        left = [path for path in Path(room).rglob("*") if path.is_file()]
        outside = [path.name for path in left if folder not in path.parents]
    return (
        Verdict("outside", description, str(outside))
        if outside
        else Verdict(outcome, description, said)
    )


def outcome_of(call, loud: bool) -> tuple[str, str]:
    """How a call ends, and what it says."""
    try:
        with timed():
            call()
        return "clean", ""
    except Hang:
        return "hang", "".join(traceback.format_exc().splitlines(True)[-3:-1])
    except Wrong as error:
        return "wrong", str(error)
    except ValueError as error:
        problem = problem_with(str(error))
        if not isinstance(error, Refused) and not raised_by_us(error):
            problem = problem or "raised by a library"
        if problem and loud:
            traceback.print_exc()
        return ("words", f"{problem}: {str(error)[:300]!r}") if problem else ("sentence", "")
    except BaseException as error:  # also what a Rust library raises for its panic
        if loud:
            traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return "traceback", f"{type(error).__name__} at {where}: {str(error)[:200]}"


@contextlib.contextmanager
def timed():
    """Raise Hang after SECONDS of processor time; a library that never returns to Python ends
    the process after twelve times as many."""

    def ring(*_):
        raise Hang

    signal.signal(signal.SIGPROF, ring)
    faulthandler.dump_traceback_later(12 * SECONDS, exit=True)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()


def problem_with(sentence: str) -> str | None:
    """What is wrong with the words of an error, None where nothing is."""
    found = PYTHON_WORDS.search(sentence)
    if found:
        return f"says {found[0]!r}"
    if not sentence.strip() or "\n" in sentence.strip():
        return "is not one sentence"
    echoed = re.finditer(r"(.{1,5}?)\1{9,}", sentence)
    if len(sentence) > 900 or any(len(match[0]) > 210 for match in echoed):
        return "echoes more than 200 characters"
    return None


def raised_by_us(error: ValueError) -> bool:
    """Whether the package raised it, not a library below it."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return Path(place.filename).is_relative_to(ROOT / "minilm_inf")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--number", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("\n".join(judged(options.kind, options.number, loud=True)))


if __name__ == "__main__":
    main()

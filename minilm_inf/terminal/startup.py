"""The first moments of a program: before PyTorch is imported, which takes seconds.

A program that is started without a standard stream gets the null device in its place, before
any other file can take its number. Ctrl-C and SIGTERM end a program that is still importing
as they end one that runs: with "stopped" and an exit code of 128 and the signal's number.

--help waits for none of it: to know a program's flags, PyTorch's names need only exist, and
nothing of it is called.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib.machinery import ModuleSpec

SLOW = "torch", "numpy", "safetensors", "sentencepiece", "tiktoken"


def is_program() -> bool:
    """Whether this process was started to run a module of this package."""
    words = sys.orig_argv
    after = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    return bool(after) and after[0].partition(".")[0] == __package__.partition(".")[0]


def begin():
    """Open the streams that are closed, let signals end the program until it runs, and leave
    out what --help does not need."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    flags = sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
    if "-h" in flags or "--help" in flags:
        sys.meta_path.insert(0, Names)


def stop(number: int, _frame):
    """Say so and end."""
    os.write(2, b"\nstopped\n")
    os._exit(128 + number)


class OnlyNames(type):
    """Has classes of which all attributes, and what is made of them, are the class again."""

    def __getattr__(cls, _):
        return cls

    def __call__(cls, *_, **__):
        return cls


class Names(metaclass=OnlyNames):
    """An importer of packages of which only the names are there, and what stands for them."""

    @staticmethod
    def find_spec(name: str, *_):
        is_slow = name.partition(".")[0] in SLOW
        return ModuleSpec(name, Names, is_package=True) if is_slow else None

    @staticmethod
    def create_module(_):
        return None  # an empty one

    @staticmethod
    def exec_module(module):
        module.__getattr__ = lambda _: Names

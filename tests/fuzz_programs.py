"""Kinds of fuzz.py: flags and prompts."""

from __future__ import annotations

import argparse
import functools
import os
from unittest import mock

from fuzz_draw import (
    LONG,
    TOKENIZERS,
    module_of,
    program,
    some_text,
    spoiled_bytes,
    tokenizer,
    weights,
    write,
)  # fmt: skip

import minilm_inf.benchmark.__main__
import minilm_inf.card
import minilm_inf.diagnose.__main__
import minilm_inf.evaluate.__main__
import minilm_inf.train.__main__  # noqa: F401

WORDS = "The ship went on, and the men looked at the sea, for it was late. It was cold. "
ARGUMENTS = (
    "", " ", "0", "-1", "1", "2", "3", "1.5", "nan", "inf", "-inf", "1e309", "1e-300", "0x10",
    "1e6", str(2**40), str(2**62 - 1), str(2**62), str(2**63), str(2**64), "9" * 400, "None",
    LONG, "none", "\udcff", "a\nb",
    "a,b", "1,2", "k=1", "k=", "=1", "-", "--", ".", "/", "..", "m",
    "t.txt", "true", "latin", "x.json", "x/y/z", "x" * 300, "/dev/null", "/dev/zero",
    "m/config.json", "cuda", "meta", "cpu:7", "owner/name", "ram", "disk", "all", "last",
    "float16", "float64", "mpt",
)  # fmt: skip
GROWS = "-n --max-new-tokens --trials --length --lengths --tokens --rounds --documents".split()
LARGE = {
    "1e6",
    str(2**40),
    str(2**62 - 1),
}  # of those flags, what would be a long run and no mistake
TINY = """--vocab-size 330 --n-layer 1 --n-embd 16 --n-head 2 --n-kv-head 1 --head-dim 8
--n-inner 16 --tokens 256 --tokens-per-step 256""".split()
BASES = {  # a run that is right: program -> its arguments
    "generate": ["-m", "m", "-n", "2", "-p", "Hi"],
    "generate --plan": ["-m", "m", "-n", "2", "-p", "Hi"],
    "evaluate perplexity": ["-m", "m", "--text", "t.txt", "--length", "60"],
    "evaluate compare": ["-m", "m", "--text", "t.txt", "--length", "200", "--trials", "0"],
    "evaluate passkey": ["-m", "m", "--text", "t.txt", "--lengths", "1", "--trials", "1"],
    "evaluate recall": ["-m", "m", "--text", "t.txt", "--lengths", "3", "--trials", "1"],
    "inspect": ["m"],
    "convert": ["m"],
    "card": ["m"],
    "diagnose": ["-m", "nowhere", "--text", "t.txt"],  # those that are slow end early
    "benchmark": ["-m", "nowhere", "--quick", "--only", "decoding"],
    "train": ["--text", "nowhere", "--out", "x", *TINY],
}


@functools.cache
def flags_of(command: str) -> list[str]:
    """All flags of a program, as its own parser knows them."""

    class Found(Exception):
        pass

    def found(parser, *_):
        raise Found(parser)

    name, *task = command.split()
    with mock.patch("argparse.ArgumentParser.parse_args", found):
        try:
            module_of(name).main([])
        except Found as error:
            parser = error.args[0]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and task:
            parser = action.choices[task[0]]
    return [flag for action in parser._actions for flag in action.option_strings]


def flags(rng):
    command = rng.choice(list(BASES))
    arguments = list(BASES[command])
    if command == "train" and rng.random() < 0.05:
        arguments[1] = "t.txt"
    for _ in range(rng.choice((1, 1, 2, 3))):
        flag = rng.choice(flags_of(command))
        value = rng.choice(ARGUMENTS)
        while flag in GROWS and value in LARGE:
            value = rng.choice(ARGUMENTS)
        how = rng.random()
        more = [flag] if how < 0.2 else [f"{flag}={value}"] if how < 0.6 else [flag, value]
        at = rng.choice((len(arguments), rng.randrange(len(arguments) + 1)))
        arguments[at:at] = more
    write(weights() | tokenizer("pieces"))
    write({"t.txt": (WORDS * 40).encode(), "latin": b"caf\xe9"}, ".")
    stdin = rng.choice((b"", b"hello\n/exit\n", b"\xff"))
    return f"{command} {arguments!r}"[:2500], lambda: program(
        *command.split(), *arguments, stdin=stdin
    )


COMMANDS = "/help", "/exit", "/reset", "/set", "/", "/stats", "/load x", "/exit\r", "//"


def prompts(rng):
    write(weights() | tokenizer(rng.choice(TOKENIZERS)))
    text = some_text(rng)
    raw = text.encode("utf-8", "surrogatepass")
    raw = spoiled_bytes(rng, raw) if rng.random() < 0.2 else raw
    raw = rng.choice((b"", b"", b"", b"\xef\xbb\xbf", b"\xff\xfe")) + raw
    write({"p.txt": raw}, ".")
    written = os.fsdecode(raw.replace(b"\0", b""))  # as a shell hands it over
    how = rng.choice(("-p", "-f", "stdin", "-i", "--stop", "several", "--text"))
    arguments = {
        "-p": ["-p", written],
        "-f": ["-f", "p.txt"],
        "stdin": ["-p", "-"],
        "-i": ["-i"],
        "--stop": ["-p", "Hi", "--stop", written],
        "several": ["-p", written, "-p", "Hi"],
    }.get(how)
    shows = rng.choice(
        ([], ["--json"], ["--echo"], ["--no-stream"], ["--explain"], ["--no-bos"])
    )
    stdin = raw
    if how == "-i":
        lines = [rng.choice((*COMMANDS, "Hi there")).encode() for _ in range(3)]
        stdin, shows = b"\n".join([*lines, raw]), []
    description = f"{how} {shows} {raw[:200]!r} of {len(raw)} bytes"
    if how == "--text":
        return description, lambda: program(
            "evaluate", "perplexity", "-m", "m", "--text", "p.txt", "--length", "40"
        )
    return description, lambda: program(
        "generate", "-m", "m", "-n", "3", *arguments, *shows, stdin=stdin
    )


PROGRAMS = {"flags": flags, "prompts": prompts}

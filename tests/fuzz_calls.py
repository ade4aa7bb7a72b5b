"""Kinds of fuzz.py: flags and prompts of the programs, and arguments of the library."""

from __future__ import annotations

import argparse
import functools
import os
from unittest import mock

import torch
from conftest import tiny_model
from fuzz_draw import (
    LONG,
    TOKENIZERS,
    VALUES,
    Wrong,
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
import minilm_inf.convert.__main__
import minilm_inf.diagnose.__main__
import minilm_inf.evaluate.__main__
import minilm_inf.inspect.__main__
import minilm_inf.train.__main__  # noqa: F401
from minilm_inf import Alibi, LMInfinite, ModelConfig, Rotary, attend, chunked_attend, generate

WORDS = "The ship went on, and the men looked at the sea, for it was late. It was cold. "
ARGUMENTS = (
    "", " ", "0", "-1", "1", "2", "1.5", "nan", "inf", "-inf", "1e309", "1e-300", "0x10", "1e6",
    str(2**40), str(2**62), str(2**63), "9" * 400, "None", LONG, "none", "\udcff", "a\nb",
    "a,b", "1,2", "k=1", "k=", "=1", "-", "--", ".", "/", "..", "m", "t.txt", "latin", "x.json",
    "x/y/z", "x" * 300, "/dev/null", "/dev/zero", "m/config.json", "meta", "cpu:7", "ram",
    "disk", "all", "last", "float16", "float64", "mpt",
)  # fmt: skip
GROWS = "-n --max-new-tokens --max-tokens --trials --length --lengths --tokens --rounds".split()
GROWS += ["--documents"]
LARGE = {"1e6", str(2**40)}  # of those flags, what would be a long run and no mistake
TINY = """--vocab-size 330 --n-layer 1 --n-embd 16 --n-head 2 --n-kv-head 1 --head-dim 8
--n-inner 16 --tokens 256 --tokens-per-step 256""".split()
BASES = {  # a run that is right: program -> its arguments
    "generate": ["-m", "m", "-n", "2", "-p", "Hi"],
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
    for _ in range(rng.choice((1, 1, 2, 3))):
        flag = rng.choice(flags_of(command))
        values = [x for x in ARGUMENTS if flag not in GROWS or x not in LARGE]
        value = rng.choice(values)
        at = rng.choice((len(arguments), rng.randrange(len(arguments) + 1)))
        arguments[at:at] = rng.choice(([flag], [f"{flag}={value}"], [flag, value]))
    write(weights() | tokenizer("pieces"))
    write({"t.txt": (WORDS * 40).encode(), "latin": b"caf\xe9"}, ".")
    stdin = rng.choice((b"", b"hello\n/exit\n", b"\xff"))
    return f"{command} {arguments!r}"[:2500], lambda: program(
        *command.split(), *arguments, stdin=stdin
    )


COMMANDS = "/help", "/exit", "/reset", "/set", "/", "/load x", "/save x", "/exit\r", "Hi"


def prompts(rng):
    write(weights() | tokenizer(rng.choice(TOKENIZERS)))
    raw = some_text(rng).encode("utf-8", "surrogatepass")
    raw = spoiled_bytes(rng, raw) if rng.random() < 0.2 else raw
    raw = rng.choice((b"", b"", b"", b"\xef\xbb\xbf", b"\xff\xfe")) + raw
    write({"p.txt": raw}, ".")
    written = os.fsdecode(raw.replace(b"\0", b""))  # as a shell hands it over
    writing = "generate", "-m", "m", "-n", "3"
    shows = rng.choice(([], ["--json"], ["--echo"], ["--explain"], ["--no-bos"]))
    ways = {
        "-p": (*writing, "-p", written, *shows),
        "-f": (*writing, "-f", "p.txt", *shows),
        "stdin": (*writing, "-p", "-", *shows),
        "-i": (*writing, "-i"),
        "several": (*writing, "-p", written, "-p", "Hi"),
        "--text": ("evaluate", "perplexity", "-m", "m", "--text", "p.txt", "--length", "40"),
    }
    how = rng.choice(list(ways))
    lines = [rng.choice(COMMANDS).encode() for _ in range(3)]
    stdin = b"\n".join([*lines, raw]) if how == "-i" else raw
    return f"{how} {shows} {raw[:200]!r}", lambda: program(*ways[how], stdin=stdin)


MORE = torch.arange(3), torch.tensor(5), torch.zeros(2, 3), [0, 1], (1, 2), range(4), 0.5j


def anything(rng):
    """A value that no argument expects."""
    return rng.choice((*VALUES, *MORE, 4, 8, 2.0, LMInfinite(8, 2, 8), Rotary(4)))


def both(**given):
    """The definition and the chunked path give the same numbers, or a ValueError each."""
    results, errors = [], []
    for function in (attend, chunked_attend):
        try:
            results.append(function(**given))
        except ValueError as error:
            errors.append(error)
    if len(results) == 2 and not torch.allclose(*results, atol=1e-4, equal_nan=True):
        raise Wrong("the two disagree")
    if len(errors) == 1 and "ascend" not in str(errors[0]):
        raise Wrong(f"only one of the two raises: {errors[0]}")
    for error in errors:
        raise error


@functools.cache
def model():
    return tiny_model("llama", dtype=torch.float32, context_length=16)


def read(tokens, lm, first_position, padding, middle, batch, path, lengths, n_reaching):
    cache = None
    if path == "cached":
        cache = model().new_cache(batch, lm, first_position, padding, middle)
        path, lengths = "chunked", None
    with torch.inference_mode():
        return model()(tokens, lm, cache, path, lengths, n_reaching)


LM = LMInfinite(5, 2, 5)
Q, K, V = (torch.randn(2, n, 40, 8, generator=torch.manual_seed(0)) for n in (6, 2, 2))
TARGETS = {  # name -> (what is called, its arguments, what stands for one of them at times)
    "attend": (
        both,
        dict(q=Q, k=K, v=V, q_positions=torch.arange(40), k_positions=torch.arange(40),
             scheme=Rotary(8), lm=LM, scale=None, n_reaching=None),
        (Alibi(6), Rotary(16), Q[0], K[:, :0], V[..., :0], Q.long(), K.mT, Q.to("meta"),
         K.double(), torch.arange(40) + 2**62, torch.arange(40) - 3, LMInfinite(5, 2, 5, 2),
         torch.arange(40).flip(0), torch.arange(80).view(2, 40), -1.0, 41),
    ),
    "Rotary": (Rotary, dict(rotary_dim=8, theta=1e4, layout="halves", scaling=None),
               ({"rope_type": "linear", "factor": 8.0}, {"rope_type": "linear"})),
    "Alibi": (Alibi, dict(n_head=4, bias_max=8.0), (2**40, 3.0)),
    "LMInfinite": (
        LMInfinite,
        dict(n_local=8, n_global=2, distance_ceiling=8, top_k=2, top_k_distance=3,
             top_k_from_layer=0, top_k_queries="last"),
        (2**62, 2**61),
    ),
    "ModelConfig": (
        ModelConfig,
        dict(family="llama", vocab_size=31, n_layer=2, n_head=4, n_kv_head=2, n_embd=32,
             head_dim=8, n_inner=48, context_length=6, norm_eps=1e-5, tied=False,
             softmax_scale=None, bos_id=None, eos_ids=()),
        (2**40, (1, 2), (-1,)),
    ),
    "read": (
        read,
        dict(tokens=torch.arange(24).view(2, 12), lm=LM, first_position=0, padding=None,
             middle="ram", batch=2, path="cached", lengths=None, n_reaching=None),
        ([12, 3], [13, 1], torch.zeros(2, 0).long(), torch.ones(2, 12), "reference", "cached",
         torch.arange(40).view(2, 20), 12, 1, 2**53, 2**53 - 10, LMInfinite(5, 2, 5, 2)),
    ),
    "generate": (
        lambda **given: list(generate(model(), **given)),
        dict(ids=[1, 2, 3], lm=LM, max_new_tokens=2, temperature=0.8, top_k=5, top_p=0.9,
             seed=1, stop_ids=(2,), prefill_chunk=2, middle="ram"),
        ([31], [-1], [1.5], ["a"], torch.arange(3), (1, 2), "reference"),
    ),
}  # fmt: skip


def arguments(rng):
    name = rng.choice(list(TARGETS))
    function, usual, others = TARGETS[name]
    given = dict(usual)
    for _ in range(rng.choice((0, 1, 1, 2))):
        given[rng.choice(list(given))] = rng.choice((anything(rng), rng.choice((*others, 3))))
    return f"{name} {given}"[:1500], lambda: function(**given)


CALLS = {"flags": flags, "prompts": prompts, "arguments": arguments}

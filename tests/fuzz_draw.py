"""What the kinds of fuzz.py share: hostile values, spoiled JSON and bytes, tiny folders that
are right before they are spoiled, and a program that is run in this process."""

from __future__ import annotations

import copy
import functools
import io
import json
import random
import sys
import tempfile
from pathlib import Path

from conftest import ROOT, tiny_model
from fuzzed_texts import fuzzed_texts
from tokenizer_json import FOLDER, piece_kinds, small_kinds

from minilm_inf import generate  # noqa: F401  (its module is in sys.modules now)
from minilm_inf.checkpoint import save

LONG = "long " * 2000
VALUES = (
    None, True, False, 0, -1, 1, 2, 3, 7, 64, 0.5, 1.5, -0.0, 1e-300, 1e308, float("inf"),
    float("nan"), 2**31, 2**53 + 1, 2**62, 2**63, 2**64, -(2**63), 10**400, "", "0", "1", LONG,
    "\ud800", "\0", "../../canary", "☃", "true", "{{", [], [[]], {}, {"a": 1}, [1, 2], [None],
    ["", ""], [0] * 3000, {"type": "BPE"}, {"content": 1}, "None", "<unk>", "a\nb",
)  # fmt: skip
BYTES = b"", b"\0" * 8, b"\xff" * 8, b"\xff" * 300, b"\x7f\xff", b'"', b"{", b"[" * 3000, b"\r"


class Refused(ValueError):
    """The sentence that a program ended with."""


class Wrong(AssertionError):
    """A result that nobody may get."""


def spoiled(rng: random.Random, tree):
    """A JSON value in which one to three places hold something else, or are missing."""
    holder = {"": json.loads(json.dumps(tree))}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place, key = holder, ""
        while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
            place = place[key]
            keys = place if isinstance(place, dict) else range(len(place))
            key = rng.choice(list(keys))
        value, how = place[key], rng.random()
        if how < 0.15 and place is not holder:
            del place[key]
            continue
        if how < 0.25 and isinstance(value, int | float):
            value = rng.choice((value + 1, -value, value * 2, float(value % 2**40) + 0.5))
        elif how < 0.35:
            value = rng.choice(([value], {"a": value}, [value, value], str(value)))
        else:
            value = copy.deepcopy(rng.choice(VALUES))
        place[key] = value
        if rng.random() < 0.1 and isinstance(place, dict):
            place[rng.choice([*place, LONG, "", "\ud800"])] = copy.deepcopy(rng.choice(VALUES))
    return holder[""]


def as_json(rng: random.Random, tree) -> bytes:
    """A JSON value as a file holds it: sometimes with a BOM, a key twice, or not quite JSON."""
    raw = json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    how = rng.random()
    if how < 0.03:
        return b"\xef\xbb\xbf" + raw
    if how < 0.06:
        return raw[:1] + b'"a": 1, "a": 2, ' + raw[1:]
    if how < 0.08:
        return b'{"a": ' * rng.choice((900, 100_000)) + raw
    return spoiled_bytes(rng, raw) if how < 0.18 else raw


def spoiled_bytes(rng: random.Random, raw: bytes) -> bytes:
    """Bytes of which some are flipped, cut away, doubled, or replaced."""
    raw = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 6))):
        at = rng.randrange(min(len(raw), rng.choice((64, 10**9))) + 1)
        some = slice(at, at + rng.choice((1, 2, 8, 200)))
        number = rng.choice((0, 1, 255, 2**31, 2**40, 2**62, 2**64 - 1))
        where, new = rng.choice((
            (slice(at, None), b""),
            (some, b""),
            (some, rng.randbytes(len(raw[some]))),
            (slice(at, at + 8), number.to_bytes(8, rng.choice(("little", "big")))),
            (slice(at, at), raw[some] * rng.choice((1, 3, 1000))),
            (slice(at, at), rng.choice(BYTES)),
        ))  # fmt: skip
        raw[where] = new
    return bytes(raw)


def some_text(rng: random.Random) -> str:
    """A text of any Unicode, also of what is none, and of words without an end."""
    text = rng.choice(fuzzed_texts(60, seed=rng.randrange(20)))
    how = rng.random()
    if how < 0.1:
        text += rng.choice(("\ud800", "\udcff", "\0", "\0\0x", "\ufffe"))
    elif how < 0.15:
        unit = rng.choice(("a", "ab", " ", "é", "日", "1", "'", "\n", "a" * 40 + "!", "\u0301"))
        text += unit * rng.choice((100, 2000))
    return text


@functools.cache
def weights(family: str = "llama") -> dict[str, bytes]:
    """A tiny checkpoint's config.json and model.safetensors: file name -> content."""
    sizes = {} if family == "mpt" else dict(n_embd=16, head_dim=4, n_inner=24)
    model = tiny_model(family, vocab_size=2100, context_length=64, **sizes)
    with tempfile.TemporaryDirectory() as folder:
        save(model.float(), Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@functools.cache
def tokenizer(kind: str) -> dict[str, bytes]:
    """A tokenizer's files: of sentencepiece, "pieces"; vocab.json and merges.txt, "two files";
    or a tokenizer.json, of any of recipes()."""
    if kind == "pieces":
        file = ROOT / "weights" / "nano-llama" / "tokenizer.model"
        return {
            file.name: file.read_bytes(),
            "tokenizer_config.json": b'{"add_bos_token": true, "add_eos_token": false}',
            "added_tokens.json": b'{"<|im_start|>": 1024, "<|im_end|>": 1025}',
        }
    if kind == "two files":
        files = {name: (FOLDER / name).read_bytes() for name in ("vocab.json", "merges.txt")}
        return files | {"tokenizer_config.json": b'{"add_bos_token": false}'}
    about = b'{"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}'
    text = json.dumps(recipes()[kind], ensure_ascii=False)
    return {"tokenizer.json": text.encode(), "tokenizer_config.json": about}


@functools.cache
def recipes() -> dict[str, dict]:
    """A tokenizer.json of every kind that is implemented."""
    return small_kinds() | piece_kinds()


TOKENIZERS = "pieces", "two files", *recipes()


def write(files: dict[str, bytes], folder: str = "m") -> str:
    """Put files into a folder, which is made below the working folder; its name."""
    Path(folder).mkdir(exist_ok=True)
    for name, content in files.items():
        (Path(folder) / name).write_bytes(content)
    return folder


def module_of(name: str):
    """The program python -m minilm_inf.NAME, which is imported already."""
    module = sys.modules[f"minilm_inf.{name}"]  # generate's own, not the function
    return sys.modules.get(f"{module.__name__}.__main__", module)


def program(name: str, *arguments: str, stdin: bytes = b""):
    """Run python -m minilm_inf.NAME here.

    Raises Refused with its sentence where the exit code is 1 or 2, and Wrong for another code,
    for a traceback, and where what it says is not one sentence at the end of stderr.
    """
    streams = [io.TextIOWrapper(io.BytesIO(raw), "utf-8") for raw in (stdin, b"", b"")]
    streams[2].reconfigure(errors="backslashreplace")
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = streams
    try:
        code = module_of(name).main([str(a) for a in arguments])
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
    streams[2].flush()
    said = streams[2].buffer.getvalue().decode("utf-8", "replace")
    if code in (0, None) and "Traceback" not in said:
        return
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("error: ", "python -m"))]
    if code not in (1, 2) or len(errors) != 1 or lines[-1] != errors[0]:
        raise Wrong(f"exit code {code!r}, and on stderr: {said[-500:]!r}")
    raise Refused(errors[0])

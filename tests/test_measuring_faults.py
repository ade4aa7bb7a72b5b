"""What measures, in bad times: no number is lost, nothing foreign is touched, one sentence."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_llama

from minilm_inf import card, corpus
from minilm_inf.benchmark import __main__ as benchmark
from minilm_inf.checkpoint import save
from minilm_inf.diagnose import __main__ as diagnose
from minilm_inf.evaluate import __main__ as evaluate
from minilm_inf.terminal import options
from minilm_inf.train.practice import Practice, pass_key_accuracy

TEXT = (ROOT / "tutorials" / "text.txt").read_text(encoding="utf-8")[:8000]
RUNS = {  # a short run of each: its main, and its arguments
    "passkey": (evaluate.main, "passkey --lengths 1 --depths 0 --trials 1 --methods lambda"),
    "recall": (evaluate.main, "recall --lengths 1 --depths 0 --trials 1 --methods lambda"),
    "compare": (evaluate.main, "compare --length 300 --trials 0 --methods lambda,truncate"),
    "diagnose": (diagnose.main, "--length 300"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model with tiny-llama's tokenizer."""
    path = tmp_path_factory.mktemp("model")
    save(tiny_llama(vocab_size=2048, context_length=200, dtype=torch.float32), path)
    shutil.copy(ROOT / "weights" / "tiny-llama" / "tokenizer.model", path)
    return path


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def call(program, folder, text, tmp_path, monkeypatch):
    """A short run: (name, more arguments...) -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "can_draw", lambda: True)

    def run(name, *more, model=folder):
        main, line = RUNS[name]
        return program(main, *line.split(), "-m", model, "--text", text, *more)

    return run


def broken(number: int):
    """What a later part does: it fails, or a signal comes."""

    def part(*_, **__):
        if number:
            signal.raise_signal(number)
        raise ValueError("no more of that")

    return part


# ---- logits that are not numbers


@pytest.mark.parametrize("name", [*RUNS, "benchmark"])
def test_nan_in_the_weights_is_told(call, program, tmp_path, name):
    """A table of nan with exit code 0, or "out of memory" of a decomposition that failed."""
    model = tiny_llama(vocab_size=2048, context_length=200, dtype=torch.float32)
    model.blocks[0].mlp.down.weight.data[0, 0] = float("nan")
    save(model, tmp_path / "nan")
    shutil.copy(ROOT / "weights" / "tiny-llama" / "tokenizer.model", tmp_path / "nan")
    if name == "benchmark":
        line = "--quick --only prefill --device cpu -m".split()
        code, out, err = program(benchmark.main, *line, tmp_path / "nan")
    else:
        code, out, err = call(name, model=tmp_path / "nan")
    assert code == 1 and not out
    assert err.splitlines()[-1].startswith("error: the model's logits are not numbers")


def test_nan_while_a_card_is_measured(tokenizer):
    """A card with nan in its table."""
    model = tiny_llama(vocab_size=2048)
    model.head.weight.data[5] = float("nan")
    practice = Practice(tokenizer, np.array(tokenizer.encode(TEXT, bos=False)))
    with pytest.raises(ValueError, match="logits are not numbers"):
        pass_key_accuracy(model, practice, 100, count=1)


# ---- what was measured is not lost


PICTURES = {
    "passkey": "minilm_inf.evaluate.figure.heatmaps",
    "compare": "minilm_inf.evaluate.figure.curves",
    "diagnose": "minilm_inf.diagnose.figures.draw",
}


@pytest.mark.parametrize("name, number", [*((name, 0) for name in PICTURES), ("compare", 2)])
def test_a_picture_that_fails_comes_last(call, monkeypatch, name, number):
    """Hours of trials that are gone because a disk had no room for a picture, or by Ctrl-C
    while it was drawn."""
    monkeypatch.setattr(PICTURES[name], broken(number))
    drawn = {"passkey": ["--heatmap", "a.png"], "compare": ["--figure", "a.png"]}
    code, out, err = call(name, "--out", "run", *drawn.get(name, []))
    assert code == (130 if number else 1)
    assert err.splitlines()[-1] == ("stopped" if number else "error: no more of that")
    assert any(words in out for words in ("pass key, ", "| method |", "factor 3, "))
    with open("run/diagnosis.json" if name == "diagnose" else "run", encoding="utf-8") as file:
        assert "settings" in json.load(file)
    assert not os.path.exists("a.png")


def test_rows_of_a_benchmark_that_is_stopped(program, monkeypatch):
    """Ten minutes of rows that Ctrl-C in the last of them takes along."""
    row = benchmark.Row("attention: chunked", 64, 1, seconds=[0.1] * 5)
    row.base = row
    monkeypatch.setattr(benchmark, "attention_rows", lambda *_: [row])
    monkeypatch.setattr(benchmark, "prefill_rows", broken(signal.SIGINT))
    code, out, err = program(benchmark.main, "--quick", "--device", "cpu")
    assert code == 130 and "| attention: chunked |" in out and err.split() == ["stopped"]


@pytest.mark.parametrize("name", ["compare", "passkey", "diagnose"])
def test_a_full_disk_takes_nothing_along(call, monkeypatch, name):
    """A part that is left, or a table that is not even printed."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minilm_inf.terminal.files.os.replace", full)
    if name != "diagnose":  # whose state would be the first to find no room
        monkeypatch.setattr("minilm_inf.evaluate.resume.write_state", lambda *_: None)
    code, out, err = call(name, "--out", "new/run")
    assert code == 1 and err.splitlines()[-1].endswith("written: No space left on device")
    files = [path.name for path in Path().rglob("*") if path.is_file()]
    assert files == ["text.txt"] and len(out) > 300


# ---- outputs


@pytest.mark.parametrize("name, flag, kind", [
    ("compare", "--out", "text"), ("compare", "--figure", "other"),
    ("passkey", "--heatmap", "device"), ("recall", "--out", "pipe"),
    ("diagnose", "--out", "text"), ("diagnose", "--out", "device"),
])  # fmt: skip
def test_outputs_that_are_none(call, text, monkeypatch, name, flag, kind):
    """A text, a device or somebody's notes that a result has replaced."""
    monkeypatch.setattr(
        "minilm_inf.terminal.options.load", lambda *_: pytest.fail("told too late")
    )
    path = {"text": text, "device": "/dev/null"}.get(kind, text.parent / "x.png")
    if kind in ("pipe", "other"):
        os.mkfifo(path) if kind == "pipe" else path.write_text("my notes")
    before = text.read_bytes(), os.listdir()
    code, out, err = call(name, flag, path)
    assert code == 1 and not out and err.count("\n") == 1 and str(path) in err
    assert before == (text.read_bytes(), os.listdir())


@pytest.mark.parametrize("name", ["diagnosis.json", "factors.png"])
def test_a_diagnosis_replaces_no_other_file(call, tmp_path, monkeypatch, name):
    """A stranger's file of the same name; and an earlier diagnosis, which is replaced."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / name).write_text("mine")
    code, _, err = call("diagnose", "--out", "full")
    assert code == 1 and f"{name} exists and was not written by this program" in err
    assert [path.read_text() for path in (tmp_path / "full").iterdir()] == ["mine"]
    monkeypatch.setattr("minilm_inf.diagnose.figures.draw", lambda *_: b"\x89PNG")
    for _ in range(2):
        code, _, err = call("diagnose", "--out", "new")
        assert code == 0, err
    assert {p.suffix for p in (tmp_path / "new").iterdir()} <= {".json", ".png"}


def test_a_card_is_of_whole_records(program, folder, tmp_path, monkeypatch):
    """A card that fails after minutes of measuring, for a key that is missing; or one that
    replaces somebody's own."""
    whole = json.loads((ROOT / "weights" / "tiny-llama" / "training.json").read_text())
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "c" / "web").mkdir(parents=True)
    (tmp_path / "c" / "web" / "Acts.txt").write_text(TEXT)
    (tmp_path / "c" / "corpus.json").write_text("{}")
    monkeypatch.setattr(card, "load", lambda *_: pytest.fail("told too late"))
    for about in (
        *({**whole, name: value} for name, value in (
            ("log", []), ("log", None), ("settings", 3), ("log", [{"tokens": "x"}]),
        )), [1],
    ):  # fmt: skip
        (tmp_path / "m" / "training.json").write_text(json.dumps(about))
        code, out, err = program(card.main, tmp_path / "m", "--corpus", tmp_path / "c")
        assert code == 1 and err.count("\n") == 1 and "training.json" in err
    (tmp_path / "m" / "README.md").write_text("# my model")
    code, out, err = program(card.main, tmp_path / "m", "--corpus", tmp_path / "c")
    assert code == 1 and "was not written by this program" in err
    assert (tmp_path / "m" / "README.md").read_text() == "# my model"


def test_numbers_beyond_all_bounds(call):
    """An allocation without an end, or minutes until it is noticed."""
    for line in (
        "passkey --lengths 1e9", "passkey --lengths 0", "recall --pairs 99999999999",
        "compare --length 4611686018427387904",
        "compare --n-global 4611686018427387903", "diagnose --length 1099511627776",
        "passkey --trials 4611686018427387904", "compare --trials 1099511627776",
    ):  # fmt: skip
        code, out, err = call(*line.split())
        assert code in (1, 2) and not out and "error: " in err.splitlines()[-1]
        assert "memory" not in err


# ---- a stranger's files


def test_a_corpus_with_what_is_no_text(tmp_path):
    """A folder, a pipe that nobody writes to, or bytes, in the place of a document."""
    (tmp_path / "web" / "1Sam.txt").mkdir(parents=True)
    os.mkfifo(tmp_path / "web" / "pipe.txt")
    with pytest.raises(ValueError, match="holds no held-out documents"):
        corpus.documents(tmp_path, held_out=True)
    (tmp_path / "web" / "Acts.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="Acts.txt is not UTF-8 text"):
        corpus.documents(tmp_path, held_out=True)
    package = tmp_path / "x.deb"
    for size in ("-60", "x"):  # the first stands where it is for ever
        package.write_bytes(b"!<arch>\n" + f"{'a':<16}{'':<32}{size:<10}`\n".encode())
        with pytest.raises(ValueError, match="cannot be read.*fetch it again"):
            corpus.extract(corpus.SOURCES["austen"], package)

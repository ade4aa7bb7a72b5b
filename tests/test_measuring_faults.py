"""What measures, in bad times: no number is lost, nothing foreign is touched, one sentence."""

import json
import math
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT, change_tensors, interrupt_at, random_folder

from minilm_inf import card, corpus
from minilm_inf.benchmark import __main__ as benchmark
from minilm_inf.diagnose import __main__ as diagnose
from minilm_inf.evaluate import __main__ as evaluate
from minilm_inf.evaluate import qa, retrieval, ruler
from minilm_inf.terminal import options

TEXT = (ROOT / "tutorials" / "text.txt").read_text(encoding="utf-8")[:8000]
DOWN = "model.layers.0.mlp.down_proj.weight"
RUNS = {  # a short run of each
    "passkey": "passkey --lengths 1 --depths 0 --trials 1 --methods lambda",
    "recall": "recall --lengths 1 --depths 0 --trials 1 --methods lambda",
    "compare": "compare --length 300 --trials 0 --methods lambda,truncate",
    "diagnose": "diagnose --length 300", "perplexity": "perplexity",
    "needles": "needles --lengths 2 --tasks variables --trials 2 --methods lambda",
    "qa": "qa --data {}/questions.jsonl -n 2 --methods truncate-head,lambda --n-local 150",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_folder(tmp_path_factory.mktemp("model"), context_length=200)


@pytest.fixture
def call(program, folder, tmp_path, monkeypatch):
    """A short run in a folder with a text: (name, more...) -> (exit code, stdout, stderr)."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "can_draw", lambda: True)

    def run(name, *more, model=folder):
        text = [] if name == "qa" else ["--text", "text.txt"]
        line = [*RUNS[name].format(model).split(), "-m", model, *text, *more]
        if name == "diagnose":
            return program(diagnose.main, *line[1:])
        return program(evaluate.main, *line)

    return run


def broken(number: int, error: Exception | None = None):
    """What a later part does: it fails, or a signal comes."""

    def part(*_, **__):
        if number:
            signal.raise_signal(number)
        raise error or ValueError("no more of that")

    return part


# ---- logits that are not numbers


@pytest.mark.parametrize("name", [*RUNS, "benchmark"])
def test_nan_in_the_weights_is_told(call, program, tmp_path, name):
    """A table of nan with exit code 0, or "out of memory" of a decomposition that failed."""
    model = random_folder(tmp_path / "nan", context_length=200)
    change_tensors(model, lambda tensors: tensors[DOWN].fill_(math.nan))
    if name == "benchmark":
        line = "--quick --only prefill --device cpu -m".split()
        code, out, err = program(benchmark.main, *line, model)
    else:
        code, out, err = call(name, model=model)
    assert code == 1 and not out
    assert err.splitlines()[-1].startswith("error: the model's logits are not numbers")


# ---- what was measured is not lost


@pytest.mark.parametrize("name, run_class", [
    ("passkey", retrieval.Asked), ("recall", retrieval.Asked), ("needles", ruler.Run),
    ("qa", qa.Run),
])  # fmt: skip
def test_a_resumed_run_is_the_unbroken_run(call, program, monkeypatch, name, run_class):
    """A trial or an answer that is lost, asked twice, or another's; a promise to go on that
    nobody keeps; a task that is another in the table."""
    taken, step = [], run_class.step
    monkeypatch.setattr(run_class, "step", lambda run: taken.append(run) or step(run))
    assert call(name, "--out", "whole")[0] == 0
    with monkeypatch.context() as patched:
        interrupt_at(patched, run_class, 1, signal.SIGTERM)
        code, out, err = call(name, "--out", "run")
    assert code == 143 and not out and "tokens; go on with --resume run" in err
    n = len(taken) - 1
    code, out, err = program(evaluate.main, name, "--resume", "run")
    assert code == 0 and n > 1 and len(taken) == 2 * n
    assert sorted(os.listdir()) == ["run", "text.txt", "whole"]
    assert Path("run").read_text() == Path("whole").read_text()
    titles = {"passkey": "pass key", "recall": "key-value recall", "needles": "RULER's tasks"}
    assert titles.get(name, "truncation, beginning") in out and "95% interval" in out


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
    drawn = [] if name == "diagnose" else ["--figure", "a.png"]
    code, out, err = call(name, "--out", "run", *drawn)
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


@pytest.mark.parametrize("name", ["compare", "diagnose"])
def test_a_full_disk_takes_nothing_along(call, monkeypatch, name):
    """A part that is left, or a table that is not even printed."""
    full = broken(0, OSError(28, "No space left on device"))
    monkeypatch.setattr("minilm_inf.terminal.files.os.replace", full)
    if name != "diagnose":  # whose state would be the first to find no room
        monkeypatch.setattr("minilm_inf.evaluate.resume.write_state", lambda *_: None)
    code, out, err = call(name, "--out", "new/run")
    assert code == 1 and err.splitlines()[-1].endswith("written: No space left on device")
    files = [path.name for path in Path().rglob("*") if path.is_file()]
    assert files == ["text.txt"] and len(out) > 300


# ---- what cannot be measured, and what may not be written


@pytest.mark.parametrize("line, code, words", [
    ("perplexity --resume nothing.json", 2, "--resume takes no other flag"),
    ("perplexity --corpus b", 2, "not allowed with"), ("perplexity --length 1", 2, "--length"),
    ("perplexity --attention full --n-global 3", 2, "--n-global"),
    ("perplexity --text missing", 1, "cannot read missing"),
    ("perplexity --text empty", 1, "empty is empty"),
    ("perplexity --text latin", 1, "latin is not UTF-8"),
    ("perplexity --out a/run.json", 1, "cannot be written"),
    ("compare --length 9999", 1, "has only"), ("compare --trials 1", 1, "--trials 0"),
    ("compare --n-global 256", 1, "no window: give --n-local"),
    ("compare --figure x.png", 1, "--figure draws with matplotlib"),
    ("compare --attention full", 2, "--methods names the others"),
    ("compare --methods full,half", 2, "'half' is none of full, truncate"),
    ("compare --trials 1099511627776", 2, "--trials"),
    ("passkey --text short", 1, "the filler has only"),
    ("passkey --lengths 1e9", 1, "the filler has only"),
    ("passkey --lengths 0.1", 1, "20 tokens have no room"),
    ("passkey --lengths nan", 2, "--lengths"), ("passkey --depths 0,1.1", 2, "--depths"),
    ("passkey --sweep from-layer=0,9", 1, "the model's 2 layers"),
    ("passkey --sweep n=3", 2, "'n' is none of k, distance"),
    ("recall --top-k-distance 3", 2, "--top-k-middle"),
    ("diagnose --length 5000", 1, "text.txt has only"),
    ("diagnose --n-local 290", 1, "take a --length of 306 or more"),
    ("diagnose --n-global 0", 2, "--n-global 0"), ("diagnose --device mars", 1, "mars"),
])  # fmt: skip
def test_what_cannot_be_measured(call, texts, monkeypatch, line, code, words):
    """A traceback for a mistyped name, minutes or all memory until it is noticed, or a flag
    that is quietly ignored."""
    name, *more = line.split()
    for path in texts.iterdir():
        shutil.copy(path, path.name)
    before = sorted(os.listdir())
    monkeypatch.setattr(options, "can_draw", lambda: False)
    for late in ("evaluate.resume.drive", "diagnose.measure.Diagnosis.read_all"):
        monkeypatch.setattr(f"minilm_inf.{late}", lambda *_: pytest.fail("told too late"))
    found, out, err = call(name, *more)
    assert found == code and not out and words in err.splitlines()[-1], err
    assert sorted(os.listdir()) == before and "memory" not in err


@pytest.mark.parametrize("line, words", [
    ("compare", "minilm_inf.corpus"), ("passkey", "name your own texts with --text"),
    ("perplexity --resume run.json", "there is no run.json.state"),
])  # fmt: skip
def test_a_folder_without_texts_or_a_run(program, tmp_path, monkeypatch, line, words):
    """A mean over nothing."""
    monkeypatch.chdir(tmp_path)
    code, out, err = program(evaluate.main, *line.split())
    assert code == 1 and not out and words in err


@pytest.mark.parametrize("name, flag, path", [
    ("compare", "--out", "text.txt"), ("compare", "--figure", "full/factors.png"),
    ("passkey", "--heatmap", "/dev/null"), ("recall", "--out", "pipe"),
    ("diagnose", "--out", "text.txt"), ("diagnose", "--out", "/dev/null"),
    ("diagnose", "--out", "full"),
])  # fmt: skip
def test_outputs_that_are_none(call, monkeypatch, name, flag, path):
    """A text, a device or somebody's notes that a result has replaced."""
    monkeypatch.setattr(
        "minilm_inf.terminal.options.load", lambda *_: pytest.fail("told too late")
    )
    os.mkfifo("pipe")
    Path("full").mkdir()
    Path("full/factors.png").write_text("my notes")
    code, out, err = call(name, flag, path)
    assert code == 1 and not out and err.count("\n") == 1 and path in err
    files = {path: path.read_text() for path in Path().rglob("*.*")}
    assert files == {Path("text.txt"): TEXT, Path("full/factors.png"): "my notes"}


def test_a_card_is_of_whole_records(program, folder, tmp_path, monkeypatch):
    """A card that fails after minutes of measuring, for a key that is missing; or one that
    replaces somebody's own."""
    whole = json.loads((ROOT / "weights" / "tiny-llama" / "training.json").read_text())
    shutil.copytree(folder, tmp_path / "m")
    call = partial(program, card.main, tmp_path / "m", "--corpus", tmp_path / "c")
    (tmp_path / "c" / "web").mkdir(parents=True)
    (tmp_path / "c" / "web" / "Acts.txt").write_text(TEXT)
    monkeypatch.setattr(card, "load", lambda *_: pytest.fail("told too late"))
    parts = {"log": []}, {"settings": 3}, {"log": [{"tokens": "x"}]}
    for about in (*(whole | part for part in parts), [1]):
        (tmp_path / "m" / "training.json").write_text(json.dumps(about))
        code, out, err = call()
        assert code == 1 and err.count("\n") == 1 and "training.json" in err
    (tmp_path / "m" / "README.md").write_text("# my model")
    code, out, err = call()
    assert code == 1 and "was not written by this program" in err
    assert (tmp_path / "m" / "README.md").read_text() == "# my model"


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

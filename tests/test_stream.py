"""evaluate perplexity: its numbers against the definition, and that nothing stops it for
good."""

import json
import math
import os
import shutil
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch
from conftest import SETTINGS, error, fuzz, interrupt_at, random_folder, some_tokens, tiny_model

from minilm_inf.checkpoint.run_state import read_state, write_state
from minilm_inf.checkpoint.shards import write_tensors
from minilm_inf.evaluate import perplexity, resume
from minilm_inf.evaluate.__main__ import main
from minilm_inf.evaluate.documents import Stream
from minilm_inf.evaluate.perplexity import Run
from minilm_inf.evaluate.resume import state_path

LM = SETTINGS["LM-Infinite"]


class Ids:
    """A tokenizer of texts that are lists of ids, without marks."""

    bos_id = eos_id = None

    def encode(self, text: list[int], bos: bool = True) -> list[int]:
        return text

    def bytes_of(self, id: int) -> None:
        return None


def scored(model, documents, lm, chunk, length=None) -> tuple[Stream, dict, list[float]]:
    """A stream of documents of ids, what was found of it, and the nll of each of its tokens,
    of which few have a bin each."""
    stream = Stream(dict(enumerate(documents)), Ids(), length is not None, length)
    run = Run(model, lm, stream, chunk)
    for _ in resume.steps(run):
        pass
    results = perplexity.result(run)["results"]
    return stream, results, [row["nll"] for row in results["linear"]]


def specification(model, ids: list[int], lm) -> list[float]:
    """-log p of every id but the first, in one piece, by the definition of attention."""
    log_p = model(torch.tensor([ids[:-1]]), lm, path="reference")[0].log_softmax(-1)
    return [-float(row[id]) for row, id in zip(log_p, ids[1:])]


# ---- the numbers


@pytest.mark.parametrize("draw", fuzz(0, 8, family=("llama", "mpt", "gptj"), lm=(None, LM),
                                      chunk=(1, 2, 5, 22, 23, 24, 100)), ids=str)  # fmt: skip
def test_every_token_but_the_first_is_scored(draw):
    """A chunk's last token, or one that is scored as if nothing stood before its chunk; a head
    or a bias that only one family has."""
    model, ids = tiny_model(draw["family"]), some_tokens(24)[0].tolist()
    _, results, found = scored(model, [ids], draw["lm"], draw["chunk"])
    assert found == pytest.approx(specification(model, ids, draw["lm"]), abs=1e-9)
    assert results["scored"] == 23 and results["nll"] == pytest.approx(np.mean(found))
    assert results["perplexity"] == pytest.approx(math.exp(np.mean(found)))


@pytest.mark.parametrize("chunk", [3, 11, 200])
def test_a_stream_repeats_its_documents(chunk):
    """A cache that is emptied where a document or a pass ends; a pair of tokens that are not
    the same."""
    model, rows = tiny_model("llama"), some_tokens(8, batch=3).tolist()
    stream, results, found = scored(model, rows, LM, chunk, length=60)
    ids, places = (x.tolist() for x in stream.read(0, 60))
    assert ids[:24] == sum(rows, []) and ids[24:48] != ids[:24]
    assert found == pytest.approx(specification(model, ids, LM), abs=1e-10)
    early = {}
    for i in range(15, 30):
        early.setdefault(places[i], []).append(found[i - 1])
    differences = [
        found[i - 1] - np.mean(early[at])
        for i, at in enumerate(places) if i >= 45 and at in early
    ]  # fmt: skip
    found = results["early_and_late"]["difference"]
    assert found == pytest.approx(np.mean(differences), abs=1e-6)


def test_memory_does_not_grow_with_the_stream():
    """A list of logits, hidden states or nll that gains an entry per chunk, or a longer stream
    that takes more."""
    sizes = []
    for length in (10**5, 10**8):
        stream = Stream({"a": some_tokens(50)[0].tolist()}, Ids(), True, length)
        run = Run(tiny_model("llama", 1), LM, stream, 10)
        for _ in range(40):
            run.step()
            sizes.append(sum(x.nbytes for name, x in run.state().items()))
    assert sizes[20] == sizes[39] and sizes[60] == sizes[79] < 10**6


def test_a_long_chunk_has_few_logits_at_once():
    """Logits of a whole chunk, which of a large vocabulary are most of what a run takes."""
    stream, rows = Stream({"a": some_tokens(1500)[0].tolist()}, Ids(), False), []
    run = Run(tiny_model("llama", 1), LM, stream)
    run.model.head.register_forward_hook(lambda head, x, logits: rows.append(len(logits)))
    run.step()
    assert sum(rows) == 1499 and max(rows) <= 512


# ---- the program


@pytest.fixture
def call(program):
    """A call of the program: arguments -> (exit code, stdout, stderr)."""
    return partial(program, main, "perplexity")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with tiny-llama's tokenizer, and texts for it."""
    folder = tmp_path_factory.mktemp("stream")
    random_folder(folder / "model")
    words = "The ship went on, and the men looked at the sea, for it was late. " * 20
    for name, text in (("a", words), ("b", "It was cold — and dark. " * 30)):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def flags(folder, *more) -> list[str]:
    """A stream of two texts in 60 chunks."""
    run = ["-m", folder / "model", "--text", folder / "a", folder / "b", "--stream"]
    return [str(x) for x in [*run, "--length", 1200, "--chunk", 20, "--threads", 1, *more]]


def result_of(path) -> dict:
    """A run's file without what differs from run to run."""
    result = json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)
    assert result.pop("timing", {"seconds": 1})["seconds"] > 0
    return result


def test_a_run_writes_and_prints_what_it_measured(folder, call):
    """A result file that lacks a setting or a number, a run that leaves another file beside it;
    bits of tokens, nats, or bytes that count a special token; a table that shows other numbers
    than were measured."""
    out = folder / "unbroken.json"
    code, printed, err = call(*flags(folder, "--out", out))
    assert code == 0 and "1,199/1,199 tokens" in err and "left" in err
    timing = json.loads(out.read_text())["timing"]
    assert sorted(path.name for path in folder.glob("unbroken*")) == ["unbroken.json"]
    settings, found = (result_of(out)[name] for name in ("settings", "results"))
    asked = {"length": 1200, "stream": True, "chunk": 20, "n_local": 6, "n_global": 10}
    assert asked.items() <= settings.items()
    assert set(settings["weights_sha256"]) >= {"model.safetensors", "tokenizer.model"}
    assert len(found["linear"]) == len(timing["linear"]) == 200
    assert found["scored"] == sum(row["tokens"] for row in found["linear"]) == 1199
    assert found["interval"][0] < found["nll"] < found["interval"][1]
    windows = found["early_and_late"]
    assert windows["tokens"] == windows["early_first"] == 300 and windows["pairs"] > 100
    if os.path.exists("/proc/self/status"):
        assert all(row["resident_bytes"] > 2**20 for row in timing["linear"])
    assert f"| 256 to 512 | 256 | {found['log'][8]['nll']:.4f} |" in printed
    assert f"on the {windows['pairs']} tokens that are in both" in printed
    texts = folder / "a", folder / "b"
    code, printed, _ = call("-m", folder / "model", "--text", *texts, "--json")
    found, n_bytes = json.loads(printed)["results"], sum(x.stat().st_size for x in texts)
    bits = found["nll"] * found["scored"] / math.log(2) / n_bytes
    assert code == 0 and found["documents"] == 2 and found["early_and_late"] is None
    assert found["bytes"] == n_bytes and found["bits_per_byte"] == pytest.approx(bits)


def test_the_settings_reach_the_model(call, folder):
    """A flag that is parsed and then dropped."""

    def nll(more: str) -> float:
        code, out, err = call(*flags(folder, "--length", 200, "--json", *more.split()))
        assert code == 0, err
        return json.loads(out)["results"]["nll"]

    seen = [nll("--chunk 100 " + more) for more in (
        "", "--attention full", "--n-global 0", "--n-local 3", "--distance-ceiling 2",
        "--length 190", "--dtype float64", "--top-k-middle 2",
    )]  # fmt: skip
    assert len(set(seen)) == len(seen)
    assert nll("--chunk 37") == pytest.approx(seen[0], abs=1e-5)


# ---- interrupted


@pytest.mark.parametrize("steps, more", [
    ((1, 30), "--attention lambda"), ((5, 7), "--attention full --chunk 50"),
    ((5, 2), "--top-k-middle 3 --top-k-from-layer 0 --length 200"),
    ((5, 2), "--top-k-middle 3 --middle disk --length 90 --chunk 1"),
])  # fmt: skip
def test_a_resumed_run_is_the_unbroken_run(folder, call, tmp_path, monkeypatch, steps, more):
    """To the last bit: the cache, every sum, the pairs, the bytes, the edges of the chunks; a
    middle that cannot be saved, or that chunks of one token find changed once it is back."""
    monkeypatch.setattr("minilm_inf.terminal.blocks.TOKENS_PER_BLOCK", 64)
    out, whole = tmp_path / "run.json", tmp_path / "whole.json"
    assert call(*flags(folder, *more.split(), "--out", whole))[0] == 0
    arguments = flags(folder, *more.split(), "--out", out)
    for step, name in zip(steps, (signal.SIGINT, signal.SIGTERM)):
        with monkeypatch.context() as patched:
            interrupt_at(patched, Run, step, name)
            code, printed, err = call(*arguments)
        assert code == 128 + name and not printed and not out.exists()
        assert "stopped after " in err and f"go on with --resume {out}" in err
        assert call(*flags(folder, "--out", out))[0] == 1, "a night's work is not overwritten"
        arguments = ["--resume", out]
    code, printed, _ = call("--resume", out)
    assert code == 0 and "| positions |" in printed
    assert result_of(out) == result_of(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "whole.json"]
    code, printed, err = call("--resume", out)
    assert code == 0 and "is finished: there is nothing to resume" in err


def test_an_interrupt_in_the_last_chunk_is_none(folder, call, tmp_path, monkeypatch):
    """A finished run that asks to be resumed; and without --out, a promise to resume that
    nobody can keep."""
    monkeypatch.chdir(tmp_path)
    for step, length, code in ((10, 200, 0), (3, 1200, 130)):
        with monkeypatch.context() as patched:
            interrupt_at(patched, Run, step)
            found, printed, err = call(*flags(folder, "--length", length))
        assert found == code and bool(printed) == (code == 0) and not list(tmp_path.iterdir())
    assert "nothing was saved: there is no --out" in err


def test_the_state_is_saved_as_time_passes(folder, call, tmp_path, monkeypatch):
    """A run that is killed after an hour and has the state of its beginning."""
    saves, clock, take = [], [0.0], Run.step

    def slowly(run):
        clock[0] += 7
        take(run)

    def note(path, tensors, facts):
        saves.append(int(tensors["counts"][0]))

    monkeypatch.setattr(resume, "write_state", note)
    monkeypatch.setattr(Run, "step", slowly)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    assert call(*flags(folder, "--length", 601, "--out", tmp_path / "run.json"))[0] == 0
    assert saves == [0, 180, 360, 540]  # every 9 steps of 7 seconds


# ---- what cannot be gone on with


@pytest.fixture
def stopped(folder, call, tmp_path, monkeypatch):
    """A run that was stopped, of a model and texts of its own."""
    shutil.copytree(folder / "model", tmp_path / "model")
    for name in "ab":
        shutil.copy(folder / name, tmp_path)
    with monkeypatch.context() as patched:
        interrupt_at(patched, Run, 5)
        assert call(*flags(tmp_path, "--out", tmp_path / "run.json"))[0] == 130
    return tmp_path / "run.json"


def test_a_run_of_something_else_is_refused(stopped, call):
    """Half a curve of one text, model or setting, half of another."""
    text, state = stopped.parent / "a", state_path(stopped)
    was, whole = text.read_text(), state.read_bytes()
    text.write_text(was[1:])
    assert "the run began with another texts_sha256: put" in error(call, "--resume", stopped)
    text.write_text(was)
    facts, tensors = read_state(state)
    tensors = {name: x.clone() for name, x in tensors.items()}
    write_state(state, tensors, {**facts, "settings": {"n_local": 5}})
    assert "the run began with another" in error(call, "--resume", stopped)
    for name, value in (("counts", torch.tensor([99, 0])), ("seconds", torch.zeros(3)),
                        ("nonsense", torch.zeros(1)), ("cache.length", None)):  # fmt: skip
        changed = {k: x for k, x in {**tensors, name: value}.items() if x is not None}
        write_state(state, changed, facts)
        assert "is not a whole state of this run" in error(call, "--resume", stopped), name
    state.write_bytes(whole)
    random_folder(stopped.parent / "model", seed=9)
    assert "the run began with another weights_sha256" in error(call, "--resume", stopped)
    assert state.read_bytes() == whole


def test_an_edited_or_damaged_state_is_refused(stopped, call):
    """Wrong numbers, without a word, from a byte that a disk or an editor changed; a state of
    an earlier version of the program."""
    path = state_path(stopped)
    whole = path.read_bytes()
    for place in (whole.index(b"n_local"), len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert "was edited or damaged" in error(call, "--resume", stopped)
    path.write_bytes(whole[: len(whole) // 2])
    assert "is no whole state: delete it" in error(call, "--resume", stopped)
    write_tensors(path, {"x": torch.zeros(3)}, {"state 2": "{}"})
    assert "no state of this version" in error(call, "--resume", stopped)
    path.write_bytes(whole)
    (stopped.parent / ".run.json.state.1073741824.part").write_bytes(b"half")
    assert call("--resume", stopped)[0] == 0
    names = sorted(path.name for path in stopped.parent.iterdir())
    assert names == ["a", "b", "model", "run.json"], "what a killed run left is gone"

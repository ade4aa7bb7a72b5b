"""The streaming evaluator: its numbers against the definition, and that nothing stops it for
good."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    SETTINGS,
    error,
    fuzz,
    interrupt_at,
    some_tokens,
    tiny_llama,
    tiny_model,
)

from minilm_inf.checkpoint import save, tensor_file
from minilm_inf.checkpoint.run_state import FACTS, read_state, write_state
from minilm_inf.evaluate import resume
from minilm_inf.evaluate.__main__ import main
from minilm_inf.evaluate.byte_counts import ByteCounts
from minilm_inf.evaluate.documents import Joined, Separate, TokensFile
from minilm_inf.evaluate.stream import Run
from minilm_inf.terminal.tables import finite

LM = SETTINGS["LM-Infinite"]
WORDS = "The ship went on, and the men looked at the sea, for it was late. "


def specification(model, ids: list[int], lm) -> list[float]:
    """-log p of every id but the first, in one piece, by the definition of attention."""
    log_p = model(torch.tensor([ids[:-1]]), lm, path="reference")[0].log_softmax(-1)
    return [-float(row[id]) for row, id in zip(log_p, ids[1:])]


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """A function that takes ids, (N,) or (D, N), through a Run: the run, and what each text's
    tally was given."""

    def go(model, ids, lm, chunk, length=None, joined=False):
        np.save(tmp_path / "ids.npy", np.array(ids))
        source = TokensFile(tmp_path / "ids.npy", model.config.vocab_size)
        reading = Joined(source, None, length, 1) if joined else Separate(source, None, length)
        run = Run(model, lm, reading, ByteCounts(None, 31, source), chunk, bins=4)
        texts, add = [[] for _ in reading.lengths], run.tally.add

        def noted(first, nll):
            here = texts[run.place[0]]
            assert first == len(here) + 1
            here += nll.tolist()
            add(first, nll)

        monkeypatch.setattr(run.tally, "add", noted)
        while not run.is_done:
            run.step()
        return run, texts

    return go


# ---- the numbers


@pytest.mark.parametrize("draw", fuzz(0, 8, family=("llama", "mpt", "gptj"), lm=(None, LM),
                                      chunk=(1, 2, 5, 22, 23, 24, 100)), ids=str)  # fmt: skip
def test_every_token_but_the_first_is_scored(scored, draw):
    """A chunk's last token, or one that is scored as if nothing stood before its chunk; a head
    or a bias that only one family has."""
    model, ids = tiny_model(draw["family"]), some_tokens(24)[0].tolist()
    run, (found,) = scored(model, ids, draw["lm"], draw["chunk"])
    assert found == pytest.approx(specification(model, ids, draw["lm"]), abs=1e-9)
    assert run.done == run.total == 23
    result = run.results(0)
    assert result["nll"] == pytest.approx(np.mean(found), abs=1e-12)
    assert result["perplexity"] == pytest.approx(math.exp(np.mean(found)))


@pytest.mark.parametrize("chunk", [3, 11, 200])
def test_documents_are_separate_or_one_stream(scored, chunk):
    """A cache that goes on from the document before, or that is emptied in a stream where a
    document or a pass ends."""
    model, rows = tiny_llama(), some_tokens(8, batch=3).tolist()
    run, found = scored(model, rows, LM, chunk, length=7)
    for row, nll in zip(rows, found):
        assert nll == pytest.approx(specification(model, row[:7], LM), abs=1e-10)
    assert run.results(0)["documents"] == 3 and run.results(0)["early_and_late"] is None
    run, (found,) = scored(model, rows, LM, chunk, length=60, joined=True)
    ids, places = (x.tolist() for x in run.reading.read(0, 0, 60))
    assert ids[:24] == sum(rows, []) and ids[24:48] != ids[:24]
    assert found == pytest.approx(specification(model, ids, LM), abs=1e-10)
    early = {places[i]: found[i - 1] for i in range(15, 30)}
    differences = [
        found[i - 1] - early[at] for i, at in enumerate(places) if i >= 45 and at in early
    ]
    windows = run.results(0)["early_and_late"]
    assert windows["difference"] == pytest.approx(np.mean(differences), abs=1e-6)


def test_half_precision_is_scored_in_single(scored):
    """A softmax in bfloat16, which knows two digits of a probability."""
    model, ids = tiny_llama(dtype=torch.bfloat16), some_tokens(30)[0].tolist()
    _, (found,) = scored(model, ids, LM, 30)
    logits = model(torch.tensor([ids[:-1]]), LM, model.new_cache(1, LM))[0].double()
    exact = -logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert found == pytest.approx(exact.tolist(), abs=1e-5)


def test_memory_does_not_grow_with_the_stream(tmp_path):
    """A list of logits, hidden states or nll that gains an entry per chunk."""
    np.save(tmp_path / "ids.npy", some_tokens(50)[0].numpy())
    source = TokensFile(tmp_path / "ids.npy", 31)
    reading = Joined(source, None, 100_000, 0)
    run = Run(tiny_llama(n_layer=1), LM, reading, ByteCounts(None, 31, source), 10, 4)
    sizes = []
    for _ in range(200):
        run.step()
        sizes.append({name: x.nbytes for name, x in run.state().items()})
    assert sizes[20] == sizes[-1]


# ---- the program


@pytest.fixture
def call(program):
    """A call of the program: arguments -> (exit code, stdout, stderr)."""
    return partial(program, main, "perplexity")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model without a tokenizer, and ids for it: a row of 600, and 4 rows of 50."""
    folder = tmp_path_factory.mktemp("stream")
    save(tiny_llama(dtype=torch.float32), folder / "model")
    np.save(folder / "ids.npy", some_tokens(600)[0].numpy())
    np.save(folder / "rows.npy", some_tokens(50, batch=4).numpy())
    for name, text in (("a", WORDS * 20), ("b", "It was cold — and dark. " * 30), ("c", "")):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def flags(folder, *more) -> list[str]:
    """A stream of the ids in 150 chunks."""
    run = ["-m", folder / "model", "--tokens", folder / "ids.npy", "--stream", "--length", 3000]
    return [str(flag) for flag in [*run, "--chunk", 20, "--threads", 1, *more]]


def result_of(path) -> dict:
    """A run's file without what differs from run to run."""
    result = json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)
    assert result.pop("timing")["seconds"] > 0
    return result


def test_a_run_writes_what_it_measured(folder, call):
    """A setting, a number or a file that is left out, or left behind."""
    assert call(*flags(folder, "--out", folder / "unbroken.json"))[0] == 0
    code, out, err = call(*flags(folder, "--json", "--bins", 10))
    assert code == 0
    timing = (whole := json.loads(out))["timing"]
    assert sorted(whole) == ["results", "settings", "task", "timing"]
    assert sorted(path.name for path in folder.glob("unbroken*")) == ["unbroken.json"]
    unbroken = result_of(folder / "unbroken.json")
    settings, results = unbroken["settings"], unbroken["results"]
    assert settings["length"] == 3000 and settings["stream"] and settings["chunk"] == 20
    assert (settings["n_local"], settings["n_global"]) == (6, 10)
    assert set(settings["weights_sha256"]) == {"model.safetensors"}
    assert len(results["linear"]) == 200 and len(whole["results"]["linear"]) == 10
    assert results["scored"] == sum(row["tokens"] for row in results["linear"]) == 2999
    assert results["nll"] == whole["results"]["nll"]
    low, high = results["interval"]
    assert low < results["nll"] < high
    assert results["bits_per_byte"] is None and "no bits per byte: " in err
    windows = results["early_and_late"]
    assert windows["tokens"] == windows["early_first"] == 750 and windows["pairs"] == 750
    assert len(timing["linear"]) == 10
    assert sum(row["seconds"] for row in timing["linear"]) == pytest.approx(timing["seconds"])
    if os.path.exists("/proc/self/status"):
        for name in ("when_begun", "at_start", "at_end", "at_peak"):
            assert timing[f"resident_bytes_{name}"] > 2**20
    assert timing["tokens_per_second_at_start"] > 0 < timing["tokens_per_second_at_end"]
    assert "2,999/2,999 tokens  nll" in err and "tokens/s" in err and "left" in err


def test_bits_per_byte_and_the_table_are_of_the_text(call, folder):
    """Bits of tokens, nats, or bytes that count the first token or a special one; a table that
    shows other numbers than were measured."""
    files = ["--text", folder / "a", folder / "b"]
    n_bytes = sum(len((folder / name).read_bytes()) for name in "ab")
    results = json.loads(call(*files, "--json", "--stream")[1])["results"]
    assert results["bytes"] == n_bytes
    results = json.loads(call(*files, "--json", "--chunk", 50)[1])["results"]
    bits = results["nll"] * results["scored"] / math.log(2) / n_bytes
    assert results["bits_per_byte"] == pytest.approx(bits, abs=1e-12)
    code, out, _ = call(*files)
    row = results["log"][-1]
    assert code == 0 and len(out.splitlines()) < 20
    assert f"| 256 to {row['last']} | {row['tokens']} | {row['documents']} |" in out
    assert f"| {row['nll']:.4f} |" in out
    assert f"{results['bits_per_byte']:.4f} bits per byte" in out
    part = json.loads(call(*files, "--json", "--length", 40)[1])["results"]
    assert part["scored"] == 78 and 100 < part["bytes"] < n_bytes
    out = call(*flags(folder))[1]
    assert "on the 750 tokens that are in both" in out and "No bits per byte" in out


def test_the_settings_reach_the_model(call, folder):
    """A flag that is parsed and then dropped."""
    ids = ["-m", folder / "model", "--tokens", folder / "rows.npy", "--json"]
    seen = {}
    for more in (
        [], ["--attention", "full"], ["--n-global", 0], ["--n-local", 3],
        ["--n-global", 1], ["--distance-ceiling", 2], ["--length", 20], ["--stream"],
        ["--dtype", "float64"], ["--stream", "--length", 600],
        ["--stream", "--length", 600, "--seed", 5],
    ):  # fmt: skip
        code, out, err = call(*ids, *more)
        assert code == 0, err
        seen[" ".join(map(str, more))] = json.loads(out)["results"]["nll"]
    assert len(set(seen.values())) == len(seen), seen
    same = json.loads(call(*ids, "--chunk", 3)[1])["results"]["nll"]
    assert same == pytest.approx(seen[""], abs=1e-5)


# ---- interrupted


RUNS = {  # flags, and the steps at which a run of them is interrupted
    "a stream": (["--tokens", "ids.npy", "--stream", "--length", 3000, "--chunk", 20], (1, 60)),
    "full attention": (["--tokens", "ids.npy", "--chunk", 20, "--attention", "full"], (9, 12)),
    "other settings": (["--tokens", "ids.npy", "--stream", "--length", 1300, "--chunk", 50,
                        "--n-global", 0, "--distance-ceiling", 3, "--seed", 7], (9, 12)),
    "rows": (["--tokens", "rows.npy", "--chunk", 9], (6, 10)),  # 6 chunks a row
    "text": (["--text", "a", "b", "--stream", "--chunk", 50, "--length", 400], (5, 1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", RUNS)
def test_a_resumed_run_is_the_unbroken_run(folder, call, tmp_path, monkeypatch, kind):
    """To the last bit: the cache, every sum, the pairs, the bytes, the edges of the chunks."""
    monkeypatch.chdir(folder)
    line, steps = RUNS[kind]
    line = [*line, "--threads", 1] + (["-m", "model"] if kind != "text" else [])
    out, whole = tmp_path / "run.json", tmp_path / "whole.json"
    assert call(*line, "--out", whole)[0] == 0
    arguments = [*line, "--out", out]
    for step, name in zip(steps, (signal.SIGINT, signal.SIGTERM)):
        interrupt_at(monkeypatch, Run, step, name)
        code, printed, err = call(*arguments)
        assert code == 128 + name and not printed and not out.exists()
        assert "stopped after " in err and f"go on with --resume {out}" in err
        assert call(*line, "--out", out)[0] == 1, "a night's work is not overwritten"
        monkeypatch.undo()
        monkeypatch.chdir(folder)
        arguments = ["--resume", out]
    code, printed, _ = call("--resume", out)
    assert code == 0 and "| positions |" in printed
    assert result_of(out) == result_of(whole)
    timing = json.loads(out.read_text())["timing"]
    assert all(row["tokens_per_second"] for row in timing["linear"])  # of all parts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "whole.json"]
    code, printed, err = call("--resume", out)
    assert code == 0 and "is finished: there is nothing to resume" in err


@pytest.mark.parametrize("middle", ["ram", "disk"])
@pytest.mark.parametrize("heads, chunk", [((4, 2), 10), ((4, 1), 1)])
def test_top_k_is_resumed(folder, call, tmp_path, monkeypatch, heads, chunk, middle):
    """A middle that cannot be saved where a model has several key heads, or that chunks of one
    token find changed once it is read back."""
    monkeypatch.setattr("minilm_inf.terminal.blocks.TOKENS_PER_BLOCK", 64)
    save(tiny_llama(n_head=heads[0], n_kv_head=heads[1], dtype=torch.float32), tmp_path / "m")
    parts = [*flags(folder), "--length", 90, "--chunk", chunk, "-m", tmp_path / "m"]
    parts += ["--top-k-middle", 3, "--top-k-from-layer", 0, "--middle", middle]
    assert call(*parts, "--out", tmp_path / "whole.json")[0] == 0
    with monkeypatch.context() as patched:
        interrupt_at(patched, Run, 5)
        assert call(*parts, "--out", tmp_path / "run.json")[0] == 130
    code, _, err = call("--resume", tmp_path / "run.json")
    assert code == 0, err
    assert result_of(tmp_path / "run.json") == result_of(tmp_path / "whole.json")


def test_an_interrupt_in_the_last_chunk_is_none(folder, call, tmp_path, monkeypatch):
    """A finished run that asks to be resumed; and without --out, a promise to resume that
    nobody can keep."""
    interrupt_at(monkeypatch, Run, 30)
    assert call(*flags(folder, "--length", 600, "--out", tmp_path / "run.json"))[0] == 0
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.json").unlink()
    interrupt_at(monkeypatch, Run, 3)
    code, printed, err = call(*flags(folder))
    assert code == 130 and not printed and "nothing was saved: there is no --out" in err
    assert not list(tmp_path.iterdir())


def test_the_state_is_saved_as_time_passes(folder, call, tmp_path, monkeypatch):
    """A run that is killed after an hour and has the state of its beginning."""
    saves, clock = [], [0.0]
    write, take = resume.write_state, Run.step

    def noted(path, tensors, facts):
        saves.append(int(tensors["counts"][0]))
        write(path, tensors, facts)

    def slowly(run):
        clock[0] += 7
        take(run)

    monkeypatch.setattr(resume, "write_state", noted)
    monkeypatch.setattr(Run, "step", slowly)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    assert call(*flags(folder, "--length", 601, "--out", tmp_path / "run.json"))[0] == 0
    assert saves == [0, 180, 360, 540]  # every 9 steps of 7 seconds


@pytest.mark.parametrize(
    "name", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_real_signal_stops_a_real_run(folder, tmp_path, name):
    """The tests above raise the signal themselves; a terminal sends it from outside. What
    kill -9 leaves is resumed in test_faults and `make kills`."""
    out = tmp_path / "run.json"
    program = subprocess.Popen(
        [sys.executable, "-m", "minilm_inf.evaluate", "perplexity",
         *flags(folder, "--length", 10**8, "--out", out)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A shell that runs the suite in the background has it ignore Ctrl-C, and its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        while not resume.state_path(out).exists():
            assert program.poll() is None, program.stderr.read().decode()
            time.sleep(0.01)
        program.send_signal(name)
        printed, err = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == 128 + name and not printed and not out.exists()
    assert f"go on with --resume {out}" in err.decode() and b"Traceback" not in err


# ---- what cannot be done


@pytest.fixture
def stopped(folder, call, tmp_path, monkeypatch):
    """A run that was stopped, of a model and ids of its own."""
    shutil.copytree(folder / "model", tmp_path / "model")
    shutil.copy(folder / "ids.npy", tmp_path)
    interrupt_at(monkeypatch, Run, 5)
    assert call(*flags(tmp_path, "--out", tmp_path / "run.json"))[0] == 130
    monkeypatch.undo()
    return tmp_path / "run.json"


def test_a_changed_text_or_model_is_refused(stopped, call):
    """Half a curve of one text, half of another."""
    ids = stopped.parent / "ids.npy"
    was = ids.read_bytes()
    np.save(ids, some_tokens(600, seed=9)[0].numpy())
    assert "the run began with another text: put back" in error(call, "--resume", stopped)
    ids.write_bytes(was)
    save(tiny_llama(dtype=torch.float32, seed=9), stopped.parent / "model")
    assert "the run began with another weights" in error(call, "--resume", stopped)
    shutil.rmtree(stopped.parent / "model")
    assert "model" in error(call, "--resume", stopped)
    assert resume.state_path(stopped).exists()


@pytest.fixture
def edited(stopped):
    """A function that writes the state of `stopped` again, changed by somebody who knows how to
    make the checksum: new facts, and what to do with its tensors."""
    path = resume.state_path(stopped)
    facts, tensors = read_state(path)
    tensors = {name: x.clone() for name, x in tensors.items()}

    def write(new: dict, **changed):
        now = {name: x for name, x in {**tensors, **changed}.items() if x is not None}
        write_state(path, now, {**facts, **new})

    write.facts, write.tensors = facts, tensors
    return write


def test_a_state_of_another_run_is_refused(stopped, edited, call):
    """Half a curve of one setting, half of another; a state of passkey in perplexity; a flag
    that no command line could hold; last bits that differ, and nobody knows why."""
    settings, line = edited.facts["settings"], edited.facts["line"]
    for new, said in (
        ({"settings": {**settings, "n_local": 5}}, "began with another n_local"),
        ({"settings": {**settings, "config_sha256": ""}}, "another config.json"),
        ({"settings": 5}, "began with another attention"),
        ({"line": ["passkey", *line[1:]]}, 'is of the task "passkey"'),
        ({"line": None}, "not a whole state of this run"),
        ({"line": ["perplexity", 5]}, "not a whole state of this run"),
        ({"line": [*line, "--chunk", "0"]}, "not a whole state of this run"),
    ):
        edited(new)
        assert said in error(call, "--resume", stopped)
    edited({"settings": {**settings, "torch": "1.9"}})
    code, _, err = call("--resume", stopped)
    assert code == 0 and 'began with PyTorch "1.9" and' in err
    assert "last bits may differ" in err


def test_an_edited_or_damaged_state_is_refused(stopped, call):
    """Wrong numbers, without a word, from a byte that a disk or an editor changed; a state of
    an earlier version of the program."""
    path = resume.state_path(stopped)
    whole = path.read_bytes()
    n = 8 + int.from_bytes(whole[:8], "little")
    at = [whole.index(b"n_local"), n, n + 1000, len(whole) - 1]
    at += [random.Random(0).randrange(n, len(whole)) for _ in range(8)]
    for place in at:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert "was edited or damaged" in error(call, "--resume", stopped)
    for content in (whole[: len(whole) // 2], whole[:-1], b"", b"x" * 100):
        path.write_bytes(content)
        assert "is no whole state: delete it" in error(call, "--resume", stopped)
    for metadata in ({}, {FACTS: "{}"}, {"run": "{}"}):
        tensor_file.write_tensors(path, {"x": torch.zeros(3)}, metadata)
        assert "no state of this version" in error(call, "--resume", stopped)
    path.write_bytes(whole)
    (stopped.parent / ".run.json.state.12345.part").write_bytes(b"half")
    assert call("--resume", stopped)[0] == 0
    names = sorted(path.name for path in stopped.parent.iterdir())
    assert names == ["ids.npy", "model", "run.json"], "what a killed run left is gone"


def test_tensors_of_another_kind_are_refused(stopped, edited, call):
    """A weight that spreads, a cache that is read out of bounds, a traceback, or a run that
    never ends; by somebody who made the checksum too."""
    for name, value in (
        ("tally.now.log", None),
        ("tally.now.log", torch.zeros(3)),
        ("tally.now.all", torch.zeros(1)),  # one number that would spread
        ("timing.bins", torch.full((4, 200), torch.nan, dtype=torch.float64)),
        ("counts", torch.tensor([99.0, 0, 0])),
        ("counts", torch.tensor([99, 0, 0])),
        ("counts", torch.tensor([-20, 0, 0])),
        ("counts", torch.tensor([2**62, 0, 0])),
        ("cache.length", None),
        ("cache.length", torch.tensor(99)),
        ("cache.0.values", torch.zeros(1, 2, 6, 1)),
        ("cache.0.middle.k.0", torch.zeros(1, 2, 16, 8)),
        ("cache.9.values", torch.zeros(1, 2, 16, 8)),
        ("nonsense", torch.zeros(1)),
    ):
        edited({}, **{name: value})
        assert "is not a whole state of this run" in error(call, "--resume", stopped), name


def full(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_state_that_cannot_be_written(folder, stopped, call, tmp_path, monkeypatch):
    """A full disk that ends in a traceback, in half a state, or in half of one in the place of
    a whole one."""
    before = resume.state_path(stopped).read_bytes()
    monkeypatch.setattr("os.fsync", full)
    assert "cannot be written" in error(call, "--resume", stopped)
    assert resume.state_path(stopped).read_bytes() == before
    monkeypatch.undo()
    monkeypatch.setattr(tensor_file, "as_bytes", full)
    (tmp_path / "new").mkdir()
    said = error(call, *flags(folder, "--out", tmp_path / "new" / "run.json"))
    assert "run.json.state cannot be written: No space left" in said
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--resume", "nothing.json"], ("nothing.json.state", "--out")),
        (["--text", "missing"], ("cannot read", "missing")),
        (["--text", "c"], ("c is empty",)),
        (["--tokens", "a"], ("not a whole .npy file",)),
        (["--corpus", "."], ("no held-out documents",)),
        (["--text", "a", "-m", "nowhere"], ("nowhere",)),
        (["--text", "a", "-m", "model"], ("holds no tokenizer",)),
        (["--text", "a", "--out", "."], ("is a folder",)),
        (["--text", "a", "--out", "a/run.json"], ("cannot be written",)),
    ],
)
def test_what_cannot_be_measured(call, folder, monkeypatch, arguments, words):
    """A traceback for a mistyped name."""
    monkeypatch.chdir(folder)
    said = error(call, *arguments)
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--text", "a", "--resume", "run.json"], "--resume takes no other flag"),
        (["--resume=run.json", "--json"], "--resume takes no other flag"),
        (["--text", "a", "--tokens", "b"], "not allowed with"),
        (["--corpus", "a", "--tokens", "b"], "not allowed with"),
        (["--length", 1], "--length"),
        (["--attention", "full", "--n-global", 3], "--n-global"),
    ],
)
def test_flags_that_make_no_sense(call, arguments, word):
    """A flag that is quietly ignored."""
    code, out, err = call(*arguments)
    assert code == 2 and not out and word in err.splitlines()[-1]


def test_numbers_that_json_lacks():
    """NaN in a file that other programs cannot read."""
    value = {"a": [1.5, math.nan, (math.inf, 2)], "b": None, "c": "nan"}
    assert finite(value) == {"a": [1.5, None, [None, 2]], "b": None, "c": "nan"}


@pytest.mark.parametrize("task, words", [
    ("perplexity", ("(2048)", "(200)", "(60)", "(lambda)", "without --out nothing is saved")),
    ("compare", ("(16 x context_length)", "(512)", "(context_length - n_global)", "no-lambda")),
    ("passkey", ("(1,2,4,8)", "(0,0.1,...,1)", "(20)", "(all)")),
    ("recall", ("(1,2,4,8)", "(0,0.1,...,1)", "(20)", "(pairs)")),
])  # fmt: skip
def test_help_names_the_defaults(program, task, words):
    """A default that nobody can find out."""
    code, out, _ = program(main, task, "--help")
    text = " ".join(out.split())
    assert code == 0 and "None" not in text and all(word in text for word in words)

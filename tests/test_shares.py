"""One text, many processes: the numbers of one, whoever reads what, and whoever is stopped."""

import json
import shutil
import socket
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT, SETTINGS, error, some_tokens, tiny_llama, tiny_model
from test_stream import Ids

from minilm_inf import LMInfinite
from minilm_inf.checkpoint import save
from minilm_inf.evaluate import resume, shares
from minilm_inf.evaluate.__main__ import main
from minilm_inf.evaluate.documents import Stream
from minilm_inf.evaluate.perplexity import Run
from minilm_inf.evaluate.shares import Share

RESUME = "perplexity", "--resume", "run.json"
SHAKY = {"perplexity"}  # e to the nll
DIVISIBLE = [name for name, lm in SETTINGS.items() if lm.n_local and lm.distance_ceiling]
DIVISIBLE += ["sliding window without ceiling"]
LMS = SETTINGS | {DIVISIBLE[-1]: LMInfinite(n_local=6, n_global=0, distance_ceiling=None)}


def summed(model, lm, stream: Stream, count: int) -> Run:
    """A run whose arrays are the sums of those of `count` shares."""
    runs = [Run(model, lm, stream, 7) for _ in range(count)]
    for rank, run in enumerate(runs):
        run.take(Share(rank, count))
        for _ in resume.steps(run):
            pass
    for arrays in zip(*(run.arrays().values() for run in runs)):
        arrays[0][:] = sum(arrays)
    return runs[0]


@pytest.mark.parametrize("family, name, count", [
    *(("llama", name, 3) for name in DIVISIBLE), ("mpt", "LM-Infinite", 2),
    ("gptj", "LM-Infinite", 2), ("llama", "LM-Infinite", 7), ("llama", "LM-Infinite", 80),
])  # fmt: skip
def test_shares_add_up_to_the_whole(family, name, count):
    """A warm-up of one token too few, or one that sees starting tokens where they are none; a
    token that two shares score, or none; a share shorter than its warm-up, or empty; a late
    token that is compared with what another share read early."""
    model, rows = tiny_model(family, n_layer=3), some_tokens(13, batch=3).tolist()
    stream = Stream(dict(enumerate(rows)), Ids(), True, 73)
    one, many = (summed(model, LMS[name], stream, n) for n in (1, count))
    expected = one.arrays()
    for name in ("counts", "bins.log", "bins.linear", "pairs.early", "pairs.nll", "pairs.late"):
        assert np.abs(many.arrays()[name] - expected[name]).max() < 1e-10, name
    assert many.pairs.result()["difference"] == pytest.approx(one.pairs.result()["difference"])


def test_a_warm_up_is_no_longer_than_it_must_be(monkeypatch):
    """One that is twice as long as needed, and hides that the formula is wrong."""
    model, lm = tiny_model("llama", n_layer=3), SETTINGS["LM-Infinite"]
    stream = Stream({"a": some_tokens(73)[0].tolist()}, Ids(), False)
    whole = summed(model, lm, stream, 1).bins["linear"].sums
    assert shares.reach(lm, 3) == 3 * (6 - 1)
    monkeypatch.setattr(shares, "reach", lambda *_: 3 * (6 - 1) - 1)
    off = np.abs(summed(model, lm, stream, 3).bins["linear"].sums - whole)
    assert 1e-9 < off.max() < 0.1 and np.flatnonzero(off > 1e-10).tolist() == [24, 48]


@pytest.mark.parametrize("lm", [
    None, SETTINGS["full attention"], SETTINGS["ceiling without Λ"],
    SETTINGS["Λ without ceiling"], LMInfinite(6, 2, 6, top_k=3),
])  # fmt: skip
def test_what_cannot_be_divided_is_refused(lm):
    """Numbers that are quietly others than those of one process."""
    run = Run(tiny_llama(), lm, Stream({"a": [1, 2, 3, 4]}, Ids(), False))
    with pytest.raises(ValueError, match="cannot be divided among processes .* run one"):
        run.take(Share(0, 2))


# ---- processes

PROCESSES = """
import os, signal, sys
from minilm_inf.evaluate import __main__, perplexity
port, count, again, stops, *line = sys.argv[1:]
os.environ |= dict(TORCHELASTIC_RUN_ID="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
                   WORLD_SIZE=count, LOCAL_RANK="0", TORCHELASTIC_RESTART_COUNT=again)
rank = next((rank for rank in range(1, int(count)) if os.fork() == 0), 0)
os.environ["RANK"] = str(rank)
stop, step = int((stops.split(",") * int(count))[rank]), perplexity.Run.step
def take(run):
    global stop
    stop -= 1
    step(run) if stop else signal.raise_signal(signal.SIGTERM)
perplexity.Run.step = take
code = __main__.main(line)
sys.stdout.flush(), sys.stderr.flush()
if rank:
    os._exit(code)
codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(1, int(count))]
sys.exit(max(code, *codes))
"""


@pytest.fixture
def processes(python, tmp_path):
    """A call of the program in several processes, as torchrun would start them: (count,
    arguments...) -> what subprocess.run gives. stops: before which step of each a SIGTERM
    comes. again: whether they are started after a failure."""

    def call(count: int, *line, stops="0", again=False):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        known = port, count, int(again), stops
        return python(["-c", PROCESSES, *known, *line], cwd=tmp_path, seconds=60)

    return call


@pytest.fixture
def line(tmp_path) -> list[str]:
    """A command line: a stream of two texts in 60 chunks."""
    model = tiny_llama(vocab_size=2048, dtype=torch.float32, context_length=40)
    save(model, tmp_path / "model")
    shutil.copy(ROOT / "weights" / "tiny-llama" / "tokenizer.model", tmp_path / "model")
    (tmp_path / "a").write_text("The ship went on, and the men looked at the sea. " * 80)
    (tmp_path / "b").write_text("It was cold — and dark. " * 120, encoding="utf-8")
    flags = "perplexity -m model --text a b --stream --length 1200 --chunk 20 --threads 1"
    return flags.split()


def read(path) -> dict:
    """A run's file without what differs from run to run."""
    result = json.loads(path.read_text())
    assert result.pop("timing")["seconds"] > 0
    return result


def test_processes_write_what_one_does(processes, line, program, tmp_path, monkeypatch):
    """Tallies of one process only, or counted twice; a result that each writes; progress of all
    at once; a share that begins from the start, or from another's state, when the run goes on;
    a run of three that one goes on with alone."""
    monkeypatch.chdir(tmp_path)
    assert program(main, *line, "--out", "one.json")[0] == 0
    one = read(tmp_path / "one.json")
    for count in (2, 3):
        run = processes(count, *line, "--out", "whole.json")
        assert run.returncode == 0 and run.stdout.count("| positions |") == 1, run.stderr
        assert f"of share 1 of {count}" in run.stderr and "of share 2" not in run.stderr
        many = read(tmp_path / "whole.json")
        assert many["settings"] == one["settings"] | {"processes": count}
        assert_close(many["results"], one["results"])
    run = processes(3, *line, "--out", "run.json", stops="9,5,2")
    assert run.returncode == 143 and not run.stdout and run.stderr.count("stopped after") == 1
    states = [f"run.json.state-{rank}-of-3" for rank in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.glob("run*")) == states
    assert "another number of processes" in error(partial(program, main), *RESUME)
    assert "was stopped: --resume it" in processes(3, *line, "--out", "run.json").stderr
    run = processes(3, *line, "--out", "run.json", stops="5,9,0", again=True)
    assert run.returncode == 143, "torchrun starts again what failed"
    run = processes(3, *RESUME)
    assert run.returncode == 0 and run.stdout.count("| positions |") == 1
    assert read(tmp_path / "run.json") == read(tmp_path / "whole.json"), "to the last bit"
    assert "is finished" in processes(3, *RESUME).stderr
    assert sorted(path.name for path in tmp_path.glob("run*")) == ["run.json"]


def assert_close(found, expected):
    """Integers are equal, and other numbers within 1e-6, in whatever holds them."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = (
            [x[name] for name in sorted({*x} - SHAKY)] for x in (found, expected)
        )
    if isinstance(expected, list):
        for pair in zip(found, expected, strict=True):
            assert_close(*pair)
    else:
        close = pytest.approx(expected, abs=1e-6) if type(expected) is float else expected
        assert found == close


@pytest.mark.parametrize("task", [
    "compare --length 700 --trials 3 --methods lambda,truncate --n-local 30",
    "passkey --lengths 1,3 --depths 0,0.5 --trials 5 --methods lambda,topk",
])  # fmt: skip
def test_trials_and_documents_are_divided(
    processes, line, program, tmp_path, monkeypatch, task
):
    """A document or a trial that no process reads, or that is another one's."""
    monkeypatch.chdir(tmp_path)
    model = tiny_llama(vocab_size=2048, dtype=torch.float32, context_length=200)
    save(model, tmp_path / "model")
    line = [*task.split(), *line[1:6], "--threads=1"]
    assert program(main, *line, "--out", "one.json")[0] == 0
    run = processes(3, *line, "--out", "three.json")
    one, three = (json.loads((tmp_path / x).read_text()) for x in ("one.json", "three.json"))
    assert run.returncode == 0 and three["settings"]["processes"] == 3
    assert one["results"] == three["results"]


def test_top_k_and_full_attention_are_refused(processes, line):
    """A traceback, or a run that begins all the same."""
    for more in (["--top-k-middle", 3], ["--attention", "full"]):
        run = processes(2, *line, *more)
        assert run.returncode == 1 and not run.stdout and "Traceback" not in run.stderr
        assert run.stderr.count("error: a text cannot be divided among processes") == 2

"""One text, many processes: the numbers of one, whoever reads what, and whoever is stopped."""

import json
import re
import socket

import numpy as np
import pytest
from conftest import ROOT, SETTINGS, random_folder, some_tokens, tiny_model
from test_stream import Ids, result_of

from minilm_inf import LMInfinite
from minilm_inf.benchmark import models
from minilm_inf.evaluate import perplexity, resume
from minilm_inf.evaluate.__main__ import main
from minilm_inf.evaluate.documents import Stream
from minilm_inf.evaluate.shares import Share, before

LMS = {name: lm for name, lm in SETTINGS.items() if lm.n_local and lm.distance_ceiling}
LMS["no starting tokens, no ceiling"] = LMInfinite(6, 0, None)
LM, RESUME = LMS["LM-Infinite"], ("perplexity", "--resume", "run.json")


def summed(model, lm, stream: Stream, count: int) -> perplexity.Run:
    """A run whose arrays are the sums of those of `count` shares."""
    runs = [perplexity.Run(model, lm, stream, 7) for _ in range(count)]
    for rank, run in enumerate(runs):
        run.take(Share(rank, count))
        for _ in resume.steps(run):
            pass
    for arrays in zip(*(run.arrays.values() for run in runs)):
        arrays[0][:] = sum(arrays)
    return runs[0]


@pytest.mark.parametrize("family, name, count", [
    *(("llama", name, 3) for name in LMS), ("mpt", "LM-Infinite", 2),
    ("gptj", "LM-Infinite", 2), ("llama", "LM-Infinite", 7), ("llama", "LM-Infinite", 80),
])  # fmt: skip
def test_shares_add_up_to_the_whole(family, name, count):
    """A warm-up of one token too few, or one that sees starting tokens where they are none; a
    token that two shares score, or none; a share shorter than its warm-up, or empty; a late
    token that is compared with what another share read early."""
    model, rows = tiny_model(family, n_layer=3), some_tokens(13, batch=3).tolist()
    stream = Stream(dict(enumerate(rows)), Ids(), True, 73)
    one, many = (summed(model, LMS[name], stream, n) for n in (1, count))
    for name in ("counts", "bins.log", "bins.linear", "pairs"):
        assert np.abs(many.arrays[name] - one.arrays[name]).max() < 1e-10, name
    assert many.pairs.result()["difference"] == pytest.approx(one.pairs.result()["difference"])


def test_a_warm_up_is_no_longer_than_it_must_be(monkeypatch):
    """One that is twice as long as needed, and hides that the formula is wrong."""
    model, stream = tiny_model("llama", 3), Stream({"a": [*range(31)] * 3}, Ids(), False)
    whole = summed(model, LM, stream, 1).bins["linear"].sums
    assert before(60, LM, 3) == [range(2), range(60 - 3 * (6 - 1), 60)]
    too_few = lambda *which: [x[k:] for k, x in enumerate(before(*which))]  # noqa: E731
    monkeypatch.setattr(perplexity, "before", too_few)
    off = np.abs(summed(model, LM, stream, 2).bins["linear"].sums - whole)
    assert 1e-9 < off.max() < 0.1 and np.flatnonzero(off > 1e-10).tolist() == [46]


# ---- processes

PROCESSES = """
import os, signal, sys
from minilm_inf.evaluate import __main__, perplexity, ruler
from minilm_inf.writing.reply import Reply
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
def repeated(session, turns, ids, new):  # a small model would write nothing that is right
    return Reply(ids, text=turns.tokenizer.decode(ids[: len(ids) // 2]))
ruler.written = repeated
code = __main__.main(line)
sys.stdout.flush(), sys.stderr.flush()
if rank:
    os._exit(code)
codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(1, int(count))]
sys.exit(max([code, *codes]))
"""


@pytest.fixture
def processes(python, tmp_path):
    """A call of the program in several processes, as torchrun would start them: (count,
    arguments...) -> what subprocess.run gives. stops: before which step of each a SIGTERM
    comes. again: whether they are started after a failure."""

    def call(count: int, *line, stops="0", again=False):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            known = free.getsockname()[1], count, int(again), stops
        return python(["-c", PROCESSES, *known, *line], cwd=tmp_path, seconds=90)

    return call


@pytest.fixture
def line(tmp_path, monkeypatch) -> list[str]:
    """A command line in a folder of its own: a stream of two texts in 60 chunks."""
    random_folder(tmp_path / "model", context_length=200)
    (tmp_path / "a").write_text("The ship went on, and the men looked at the sea. " * 80)
    (tmp_path / "b").write_text("It was cold — and dark. " * 120, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    more = "--stream --length 1200 --chunk 20 --n-local 30"
    return f"perplexity -m model --text a b --threads 1 {more}".split()


def numbers(results: dict) -> list[float]:
    """All numbers of results, but for e to the nll, in their order."""
    text = json.dumps(results | {"perplexity": None})
    return [float(number) for number in re.findall(r"-?\d[\d.e-]*", text)]


def test_processes_write_what_one_does(processes, line, program, tmp_path):
    """Tallies of one process only, or counted twice; a result or progress of each; a share that
    begins from the start, or from another's state, when the run goes on; a run of three that
    one goes on with alone."""
    assert program(main, *line, "--out", "one.json")[0] == 0
    one = result_of(tmp_path / "one.json")
    for count in (2, 3):
        run = processes(count, *line, "--out", "whole.json")
        assert run.returncode == 0 and run.stdout.count("| positions |") == 1, run.stderr
        assert run.stderr.count("0 s left") == 1
        many = result_of(tmp_path / "whole.json")
        assert many["settings"] == one["settings"] | {"processes": count}
        found, expected = numbers(many["results"]), numbers(one["results"])
        assert len(found) > 800 and found == pytest.approx(expected, abs=1e-6)
    run = processes(3, *line, "--out", "run.json", stops="9,5,2")
    assert run.returncode == 143 and not run.stdout and run.stderr.count("stopped after") == 1
    states = [f"run.json.state-{rank}-of-3" for rank in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.glob("run*")) == states
    assert "by as many processes as began it" in program(main, *RESUME)[2]
    assert "was stopped: --resume it" in processes(3, *line, "--out", "run.json").stderr
    run = processes(3, *line, "--out", "run.json", stops="5,9,0", again=True)
    assert run.returncode != 0, "torchrun starts again what failed"
    run = processes(3, *RESUME)
    assert run.returncode == 0 and run.stdout.count("| positions |") == 1
    assert result_of(tmp_path / "run.json") == many, "to the last bit"
    assert "is finished" in processes(3, *RESUME).stderr
    assert sorted(path.name for path in tmp_path.glob("run*")) == ["run.json"]


@pytest.mark.parametrize("task", [
    "compare --length 700 --trials 3 --methods lambda,truncate --n-local 30",
    "passkey --lengths 1,3 --depths 0,0.5 --trials 5 --methods lambda,topk",
    "qa --data model/questions.jsonl -n 3 --methods full,lambda --n-local 30",
    "needles --lengths 3 --tasks single,multivalue --methods lambda --trials 5 --text "
    + str(ROOT / "tutorials" / "text.txt"),
])  # fmt: skip
def test_trials_and_documents_are_divided(processes, line, tmp_path, task):
    """A document or a trial that no process reads, or that is another one's."""
    (name, *more), n = task.split(), 3 if "qa" in task else 8
    for count in (1, 3):
        run = processes(count, name, *line[1:n], "--threads", 1, *more, "--out", count)
        assert run.returncode == 0, run.stderr
    one, three = result_of(tmp_path / "1"), result_of(tmp_path / "3")
    assert three["settings"] == one["settings"] | {"processes": 3}
    assert one["results"] == three["results"]
    if name == "needles":
        found = [cell["found"] for cell in one["results"]["cells"]]
        assert min(found) > 0 and len(set(found)) > 1, "that which differs can be told"
    run = resume.Run()
    run.divided = [(np.full((2, 5), -1), 0)]
    run.take(Share(1, 2))
    assert run.divided[0][0].tolist() == [[0, 0, -1, -1, -1]] * 2, "not all by each"


def test_plans_and_refusals(processes, line):
    """A plan of what one process would read; a traceback, or numbers that are quietly others,
    where a token's past has no end."""
    plan = json.loads(processes(2, *line, "--plan", "--json").stdout)
    assert (plan["processes"], plan["warm-up"]) == (2, 2 * (30 - 1) + 10)
    for more in (["--top-k-middle", 3], ["--attention", "full"]):
        run = processes(2, *line[:-2], *more)
        assert run.returncode == 1 and not run.stdout and "Traceback" not in run.stderr
        assert run.stderr.count("error: a text cannot be divided among processes") == 2
    with pytest.raises(ValueError, match="where a token sees more than its window"):
        before(60, SETTINGS["Λ without ceiling"], 3)


@pytest.mark.slow
def test_torchrun_and_its_row_in_the_benchmark(tmp_path):
    """A command of README that fails; two processes that take longer than one, told as rows
    that are not measured."""
    sizes = type("Sizes", (), {"tokens": [500], "rounds": 2})
    one, two = models.share_rows(ROOT / "weights" / "tiny-llama", sizes)
    assert len(one.seconds) == len(two.seconds) == 2 and two.base is one
    with pytest.raises(ValueError, match="processes failed"):
        models.share_rows(tmp_path, sizes)

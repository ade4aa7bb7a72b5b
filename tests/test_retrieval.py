"""evaluate passkey and recall: scored as greedy decoding, resumable, told as it is."""

import argparse
import json
import signal
import struct
from functools import partial

import numpy as np
import pytest
import torch
from conftest import FAMILIES, ROOT, error, interrupt_at, some_tokens, tiny_llama, tiny_model

from minilm_inf import generate
from minilm_inf.checkpoint.run_state import read_state, write_state
from minilm_inf.config import LMInfinite
from minilm_inf.evaluate import cells, retrieval
from minilm_inf.evaluate.__main__ import main
from minilm_inf.evaluate.cells import Cell, Run, rows_at_once
from minilm_inf.evaluate.methods import Method, Truncated, answers
from minilm_inf.evaluate.report import Results
from minilm_inf.evaluate.resume import state_path
from minilm_inf.evaluate.trials import ABSENT, ALONE, PassKey
from minilm_inf.train.practice import Practice

SETTINGS = {
    "full": None,
    "lambda": LMInfinite(6, 2, 6),
    "topk": LMInfinite(6, 2, 6, top_k=3),
    "topk of a later layer": LMInfinite(6, 2, 6, 2, top_k_distance=4, top_k_from_layer=1),
    "topk for all": LMInfinite(6, 2, 6, top_k=3, top_k_queries="all"),
}


# ---- scoring


def written(model, ids, width, lm) -> list[int]:
    """What generate writes greedily."""
    return list(generate(model, ids, lm, width, temperature=0, stop_ids=()))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_what_greedy_decoding_writes(name, family):
    """A digit that is scored under another sight than it would be written under: top-k above
    all, which reaches back for the prompt's last token and for each that is written."""
    model, lm, width = tiny_model(family), SETTINGS[name], 4
    rows, wanted = [], []
    for number, prompt in enumerate(some_tokens(31, batch=5).tolist()):
        row = prompt + written(model, prompt, width, lm)
        if number < width:  # the first wrong digit
            row[len(prompt) + number] = (row[len(prompt) + number] + 1) % 31
        rows.append(row)
        wanted.append(number)
    rows, method = torch.tensor(rows), Method("", lm)
    for chunk in (512, 7, 1):
        assert answers(model, method, rows, width, chunk) == wanted
    assert [answers(model, method, row[None], width)[0] for row in rows] == wanted


@pytest.fixture(scope="module")
def maker(shipped):
    _, tokenizer = shipped
    text = " ".join(
        f"The {a} and the {b} went to the {c}."
        for a in ("king", "ship", "dog", "wind", "tree", "priest")
        for b in ("queen", "boat", "cat", "rain", "house", "child")
        for c in ("city", "sea", "field", "river", "hill", "door")
    )
    return PassKey(Practice(tokenizer, np.array(tokenizer.encode(text, bos=False))), tokenizer)


CELLS = [
    Cell("full", 0, ALONE), Cell("full", 256, 0.5), Cell("lambda", 300, 0.9),
    Cell("topk", 300, 0.0), Cell("lambda", 300, ABSENT), Cell("truncate", 300, 0.9),
    Cell("lambda", 300, 0.59),  # some wordings have their digits in the window, and some not
]  # fmt: skip
SIGHT = LMInfinite(128, 10, 128)
METHODS = {
    "full": Method("", None), "truncate": Truncated("", None, 256), "lambda": Method("", SIGHT),
    "topk": Method("", LMInfinite(128, 10, 128, top_k=3)),
}  # fmt: skip


def finished(model, maker, **more) -> Run:
    run = Run(model, maker, METHODS, SIGHT, CELLS, 4, 3, **more)
    while not run.is_done:
        assert 0 <= run.done <= run.total * 1.3
        run.step()
    return run


def test_a_run_is_generate_trial_by_trial(shipped, maker):
    """On a shipped model, through the same door as everybody's text; and rows that see each
    other when they are read side by side."""
    model, _ = shipped
    run = finished(model, maker)
    for cell, found in zip(CELLS, run.right):
        for number, right in enumerate(found):
            trial, method = run.trial(cell, number), METHODS[cell.method]
            ids = method.rows(torch.tensor([trial.ids]))[0].tolist()
            prompt, answer = ids[: -trial.width], ids[-trial.width :]
            same = [a == b for a, b in zip(written(model, prompt, 5, method.lm), answer)]
            assert right == (same + [False]).index(False)
    assert 8 < (run.right == 5).sum() < 20, "some of both kinds"
    where = [[cells.WHERE[x] if x >= 0 else None for x in row] for row in run.where]
    assert where[2] == ["window"] * 4 and where[3] == ["middle"] * 4 and where[4] == [None] * 4
    assert len(set(where[-1])) == 2
    alone = finished(model, maker, rows=1, chunk=100, middle="disk")
    assert (alone.right == run.right).all() and (alone.where == run.where).all()


def test_all_methods_are_asked_the_same(maker):
    """A method that is better because its keys were nearer."""
    run = Run(tiny_llama(), maker, METHODS, SIGHT, [], 5, 3)
    for length, depth in ((300, 0.5), (300, ABSENT), (0, ALONE)):
        same = [run.trial(Cell(m, length, depth), 2) for m in ("full", "truncate", "topk")]
        assert same[0] == same[1] == same[2]
    several = [run.trial(Cell("full", n, d), i).ids[-5:] for n in (256, 300)
               for d in (0.1, 0.2, ABSENT) for i in (0, 1)]  # fmt: skip
    assert len({tuple(ids) for ids in several}) == len(several)


def test_rows_side_by_side_fit_in_memory(monkeypatch):
    """A batch of long texts whose keys fill the machine, or a batch of one where more would
    do."""
    model = tiny_llama()  # float64, 2 layers, 2 key heads of 8: 512 bytes a token
    monkeypatch.setattr(cells, "CPU_TOKENS", 1000)
    monkeypatch.setattr(cells, "CPU_BYTES", 512 * 3000)
    lm, far = LMInfinite(50, 10, 50), LMInfinite(50, 10, 50, top_k=1)
    full = Method("", None)
    assert rows_at_once(model, full, 100, 512) == 10  # by work
    assert rows_at_once(model, full, 1000, 100) == 3
    assert rows_at_once(model, Method("", far), 1000, 100) == 3, "the middle is kept"
    assert rows_at_once(model, Method("", lm), 1000, 100) == 10
    assert rows_at_once(model, Truncated("", None, 200), 200, 100) == 10
    assert rows_at_once(model, full, 9999, 100) == 1


# ---- the report


def test_shares_are_sums_of_the_right_cells(maker):
    """A control that is counted among the trials, or a needle in the wrong row."""
    asked = [Cell("full", 0, ALONE), Cell("full", 256, 0.0), Cell("full", 256, 1.0)]
    for n in (256, 512, 1024):
        asked += [Cell("lambda", n, 0.0), Cell("lambda", n, 1.0), Cell("lambda", n, ABSENT)]
    run = Run(tiny_llama(), maker, METHODS, SIGHT, asked, 4, 0)
    for number, cell in enumerate(asked):
        run.right[number] = [5, 5, 4, 0] if number % 2 else [5, 1, 2, 3]
        run.where[number] = [0, 1, 1, 2] if isinstance(cell.depth, float) else [-1] * 4
    found = Results(run, [256, 512, 1024], [0.0, 1.0], ["lambda"], 256, [])

    def counts(share):
        return share and (share["found"], share["trials"])

    hits = {cell: int((row == 5).sum()) for cell, row in zip(asked, run.right)}
    a, b, c, d = (hits[Cell("lambda", n, x)] for n in (512, 1024) for x in (0.0, 1.0))
    assert counts(found.by_length("lambda", 512)) == (a + b, 8)
    assert counts(found.by_depth("lambda", 0.0)) == (a + c, 8), "beyond the trained length"
    assert counts(found.by_place("lambda", "starting")) == (4, 4)
    assert counts(found.by_place("lambda", "middle")) == (a + b + c + d - 4, 8)
    assert counts(found.by_place("lambda", "window")) == (0, 4)
    assert counts(found.absent("lambda")) == (sum(hits[x] for x in asked if x[2] == ABSENT), 12)
    assert counts(found.within()) == (hits[asked[1]] + hits[asked[2]], 8)
    assert counts(found.within(1.0)) == (hits[asked[2]], 4)
    assert counts(found.alone()) == (1, 4) and found.by_length("full", 512) is None


# ---- the program


@pytest.fixture
def call(program):
    """A call of the program: arguments -> (exit code, stdout, stderr)."""
    return partial(program, main)


SMALL = ("passkey", "--filler", "repeat", "--lengths", "0.78,1.17", "--depths", "0,0.9",
         "--trials", 3, "--threads", 1)  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The result of a run that nobody interrupts."""
    out = tmp_path_factory.mktemp("passkey") / "run.json"
    assert main([*map(str, SMALL), "--out", str(out), "--n-local", "128"]) == 0
    assert [path.name for path in out.parent.iterdir()] == ["run.json"]
    return json.loads(out.read_text())


def test_a_run_tells_all_it_measured(unbroken):
    """A control that is left out when nobody looks, or a cell without its interval."""
    results = unbroken["results"]
    controls = results["controls"]
    assert controls["inside"]["trials"] == 6 and controls["inside"]["accuracy"] > 0.5
    assert controls["question_alone"]["trials"] == 3
    assert [row["method"] for row in controls["needle_absent"]] == list(retrieval.METHODS)
    assert all(row["trials"] == 6 for row in controls["needle_absent"])
    assert len(results["by_length"]) == 8 and len(results["by_depth"]) == 8
    assert results["by_depth_and_by_place_are_over"] == [300]
    assert len(results["cells"]) == 1 + 2 + 4 * 2 * 3
    for cell in results["cells"]:
        low, high = cell["interval"]
        assert low <= cell["accuracy"] <= high and len(cell["right"]) == cell["trials"] == 3
        assert cell["found"] == cell["right"].count(5)
    far = [c for c in results["cells"] if (c["length"], c["depth"]) == (300, 0.0)]
    found = {c["method"]: c["accuracy"] for c in far}
    assert found["lambda"] == 0 and found["topk"] > 0, "what the method promises"
    settings = unbroken["settings"]["methods"]
    assert settings["topk"]["lm_infinite"]["top_k"] == retrieval.TOP_K
    assert settings["lambda"]["lm_infinite"]["top_k"] == 0
    assert settings["lambda"]["lm_infinite"]["n_local"] == 128
    assert unbroken["settings"]["model"] == str(ROOT / "weights" / "tiny-llama")


def test_a_resumed_run_is_the_unbroken_run(unbroken, call, tmp_path, monkeypatch):
    """A cell that is lost, asked twice, or asked other questions; half a table of one model,
    half of another."""
    out = tmp_path / "run.json"
    interrupt_at(monkeypatch, Run, 30, signal.SIGTERM)
    code, printed, err = call(*SMALL, "--n-local", 128, "--out", out, "--rows", 2)
    assert code == 143 and not printed and not out.exists()
    assert f"tokens; go on with --resume {out}" in err
    monkeypatch.undo()
    path = state_path(out)
    whole, (facts, tensors) = path.read_bytes(), read_state(path)
    tensors = {name: x.clone() for name, x in tensors.items()}
    known = int((tensors["right"] >= 0).sum())
    assert 0 < known < 27 * 3
    assert "--resume" in error(call, *SMALL, "--out", out), "a night's work is not overwritten"
    for words, settings, changed in (
        ("began with another seed", {"seed": 9}, {}),
        ("another weights", {"weights_sha256": {}}, {}),
        ("not a whole state", {}, {"right": tensors["right"] + 9}),
        ("not a whole state", {}, {"where": tensors["where"][1:]}),
    ):
        told = {**facts, "settings": facts["settings"] | settings}
        write_state(path, tensors | changed, told)
        assert words in error(call, "passkey", "--resume", out)
    assert 'is of the task "passkey"' in error(call, "recall", "--resume", out)
    path.write_bytes(whole)
    monkeypatch.setattr(Run, "check", lambda run: None)  # which asks for trials, too
    asked, trial = [], Run.trial
    monkeypatch.setattr(Run, "trial", lambda *which: asked.append(which) or trial(*which))
    code, printed, err = call("passkey", "--resume", out)
    assert code == 0 and "| length |" in printed and len(asked) == 27 * 3 - known
    assert json.loads(out.read_text()) == unbroken
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_tables_sweeps_and_a_heatmap(call, tmp_path):
    """A table without its columns, a swept value that never reaches the model, a picture of one
    panel, or a run that prints its progress among them."""
    pytest.importorskip("matplotlib")
    path, line = tmp_path / "map.png", [*SMALL[:5], "--depths", "0", "--trials", 2]
    code, out, err = call(*line, "--methods", "full,lambda", "--heatmap", path)
    assert code == 0 and "tokens/s" in err and "tokens/s" not in out
    assert "| length | full attention | LM-Infinite |" in out and "| starting tokens |" in out
    assert "No needle lies in the starting tokens" in out and "Wilson's 95%" in out
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and content[-8:-4] == b"IEND"
    wide = struct.unpack(">II", content[16:24])
    assert [p.name for p in tmp_path.iterdir()] == ["map.png"]
    line += ["--methods", "topk", "--n-local", 128, "--n-global", 30]
    line += ["--sweep", "k=1,4", "distance=0,64", "from-layer=0,3"]
    code, out, _ = call(*line, "--heatmap", path, "--json")
    assert wide[0] > struct.unpack(">II", path.read_bytes()[16:24])[0] + 200
    found = json.loads(out)
    used = {n: m["lm_infinite"] for n, m in found["settings"]["methods"].items()}
    assert [used[f"k={k}"]["top_k"] for k in (1, 4)] == [1, 4]
    assert [used[f"distance={a}"]["top_k_distance"] for a in (0, 64)] == [0, 64]
    assert [used[f"from-layer={h}"]["top_k_from_layer"] for h in (0, 3)] == [0, 3]
    assert used["k=4"]["top_k_distance"] is None and used["distance=64"]["top_k"] == 5
    sweeps = found["results"]["sweeps"]
    assert {n: len(rows) for n, rows in sweeps.items()} == {
        "k": 4,
        "distance": 4,
        "from-layer": 4,
    }
    code, out, _ = call(*line[:-2], "--lengths", "0.78")
    assert code == 0 and "LM-Infinite + top-k by k, all depths:" in out and "\n| 4 | " in out
    assert "No needle lies" not in out


def test_recall_has_the_same_axes_and_controls(call, tmp_path):
    """The second program that only looks like the first."""
    out = tmp_path / "run.json"
    code, printed, _ = call("recall", *SMALL[1:], "--methods", "lambda", "--out", out)
    found = json.loads(out.read_text())
    assert code == 0 and found["task"] == "pairs" and found["results"]["answer_tokens"] == 4
    assert found["results"]["controls"]["inside"]["trials"] == 6
    assert printed.startswith("key-value recall, tiny-llama, 3 trials a cell")


def test_filler_is_held_out(tokenizer, tmp_path):
    """A model that is asked in the middle of what it has learned by heart."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "Acts.txt").write_text("Held out, this is.\n")
    (tmp_path / "web" / "Gen.txt").write_text("This was learned.\n")
    options = argparse.Namespace(filler="text", text=None, corpus=tmp_path)
    words = tokenizer.decode(retrieval.filler(options, tokenizer, 9).tolist())
    assert words == "Held out, this is.\n"
    options.filler = "repeat"
    words = tokenizer.decode(retrieval.filler(options, tokenizer, 500).tolist())
    assert words.count("The grass is green. The sky is blue.") > 10


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--corpus", "nowhere"], ("nowhere", "minilm_inf.corpus")),
        (["--text", "short"], ("the filler has only", "--filler repeat")),
        (["-m", "nowhere"], ("nowhere",)),
        (["--filler", "repeat", "--lengths", "0.08"], ("20 tokens have no room", "--len")),
        (["--filler", "repeat", "--out", "."], ("is a folder",)),
        (["--filler", "repeat", "--sweep", "from-layer=0,9"], ("layers 0 to 3",)),
        (["--filler", "repeat", "--top-k-from-layer", "9"], ("beyond the model's 4 layers",)),
        (["--filler", "repeat", "--heatmap", "x.png"], ("install it, or leave out --heatmap",)),
    ],
)  # fmt: skip
def test_what_cannot_be_measured(call, tmp_path, monkeypatch, arguments, words):
    """A traceback for a mistyped name, or for one after an hour."""
    (tmp_path / "short").write_text("Too short. By far.")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minilm_inf.terminal.options.can_draw", lambda: False)
    monkeypatch.setattr(Run, "step", lambda run: pytest.fail("it is told before"))
    said = error(call, "passkey", *arguments)
    assert all(word in said for word in words), said
    assert [path.name for path in tmp_path.iterdir()] == ["short"]


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["passkey", "--lengths", "1,x"], "--lengths"),
        (["passkey", "--lengths", "nan"], "--lengths"),
        (["passkey", "--depths", "0,1.1"], "--depths"),
        (["passkey", "--methods", "full,other"], "'other' is none of full, truncate"),
        (["passkey", "--attention", "full"], "full is a method of its own"),
        (["passkey", "--methods", "full", "--top-k-distance", "3"], "--top-k-middle"),
        (["passkey", "--sweep", "n=3"], '"n=3" names none of k, distance'),
        (["passkey", "--sweep", "k=0,3"], "--sweep"),
        (["passkey", "--sweep", "k=1", "k=2"], "names one thing twice"),
        (["passkey", "--resume", "x", "--trials", "3"], "--resume takes no other flag"),
        (["passkey", "--text", "a", "--corpus", "b"], "not allowed with"),
        (["recall", "--pairs", "99"], "--pairs"),
    ],
)  # fmt: skip
def test_flags_that_make_no_sense(call, monkeypatch, arguments, word):
    """A flag that is quietly ignored."""
    monkeypatch.setattr(Run, "step", lambda run: pytest.fail("nothing is run"))
    code, out, err = call(*arguments)
    assert code == 2 and not out and word in err.splitlines()[-1], err

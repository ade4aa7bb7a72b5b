"""evaluate passkey and recall: scored as greedy decoding, resumable, told as it is."""

import argparse
import json
import re
import signal
import struct
from functools import partial

import numpy as np
import pytest
import torch
from conftest import FAMILIES, ROOT, some_tokens, tiny_llama, tiny_model

from minilm_inf import generate
from minilm_inf.config import LMInfinite
from minilm_inf.evaluate import resume, retrieval
from minilm_inf.evaluate.__main__ import main
from minilm_inf.evaluate.needles import axes, reading
from minilm_inf.evaluate.needles.cells import ABSENT, ALONE, Cell, Run
from minilm_inf.evaluate.needles.reading import Method, answering, rows_at_once
from minilm_inf.evaluate.needles.report import Results
from minilm_inf.evaluate.needles.trials import PassKey
from minilm_inf.train.practice import Practice

SETTINGS = {
    "full": None,
    "lambda": LMInfinite(6, 2, 6),
    "topk": LMInfinite(6, 2, 6, top_k=3),
    "topk of a later layer": LMInfinite(6, 2, 6, 2, top_k_distance=4, top_k_from_layer=1),
    "topk for all": LMInfinite(6, 2, 6, top_k=3, top_k_queries="all"),
}


# ---- scoring


def answers(model, rows, width, lm, chunk=512) -> list[int]:
    found: list[int] = []
    for _ in answering(model, rows, width, lm, chunk, found):
        pass
    return found


def written(model, ids, width, lm) -> list[int]:
    """What generate writes greedily."""
    return list(generate(model, ids, lm, width, temperature=0, stop_ids=()))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_what_greedy_decoding_writes(name, family):
    """A digit that is scored under another sight than it would be written under: top-k above
    all, which reaches back for the prompt's last token and for each that is written."""
    model, lm, width = tiny_model(family), SETTINGS[name], 4
    prompts = some_tokens(31, batch=10)
    rows, wanted = [], []
    for number, prompt in enumerate(prompts.tolist()):
        row = prompt + written(model, prompt, width, lm)
        wrong = number % (width + 1)  # the first wrong digit; width: none
        if wrong < width:
            row[len(prompt) + wrong] = (row[len(prompt) + wrong] + 1) % 31
        rows.append(row)
        wanted.append(wrong)
    rows = torch.tensor(rows)
    for chunk in (512, 7, 31, 1):
        assert answers(model, rows, width, lm, chunk) == wanted
    assert [answers(model, row[None], width, lm)[0] for row in rows] == wanted
    assert answers(model, rows[:1], width, lm) == [0] == wanted[:1], "it stops at a wrong one"


def test_reading_stops_where_no_answer_is_right():
    """Digits that are read though nobody can be right any more: at 64 x they are nothing, on
    short texts most of the time."""
    model = tiny_llama()
    rows = some_tokens(12, batch=3)
    calls = list(answering(model, rows, 5, None, 512, found := []))
    assert found == [0, 0, 0] and calls == [3 * 7]


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_model_that_overflows_is_told(number):
    """An argmax of NaN is id 0, which may be a digit; a share of answers that nobody gave."""
    model = tiny_llama()
    model.head.weight.data[:] = float(number)
    with pytest.raises(ValueError, match="logits are not numbers"):
        answers(model, some_tokens(9), 2, None)


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


def methods() -> dict[str, Method]:
    lm = LMInfinite(128, 10, 128)
    return {"full": Method(None), "truncate": Method(None, 256), "lambda": Method(lm),
            "topk": Method(LMInfinite(128, 10, 128, top_k=3))}  # fmt: skip


def finished(model, maker, cells=CELLS, trials=5, **more) -> Run:
    run = Run(model, maker, methods(), LMInfinite(128, 10, 128), cells, trials, 3, **more)
    while not run.is_done:
        assert 0 <= run.done <= run.total * 1.3
        run.step()
    return run


def test_a_run_is_generate_trial_by_trial(shipped, maker):
    """On a shipped model, through the same door as everybody's text."""
    model, _ = shipped
    run = finished(model, maker)
    for cell in CELLS:
        for number, right in enumerate(run.right[cell]):
            trial, method = run.trial(cell, number), run.methods[cell.method]
            ids = trial.ids
            if method.last:
                ids = ids[:1] + ids[-(method.last - 1) :]
            prompt, answer = ids[: -trial.width], ids[-trial.width :]
            found = written(model, prompt, trial.width, method.lm)
            same = [a == b for a, b in zip(found, answer)]
            assert right == (same + [False]).index(False)
    right = [x for cell in CELLS for x in run.right[cell]]
    assert right.count(5) > 10 and right.count(5) < 25, "some of both kinds"
    assert all(x == "window" for x in run.where[CELLS[2]])
    assert len(set(run.right[CELLS[-1]])) > 1 and len(set(run.where[CELLS[-1]])) == 2
    assert run.where[CELLS[3]] == ["middle"] * 5 and run.where[CELLS[4]] == [None] * 5


def test_side_by_side_is_one_by_one(shipped, maker):
    """Rows that see each other, or answers that change places when a row leaves."""
    model, _ = shipped
    together = finished(model, maker)
    for more in (dict(rows=1), dict(rows=3, chunk=100), dict(middle="disk")):
        alone = finished(model, maker, **more)
        assert alone.right == together.right and alone.where == together.where


def test_all_methods_are_asked_the_same(shipped, maker):
    """A method that is better because its keys were nearer."""
    run = Run(shipped[0], maker, methods(), LMInfinite(128, 10, 128), [], 5, 3)
    for length, depth in ((300, 0.5), (300, ABSENT), (0, ALONE)):
        same = [run.trial(Cell(m, length, depth), 2) for m in ("full", "truncate", "topk")]
        assert same[0] == same[1] == same[2]
    several = [run.trial(Cell("full", n, d), i).ids[-5:] for n in (256, 300)
               for d in (0.1, 0.2, ABSENT) for i in (0, 1)]  # fmt: skip
    assert len({tuple(ids) for ids in several}) == len(several)


def test_truncation_never_reads_beyond_the_trained_length(maker):
    """A vanilla model on one token more than it knows is another method."""
    trials = [maker.trial(300, 0.5, [n]) for n in range(3)]
    rows = Method(None, 256).rows(trials, "cpu")
    assert rows.shape == (3, 256)
    for row, trial in zip(rows.tolist(), trials):
        assert row == [trial.ids[0]] + trial.ids[-255:]
    for length in (200, 255, 256):
        trials = [maker.trial(length, 0.5, [0])]
        assert Method(None, 256).rows(trials, "cpu").tolist() == [trials[0].ids]
    assert Method(None, 256).length(300) == 256 and Method(None, 256).length(200) == 200


def test_rows_side_by_side_fit_in_memory(monkeypatch):
    """A batch of long texts whose keys fill the machine, or a batch of one where more would
    do."""
    model = tiny_llama()  # float64, 2 layers, 2 key heads of 8: 512 bytes a token
    monkeypatch.setattr(reading, "CPU_TOKENS", 1000)
    monkeypatch.setattr(reading, "CPU_BYTES", 512 * 3000)
    lm, far = LMInfinite(50, 10, 50), LMInfinite(50, 10, 50, top_k=1)
    assert rows_at_once(model, Method(None), 100, 512) == 10  # by work
    assert rows_at_once(model, Method(None), 1000, 100) == 3
    assert rows_at_once(model, Method(far), 1000, 100) == 3, "the middle is kept"
    assert rows_at_once(model, Method(lm), 1000, 100) == 10
    assert rows_at_once(model, Method(None, 200), 1000, 100) == 10
    assert rows_at_once(model, Method(None), 9999, 100) == 1


# ---- the report


def test_shares_are_sums_of_the_right_cells(maker):
    """A control that is counted among the trials, or a needle in the wrong row."""
    cells = [Cell("full", 0, ALONE), Cell("full", 256, 0.0), Cell("full", 256, 1.0)]
    for n in (256, 512, 1024):
        cells += [Cell("lambda", n, 0.0), Cell("lambda", n, 1.0), Cell("lambda", n, ABSENT)]
    run = Run(tiny_llama(), maker, methods(), LMInfinite(128, 10, 128), cells, 4, 0)
    for number, cell in enumerate(cells):
        run.right[cell] = [5, 5, 4, 0] if number % 2 else [5, 1, 2, 3]
        run.where[cell] = [None] * 4
        if isinstance(cell.depth, float):
            run.where[cell] = ["starting", "middle", "middle", "window"]
    found = Results(run, [256, 512, 1024], [0.0, 1.0], ["lambda"], 256, [], [])

    def counts(share):
        return share and (share["found"], share["trials"])

    hits = {cell: run.right[cell].count(5) for cell in cells}
    a, b, c, d = (hits[Cell("lambda", n, x)] for n in (512, 1024) for x in (0.0, 1.0))
    assert counts(found.by_length("lambda", 512)) == (a + b, 8)
    assert counts(found.by_depth("lambda", 0.0)) == (a + c, 8), "beyond the trained length"
    assert counts(found.by_place("lambda", "starting")) == (4, 4)
    assert counts(found.by_place("lambda", "middle")) == (a + b + c + d - 4, 8)
    assert counts(found.by_place("lambda", "window")) == (0, 4)
    assert counts(found.absent("lambda")) == (sum(hits[x] for x in cells if x[2] == ABSENT), 12)
    assert counts(found.within()) == (hits[cells[1]] + hits[cells[2]], 8)
    assert counts(found.within(1.0)) == (hits[cells[2]], 4)
    assert counts(found.alone()) == (1, 4)
    assert found.by_length("full", 512) is None


# ---- the program


@pytest.fixture
def call(program):
    """A call of the program: arguments -> (exit code, stdout, stderr)."""
    return partial(program, main)


SMALL = ("passkey", "--filler", "repeat", "--length-tokens", "200,300", "--depths", "0,0.9",
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
    assert [row["method"] for row in controls["needle_absent"]] == list(axes.METHODS)
    assert all(row["trials"] == 6 for row in controls["needle_absent"])
    assert len(results["by_length"]) == 8 and len(results["by_depth"]) == 8
    assert results["by_depth_and_by_place_are_over"] == [300]
    cells = results["cells"]
    assert len(cells) == 1 + 2 + 4 * 2 * 3
    for cell in cells:
        low, high = cell["interval"]
        assert low <= cell["accuracy"] <= high and len(cell["right"]) == cell["trials"] == 3
        assert cell["found"] == cell["right"].count(5)
    far = [c for c in cells if (c["length"], c["depth"]) == (300, 0.0)]
    found = {c["method"]: c["accuracy"] for c in far}
    assert found["lambda"] == 0 and found["topk"] > 0, "what the method promises"
    settings = unbroken["settings"]["methods"]
    assert settings["topk"]["lm_infinite"]["top_k"] == axes.TOP_K
    assert settings["lambda"]["lm_infinite"]["top_k"] == 0
    assert settings["lambda"]["lm_infinite"]["n_local"] == 128


def test_the_tables(call):
    """A table without its columns, or a run that prints its progress among them."""
    code, out, err = call(*SMALL, "--methods", "full,lambda", "--full-up-to", 1)
    assert code == 0 and "tokens/s" in err and "tokens/s" not in out
    assert "| length | full attention | LM-Infinite |" in out and "| starting tokens |" in out
    assert re.search(r"\| 300 \| - \| \d", out), "left out, and told"
    assert "A dash: --full-up-to left full attention out from 300 on." in out
    assert "No needle lies in the starting tokens" in out and "Wilson's 95%" in out
    code, out, _ = call(*SMALL, "--methods", "lambda", "--n-global", 30, "--n-local", 128)
    assert code == 0 and "No needle lies" not in out and "A dash" not in out


def test_a_sweep_has_a_table_for_each_thing(call):
    """A swept value that never reaches the model."""
    code, out, _ = call(*SMALL[:5], "--depths", "0", "--trials", 2, "--methods", "lambda",
                        "--n-local", 128, "--json", "--sweep", "k=1,4", "distance=0,64",
                        "from-layer=0,3")  # fmt: skip
    assert code == 0
    found = json.loads(out)
    used = {n: m["lm_infinite"] for n, m in found["settings"]["methods"].items()}
    assert [used[f"k={k}"]["top_k"] for k in (1, 4)] == [1, 4]
    assert [used[f"distance={a}"]["top_k_distance"] for a in (0, 64)] == [0, 64]
    assert [used[f"from-layer={h}"]["top_k_from_layer"] for h in (0, 3)] == [0, 3]
    assert used["k=4"]["top_k_distance"] is None and used["distance=64"]["top_k"] == axes.TOP_K
    sweeps = found["results"]["sweeps"]
    assert {name: len(rows) for name, rows in sweeps.items()} == {
        "k": 4, "distance": 4, "from-layer": 4
    }  # fmt: skip
    code, out, _ = call(*SMALL[:5], "--depths", "0", "--trials", 1, "--methods", "topk",
                        "--sweep", "k=1,4")  # fmt: skip
    assert code == 0 and "LM-Infinite + top-k by k, all depths:" in out and "\n| 4 | " in out


@pytest.mark.parametrize("kind", ["pairs", "variables"])
def test_recall_has_the_same_axes_and_controls(call, kind):
    """The second program that only looks like the first."""
    arguments = ["recall", *SMALL[1:], "--task", kind, "--methods", "lambda", "--json"]
    code, out, _ = call(*arguments)
    found = json.loads(out)
    assert code == 0 and found["task"] == kind
    assert found["results"]["answer_tokens"] == 4
    assert found["results"]["controls"]["inside"]["trials"] == 6
    code, out, _ = call(*arguments[:-1])
    assert ("in the style of RULER" in out) == (kind == "variables")


def interrupt_at(monkeypatch, step: int, name=signal.SIGINT):
    """Let a signal come while a run takes a step."""
    take, taken = Run.step, [0]

    def and_then(run):
        taken[0] += 1
        if taken[0] == step:
            signal.raise_signal(name)
        take(run)

    monkeypatch.setattr(Run, "step", and_then)


@pytest.mark.parametrize("name, step", [(signal.SIGINT, 1), (signal.SIGTERM, 30)])
def test_a_resumed_run_is_the_unbroken_run(unbroken, call, tmp_path, monkeypatch, name, step):
    """A cell that is lost, asked twice, or asked other questions."""
    out = tmp_path / "run.json"
    interrupt_at(monkeypatch, step, name)
    code, printed, err = call(*SMALL, "--n-local", 128, "--out", out, "--rows", 2)
    assert code == 128 + name and not printed and not out.exists()
    assert f"stopped; go on with --resume {out}" in err
    known = sum(map(len, resume.read_facts(resume.state_path(out))["at"]["right"]))
    assert (known > 0) == (step > 1) and known < 27 * 3
    monkeypatch.undo()
    monkeypatch.setattr(Run, "check", lambda run: None)  # which asks for trials, too
    asked, trial = [], Run.trial
    monkeypatch.setattr(Run, "trial", lambda *which: asked.append(which) or trial(*which))
    code, printed, err = call("passkey", "--resume", out)
    assert code == 0 and "| length |" in printed and len(asked) == 27 * 3 - known
    assert json.loads(out.read_text()) == unbroken
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    code, printed, err = call("passkey", "--resume", out)
    assert code == 0 and "is finished: there is nothing to resume" in err


def test_what_cannot_be_resumed(call, tmp_path, monkeypatch):
    """Half a table of one model, half of another; or a state of another task."""
    out = tmp_path / "run.json"
    interrupt_at(monkeypatch, 30)
    assert call(*SMALL, "--out", out)[0] == 130
    monkeypatch.undo()
    assert "--resume" in error(call, *SMALL, "--out", out), "a night's work is not overwritten"
    facts = resume.read_facts(resume.state_path(out))
    changed = {
        "another seed": {**facts, "settings": {**facts["settings"], "seed": 9}},
        "the weights": {**facts, "settings": {**facts["settings"], "weights_sha256": {}}},
        "the text is not": {**facts, "settings": {**facts["settings"], "ids_sha256": ""}},
        "of another program or version": {**facts, "flags": {"model": "x"}},
        "not a whole state": {**facts, "at": {}},
    }
    fewer = {name: rows[1:] for name, rows in facts["at"].items()}
    wrong = {**facts["at"], "right": [[99] * len(row) for row in facts["at"]["right"]]}
    uneven = {**facts["at"], "where": [row[1:] for row in facts["at"]["where"]]}
    for number, at in enumerate((fewer, wrong, uneven)):
        changed[f"{'not a whole state':{17 + number}}"] = {**facts, "at": at}
    for words, those in changed.items():
        words = words.strip()
        resume.save_state(out, {}, those)
        assert words in error(call, "passkey", "--resume", out)
    assert "to resume" in error(call, "passkey", "--resume", tmp_path / "other.json")


def test_a_heatmap_is_written(call, tmp_path):
    """A picture of one panel, or half a file."""
    pytest.importorskip("matplotlib")
    path, sizes = tmp_path / "map.png", []
    for methods_ in ("lambda", "lambda,full"):
        code, _, err = call(*SMALL[:5], "--depths", "0,1", "--trials", 1, "--full-up-to", 1,
                            "--methods", methods_, "--heatmap", path)  # fmt: skip
        assert code == 0, err
        content = path.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n" and content[-8:-4] == b"IEND"
        sizes.append(struct.unpack(">II", content[16:24]))
        assert [p.name for p in tmp_path.iterdir()] == ["map.png"]
    assert sizes[1][0] > sizes[0][0] + 200 and sizes[1][1] == sizes[0][1]


def test_without_matplotlib_one_sentence(call, monkeypatch, tmp_path):
    """A run of hours that ends in an ImportError."""
    monkeypatch.setattr("minilm_inf.terminal.options.can_draw", lambda: False)
    monkeypatch.setattr(Run, "step", lambda run: pytest.fail("it is told before"))
    said = error(call, *SMALL, "--heatmap", tmp_path / "map.png")
    assert "install it, or leave out --heatmap" in said


def test_filler_is_held_out(shipped, tmp_path):
    """A model that is asked in the middle of what it has learned by heart."""
    _, tokenizer = shipped
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "Acts.txt").write_text("Held out, this is.\n")
    (tmp_path / "web" / "Gen.txt").write_text("This was learned.\n")
    options = argparse.Namespace(filler="text", text=None, corpus=tmp_path)
    assert "learned" not in tokenizer.decode(retrieval.filler(options, tokenizer, 9).tolist())
    options.text = [tmp_path / "web" / "Gen.txt"]
    assert tokenizer.decode(retrieval.filler(options, tokenizer, 9).tolist()) == (
        "This was learned.\n"
    )
    options.filler = "repeat"
    words = tokenizer.decode(retrieval.filler(options, tokenizer, 500).tolist())
    assert words.count("The grass is green. The sky is blue.") > 10


def error(call, *arguments) -> str:
    """The one sentence that a call ends with."""
    code, out, err = call(*arguments)
    last = err.splitlines()[-1]
    assert code == 1 and not out and last.startswith("error: ") and err.count("error: ") == 1
    return last


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--corpus", "nowhere"], ("nowhere", "minilm_inf.corpus")),
        (["--text", "missing"], ("cannot read", "missing")),
        (["--text", "short"], ("the filler has only", "--filler repeat")),
        (["-m", "nowhere"], ("nowhere",)),
        (["--filler", "repeat", "--length-tokens", "20"], ("20 tokens have no room", "--len")),
        (["--filler", "repeat", "--out", "."], ("is a folder",)),
        (["--filler", "repeat", "--device", "nonsense"], ("--device",)),
        (["--filler", "repeat", "--sweep", "from-layer=0,9"], ("layers 0 to 3",)),
        (["--filler", "repeat", "--top-k-from-layer", "9"], ("beyond the model's 4 layers",)),
    ],
)  # fmt: skip
def test_what_cannot_be_measured(call, tmp_path, monkeypatch, arguments, words):
    """A traceback for a mistyped name, or for one after an hour."""
    (tmp_path / "short").write_text("Too short. By far.")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Run, "step", lambda run: pytest.fail("it is told before"))
    said = error(call, "passkey", *arguments)
    assert all(word in said for word in words), said
    assert [path.name for path in tmp_path.iterdir()] == ["short"]


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["passkey", "--lengths", "0"], "--lengths"),
        (["passkey", "--lengths", "1,x"], "--lengths"),
        (["passkey", "--lengths", "nan"], "--lengths"),
        (["passkey", "--lengths", "1", "--length-tokens", "9"], "not allowed with"),
        (["passkey", "--depths", "0,1.1"], "--depths"),
        (["passkey", "--depths", ""], "--depths"),
        (["passkey", "--trials", "0"], "--trials"),
        (["passkey", "--methods", "full,other"], "'other' is none of full, truncate"),
        (["passkey", "--attention", "full"], "full is a method of its own"),
        (["passkey", "--attention", "window", "--n-global", "3"], "--n-global"),
        (["passkey", "--methods", "full", "--top-k-distance", "3"], "--top-k-middle"),
        (["passkey", "--sweep", "n=3"], '"n=3" names none of k, distance'),
        (["passkey", "--sweep", "k=0,3"], "--sweep"),
        (["passkey", "--sweep", "k"], "--sweep"),
        (["passkey", "--sweep", "k=1", "k=2"], "names one thing twice"),
        (["passkey", "--resume", "x", "--trials", "3"], "--resume takes no other flag"),
        (["passkey", "--text", "a", "--corpus", "b"], "not allowed with"),
        (["recall", "--pairs", "99"], "there are 42 names"),
        (["recall", "--task", "variables", "--chains", "9", "--hops", "9"], "need 90 names"),
        (["recall", "--task", "other"], "--task"),
        (["recall", "--pairs", "20", "--digits", "1"], "--digits is too small"),
    ],
)  # fmt: skip
def test_flags_that_make_no_sense(call, monkeypatch, arguments, word):
    """A flag that is quietly ignored."""
    monkeypatch.setattr(Run, "step", lambda run: pytest.fail("nothing is run"))
    code, out, err = call(*arguments)
    assert code == 2 and not out and word in err.splitlines()[-1], err


@pytest.mark.parametrize("task", ["passkey", "recall"])
def test_help_names_the_defaults(call, task):
    """A default that nobody can find out."""
    code, out, _ = call(task, "--help")
    text = " ".join(out.split())
    assert code == 0 and "None" not in text
    for word in ("(1,2,4,8)", "(0,0.1,...,1)", "(20)", "(all)"):
        assert word in text


def test_the_shipped_folder_is_the_default(unbroken):
    """A result that does not say whose it is."""
    assert unbroken["settings"]["model"] == str(ROOT / "weights" / "tiny-llama")

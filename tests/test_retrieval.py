"""evaluate passkey and recall: scored as greedy decoding, resumable, told as it is."""

import itertools
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import FAMILIES, ROOT, some_tokens, tiny_model
from test_needles import SENTENCES

from minilm_inf import generate
from minilm_inf.config import LMInfinite
from minilm_inf.evaluate import retrieval
from minilm_inf.evaluate.__main__ import main
from minilm_inf.evaluate.methods import Method, Truncated, answers
from minilm_inf.evaluate.resume import steps
from minilm_inf.evaluate.retrieval import WHERE, Asked, Cell
from minilm_inf.evaluate.trials import ABSENT, PassKey
from minilm_inf.train.practice import Practice

SETTINGS = {
    "full": None,
    "lambda": LMInfinite(6, 2, 6),
    "topk": LMInfinite(6, 2, 6, top_k=3),
    "topk of a later layer": LMInfinite(6, 2, 6, 2, top_k_distance=4, top_k_from_layer=1),
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
    rows, method = torch.tensor(rows), Method("", lm and replace(lm, top_k_queries="all"))
    for chunk in (512, 7):
        assert answers(model, method, rows, width, chunk) == wanted
    assert [answers(model, method, row[None], width)[0] for row in rows] == wanted


@pytest.fixture(scope="module")
def maker(tokenizer):
    ids = np.array(tokenizer.encode(" ".join(SENTENCES), bos=False))
    return PassKey(Practice(tokenizer, ids), tokenizer)


CELLS = [
    Cell("full", 256, 0.5), Cell("lambda", 300, 0.9), Cell("topk", 300, 0.0),
    Cell("lambda", 300, ABSENT), Cell("truncate", 300, 0.9),
    Cell("lambda", 300, 0.59),  # some wordings have their digits in the window, and some not
]  # fmt: skip
SIGHT = LMInfinite(128, 10, 128)
METHODS = {
    "full": Method("", None), "truncate": Truncated("", None, 256), "lambda": Method("", SIGHT),
    "topk": Method("", LMInfinite(128, 10, 128, top_k=3), middle="disk"),
}  # fmt: skip


def test_a_run_is_generate_trial_by_trial(shipped, maker, monkeypatch):
    """On a shipped model, through the same door as everybody's text; and rows that see each
    other when they are read side by side."""
    runs, model = [], shipped[0]
    for at_once in (4096, 1):
        monkeypatch.setattr(retrieval, "CPU_TOKENS", at_once)
        trial_of = partial(retrieval.trial, maker)
        runs.append(Asked(model, METHODS, CELLS, trial_of, SIGHT, 3, chunk=100))
        for _ in steps(runs[-1]):
            assert 0 <= runs[-1].done <= runs[-1].total
    run, alone = runs
    assert (alone.right == run.right).all() and (alone.where == run.where).all()
    for cell, found in zip(CELLS, run.right):
        for number, right in enumerate(found):
            trial, method = run.trial_of(cell, number), METHODS[cell.method]
            ids = method.rows(torch.tensor([trial.ids]))[0].tolist()
            prompt, answer = ids[: -trial.width], ids[-trial.width :]
            assert right == (written(model, prompt, 5, method.lm) == answer)
    assert 6 < (run.right == 1).sum() < 15, "some of both kinds"
    where = [[WHERE[x] if x >= 0 else None for x in row] for row in run.where]
    assert (
        where[1:4] == [["window"] * 3, ["middle"] * 3, [None] * 3] and len(set(where[-1])) == 2
    )


def test_all_methods_are_asked_the_same(maker):
    """A method that is better because its keys were nearer; a question that comes twice."""
    trial, asked = partial(retrieval.trial, maker), set()
    for n, depth, number in itertools.product((256, 300), (0.1, 0.2, ABSENT), (0, 1)):
        same = [trial(Cell(m, n, depth), number) for m in ("full", "truncate", "topk")]
        assert same[0] == same[1] == same[2]
        asked.add(tuple(same[0].ids[-5:]))
    assert len(asked) == 12


# ---- the report


def test_shares_are_sums_of_the_right_cells(shipped):
    """A control that is counted among the trials, or a needle in the wrong row."""
    asked, lengths = [Cell("full", 256, 0.0), Cell("full", 256, 1.0)], [256, 512, 1024]
    for n in lengths:
        asked += [Cell("lambda", n, 0.0), Cell("lambda", n, 1.0), Cell("lambda", n, ABSENT)]
    run = Asked(shipped[0], METHODS, asked, None, SIGHT, 4)
    for number, cell in enumerate(asked):
        run.right[number] = [1, 0, 0, 0] if number % 2 else [1, 1, 0, 0]
        run.where[number] = [-1] * 4 if cell.depth == ABSENT else [0, 1, 1, 2]
    run.settings = {"context_length": 256, "lengths": lengths, "asked": ["lambda"],
                    "methods": {"full": 0, "lambda": 0}, "model": "m", "trials": 4}  # fmt: skip
    result = {"task": "passkey", "settings": run.settings, **retrieval.result(run)}
    found = {row["where"]: (row["found"], row["trials"]) for row in
             result["results"]["by_place"]}  # fmt: skip
    assert found == {"starting": (4, 4), "middle": (2, 8), "window": (0, 4)}
    words = retrieval.words(result)
    assert "| 256 | 37.5% (13.7 to 69.4) | 37.5% (13.7 to 69.4) |" in words
    assert "| 512 | - | 37.5% (13.7 to 69.4) |" in words
    assert "| starting tokens | 100.0% (51.0 to 100.0) |" in words


# ---- the program


@pytest.fixture
def call(program):
    """A call of the program: (task, arguments...) -> (exit code, stdout, stderr)."""
    small = ("--text", ROOT / "tutorials" / "text.txt", "--lengths", "0.78,1.17", "--depths",
             "0,0.9", "--trials", 2, "--threads", 1)  # fmt: skip
    return lambda task, *more: program(main, task, *small, *more)


def test_cells_of_the_program(call):
    """A control that is left out when nobody looks, or a cell without its interval."""
    cells = json.loads(call("passkey", "--n-local", 128, "--json")[1])["results"]["cells"]
    assert len(cells) == 2 + 4 * 2 * 3
    for cell in cells:
        low, high = cell["interval"]
        assert low <= cell["accuracy"] <= high and cell["trials"] == 2
    assert sum(cell["depth"] == ABSENT for cell in cells) == 4 * 2
    assert {cell["accuracy"] for cell in cells if cell["length"] == 256} == {1.0}
    far = {c["method"]: c["accuracy"] for c in cells if (c["length"], c["depth"]) == (300, 0.0)}
    assert far["lambda"] == 0 and far["topk"] > 0, "what the method promises"


def test_tables_sweeps_and_a_heatmap(call, tmp_path):
    """A table without its columns, a swept value that never reaches the model, a picture that
    is none, or a run that prints its progress among them."""
    pytest.importorskip("matplotlib")
    path, line = tmp_path / "map.png", ["--depths", "0", "--trials", 1, "--lengths", "0.78"]
    line += ["--methods", "lambda,topk", "--n-local", 128, "--n-global", 30]
    line += ["--sweep", "k=1,4", "distance=0,64", "from-layer=0,3"]
    code, out, err = call("passkey", *line, "--heatmap", path, "--json")
    assert code == 0 and "tokens/s" in err
    content, found = path.read_bytes(), json.loads(out)
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and content[-8:-4] == b"IEND"
    used = {n: m["lm_infinite"] for n, m in found["settings"]["methods"].items()}
    assert used["topk"]["top_k"] == 5 and used["lambda"]["top_k"] == 0
    words = retrieval.words(found)
    assert "| length | vanilla | LM-Infinite | LM-Infinite + top-k |" in words
    for name, setting, values in (
        ("k", "top_k", (1, 4)), ("distance", "top_k_distance", (0, 64)),
        ("from-layer", "top_k_from_layer", (0, 3)),
    ):  # fmt: skip
        for value in values:
            expected = used["topk"] | {setting: value}
            assert used[f"{name}={value}"] == expected and f"\n| {value} | " in words
        assert f"LM-Infinite + top-k by {name}:\n\n| {name} | 200 |" in words

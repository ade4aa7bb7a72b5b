"""evaluate needles: RULER's tasks by their definitions, its score, and a run that resumes."""

import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, error
from test_needles import SENTENCES

from minilm_inf import LMInfinite, generate
from minilm_inf.evaluate import ruler
from minilm_inf.evaluate.__main__ import main
from minilm_inf.evaluate.methods import Method, Truncated
from minilm_inf.evaluate.retrieval import Cell
from minilm_inf.train.practice import Practice

WORDS = [f"{x}{y}{z}" for x in ("sea", "man") for y in "bdfghklmnprstw" for z in ("er", "ing")]


@pytest.fixture(scope="module")
def practice(tokenizer):
    text = tokenizer.encode(" ".join(SENTENCES * 4), bos=False)
    return Practice(tokenizer, np.array(text))


@pytest.mark.parametrize("length", [1024, 4200])
@pytest.mark.parametrize("task", ruler.TASKS)
def test_a_prompt_is_as_defined(task, length, practice, tokenizer):
    """Catches a prompt of another length, an answer that the text does not give or gives twice,
    a chain that is broken or out of order, and words that stand as often as the answer's."""
    _, parts, new, has_example = ruler.TASKS[task]
    prompts, slack = set(), 120 if task in ("common", "frequent") else 0
    for number in (0, 0, 1):
        ids, answer = ruler.trial(practice, WORDS, Cell("", length, task), number)
        assert length - new - slack <= len(ids) <= length - new
        assert len(answer) == len(set(answer)) == parts
        text = tokenizer.decode(ids)
        prompts.add(text)
        example, _, text = text.rpartition(".\n") if has_example else ("", "", text)
        body, _, end = text.rpartition("\n")
        if task == "variables":
            chain = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", body)
            assert chain == list(zip(answer, [re.search(r"\d{5}", end)[0], *answer]))
            assert example.count(" = ") == 5 and not any(name in example for name in answer)
        elif slack:
            often = Counter(re.findall(r"[a-z]+", body)).most_common()
            assert {word for word, _ in often[:parts]} == set(answer)
            counts = [count for _, count in often]
            right = (6, 1) if length < 4096 else (30, 3)
            assert (
                task == "frequent" or (counts[9], counts[10], counts[-1]) == right + right[1:]
            )
            assert task == "common" or body.count("...") > counts[0] > counts[1] > counts[2]
        else:
            told = re.findall(r"numbers of ([a-z-]+) is (\d{7})\.", body)
            of = re.search(r"numbers of ([a-z, -]+) are$", end)[1].split(", ")
            assert sorted(n for name, n in told if name in of) == sorted(answer)
            counts = len({name for name, _ in told}), len(told), len(of)
            right = {"single": (1, 1, 1), "multikey": (4, 4, 1), "multivalue": (1, 4, 1)}
            assert counts == right.get(task, (4, 4, 4))
    assert len(prompts) == 2


def test_a_score_is_the_share_of_what_was_written(monkeypatch, shipped):
    """Catches an answer that counts as a whole or not at all, letters of another case, and a
    cut prompt that leaves no room for its answer."""
    cells = [Cell(name, 400, "multivalue") for name in ("lambda", "truncate")]
    methods = {
        "lambda": Method("", LMInfinite(64, 4, 64)),
        "truncate": Truncated("", None, 256),
    }
    trial, read = ([1, *range(5, 276)], ["One", "two", "3", "four"]), []

    def written(session, turns, ids, new):
        read.append((session.lm, ids, new))
        return SimpleNamespace(text=["nil", "tWo, 33 and onE"][len(read) % 2])

    monkeypatch.setattr(ruler, "written", written)
    run = ruler.Run(None, shipped[0], methods, cells, lambda *_: trial, None, 2)
    while run.done < run.total:
        run.step()
    assert [cell["accuracy"] for cell in ruler.result(run)["results"]["cells"]] == [0.375] * 2
    assert read[:2] == [(LMInfinite(64, 4, 64), trial[0], 128)] * 2
    assert read[2:] == [(None, [1, *trial[0][-127:]], 128)] * 2, "256 with what is written"


def test_a_run_is_generate(program, shipped, monkeypatch):
    """Catches tokens that another sight would write, and a mistake that is told late."""
    small = ("--text", ROOT / "tutorials" / "text.txt", "--lengths", 1.5, "--trials", 2,
             "--tasks", "variables", "--methods", "lambda,topk", "--threads", 1)  # fmt: skip
    runs, prepared = [], ruler.prepared
    monkeypatch.setattr(ruler, "prepared", lambda *a: runs.append(prepared(*a)) or runs[-1])
    assert program(main, "needles", *small)[0] == 0
    [run], [model, tokenizer] = runs, shipped
    for cell, found in zip(run.cells, run.right):
        ids, answer = run.trial_of(cell, 1)
        new = list(generate(model, ids, run.methods[cell.method].lm, 30, 0.0))
        text = tokenizer.decode(ids + new)[len(tokenizer.decode(ids)) :]
        assert found[1] == sum(name in text for name in answer)
    call = lambda *more: program(main, "needles", *small, *more)  # noqa: E731
    assert "384 tokens have no room for common" in error(call, "--tasks", "common")
    assert call("--tasks", "singel")[0] == 2
    monkeypatch.setattr(ruler, "FEWEST", 10**4)
    assert "too few different words" in error(call)

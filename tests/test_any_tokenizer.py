"""What is measured with tokenizers of every kind: with BOS and EOS, and without."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_llama

from minilm_inf.checkpoint import save
from minilm_inf.diagnose import __main__ as diagnose
from minilm_inf.evaluate import __main__ as evaluate
from minilm_inf.evaluate.documents import encoded
from minilm_inf.evaluate.methods import Truncated
from minilm_inf.evaluate.trials import ABSENT, Pairs, PassKey
from minilm_inf.text.tokenizer import load, opening
from minilm_inf.train.practice import Practice

TEXT = (ROOT / "tutorials" / "text.txt").read_text(encoding="utf-8")[:12000]
BOS = {  # kind of tokenizer -> what it puts before a text
    "pieces": [1], "no eos": [0], "around": [0], "no bos": [], "two files": [],
}  # fmt: skip


@pytest.fixture(scope="module", params=BOS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    """A random model of 2 layers with a tokenizer of that kind."""
    folder, weights = tmp_path_factory.mktemp("model"), ROOT / "weights"
    save(tiny_llama(vocab_size=2048, context_length=256, dtype=torch.float32), folder)
    if kind == "pieces":
        shutil.copy(weights / "tiny-llama" / "tokenizer.model", folder)
    elif kind == "two files":
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(ROOT / "tests" / "fixtures" / "tokenizers" / name, folder)
    else:
        raw = json.loads((weights / "tiny-gptj" / "tokenizer.json").read_text("utf-8"))
        single = raw["post_processor"]["single"]
        single += single[:1] if kind == "around" else []
        raw["post_processor"] = None if kind == "no bos" else raw["post_processor"]
        (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
        if kind not in ("no eos", "no bos"):
            shutil.copy(weights / "tiny-gptj" / "tokenizer_config.json", folder)
    return folder


@pytest.fixture(scope="module")
def known(folder):
    return load(folder)


def test_a_text_begins_as_its_tokenizer_says(known, kind):
    """A BOS of another tokenizer, a first token taken for one, or an EOS amid a text."""
    assert opening(known) == BOS[kind]
    plain = known.encode(TEXT, bos=False)
    ids = encoded({"a": TEXT}, known, 300)["a"]
    assert ids == (BOS[kind] + plain)[:301]


def test_windows_and_trials_are_text_from_end_to_end(known, kind):
    """A window without its BOS, or one that has lost a token where there is none."""
    text, begin = np.array(known.encode(TEXT, bos=False)), BOS[kind]
    practice, rng = Practice(known, text), np.random.default_rng(0)
    rows = [practice.ordinary(rng, 257), practice.repeats(rng, 257)]
    rows += [practice.retrieval(rng, 257, 1.0), practice.hidden(rng, 257, ["It is 7."], "So?")]
    for maker in (PassKey(practice, known), Pairs(practice, known)):
        for trial in (maker.trial(257, 0.3, [1]), maker.trial(257, ABSENT, [1])):
            question = known.decode(trial.ids).rpartition("What is ")[2]
            assert re.fullmatch(r"the .*\? The .* is \d+", question)
            rows.append(trial.ids)
    for row in rows:
        assert len(row) == 257 and row[: len(begin)] == begin
        assert all(known.bytes_of(id) for id in row[len(begin) :])


def test_truncation_without_bos_reads_the_last_tokens():
    """A text's first token that stands before every window, far from where it was."""
    rows = torch.arange(9)[None]
    assert Truncated("", None, 6, 0).rows(rows).tolist() == [[3, 4, 5, 6, 7, 8]]
    assert Truncated("", None, 6, 1).rows(rows).tolist() == [[0, 4, 5, 6, 7, 8]]
    assert Truncated("", None, 9, 1).rows(rows).tolist() == rows.tolist()


@pytest.mark.parametrize("kind", ["no bos"], indirect=True)
def test_what_measures_runs(program, kind, folder, tmp_path, monkeypatch):
    """A program that adds None to a number where nothing stands before a text; pass keys that
    end it after minutes of reading, and take its table along."""
    monkeypatch.setattr("minilm_inf.terminal.options.can_draw", lambda: False)
    text, out = tmp_path / "text.txt", tmp_path / "run.json"
    text.write_text(TEXT, encoding="utf-8")
    run = ["-m", folder, "--text", text]
    for task in ("passkey", "recall"):
        few = ["--lengths", "1,2", "--depths", "0,1", "--trials", 1]
        code, said, err = program(evaluate.main, task, *run, *few, "--out", out)
        assert code == 0 and "| length |" in said, err
        cells = json.loads(out.read_text())["results"]["cells"]
        assert [c["trials"] for c in cells] == [1] * (2 + 4 * 6 - 2)
    more = ["--length", 1100, "--methods", "full,truncate,topk", "--n-local", 60, "--trials", 1]
    code, said, err = program(evaluate.main, "compare", *run, *more)
    assert code == 0 and "| passkey, middle |" in said
    more = ["--length", 400, "--out", tmp_path / "d"]
    code, said, err = program(diagnose.main, *run, *more)
    assert code == 0 and said.startswith("factor 1, "), err

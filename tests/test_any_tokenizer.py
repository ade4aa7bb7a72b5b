"""What is measured with tokenizers of every kind: with BOS and EOS, and without."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_llama
from tokenizer_json import folder_of

from minilm_inf.checkpoint import save
from minilm_inf.diagnose import __main__ as diagnose
from minilm_inf.evaluate import __main__ as evaluate
from minilm_inf.evaluate.documents import encoded
from minilm_inf.evaluate.methods import Truncated
from minilm_inf.evaluate.trials import ABSENT, Pairs, PassKey
from minilm_inf.text.tokenizer import load, opening
from minilm_inf.train.practice import Practice

TEXT = (ROOT / "tutorials" / "text.txt").read_text(encoding="utf-8")[:12000]
BOS = {"pieces": [1], "around": [0], "no bos": []}  # kind of tokenizer -> before a text


@pytest.fixture(params=BOS)
def folder(request, tmp_path):
    """A folder with a tokenizer of the kind that is its name: of sentencepiece, with BOS and
    EOS around every text, or with neither."""
    folder, weights = tmp_path / request.param, ROOT / "weights"
    folder.mkdir()
    if folder.name == "pieces":
        shutil.copy(weights / "tiny-llama" / "tokenizer.model", folder)
        return folder
    raw = json.loads((weights / "tiny-gptj" / "tokenizer.json").read_text("utf-8"))
    if folder.name == "no bos":
        return folder_of(folder, tokenizer=raw | {"post_processor": None})
    single = raw["post_processor"]["single"]
    single.append(single[0])
    return folder_of(folder, tokenizer=raw, tokenizer_config={"eos_token": "<|endoftext|>"})


def test_windows_and_trials_are_text_from_end_to_end(folder):
    """A window without its BOS, or with another's, or one that has lost a token where there is
    none; an EOS amid a text."""
    known, begin = load(folder), BOS[folder.name]
    text, rng = np.array(known.encode(TEXT, bos=False)), np.random.default_rng(0)
    assert opening(known) == begin
    assert encoded({"a": TEXT}, known, 300)["a"] == [*begin, *text][:301]
    practice = Practice(known, text)
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


def test_re_encoding_without_bos_reads_the_last_tokens():
    """A text's first token that stands before every window, far from where it was."""
    rows = torch.arange(9)[None]
    every = [*range(9)]
    for width, n_bos, read in ((6, 0, every[3:]), (6, 1, [0, *every[4:]]), (9, 1, every)):
        assert Truncated("", None, width, n_bos).rows(rows).tolist() == [read]


@pytest.mark.parametrize("folder", ["no bos"], indirect=True)
def test_what_measures_runs(program, folder, tmp_path, monkeypatch):
    """A program that adds None to a number where nothing stands before a text; pass keys that
    end it after minutes of reading, and take its table along."""
    monkeypatch.setattr("minilm_inf.terminal.options.can_draw", lambda: False)
    save(tiny_llama(vocab_size=2048, context_length=256, dtype=torch.float32), folder)
    text, out = tmp_path / "text.txt", tmp_path / "run.json"
    text.write_text(TEXT, encoding="utf-8")
    run = ["-m", folder, "--text", text, "--trials", 1]
    for task in ("passkey", "recall"):
        few = ["--lengths", "1,2", "--depths", "0,1"]
        code, said, err = program(evaluate.main, task, *run, *few, "--out", out)
        assert code == 0 and "| length |" in said, err
        cells = json.loads(out.read_text())["results"]["cells"]
        assert [c["trials"] for c in cells] == [1] * (2 + 4 * 6 - 2)
    more = ["--length", 1100, "--methods", "full,truncate,topk", "--n-local", 60]
    code, said, err = program(evaluate.main, "compare", *run, *more)
    assert code == 0 and "| passkey, middle |" in said
    few = ["-m", folder, "--text", text, "--length", 400, "--out", tmp_path / "d"]
    code, said, err = program(diagnose.main, *few)
    assert code == 0 and said.startswith("factor 1, "), err

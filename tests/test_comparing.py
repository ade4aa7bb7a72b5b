"""The methods that are compared: what each computes, sees and keeps, and what is said of it."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import FAMILIES, ROOT, interrupt_at, some_tokens, tiny_llama, tiny_model
from test_compare import reencoded, streamed
from test_streaming_llm import SlowCache

from minilm_inf import LMInfinite
from minilm_inf.evaluate import comparison, table
from minilm_inf.evaluate.__main__ import main
from minilm_inf.evaluate.comparison import Run, sweep_of
from minilm_inf.evaluate.intervals import interval
from minilm_inf.evaluate.methods import LABELS, answers, methods

BUDGET = LMInfinite(5, 2, 5, top_k=2, top_k_queries="all")  # 7 keys
ALL = list(LABELS)


def chosen(model, names=ALL, lm=BUDGET) -> dict:
    return methods(names, lm, model.config)


def settings_of(name: str) -> LMInfinite | None:
    """The specification of the methods that are a setting, number by number."""
    return {
        "full": None,
        "window": LMInfinite(n_local=7, n_global=0),
        "no-ceiling": LMInfinite(n_local=5, n_global=2),
        "no-lambda": LMInfinite(n_local=None, n_global=0, distance_ceiling=5),
        "lambda": LMInfinite(n_local=5, n_global=2, distance_ceiling=5),
        "topk": LMInfinite(
            n_local=3, n_global=2, distance_ceiling=3, top_k=2, top_k_distance=1,
            top_k_queries="all",
        ),
    }[name]  # fmt: skip


def slow_logits(model, ids: list[int]) -> list[torch.Tensor]:
    """What StreamingLLM makes of each id, token by token."""
    cache = SlowCache(model, n_local=5, n_global=2)
    return [model.head(cache.read_one(id)) for id in ids]


def slowly(model, name: str, ids: list[int]) -> list[float]:
    """The specification of each method's nll, token by token."""
    if name == "truncate":
        return reencoded(model, ids, 7)
    if name == "streaming":
        logits = slow_logits(model, ids[:-1])
        return [-float(x.log_softmax(-1)[id]) for x, id in zip(logits, ids[1:])]
    return streamed(model, ids, settings_of(name))


DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_method_is_what_it_says(family, name):
    """A method under another's name, or with another window, ceiling or middle; a mask, a
    position or a kept key that stays in the CPU's memory."""
    model = tiny_model(family, context_length=8)
    ids = some_tokens(26)[0].tolist()
    expected = slowly(model, name, ids)
    for device in DEVICES:
        for chunk in (4, 25):
            found = chosen(model)[name].nll(model.to(device), ids, chunk)
            assert found.tolist() == pytest.approx(expected, abs=1e-5), chunk


def test_a_ceiling_of_ones_own():
    """A ceiling that moves one method only; a truncated text beyond the trained length."""
    found = chosen(tiny_llama(context_length=4), lm=LMInfinite(9, 2, 4, top_k=2))
    ceilings = {name: m.lm.distance_ceiling for name, m in found.items() if m.lm}
    assert [name for name, ceiling in ceilings.items() if ceiling == 4] == [
        "no-lambda", "lambda", "topk",
    ]  # fmt: skip
    assert found["truncate"].length == 4


@pytest.mark.parametrize("name", ["truncate", "streaming", "no-lambda"])
def test_an_answer_is_what_is_likeliest(name):
    """An answer that is read by another method than the text, or begins one token late; what
    the others write is held to generate in test_retrieval."""
    model, ids = tiny_llama(context_length=8), some_tokens(13)[0].tolist()
    row, width = list(ids), 3
    for _ in range(width):
        if name == "truncate":  # the answer is among the last tokens
            context = [row[0], *ids[-6 + width :], *row[13:]]
            logits = model(torch.tensor([context]))[0, -1]
        elif name == "streaming":
            logits = slow_logits(model, row)[-1]
        else:
            logits = model(torch.tensor([row]), settings_of(name), path="reference")[0, -1]
        row.append(int(logits.argmax()))
    rows = torch.tensor([row] * (width + 1))
    for wrong in range(width):
        rows[wrong, 13 + wrong] = (rows[wrong, 13 + wrong] + 1) % 31
    for device in DEVICES:
        found = answers(model.to(device), chosen(model)[name], rows.to(device), width, 6)
        assert found == [0, 1, 2, 3]


# ---- what is measured and said of them


def made_up(nll: dict, lm=BUDGET, **facts) -> dict:
    """A result of `evaluate compare`, of what was found of some methods, (documents, n)."""
    model, (count, n) = tiny_llama(context_length=8, **facts), next(iter(nll.values())).shape
    documents = {str(k): [0] * (n + 1) for k in range(count)}
    run = Run(model, chosen(model, list(nll), lm), documents)
    for name, found in nll.items():
        run.of(name)[:] = found
    told = {"model": "tiny", "documents": list(documents), "length": n, "context_length": 8}
    return {"settings": told, **comparison.result(run)}


def test_means_and_intervals_are_over_documents():
    """A mean over tokens of one document, or an interval over tokens, which are many and alike;
    two intervals that overlap, where one method loses on every single document; a mean over
    nothing beyond the trained length, which is nan."""
    rng = np.random.default_rng(0)
    hard = np.linspace(1, 9, 6)[:, None] + rng.normal(0, 1, (6, 30))
    nll = {"full": hard + 0.25, "lambda": hard}
    full, ours = made_up(nll)["results"]["methods"]
    for entry in (full, ours):
        x = nll[entry["name"]]
        ranges = [(row["first"], row["last"]) for row in entry["nll"]]
        assert ranges == [(0, 8), (8, 16), (16, 30)]
        for number, row in enumerate(entry["nll"]):
            means = x[:, row["first"] : row["last"]].mean(1)
            assert row["nll"] == pytest.approx(means.mean())
            assert row["interval"] == interval(means, np.ones(6), [0, number])
        assert entry["beyond"]["nll"] == pytest.approx(x[:, 8:].mean())
    assert full["beyond"]["interval"][0] < ours["beyond"]["interval"][1]
    assert full["beyond_less_lm_infinite"]["interval"] == pytest.approx([0.25, 0.25])
    assert ours["beyond_less_lm_infinite"] is None
    (alone,) = made_up({"full": hard[:1]})["results"]["methods"]
    assert alone["beyond"]["interval"] is None and alone["beyond_less_lm_infinite"] is None
    (short,) = made_up({"full": hard[:, :8]})["results"]["methods"]
    assert short["beyond"] is None and [row["last"] for row in short["nll"]] == [8]


def test_the_table_shows_the_numbers():
    """A cell under another column's name; a difference of the wrong sign; -0.00."""
    assert table.mean({"nll": 3.1449, "interval": None}) == "3.14", "rounded once"
    zero = {"nll": -0.0001, "interval": [-0.0004, 0.25]}
    assert table.difference(zero) == "+0.000 (+0.000 to +0.250)"
    same = np.random.default_rng(0).normal(3, 0.3, (3, 30))
    result = made_up({"full": same + 1.5, "lambda": same})
    found = result["results"]["methods"]
    found[1]["passkey"] = {"accuracy": 0.5, "interval": [0.25, 0.75]}
    lines = table.methods_table(result).splitlines()
    head, _, full, ours = ([x.strip() for x in line.split("|")[1:-1]] for line in lines)
    assert head == ["method", "0 to 8", "8 to 16", "16 to 30", "beyond, minus LM-Infinite",
                    "cache", "passkey, middle"]  # fmt: skip
    assert full[:4] == ["vanilla", *(table.mean(row) for row in found[0]["nll"])]
    assert full[4:] == ["+1.500 (+1.500 to +1.500)", f"{30 * 0.512:.2f} kB", "-"]
    assert ours[4:] == ["-", f"{7 * 0.512:.2f} kB", "50.0% (25.0 to 75.0)"]


def test_cache_bytes_are_those_of_a_cache():
    """A cache that is told smaller than what is kept, or as large as what was read."""
    n, model = 40, tiny_llama(n_layer=9, context_length=8)
    of_a_key = 2 * model.config.n_kv_head * model.config.head_dim * 8
    result = made_up({name: np.zeros((1, n)) for name in ALL}, n_layer=9)
    for entry in result["results"]["methods"]:
        name, keys = entry["name"], entry["cache_bytes"] / of_a_key
        all_keys = {"truncate": 0} | dict.fromkeys(("full", "no-lambda", "topk"), 9 * n)
        assert keys == all_keys.get(name, 9 * 7)
        if name not in ("truncate", "streaming"):
            method = chosen(model)[name]
            cache = model.new_cache(1, method.lm)
            model.read(some_tokens(n), method.lm, cache)
            assert cache.nbytes >= entry["cache_bytes"], name


def test_a_sweep_changes_one_thing_at_a_time():
    """A value that is swept and not used, or a ceiling that stays where it was."""
    swept = {name: method.lm for name, method in sweep_of(LMInfinite(6, 2, 6), 8).items()}
    assert swept.pop("lambda") == LMInfinite(6, 2, 6)
    assert swept == {
        **{f"n_global={n}": LMInfinite(6, n, 6) for n in (0, 1, 2, 4, 10, 32, 100)},
        **{f"n_local={n}": LMInfinite(n, 2, n) for n in (2, 4, 6, 8)},
    }


# ---- the program


@pytest.fixture
def call(program):
    """A call of the program: arguments -> (exit code, stdout, stderr)."""
    return partial(program, main, "compare")


def test_one_run_one_table(call, texts, tmp_path):
    """A program that prints another number than it measured, or writes another file; a picture
    that needs all methods, intervals, or a text beyond the trained length."""
    pytest.importorskip("matplotlib")
    for n in (30, 8):
        alone = made_up({"full": np.ones((1, n))})
        assert comparison.picture(alone).startswith(b"\x89PNG\r\n")
    out_file, path = tmp_path / "new" / "run.json", tmp_path / "new" / "methods.png"
    flags = ["--text", texts / "a", texts / "b", "--length", 270, "--out", out_file]
    code, out, err = call(*flags, "--trials", 0, "--figure", path)
    assert code == 0 and "4,320/4,320 tokens" in err
    result = json.loads(out_file.read_text())
    assert "\n".join(out.split("\n")[:10]) == table.methods_table(result)
    assert [entry["name"] for entry in result["results"]["methods"]] == ALL
    told = result["settings"]
    assert told["budget"] == 256 and told["lm_infinite"]["n_local"] == 246
    assert told["length"] == 270 and len(told["documents"]) == 2
    inside = [entry["nll"][0]["nll"] for entry in result["results"]["methods"]]
    assert max(inside) - min(inside) < 0.02
    assert sorted(p.name for p in out_file.parent.iterdir()) == ["methods.png", "run.json"]


def test_the_settings_reach_the_methods(program, texts, monkeypatch):
    """A flag that is parsed and then dropped."""
    runs, result = [], comparison.result
    monkeypatch.setattr(comparison, "result", lambda run: runs.append(run) or result(run))
    flags = "--length 60 --trials 0 --methods lambda,topk --n-local 20 --n-global 3 --chunk 11 "
    flags += "--distance-ceiling 7 --top-k-middle 2 --top-k-distance 1 --top-k-from-layer 3"
    assert program(main, "compare", "--text", texts / "a", *flags.split())[0] == 0
    [run], topk = runs, LMInfinite(18, 3, 7, 2, 1, 3, "all")
    found = {name: method.lm for name, method in run.methods.items()}
    assert found == {"lambda": replace(topk, n_local=20, top_k=0), "topk": topk}
    assert run.chunk == 11


def test_pass_keys_and_the_sweep_come_with_the_run(call, tmp_path, monkeypatch):
    """A key in the window, which all methods find; a sweep of other documents, or one that
    nobody sees; a run that is stopped between all of them, and ends with other numbers."""
    path, out_file = tmp_path / "long", tmp_path / "run.json"
    path.write_text("The ship went on. They looked at the sea, for it was late. " * 200)
    arguments = ["-m", ROOT / "weights" / "nano-llama", "--text", path, "--length", 1026,
                 "--methods", "lambda,topk", "--threads", 1, "--trials", 1, "--sweep",
                 "--out"]  # fmt: skip
    code, whole, err = call(*arguments, tmp_path / "whole.json")
    assert code == 0 and "passkey, middle |" in whole and "tokens/s" in err
    assert "Pass keys: 1, in 1,024 tokens." in whole
    assert "| setting | beyond 256 |" in whole and "\n| n_local 64 | " in whole
    arguments += [out_file]
    for step in (3, 11):
        with monkeypatch.context() as patched:
            interrupt_at(patched, Run, step)
            assert call(*arguments)[0] == 130
        arguments = ["--resume", out_file]
    code, out, _ = call(*arguments)
    assert code == 0 and out_file.read_bytes() == (tmp_path / "whole.json").read_bytes()
    found = {e["name"]: e for e in json.loads(out_file.read_bytes())["results"]["methods"]}
    assert found["lambda"]["passkey"]["accuracy"] == 0 and found["topk"]["passkey"]
    assert found["n_global=10"]["beyond"]["nll"] == found["lambda"]["beyond"]["nll"]
    assert found["n_global=10"]["beyond_less_lm_infinite"]["nll"] == 0

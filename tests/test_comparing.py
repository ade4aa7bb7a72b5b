"""The methods that are compared: what each computes, sees and keeps, and what is said of it."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from conftest import FAMILIES, some_tokens, tiny_llama, tiny_model
from test_compare import nll_after, reencoded
from test_streaming_llm import SlowCache

from minilm_inf import LMInfinite
from minilm_inf.evaluate import figure, table
from minilm_inf.evaluate.__main__ import main
from minilm_inf.evaluate.compare import stream_nll
from minilm_inf.evaluate.comparison import accuracy, pass_keys
from minilm_inf.evaluate.intervals import interval
from minilm_inf.evaluate.measure import (
    Measured,
    by_position,
    cache_bytes,
    curve_edges,
    measure,
    result_of,
    sweep,
)
from minilm_inf.evaluate.methods import LABELS, Method, answers, methods

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
    lm = settings_of(name)
    return [nll_after(model, ids[: i + 1], ids[i + 1], lm) for i in range(len(ids) - 1)]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_method_is_what_it_says(family, name):
    """A method under another's name, or with another window, ceiling or middle."""
    model = tiny_model(family, context_length=8)
    ids = some_tokens(26)[0].tolist()
    expected = slowly(model, name, ids)
    for chunk in (4, 25):
        pieces = list(chosen(model)[name].pieces(model, ids, chunk))
        assert torch.cat(pieces).tolist() == pytest.approx(expected, abs=1e-5), chunk
        assert len(pieces) > 2 or chunk == 25


def test_what_a_method_says_it_sees():
    """A table that tells of another setting than the one that was read; a ceiling that
    moves one method only."""
    sees = {name: m.sees for name, m in chosen(tiny_llama(context_length=8)).items()}
    assert sees == {
        "full": "all", "truncate": "last 5 to 7, read again", "window": "last 7",
        "no-ceiling": "last 5, first 2", "no-lambda": "all", "streaming": "last 5, first 2",
        "lambda": "last 5, first 2", "topk": "last 3, first 2, 2 of the middle",
    }  # fmt: skip
    short = chosen(tiny_llama(context_length=4), ["truncate"])["truncate"]
    assert short.sees == "last 3 to 4, read again", "never more than the trained length"
    found = chosen(tiny_llama(), lm=LMInfinite(9, 2, 4, top_k=2))
    assert found["lambda"].lm == LMInfinite(9, 2, 4)
    assert found["no-lambda"].lm == LMInfinite(None, 0, 4)
    assert found["topk"].lm.distance_ceiling == 4 and found["topk"].lm.n_local == 7
    assert (
        found["window"].lm.distance_ceiling is found["no-ceiling"].lm.distance_ceiling is None
    )


@pytest.mark.parametrize(
    "lm, name, words",
    [(LMInfinite(5, 2, 5, top_k=5), "topk", "smaller --top-k-middle"),
     (LMInfinite(1, 0, 1), "truncate", "two keys")],
)  # fmt: skip
def test_too_few_keys(lm, name, words):
    """A window of no keys, or a context that cannot move on."""
    with pytest.raises(ValueError, match=words):
        chosen(tiny_llama(), [name], lm)


@pytest.mark.parametrize("name", ["truncate", "streaming", "no-lambda"])
def test_an_answer_is_what_is_likeliest(name):
    """An answer that is read by another method than the text, or begins one token late; what
    the others write is held to generate in test_retrieval."""
    model, ids = tiny_llama(context_length=8), some_tokens(21)[0].tolist()
    row, width = list(ids), 4
    for _ in range(width):
        if name == "truncate":  # the answer is among the last tokens
            context = [row[0], *ids[-6 + width :], *row[21:]]
            logits = model(torch.tensor([context]))[0, -1]
        elif name == "streaming":
            logits = slow_logits(model, row)[-1]
        else:
            logits = model(torch.tensor([row]), settings_of(name), path="reference")[0, -1]
        row.append(int(logits.argmax()))
    method = chosen(model)[name]
    assert answers(model, method, torch.tensor([row]), width, 6) == [width]
    for wrong in range(width):
        other = list(row)
        other[21 + wrong] = (other[21 + wrong] + 1) % 31
        assert answers(model, method, torch.tensor([other]), width, 6) == [wrong]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_reads_the_same(family, name):
    """A mask, a position or a kept key that stays in the CPU's memory."""
    model, ids = tiny_model(family, context_length=8), some_tokens(26)
    method = chosen(model)[name]
    right = torch.cat(list(method.pieces(model, ids[0].tolist(), 6)))
    found = answers(model, method, ids, 4, 6)
    model = model.to("cuda")
    assert (
        torch.cat(list(method.pieces(model, ids[0].tolist(), 6))) - right
    ).abs().max() < 1e-5
    assert answers(model, method, ids.to("cuda"), 4, 6) == found


# ---- what is measured of them


def test_the_second_half_of_each_text_is_timed():
    """A median of the first chunk, which warms up, and is cheap where attention grows."""
    model = tiny_llama(n_layer=1, context_length=8)
    documents = {str(s): some_tokens(97, seed=s)[0].tolist() for s in range(2)}
    for nll, seconds in measure(
        model, chosen(model, ["full", "lambda"]), documents, 8
    ).values():
        assert nll.shape == (2, 96) and len(seconds) == 2 * 6 and min(seconds) > 0


def test_means_and_intervals_are_over_documents():
    """A mean over tokens of one document, or an interval over tokens, which are many and alike;
    two intervals that overlap, where one method loses on every single document; a mean over
    nothing beyond the trained length, which is nan."""
    model = tiny_llama(context_length=8)
    easy_and_hard = np.linspace(1, 9, 6)[:, None] + np.random.default_rng(0).normal(
        0, 1, (6, 30)
    )
    nll = {"full": easy_and_hard + 0.25, "lambda": easy_and_hard}

    def entries(nll: dict) -> list[dict]:
        measured = {name: Measured(x, [3.0, 1.0, 2.0]) for name, x in nll.items()}
        return result_of(chosen(model, list(nll)), measured, model.config, 8)

    for entry in entries(nll):
        x = nll[entry["name"]]
        ranges = [(row["first"], row["last"]) for row in entry["nll"]]
        assert ranges == [(0, 8), (8, 16), (16, 30)]
        for number, row in enumerate(entry["nll"]):
            means = x[:, row["first"] : row["last"]].mean(1)
            assert row["nll"] == pytest.approx(means.mean())
            assert row["interval"] == interval(means, np.ones(6), [0, number])
        assert entry["beyond"]["nll"] == pytest.approx(x[:, 8:].mean())
        assert entry["seconds_per_token"] == 2.0 and entry["timed_chunks"] == 3
        edges = [row["first"] for row in entry["curve"]] + [entry["curve"][-1]["last"]]
        assert edges == curve_edges(8, 30) == sorted({0, 30, *edges})
    full, ours = entries(nll)
    assert full["beyond"]["interval"][0] < ours["beyond"]["interval"][1]
    assert full["beyond_less_lm_infinite"]["interval"] == pytest.approx([0.25, 0.25])
    assert all(row["nll"] == pytest.approx(0.25) for row in full["curve_less_lm_infinite"])
    assert ours["beyond_less_lm_infinite"] is None
    (alone,) = entries({"full": easy_and_hard[:1]})
    assert alone["beyond"]["interval"] is None and alone["beyond_less_lm_infinite"] is None
    for entry in entries({name: x[:, :8] for name, x in nll.items()}):
        assert entry["beyond"] is entry["beyond_less_lm_infinite"] is None
        assert [row["last"] for row in entry["nll"]] == [8]


def test_cache_bytes_are_those_of_a_cache():
    """A cache that is told smaller than what is kept, or as large as what was read."""
    model, n = tiny_llama(n_layer=9, context_length=8), 40
    of_a_key = 2 * model.config.n_kv_head * model.config.head_dim * 8
    found = {
        name: cache_bytes(method, n, model.config, 8) / of_a_key
        for name, method in chosen(model).items()
    }
    assert found == {
        "full": 9 * n, "truncate": 0, "window": 9 * 7, "no-ceiling": 9 * 7, "no-lambda": 9 * n,
        "streaming": 9 * 7, "lambda": 9 * 7, "topk": 9 * n,
    }  # fmt: skip
    for name in ("full", "window", "no-ceiling", "no-lambda", "lambda", "topk"):
        method = chosen(model)[name]
        cache = model.new_cache(1, method.lm)
        model.read(some_tokens(n), method.lm, cache)
        assert cache.nbytes >= found[name] * of_a_key, name


LONG = "The ship went on. The men looked at the sea, for it was late. Nobody spoke. " * 200


def test_pass_keys_lie_in_the_middle(tokenizer):
    """A key in the window, which all methods find; the same key in every trial; four digits of
    five that count as an answer."""
    model, lm = tiny_llama(vocab_size=2048, context_length=96), LMInfinite(86, 10, 86)
    documents = {"a": tokenizer.encode(LONG)}
    asked, inside = pass_keys(tokenizer, documents, lm, model.config, 8)
    assert {len(trial.ids) for trial in asked} == {4 * 96}
    assert {len(trial.ids) for trial in inside} == {96}
    for trial in asked:
        end = len(trial.ids) - trial.width
        assert min(trial.stated) >= 10 and max(trial.stated) < end - 96
        assert [trial.ids[j] for j in trial.stated] == trial.ids[end:]
    assert len({tuple(trial.ids[-trial.width :]) for trial in asked}) == 8
    with pytest.raises(ValueError, match="take 384 tokens of text"):
        documents = {"a": tokenizer.encode("It was late. " * 9)}
        pass_keys(tokenizer, documents, lm, model.config, 2)

    logits = torch.zeros(2048)
    logits[asked[0].ids[-1]] = 1  # the model says the same digit for ever
    model.head.forward = lambda hidden: logits.expand(*hidden.shape[:-1], 2048)
    same = [trial._replace(ids=[*trial.ids[:-5], *[asked[0].ids[-1]] * n, *[7] * (5 - n)])
            for trial, n in zip(asked, (5, 4, 0, 5))]  # fmt: skip
    found = accuracy(model, Method("", None), same, 512)
    assert (found["right"], found["trials"], found["tokens"]) == (2, 4, 384)
    assert found["share"] == 0.5 and found["interval"][0] < 0.5 < found["interval"][1]


def test_the_sweep_measures_each_setting():
    """A value that is swept and not used, or a ceiling that stays where it was."""
    model = tiny_llama(context_length=8)
    documents = {name: some_tokens(41, seed=s)[0].tolist() for s, name in enumerate("ab")}
    found = sweep(model, LMInfinite(6, 2, 6), documents, 8)
    assert [row["value"] for row in found["n_global"]] == [0, 1, 2, 4, 10, 32, 100]
    assert [row["value"] for row in found["n_local"]] == [2, 4, 6, 8]

    def beyond(n_local, n_global):
        lm = LMInfinite(n_local, n_global, n_local)
        nll = [stream_nll(model, ids, lm)[8:] for ids in documents.values()]
        return float(torch.stack(nll).mean())

    for name in ("n_global", "n_local"):
        for row in found[name]:
            expected = beyond(**{"n_local": 6, "n_global": 2, name: row["value"]})
            assert row["nll"] == pytest.approx(expected, abs=1e-5)
            less = row["nll"] - beyond(6, 2)
            assert row["less_base"]["nll"] == pytest.approx(less, abs=1e-5)
            assert row["interval"][0] <= row["nll"] <= row["interval"][1]
    assert found["base"] == {"n_local": 6, "n_global": 2}


# ---- what is said of them


def made_up(names=("full", "lambda"), n_documents=3, **numbers) -> dict:
    """A result of `evaluate compare`, of random numbers; numbers: added to a method's."""
    model = tiny_llama(context_length=64)
    drawn = np.random.default_rng(0).normal(3, 0.3, (n_documents, 300))
    measured = {
        name: Measured(drawn + numbers.get(name.replace("-", "_"), 0.0), [2e-5])
        for name in names
    }
    found = chosen(model, list(names), LMInfinite(60, 4, 60, top_k=5))
    return {
        "model": "weights/tiny", "documents": [str(n) for n in range(n_documents)],
        "length": 300, "context_length": 64, "budget": 64, "settings": {"top_k": 5},
        "device": "cpu", "threads": 1,
        "methods": result_of(found, measured, model.config, 8),
    }  # fmt: skip


def test_the_table_shows_the_numbers():
    """A cell under another column's name; a difference of the wrong sign; -0.00; an empty
    column, or the passkeys of nobody."""
    row = {"nll": 3.14159, "interval": [3.0, 3.251]}
    assert table.cell(row) == "3.14 (3.00 to 3.25)"
    assert table.cell({"nll": 3.1449, "interval": None}) == "3.14", "rounded once"
    assert table.cell(None) == "-" and table.cell({"nll": None, "interval": None}) == "nan"
    zero = {"nll": -0.0001, "interval": [-0.0004, 0.25]}
    assert table.difference(zero) == "+0.000 (+0.000 to +0.250)"
    result = made_up(full=1.5)
    lines = table.methods_table(result).split("\n")
    head = "method | keys a token sees | 0 to 64 | 64 to 128 | 128 to 256 | 256 to 300"
    head += " | beyond, less LM-Infinite | time per token | cache"
    assert lines[0] == f"| {head} |" and set(lines[1]) == {"|", "-"}
    full, ours = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert len(full) == len(ours) == 9 and lines[1].count("|") == 10
    assert full[:2] == ["full attention", "all"]
    assert full[2:6] == [table.cell(row) for row in result["methods"][0]["nll"]]
    assert full[6] == "+1.500 (+1.500 to +1.500)" and ours[6] == "-"
    of_a_key = 2 * 2 * 2 * 8 * 8
    assert full[7:] == ["20 µs", f"{300 * of_a_key / 1000:.2f} kB"]
    assert ours[8] == f"{64 * of_a_key / 1000:.2f} kB"
    result["methods"][1]["passkey"] = {"share": 0.5, "interval": [0.25, 0.75]}
    lines = table.methods_table(result).split("\n")
    assert lines[0].endswith("| cache | passkey, middle |")
    assert lines[2].endswith("| - |") and lines[3].endswith("| 50% (25% to 75%) |")
    alone = table.methods_table(made_up(["full"])).split("\n")[0]
    assert "less LM-Infinite" not in alone and "passkey" not in alone


def test_the_notes_and_the_verdict_are_of_what_was_read():
    """A note on a method that is not there, or none on one that sees more than the others; a
    method that fell apart among those that did not."""
    text = table.notes(made_up())
    assert "at most 64 keys, but for full attention, which sees all." in text
    assert "Truncation" not in text and "Top-k" not in text and "3 documents" in text
    text = table.notes(made_up(["lambda", "truncate", "topk", "no-lambda", "full"]))
    assert "for ceiling without Λ and full attention, which see all." in text
    assert "Truncation" in text and "back for 5 middle keys" in text
    assert "no interval" in table.notes(made_up(n_documents=1))
    result = made_up(["full", "window", "lambda"], full=5.0, window=0.125)
    assert table.verdict(result) == (
        "From 256 to 300, within 0.3 nat of the best: sliding window (+0.12), LM-Infinite "
        "(+0.00). Further off: full attention (+5.00)."
    )
    result["methods"][0]["nll"][-1]["nll"] = None
    assert table.verdict(result).endswith("Further off: full attention (nan).")


def test_every_line_can_be_told_without_colour():
    """Two lines of one dash and one marker, which a greyscale print shows as one."""
    assert set(figure.STYLES) == set(LABELS)
    shapes = {(dashes, marker) for _, dashes, marker in figure.STYLES.values()}
    colours = {colour for colour, _, _ in figure.STYLES.values()}
    assert len(shapes) == len(colours) == len(LABELS)


@pytest.mark.parametrize("seed", range(5))
def test_names_do_not_overlap(seed):
    """Labels of lines that end together, written over each other or beyond the picture."""
    drawn = np.random.default_rng(seed)
    wanted = {str(k): float(y) for k, y in enumerate(drawn.choice([0, 0.1, 0.12, 0.9, 1.0], 8))}
    found = figure.apart(wanted, 0.05)
    heights = sorted(found.values())
    assert np.diff(heights).min() > 0.05 - 1e-9
    assert heights[0] > -1e-9 and heights[-1] < 1 + 1e-9
    order = sorted(wanted, key=wanted.get)
    assert [wanted[name] for name in sorted(found, key=found.get)] == [wanted[n] for n in order]
    alone = figure.apart({"a": 0.2, "b": 0.8}, 0.05)
    assert alone == pytest.approx({"a": 0.2, "b": 0.8})


def test_the_close_up_has_those_that_stay_near():
    """A close-up on a method that fell apart, or on LM-Infinite alone."""
    result = made_up(["full", "window", "lambda"], full=5.0, window=0.1)
    assert [e["name"] for e in figure.close_by(result["methods"])] == ["window", "lambda"]
    assert figure.close_by(made_up(full=5.0)["methods"]) == []
    assert figure.close_by(made_up(["full", "window"])["methods"]) == []
    result["methods"][1]["curve_less_lm_infinite"][-1]["nll"] = None
    assert figure.close_by(result["methods"]) == []


@pytest.mark.parametrize("names, n_documents", [(ALL, 3), (["full"], 1)])
def test_a_picture_is_drawn(names, n_documents):
    """A picture that needs all methods, or intervals."""
    pytest.importorskip("matplotlib")
    result = made_up(names, n_documents, full=5.0)
    result["methods"][0]["curve"][-1]["nll"] = None
    assert figure.png(result).startswith(b"\x89PNG\r\n")


# ---- the program


@pytest.fixture
def call(program):
    """A call of the program: arguments -> (exit code, stdout, stderr)."""
    return partial(program, main, "compare")


def test_one_run_one_table(call, texts, tmp_path, shipped):
    """A program that prints another number than it measured, or writes another file; a card
    whose command prints other numbers than its own."""
    pytest.importorskip("matplotlib")
    out_file, path = tmp_path / "new" / "run.json", tmp_path / "new" / "methods.png"
    flags = ["--text", texts / "a", texts / "b", "--length", 400, "--out", out_file]
    code, out, err = call(*flags, "--figure", path)
    assert code == 0 and "threads: 1" in err and "6,400/6,400 tokens" in err
    assert "passkey" not in out and "no pass keys: they take 1,024" in err
    result = json.loads(out_file.read_text())
    assert "\n".join(out.split("\n")[:10]) == table.methods_table(result)
    assert [entry["name"] for entry in result["methods"]] == ALL
    assert result["budget"] == 256 and result["settings"]["n_local"] == 246
    assert result["length"] == 400 and len(result["documents"]) == 2
    inside = [entry["nll"][0]["nll"] for entry in result["methods"]]
    assert max(inside) - min(inside) < 0.02
    assert sorted(p.name for p in out_file.parent.iterdir()) == ["methods.png", "run.json"]
    flags += ["--json", "--methods", "full,lambda,truncate", "--documents", 1, "--n-local", 256]
    code, out, _ = call(*flags)
    found = json.loads(out)
    assert code == 0 and found == json.loads(out_file.read_text())
    assert found["documents"] == [str(texts / "a")]
    found, (model, tokenizer) = {e["name"]: e["nll"] for e in found["methods"]}, shipped
    ids = tokenizer.encode((texts / "a").read_text())[:401]
    columns = {"full": "vanilla", "lambda": "lm_infinite", "truncate": "reencoded"}
    for number, row in enumerate(by_position(model, {"a": ids}, LMInfinite(256, 10, 256))):
        for name, column in columns.items():
            assert found[name][number]["nll"] == pytest.approx(row[column], abs=1e-4)


def test_the_settings_reach_the_measure(call, texts):
    """A flag that is parsed and then dropped."""
    flags = ["--text", texts / "a", "--length", 120, "--json", "--methods", "lambda,topk"]
    flags += ["--trials", 0, "--n-local", 20]

    def settings(*more):
        found = json.loads(call(*flags, *more)[1])
        return found["methods"][0]["nll"][-1]["nll"], found["methods"][1]["nll"][-1]["nll"]

    base = settings()
    for more, changed in (
        (["--n-global", 0], (True, True)),
        (["--n-local", 21], (True, True)),
        (["--distance-ceiling", 3], (True, True)),
        (["--top-k-middle", 2], (False, True)),
        (["--top-k-distance", 1], (False, True)),
        (["--top-k-from-layer", 2], (False, True)),
        (["--chunk", 11], (False, False)),
    ):
        found = settings(*more)
        differs = tuple(abs(x - y) > 1e-4 for x, y in zip(base, found))
        assert differs == changed, more


def test_pass_keys_and_the_sweep_come_with_the_run(call, tmp_path):
    """A column that nobody asked for, or that is missing and nobody is told why; a sweep of
    other documents, or one that nobody sees."""
    path, out_file = tmp_path / "long", tmp_path / "run.json"
    path.write_text(LONG)
    flags = ["--text", path, "--length", 1100, "--methods", "lambda,truncate", "--trials", 2]
    code, out, err = call(*flags, "--sweep", "--out", out_file)
    assert code == 0 and "passkey, middle |" in out and "pass keys: LM-Infinite" in err
    assert "in the middle of 1,024 tokens, of 2 each" in out
    assert "| n_global (n_local 246) | beyond 256 |" in out
    assert "| n_local (n_global 10) | beyond 256 |" in out
    result = json.loads(out_file.read_text())
    assert [entry["passkey"]["trials"] for entry in result["methods"]] == [2, 2]
    assert result["passkey_inside"]["tokens"] == 256
    base = [row["nll"] for row in result["sweep"]["n_global"] if row["value"] == 10]
    assert base == [pytest.approx(result["methods"][0]["beyond"]["nll"])]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--text", "a"], ("has only", "--length")),
        (["--text", "latin", "--length", 2], ("latin", "not UTF-8")),
        (["--text", "missing", "--length", 2], ("cannot read", "missing")),
        (["--corpus", "."], ("no held-out documents", "minilm_inf.corpus")),
        (["--text", "a", "--length", 9, "-m", "nowhere"], ("nowhere",)),
        (["--text", "a", "--length", 9, "--sweep"], ("--sweep", "--length")),
        (["--text", "a", "--length", 9, "--n-global", 256], ("--n-global 256", "--n-local")),
        (["--text", "a", "--length", 9, "--n-local", 5], ("--top-k-middle",)),
        (["--text", "a", "--length", 9, "--top-k-from-layer", 4], ("the model's 4 layers",)),
        (["--text", "a", "--length", 9, "--out", "."], ("is a folder",)),
        (["--text", "a", "--figure", "x.png"], ("--figure draws with matplotlib",)),
    ],
)
def test_what_cannot_be_measured(call, texts, monkeypatch, arguments, words):
    """A traceback for a mistyped name, or a run of ten minutes that ends in an ImportError."""
    monkeypatch.chdir(texts)
    monkeypatch.setattr("minilm_inf.terminal.options.can_draw", lambda: False)
    code, out, err = call(*arguments)
    assert code == 1 and not out
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert all(word in err for word in words)


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--length", 1], "--length"),
        (["--methods", "full,half"], "'half' is none of full, truncate"),
        (["--figure", "x.jpg"], "must end in .png"),
        (["--attention", "full"], "--attention"),
        (["--distance-ceiling", "none"], "--distance-ceiling"),
    ],
)
def test_flags_that_make_no_sense(call, arguments, word):
    """A flag that is taken and means nothing."""
    code, out, err = call(*arguments)
    assert code == 2 and not out and word in err.splitlines()[-1]

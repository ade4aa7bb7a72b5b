"""The three factors: each number against a specification in loops, and what is said of them."""

import json
import math
import signal

import pytest
import torch
from conftest import FAMILIES, logit_of, seen_by, some_tokens, tiny_model

from minilm_inf import LMInfinite, attend
from minilm_inf.config import FULL_ATTENTION
from minilm_inf.diagnose import figures
from minilm_inf.diagnose.__main__ import main
from minilm_inf.diagnose.factors import factors_of
from minilm_inf.diagnose.measure import Diagnosis
from minilm_inf.diagnose.recorder import Rows, recording
from minilm_inf.evaluate.compare import edges as edges_of
from minilm_inf.evaluate.compare import stream_nll

LM = LMInfinite(n_local=6, n_global=2, distance_ceiling=6)
CAPPED = LMInfinite(n_local=None, n_global=0, distance_ceiling=6)


def tiny(family: str, **facts):
    """A tiny model; an MPT of 4 heads, which is what logit_of knows."""
    own = dict(n_head=4, n_kv_head=4, n_embd=32, n_inner=48) if family == "mpt" else {}
    return tiny_model(family, **own | facts)


def unhooked(model, tokens, lm):
    """Each layer's q, k and output, from blocks that are driven by hand, by the definition."""
    x, found = model.embed(tokens), []
    positions = torch.arange(tokens.shape[1])
    for block in model.blocks:

        def attention(q, k, v):
            found.append((q, k))
            scale = model.config.softmax_scale
            return attend(q, k, v, positions, positions, model.scheme, lm, scale)

        x = block(x, attention)
        found[-1] += (x,)
    return found


def diagnosed(model, n=96, lm=LM, texts=1) -> Diagnosis:
    """All readings of random texts."""
    diagnosis = Diagnosis(model, n, lm)
    documents = {str(s): some_tokens(n + 1, seed=s)[0].tolist() for s in range(texts)}
    diagnosis.read_all(documents)
    return diagnosis


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lm", [None, LM], ids=["vanilla", "LM-Infinite"])
def test_what_is_recorded(family, lm):
    """A recorder that shows placed keys, another layer's, changes what it looks at, or stays
    where it was when a reading failed."""
    model, tokens = tiny(family), some_tokens(20)
    before, shown, outputs = model(tokens, lm), [], []
    with recording(model, lambda *seen: shown.append(seen), lambda *seen: outputs.append(seen)):
        during = model(tokens, lm)
    assert torch.equal(before, during) and torch.equal(before, model(tokens, lm))
    assert len(shown) == len(outputs) == 2, "nothing is recorded after the end"
    for number, (q, k, x) in enumerate(unhooked(model, tokens, lm)):
        assert shown[number][0] == outputs[number][0] == number
        for found, expected in zip((*shown[number][1:], outputs[number][1]), (q, k, x)):
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    with pytest.raises(ZeroDivisionError), recording(model, lambda *x: 1 / 0, lambda *x: None):
        model(tokens)
    assert torch.equal(before, model(tokens, lm))


@pytest.mark.parametrize("family, lm, at_once", [
    ("llama", FULL_ATTENTION, 300), ("llama", CAPPED, 1 << 24), ("llama", LM, 300),
    ("mpt", CAPPED, 300), ("mpt", LM, 1 << 24),
])  # fmt: skip
def test_rows_are_the_definition(family, lm, at_once, monkeypatch):
    """A maximum that takes a felt distance for a true one, or an entropy over hidden keys."""
    monkeypatch.setattr("minilm_inf.diagnose.recorder.LOGITS_AT_ONCE", at_once)
    model, tokens = tiny(family, softmax_scale=0.4), some_tokens(20)
    edges, queries = edges_of(6, 20, 2, below=True), torch.tensor([0, 1, 5, 6, 7, 12, 19])
    rows, layers = Rows(model, queries, edges, 2, lm), unhooked(model, tokens, None)
    for layer, (q, k, _) in enumerate(layers):
        rows.take(layer, q, k)
    assert rows.visible.tolist() == [len(seen_by(i, lm)) for i in queries.tolist()]
    for layer, (q, k, _) in enumerate(layers):
        for head in range(q.shape[1]):
            keys = k[0, head // (q.shape[1] // k.shape[1])].tolist()
            highest, largest = ([-math.inf] * (len(edges) - 1) for _ in range(2))
            for number, i in enumerate(queries.tolist()):
                query = q[0, head, i].tolist()
                w = {j: logit_of(model.scheme, query, keys[j], d, head, 0.4)
                     for j, d in seen_by(i, lm).items()}  # fmt: skip
                for j in w:
                    bin = next(b for b in range(len(edges)) if i - j < edges[b + 1])
                    highest[bin] = max(highest[bin], w[j])
                    largest[bin] = max(largest[bin], abs(w[j]))
                total = sum(map(math.exp, w.values()))
                weight = {j: math.exp(w[j]) / total for j in w}
                expected = {
                    "entropy": -sum(p * math.log(p) for p in weight.values() if p > 0),
                    "mass": sum(p for j, p in weight.items() if j < 2),
                    "bound": max(map(abs, w.values())),
                }
                for name, value in expected.items():
                    found = getattr(rows, name)[layer, head, number].item()
                    assert found == pytest.approx(value, abs=1e-9), name
            assert rows.highest[layer, head].tolist() == pytest.approx(highest, abs=1e-9)
            assert rows.largest[layer, head].tolist() == pytest.approx(largest, abs=1e-9)


def test_what_is_read_of_each_text():
    """A reading under another setting than its name says, or ids that are off by one; a query
    twice, one beyond the text, or none of the last tokens; a state of another place."""
    model, ids = tiny("llama", context_length=64), some_tokens(97, seed=0)[0].tolist()
    diagnosis = diagnosed(model)
    settings = {"vanilla": None, "lambda": LM, "dropped": LMInfinite(6, 0, 6)}
    expected = {name: stream_nll(model, ids, lm) for name, lm in settings.items()}
    for name, nll in diagnosis.nll.items():
        torch.testing.assert_close(nll[0], expected.pop(name), atol=1e-5, rtol=0)
    numbers = factors_of(diagnosis)[0]["factor_3"]["numbers"]
    cost = (diagnosis.nll["dropped"][0] - diagnosis.nll["lambda"][0])[6:].mean().item()
    low, high = numbers["cost_interval"]
    assert numbers["cost"] == pytest.approx(cost) and low <= cost <= high and not expected
    queries = diagnosis.rows["vanilla"][0].q_positions.tolist()
    assert queries == sorted(set(queries)) and queries[-1] == 95
    for first, last in ((0, 1), (1, 2), (8, 16), (32, 64)):
        assert sum(first <= i < last for i in queries) == min(16, last - first)
    states = [x for *_, x in unhooked(model, torch.tensor([ids[:64]]), None)]
    for found, x in zip(diagnosis.states, states):
        torch.testing.assert_close(found[0], x[0], atol=1e-8, rtol=0)
    some, rest = states[numbers["layer"]][0].split([16, 48])
    spread = (rest - rest.mean(0)).square().sum(1).mean().sqrt()
    far = float((some.mean(0) - rest.mean(0)).norm() / spread)
    assert numbers["apart"] == pytest.approx(far)


def test_curves_are_means_over_heads():
    """A running maximum that falls, a mean over one text only, or another side's rows."""
    diagnosis = diagnosed(tiny("llama"), texts=2)
    _, curves = found = factors_of(diagnosis)
    assert found == factors_of(diagnosed(tiny("llama"), texts=2)), "the same in every run"
    far = torch.tensor(diagnosis.edges[:-1]) >= 6
    for side, curve in curves["logits"].items():
        texts = diagnosis.rows[side]
        for name in ("largest", "highest"):
            highest = torch.maximum(*(getattr(rows, name) for rows in texts))
            running = highest.cummax(-1).values.mean((0, 1)).tolist()
            assert curve[name] == pytest.approx(running)
        assert curve["distance"] == diagnosis.edges[1:]
        assert curve["far"] == pytest.approx(highest[..., far].amax(-1).mean().item())
        largest = torch.maximum(*(rows.bound.amax(-1) for rows in texts))
        assert curve["largest"][-1] == pytest.approx(largest.mean().item())
    vanilla = diagnosis.rows["vanilla"]
    at = torch.cat([rows.q_positions for rows in vanilla])
    mass, nats = (torch.cat([getattr(r, x) for r in vanilla], -1) for x in ("mass", "entropy"))
    here = (at >= 3) & (at < 6)
    assert curves["mass"]["mean"] == pytest.approx(mass[..., here].mean((1, 2)).tolist())
    assert curves["mass"]["share"] == pytest.approx((2 / (at[here] + 1)).mean().item())
    curve = curves["entropy"]["vanilla"]
    for first, last, mean in zip(curve["first"], curve["last"], curve["mean"]):
        here = (at >= first) & (at < last)
        assert mean == pytest.approx(nats[..., here].mean().item())
    for rows in (vanilla[0], diagnosis.rows["lambda"][0]):  # Proposition 1 of the paper
        assert (rows.entropy >= rows.visible.log() - 2 * rows.bound - 1e-9).all()
        assert (rows.entropy <= rows.visible.log() + 1e-9).all()


# ---- verdicts


def test_a_model_without_a_factor_and_one_that_has_it():
    """A summary that says the same of every model."""
    blind = tiny("llama", n_layer=1)  # no logit is anything but 0: attention is uniform
    blind.blocks[0].qkv.weight[:48] = 0
    steep = tiny("mpt", n_layer=1, alibi_bias_max=0.5)  # every head looks near, at any length
    for model, first, second in ((blind, "not shown", "shown"), (steep, "shown", "not shown")):
        found, _ = factors_of(diagnosed(model))
        assert [found[f"factor_{i}"]["verdict"] for i in (1, 2)] == [first, second]
        numbers = found["factor_2"]["numbers"]
        assert (numbers["grows"] == pytest.approx(numbers["uniform_would_grow"])) == (
            model is blind
        )
        assert all(factor["words"].startswith(factor["verdict"]) for factor in found.values())


@pytest.mark.parametrize("near, far, felt, verdict", [
    (10, 9.0, 4.0, "in part"), (10, 4.9, 4.0, "not shown"), (10, -1.0, -4.0, "not shown"),
    (8.1, 4.0, 4.0, "not shown"), (7.9, 4.0, 4.0, "shown"),
])  # fmt: skip
def test_the_rule_of_the_first_factor(near, far, felt, verdict):
    """Logits that rise beyond the trained distances, but not beyond the largest negative ones;
    and a size that grows from `near` to 10 where the rule asks for a quarter more."""
    diagnosis = diagnosed(tiny("llama", n_layer=1))
    for side, logit in (("vanilla", far), ("capped", felt)):
        for rows in diagnosis.rows[side]:
            rows.largest = torch.full_like(rows.largest, 10)
            rows.largest[..., torch.tensor(diagnosis.edges[1:]) <= 6] = near
            rows.highest = torch.full_like(rows.highest, logit)
    assert factors_of(diagnosis)[0]["factor_1"]["verdict"] == verdict


@pytest.mark.parametrize("moved, costs, verdict", [
    (50, 0.06, "shown"), (50, 0.04, "in part"), (0, 0.06, "in part"), (0, 0.04, "not shown"),
])  # fmt: skip
def test_the_rule_of_the_third_factor(moved, costs, verdict):
    """A factor 3 that is never shown, or shown of any model; a cost of the wrong sign."""
    diagnosis = diagnosed(tiny("llama", context_length=64), 128, LMInfinite(64, 2, 64), texts=4)
    first = torch.arange(diagnosis.n_first + 48)[:, None] < diagnosis.n_first
    diagnosis.states[0] = [x + moved * first for x in diagnosis.states[0]]
    diagnosis.nll["dropped"] = [nll + costs for nll in diagnosis.nll["lambda"]]
    found = factors_of(diagnosis)[0]["factor_3"]
    assert found["verdict"] == verdict and found["words"].startswith(verdict)
    assert found["numbers"]["cost"] == pytest.approx(costs)
    assert found["numbers"]["layer"] == 0 or not moved


# ---- the program; what it refuses is in test_measuring_faults


def test_words_and_files(program, texts, tmp_path, monkeypatch):
    """Another number in the file than in the words; flags that are parsed and dropped; figures
    that cannot be drawn, or that are other ones each time; a folder of half a diagnosis."""
    monkeypatch.setattr("minilm_inf.terminal.options.can_draw", lambda: False)
    out, line = tmp_path / "deep" / "out", ["--text", texts / "a", "--length", 300, "--out"]
    with monkeypatch.context() as patched:
        patched.setattr(Diagnosis, "read_all", lambda *_: signal.raise_signal(signal.SIGINT))
        code, words, err = program(main, *line, out)
    assert code == 130 and not words and err.strip() == "stopped" and not out.parent.exists()
    for _ in "12":  # an earlier diagnosis is replaced
        code, words, err = program(main, *line, out, "--n-local", 128, "--n-global", 2)
    assert code == 0 and err.count("\n") == 3 + 2, "three readings"
    assert "no figures: matplotlib is not installed" in err
    assert [path.name for path in out.iterdir()] == ["diagnosis.json"]
    result = json.loads((out / "diagnosis.json").read_text())
    settings, factors, curves = (result.pop(x) for x in ("settings", "factors", "curves"))
    assert not result and (settings["n"], settings["n_local"]) == (300, 128)
    assert (settings["n_global"], settings["distance_ceiling"]) == (2, 128)
    lines = [f"factor {i}, {f['words']}." for i, f in enumerate(factors.values(), 1)]
    assert words.splitlines() == lines and len(lines) == 3
    pytest.importorskip("matplotlib")
    drawn = [figures.draw(factors, curves, settings) for _ in "12"]
    assert drawn[0] == drawn[1] and drawn[0].startswith(b"\x89PNG") and len(drawn[0]) > 20_000

"""The three factors: each number against a specification in loops, and what is said of them."""

import json
import math
from functools import partial

import pytest
import torch
from conftest import FAMILIES, logit_of, seen_by, some_tokens, tiny_model
from live_bytes import LiveBytes

from minilm_inf import LMInfinite, attend
from minilm_inf.config import FULL_ATTENTION
from minilm_inf.diagnose import figures, theorem
from minilm_inf.diagnose.__main__ import default_length, main
from minilm_inf.diagnose.factors import factors_of, verdict_1
from minilm_inf.diagnose.logits import Rows
from minilm_inf.diagnose.measure import Diagnosis
from minilm_inf.diagnose.places import log_edges, some_queries, stretches
from minilm_inf.diagnose.recorder import recording
from minilm_inf.diagnose.states import separation
from minilm_inf.evaluate.compare import stream_nll
from minilm_inf.positions import Alibi, Rotary

LM = LMInfinite(n_local=6, n_global=2, distance_ceiling=6)
CAPPED = LMInfinite(n_local=None, n_global=0, distance_ceiling=6)
SPECIFIED = {
    "mpt": dict(n_head=4, n_kv_head=4, n_embd=32, n_inner=48)
}  # logit_of knows 4 heads
NO_FIGURES = "no figures: matplotlib is not installed\n"  # said first, where it is so


def tiny(family: str, **facts):
    return tiny_model(family, **SPECIFIED.get(family, {}) | facts)


def normal(*shape: int, seed=0):
    """Random float64 numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


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


def diagnosed(model, n=96, lm=LM, texts=1, seed=0, ids=None) -> Diagnosis:
    """All readings of random texts, or of one with these ids."""
    diagnosis = Diagnosis(model, n, lm, seed)
    documents = {str(s): some_tokens(n + 1, seed=s)[0].tolist() for s in range(texts)}
    diagnosis.read_all({"given": ids} if ids else documents, lambda line: None)
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


# ---- rows of attention


@pytest.mark.parametrize("family, lm, at_once", [
    ("llama", FULL_ATTENTION, 300), ("llama", CAPPED, 1 << 24), ("llama", LM, 300),
    ("mpt", FULL_ATTENTION, 1 << 24), ("mpt", CAPPED, 300), ("mpt", LM, 1 << 24),
])  # fmt: skip
def test_rows_are_the_definition(family, lm, at_once, monkeypatch):
    """A maximum that takes a felt distance for a true one, or an entropy over hidden keys."""
    monkeypatch.setattr("minilm_inf.diagnose.logits.LOGITS_AT_ONCE", at_once)
    model, tokens = tiny(family, softmax_scale=0.4), some_tokens(20)
    edges, queries = log_edges(6, 20, 2), torch.tensor([0, 1, 5, 6, 7, 12, 19])
    rows, layers = Rows(model, queries, edges, 2, lm), unhooked(model, tokens, None)
    for layer, (q, k, _) in enumerate(layers):
        rows.take(layer, q, k)
    assert rows.visible.tolist() == [len(seen_by(i, lm)) for i in queries.tolist()]
    for layer, (q, k, _) in enumerate(layers):
        for head in range(q.shape[1]):
            keys = k[0, head // (q.shape[1] // k.shape[1])].tolist()
            largest, highest = ({bin: -math.inf for bin in range(len(edges) - 1)} for _ in "12")
            for number, i in enumerate(queries.tolist()):
                query, felt = q[0, head, i].tolist(), seen_by(i, lm)
                logits = {j: logit_of(model.scheme, query, keys[j], d, head, 0.4)
                          for j, d in felt.items()}  # fmt: skip
                for j, w in logits.items():
                    bin = next(b for b in range(len(edges)) if i - j < edges[b + 1])
                    largest[bin] = max(largest[bin], abs(w))
                    highest[bin] = max(highest[bin], w)
                total = sum(math.exp(w) for w in logits.values())
                weight = {j: math.exp(w) / total for j, w in logits.items()}
                expected = {
                    "entropy": -sum(p * math.log(p) for p in weight.values() if p > 0),
                    "mass": sum(p for j, p in weight.items() if j < 2),
                    "bound": max(abs(w) for w in logits.values()),
                }
                for name, value in expected.items():
                    found = getattr(rows, name)[layer, head, number].item()
                    assert found == pytest.approx(value, abs=1e-9), name
            for kept, expected in ((rows.largest, largest), (rows.highest, highest)):
                found = kept[layer, head].tolist()
                assert found == pytest.approx(list(expected.values()), abs=1e-9)


# ---- Theorem 1


def test_logits_by_distance():
    """Pairs of queries and keys that are mixed up, or placed the wrong way round."""
    q, k = normal(2, 4, 5, 8)
    distances = torch.tensor([0, 1, 3, 50])
    for scheme in (Rotary(8), Rotary(4, layout="pairs"), Alibi(4)):
        w = theorem.logits_by_distance(q, k, distances, scheme, 0.3)
        for head in range(4):
            for m, d in enumerate(distances.tolist()):
                for pair in range(5):
                    both = q[head, pair].tolist(), k[head, pair].tolist()
                    expected = logit_of(scheme, *both, d, head, 0.3)
                    assert w[head, m, pair].item() == pytest.approx(expected, abs=1e-9)


def test_distances_told_apart():
    """A greedy search that compares with the last one kept only, or keeps equals."""
    w = normal(3, 40, 6, seed=1)
    w[2] = 1.0  # a head that tells nothing apart
    epsilon = torch.tensor([[0.9], [1.3], [0.0]], dtype=torch.float64)
    found = theorem.told_apart(w, epsilon)
    for head in range(3):
        kept = []
        for d in range(40):
            differ = [
                sum(abs(a - b) for a, b in zip(w[head, d].tolist(), w[head, e].tolist())) / 6
                for e in kept
            ]
            if all(x > epsilon[head] for x in differ):
                kept.append(d)
        assert found[head].nonzero().flatten().tolist() == kept
        assert len(kept) == 1 if head == 2 else 1 < len(kept) < 40


def test_the_theorem_s_parts():
    """An epsilon in which distances beyond the trained length have a say; another formula than
    the paper's; a bound that a single group has; a distance that is never tried."""
    w = torch.tensor([0.0, 1.0, 10.0, 500.0, 9000.0]).view(1, 5, 1).expand(2, 5, 3)
    for n, expected in ((2, 1.0), (3, 9.0), (1, 0.0)):  # 9: the median of 1, 9 and 10
        generator = torch.Generator().manual_seed(0)
        assert theorem.usual_difference(w, n, generator).tolist() == [expected] * 2
    alpha = torch.tensor([1.0, 2.0, 32.0])
    found = theorem.bound(alpha, torch.tensor(3.0), r=2).tolist()
    assert found == pytest.approx([0.0, 3 / (4 * math.e), 2 * 3 / (4 * math.e)])
    assert theorem.pseudo_dimension(Alibi(4), 4096) == 1
    sizes = {4096: 8, 200: 7, 2: 1, 1: 1}
    assert {n: theorem.pseudo_dimension(Rotary(8), n) for n in sizes} == sizes
    assert theorem.tried(50).tolist() == list(range(50))
    many = theorem.tried(100_000).tolist()
    assert many[:3] == [0, 1, 2] and many[-1] == 99_999
    assert len(many) <= theorem.MOST_DISTANCES and many == sorted(set(many))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bounds_hold(family):
    """A bound above what was seen, which would refute Theorem 1 or Proposition 1, or us."""
    diagnosis = diagnosed(tiny(family, n_layer=3), n=96)
    alpha, bound, sup = diagnosis.theorems([2, 3, 6, 7, 12, 24, 48, 96])
    assert (bound <= sup).all() and (alpha >= 1).all() and alpha[..., -1].max() > 1
    for x in (alpha, bound, sup):
        assert (x.diff(dim=-1) >= 0).all(), "more distances are told apart, not fewer"
    for rows in (diagnosis.rows["vanilla"][0], diagnosis.rows["lambda"][0]):
        assert (rows.entropy >= rows.visible.log() - 2 * rows.bound - 1e-9).all()
        assert (rows.entropy <= rows.visible.log() + 1e-9).all()
    _, curves = factors_of(diagnosis)
    for curve in curves["entropy"].values():
        for low, mean, top in zip(curve["proposition_1"], curve["mean"], curve["ln_visible"]):
            assert low <= mean <= top + 1e-9
    assert curves["entropy"]["lambda"]["ln_most"] == math.log(6 + 2)
    told = curves["theorem"]
    for name in ("alpha", "bound", "sup"):
        n, vanilla, capped = told["vanilla"]["n"], *(told[side][name] for side in told)
        assert capped[:3] == vanilla[:3] and n[:3] == [2, 3, 6], "no ceiling yet"
        assert set(capped[3:]) == {capped[3]} and vanilla[-1] >= capped[-1]


# ---- hidden states


def test_separation_by_hand():
    """A spread around the mean of all, or around another group's; others that count twice."""
    states = normal(2, 4, 3, 5, seed=2)
    states[:, 0] += 4
    states[:, 0, 0, 1] += 40

    def by_hand(some, rest):
        middle = [sum(x[c] for x in rest) / len(rest) for c in range(len(rest[0]))]
        own = [sum(x[c] for x in some) / len(some) for c in range(len(rest[0]))]
        square = sum(sum((a - b) ** 2 for a, b in zip(x, middle)) for x in rest) / len(rest)
        return math.dist(own, middle) / math.sqrt(square)

    groups = [states[:, s].reshape(-1, 5).tolist() for s in range(4)]
    rest = groups[1] + groups[2] + groups[3]
    later = states[:, 0, 1:].reshape(-1, 5).tolist()
    others = [
        by_hand(groups[s], [x for t in (1, 2, 3) if t != s for x in groups[t]])
        for s in (1, 2, 3)
    ]
    expected = {"apart": by_hand(groups[0], rest), "without_token_0": by_hand(later, rest),
                "largest_other": max(others)}  # fmt: skip
    assert separation(states) == pytest.approx(expected)
    assert expected["without_token_0"] < expected["apart"]


# ---- which places are looked at


def test_edges_and_places():
    """A bin on both sides of the trained length, a position twice, or one beyond the text; a
    real model that is read for days because its context is long."""
    for anchor, n in ((8, 40), (6, 96), (256, 4096), (8192, 2048), (200, 201), (6, 6)):
        for per_octave in (1, 2):
            edges = log_edges(anchor, n, per_octave)
            assert edges[:2] == [0, 1] and edges[-1] == n and edges == sorted(set(edges))
            assert anchor in edges or anchor > n
    queries = some_queries(log_edges(256, 4096, 1), torch.Generator().manual_seed(0)).tolist()
    assert queries == sorted(set(queries)) and queries[-1] == 4095
    for a, b in zip([0, 1, 2, 64, 2048], [1, 2, 4, 128, 4095]):
        count = sum(a <= i < b for i in queries)
        assert count == min(16, b - a) or (b == 4095 and count in (15, 16))
    for n in (16, 24, 256, 5000):
        places = stretches(n, torch.Generator().manual_seed(0))
        flat = places.flatten().tolist()
        assert len(set(flat)) == len(flat) and max(flat) < n
        assert places[0].tolist() == list(range(min(25, n // 4))) and len(places) >= 3
        assert (places.diff(dim=1) == 1).all()
    lengths = [default_length(n) for n in (128, 256, 257, 1024, 2048, 8192)]
    assert lengths == [2048, 4096, 4096, 4096, 4096, 16384]


# ---- readings and curves


def test_nll_of_each_reading():
    """A reading under another setting than its name says, or ids that are off by one."""
    model, ids = tiny("llama"), some_tokens(97, seed=0)[0].tolist()
    diagnosis = diagnosed(model)
    settings = {"vanilla": None, "lambda": LM, "with": LM, "dropped": LMInfinite(6, 0, 6)}
    expected = {name: stream_nll(model, ids, lm) for name, lm in settings.items()}
    assert set(diagnosis.nll) == set(settings)
    nll = factors_of(diagnosis)[1]["nll"]
    for name in settings:
        torch.testing.assert_close(diagnosis.nll[name][0], expected[name], atol=1e-5, rtol=0)
        assert nll[name] == pytest.approx(expected[name][6:].mean().item(), abs=1e-5)
    cost = (expected["dropped"] - expected["with"])[6:].mean().item()
    assert nll["cost"] == pytest.approx(cost, abs=1e-5)
    assert nll["interval"][0] <= nll["cost"] <= nll["interval"][1]
    window = diagnosed(model, lm=LMInfinite(6, 0, 6))
    with_ten = stream_nll(model, ids, LMInfinite(6, 10, 6))
    torch.testing.assert_close(window.nll["with"][0], with_ten, atol=1e-5, rtol=0)


def test_curves_are_means_over_heads():
    """A running maximum that falls, a mean over one text only, or another side's rows."""
    diagnosis = diagnosed(tiny("llama"), texts=2)
    _, curves = factors_of(diagnosis)
    for side, curve in curves["logits"].items():
        largest, highest = (
            torch.maximum(*(getattr(rows, name) for rows in diagnosis.rows[side]))
            for name in ("largest", "highest")
        )
        running = largest.cummax(-1).values
        assert curve["distance"] == diagnosis.edges[1:]
        assert curve["mean"] == pytest.approx(running.mean((0, 1)).tolist())
        spread = running.flatten(0, 1).std(0, correction=0)
        assert curve["deviation"] == pytest.approx(spread.tolist())
        far = torch.tensor(diagnosis.edges[:-1]) >= 6
        assert curve["far"] == pytest.approx(highest[..., far].amax(-1).mean().item())
    vanilla = diagnosis.rows["vanilla"]
    at = torch.cat([rows.q_positions for rows in vanilla])
    mass = torch.cat([rows.mass for rows in vanilla], -1)
    nats = torch.cat([rows.entropy for rows in vanilla], -1)
    found = curves["mass"]["vanilla"]
    here = (at >= 3) & (at < 6)
    assert (found["first"], found["last"], found["tokens"]) == (3, 6, 2)
    assert found["mean"] == pytest.approx(mass[..., here].mean((1, 2)).tolist())
    assert found["share"] == pytest.approx((2 / (at[here] + 1)).mean().item())
    assert (curves["mass"]["lambda"]["first"], curves["mass"]["lambda"]["share"]) == (8, 0.25)
    curve = curves["entropy"]["vanilla"]
    for first, last, mean in zip(curve["first"], curve["last"], curve["mean"]):
        here = (at >= first) & (at < last)
        assert mean == pytest.approx(nats[..., here].mean().item())


def test_the_seed_decides_what_is_sampled():
    """Numbers that differ from run to run, or a seed that does nothing."""
    model = tiny("llama", n_layer=1)
    same, again, other = (diagnosed(model, seed=seed) for seed in (0, 0, 1))
    assert factors_of(same) == factors_of(again) != factors_of(other)


def test_memory_grows_with_the_length_only(monkeypatch, small_chunks):
    """A tensor of n x n elements, which 16 x context_length of a real model cannot have."""
    small_chunks(queries=16, keys=64)
    for room, values in {
        "logits": dict(LOGITS_AT_ONCE=4096), "places": dict(QUERIES_PER_OCTAVE=4),
        "measure": dict(LOGITS_PER_PIECE=64),
        "theorem": dict(AT_ONCE=4096, MOST_DISTANCES=16, N_PAIRS=4, N_DIFFERENCES=64),
    }.items():  # fmt: skip
        for name, value in values.items():
            monkeypatch.setattr(f"minilm_inf.diagnose.{room}.{name}", value)
    for family in ("llama", "mpt"):
        model, peak = tiny(family, context_length=32, n_layer=1), {}
        for n in (256, 512):
            with LiveBytes() as live:
                factors_of(diagnosed(model, n, LMInfinite(32, 2, 32)))
            peak[n] = live.peak
        assert peak[512] <= 2.2 * peak[256], family


# ---- verdicts


def test_a_model_without_a_factor_and_one_that_has_it():
    """A summary that says the same of every model."""
    blind = tiny("llama", n_layer=1)  # no logit is anything but 0: attention is uniform
    blind.blocks[0].qkv.weight[:48] = 0
    found, _ = factors_of(diagnosed(blind))
    assert found["factor_1"]["verdict"] == "not shown"
    assert found["factor_2"]["verdict"] == "shown"
    numbers = found["factor_2"]["numbers"]
    assert numbers["grows"] == pytest.approx(numbers["uniform_would_grow"])

    steep = tiny("mpt", n_layer=1, alibi_bias_max=0.5)  # every head looks near, at any length
    found, _ = factors_of(diagnosed(steep))
    assert found["factor_1"]["verdict"] == "shown"
    assert "downward only, as ALiBi's bias does" in found["factor_1"]["words"]
    assert found["factor_2"]["verdict"] == "not shown"
    assert all(factor["words"].startswith(factor["verdict"]) for factor in found.values())


def model_that_lives_on_token_0():
    """A network that can tell what follows, 7, only by the first token, 5, which it sees with
    uniform attention; and whose state at that token is like no other."""
    model = tiny("llama", n_layer=1, context_length=16)
    for weight in model.parameters():
        weight.data.zero_()
    for norm in (model.norm, model.blocks[0].attention_norm, model.blocks[0].mlp_norm):
        norm.weight.data.fill_(1)
    model.embed.weight.data[:, 1] = 1
    model.embed.weight.data[5] = 0
    model.embed.weight.data[5, 0] = 100
    model.blocks[0].qkv.weight.data[-16:, 0] = 1  # v: how much of coordinate 0 there is
    model.blocks[0].o.weight.data[2] = 1
    model.head.weight.data[7, 2] = 5
    return model


def test_a_model_that_needs_its_starting_tokens():
    """A factor 3 that is never shown, or shown of any model."""
    needs, ids = model_that_lives_on_token_0(), [5] + [7] * 96
    found = factors_of(diagnosed(needs, lm=LMInfinite(16, 2, 16), ids=ids))[0]["factor_3"]
    assert found["verdict"] == "shown"
    assert found["numbers"]["apart"] > 1 and found["numbers"]["cost"] > 1
    with torch.no_grad():  # the state stands apart as before, but nothing depends on it
        needs.head.weight[7, 2] = 0
    found = factors_of(diagnosed(needs, lm=LMInfinite(16, 2, 16), ids=ids))[0]["factor_3"]
    assert found["verdict"] == "in part" and found["numbers"]["cost"] == pytest.approx(0)
    model, lm = tiny("llama", context_length=64), LMInfinite(64, 2, 64)
    assert factors_of(diagnosed(model, 128, lm, 4))[0]["factor_3"]["verdict"] == "not shown"


def test_keys_that_gain_weight_without_a_larger_size():
    """Logits that rise beyond the trained length, but not beyond the largest negative ones."""
    numbers = dict(vanilla_within=10.0, vanilla=10.0, vanilla_far=9.0, capped_far=4.0)
    assert verdict_1(numbers) == "in part"
    assert verdict_1(numbers | {"vanilla_far": 4.9}) == "not shown"
    assert verdict_1(numbers | {"vanilla": 12.5}) == "shown"


def test_what_a_short_text_cannot_tell():
    """A verdict on long texts, from one that is not longer than the trained length."""
    diagnosis = diagnosed(tiny("llama", context_length=64), n=64, lm=LMInfinite(64, 2, 64))
    found, curves = factors_of(diagnosis)
    for name in ("factor_1", "factor_2"):
        assert found[name]["verdict"] == "not measured" and "--length" in found[name]["words"]
    assert found["factor_3"]["verdict"] == "not shown"
    assert "not measured: the window holds all 64" in found["factor_3"]["words"]
    assert set(curves["nll"]) == {"vanilla", "lambda"}


# ---- the program


@pytest.fixture
def call(program):
    """A call of the program: arguments -> (exit code, stdout, stderr)."""
    return partial(program, main)


def test_words_and_files(call, texts, tmp_path, monkeypatch):
    """Another number in the file than in the words; --n-global that is parsed and dropped."""
    monkeypatch.setattr("minilm_inf.terminal.options.can_draw", lambda: False)
    out = tmp_path / "deep" / "out"
    given = ["--text", texts / "a", "--length", 300, "--n-local", 128, "--out", out]
    code, words, err = call(*given)
    assert code == 0
    lines = words.splitlines()
    assert [line[:9] for line in lines] == ["factor 1,", "factor 2,", "factor 3,"]
    assert err.startswith(NO_FIGURES) and err.count("\n") == 3 + 2, "three readings"
    assert [path.name for path in out.iterdir()] == ["diagnosis.json"]
    result = json.loads((out / "diagnosis.json").read_text())
    assert set(result) == {"settings", "factors", "curves"}
    settings = result["settings"]
    assert (settings["n"], settings["n_local"], settings["distance_ceiling"]) == (300, 128, 128)
    for line, factor in zip(lines, result["factors"].values()):
        assert line == f"factor {line[7]}, {factor['words']}."
    code, printed, _ = call(*given, "--json")
    assert code == 0 and printed == (out / "diagnosis.json").read_text()
    assert json.loads(printed) == result, "the same flags give the same numbers"
    for flags, expected in ((["--n-global", 2], 2), (["--n-global", 0], 0)):
        other = json.loads(call(*given, *flags, "--json")[1])
        assert other["settings"]["n_global"] == expected
        ours = other["curves"]["mass"]["lambda"]
        assert ours["tokens"] == expected and any(ours["mean"]) == bool(expected)
        cost = result["curves"]["nll"]["cost"]
        same = other["curves"]["nll"]["cost"] == pytest.approx(cost)
        assert same == (expected == 0), "a window alone is held to ten starting tokens too"


def test_figures(call, texts, tmp_path):
    """A figure that cannot be drawn of a model, or that is another one each time."""
    pytest.importorskip("matplotlib")
    given = ["--text", texts / "a", "--length", 300, "--n-local", 128, "--out", tmp_path]
    assert call(*given)[0] == 0
    drawn = (tmp_path / "factors.png").read_bytes()
    found = json.loads((tmp_path / "diagnosis.json").read_text())
    again = figures.draw(found["factors"], found["curves"], found["settings"])
    assert drawn == again and drawn.startswith(b"\x89PNG") and len(drawn) > 20_000
    model, lm = tiny("mpt", context_length=64), LMInfinite(64, 2, 64)
    facts = found["settings"] | dict(n=32, context_length=64, n_layer=2)
    short = factors_of(diagnosed(model, 32, lm))
    assert figures.draw(*short, facts).startswith(b"\x89PNG"), "of a short text"


@pytest.mark.parametrize("arguments, words", [
    (["--text", "short", "--length", 400], ("short has only", "--length")),
    (["--text", "a"], ("has only", "--length")),
    (["--text", "latin", "--length", 20], ("latin", "not UTF-8")),
    (["--text", "missing", "--length", 20], ("cannot read", "missing")),
    (["--corpus", "."], ("no held-out documents", "minilm_inf.corpus")),
    (["--text", "a", "--length", 20, "-m", "nowhere"], ("nowhere",)),
    (["--text", "a", "--length", 20, "--out", "b"], ("b/", "cannot be written")),
    (["--text", "a", "--length", 20, "--out", "b/c"], ("b/c", "cannot be written")),
    (["--text", "a", "--length", 20, "--device", "mars"], ("--device mars",)),
])  # fmt: skip
def test_what_cannot_be_measured(call, texts, monkeypatch, arguments, words):
    """A traceback for a mistyped name, or minutes of work before it is noticed."""
    monkeypatch.chdir(texts)
    before = sorted(texts.iterdir())
    code, out, err = call(*arguments)
    assert code == 1 and not out and sorted(texts.iterdir()) == before
    err = err.removeprefix(NO_FIGURES)
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(word in err for word in words), err


@pytest.mark.parametrize("arguments, word", [
    (["--length", 15], "--length"), (["--documents", 0], "--documents"),
    (["--attention", "full"], "vanilla model is measured anyway"),
    (["--top-k-middle", 3], "--top-k-middle"), (["--seed", -1], "--seed"),
])  # fmt: skip
def test_flags_that_make_no_sense(call, arguments, word):
    """A vanilla model that is compared with itself."""
    code, out, err = call(*arguments)
    assert code == 2 and not out and word in err.splitlines()[-1]


def test_interrupted_nothing_is_left(call, texts, tmp_path, monkeypatch):
    """A folder of half a diagnosis."""

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Diagnosis, "read_all", interrupt)
    code, out, err = call("--text", texts / "a", "--length", 20, "--out", tmp_path / "x")
    assert code == 130 and not out and err.removeprefix(NO_FIGURES).strip() == "stopped"
    assert not list(tmp_path.iterdir())

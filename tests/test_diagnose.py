"""The three factors: each number against a specification in loops, and what is said of them."""

import csv
import json
import math
import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import FAMILIES, ROOT, logit_of, seen_by, some_tokens, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from minilm_inf import LMInfinite, attend
from minilm_inf.config import FULL_ATTENTION
from minilm_inf.diagnose import theorem
from minilm_inf.diagnose.__main__ import default_length, main
from minilm_inf.diagnose.logits import Rows
from minilm_inf.diagnose.measure import Diagnosis
from minilm_inf.diagnose.places import log_edges, n_first, some_queries, stretches
from minilm_inf.diagnose.recorder import recording
from minilm_inf.diagnose.states import separation
from minilm_inf.diagnose.tables import tables_of
from minilm_inf.diagnose.verdict import factor_1, verdicts
from minilm_inf.evaluate.compare import stream_nll
from minilm_inf.positions import Alibi, Rotary

LM = LMInfinite(n_local=6, n_global=2, distance_ceiling=6)
SEEN = {
    "vanilla": FULL_ATTENTION,
    "capped": LMInfinite(n_local=None, n_global=0, distance_ceiling=6),
    "LM-Infinite": LM,
}
SPECIFIED = {
    "mpt": dict(n_head=4, n_kv_head=4, n_embd=32, n_inner=48)
}  # logit_of knows 4 heads

NO_FIGURES = "no figures: matplotlib is not installed\n"  # said first, where it is so


def tiny(family: str, **facts):
    return tiny_model(family, **SPECIFIED.get(family, {}) | facts)


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


# ---- the recorder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lm", [None, LM], ids=["vanilla", "LM-Infinite"])
def test_what_is_recorded(family, lm):
    """A recorder that shows placed keys, another layer's, or changes what it looks at."""
    model, tokens = tiny(family), some_tokens(20)
    before, shown, outputs = model(tokens, lm), [], []
    with recording(model, lambda *seen: shown.append(seen), lambda *seen: outputs.append(seen)):
        during = model(tokens, lm)
    assert torch.equal(before, during) and torch.equal(before, model(tokens, lm))
    assert len(shown) == len(outputs) == 2, "nothing is recorded behind the end"
    for number, (q, k, x) in enumerate(unhooked(model, tokens, lm)):
        assert shown[number][0] == outputs[number][0] == number
        for found, expected in zip((*shown[number][1:], outputs[number][1]), (q, k, x)):
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_a_recording_that_fails_leaves_no_hook():
    """A model that goes on calling what a diagnosis has left behind."""
    model = tiny("llama")
    with pytest.raises(ZeroDivisionError), recording(model, lambda *x: 1 / 0, lambda *x: None):
        model(some_tokens(3))
    assert model(some_tokens(3)).isfinite().all()


# ---- factors 1 and 2: rows of attention


def row_by_hand(q, k, i: int, lm, scheme, head: int, scale: float) -> dict[int, float]:
    """The logits of the query at i, by key: lists of floats q and k[j]."""
    felt = seen_by(i, lm)
    return {j: logit_of(scheme, q, k[j], d, head, scale) for j, d in felt.items()}


@pytest.mark.parametrize("family", ["llama", "mpt"])
@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("at_once", [1 << 24, 300])
def test_rows_are_the_definition(family, seen, at_once, monkeypatch):
    """A maximum that takes a felt distance for a true one, or an entropy over hidden keys."""
    monkeypatch.setattr("minilm_inf.diagnose.logits.LOGITS_AT_ONCE", at_once)
    model, tokens, lm = tiny(family, softmax_scale=0.4), some_tokens(20), SEEN[seen]
    edges, queries = log_edges(6, 20, 2), torch.tensor([0, 1, 5, 6, 7, 12, 19])
    rows = Rows(model, queries, edges, 2, lm)
    layers = unhooked(model, tokens, None)
    for layer, (q, k, _) in enumerate(layers):
        rows.take(layer, q, k)
    assert rows.visible.tolist() == [len(seen_by(i, lm)) for i in queries.tolist()]
    for layer, (q, k, _) in enumerate(layers):
        shared = q.shape[1] // k.shape[1]
        for head in range(q.shape[1]):
            largest, highest = ({bin: -math.inf for bin in range(len(edges) - 1)} for _ in "12")
            for number, i in enumerate(queries.tolist()):
                keys = k[0, head // shared].tolist()
                logits = row_by_hand(
                    q[0, head, i].tolist(), keys, i, lm, model.scheme, head, 0.4
                )
                for j, w in logits.items():
                    bin = next(b for b in range(len(edges)) if i - j < edges[b + 1])
                    largest[bin] = max(largest[bin], abs(w))
                    highest[bin] = max(highest[bin], w)
                total = sum(math.exp(w) for w in logits.values())
                weight = {j: math.exp(w) / total for j, w in logits.items()}
                nats = -sum(p * math.log(p) for p in weight.values() if p > 0)
                mass = sum(p for j, p in weight.items() if j < 2)
                at = (layer, head, number)
                assert rows.entropy[at].item() == pytest.approx(nats, abs=1e-9)
                assert rows.mass[at].item() == pytest.approx(mass, abs=1e-9)
                token_0 = weight.get(0, 0.0)
                assert rows.token_0[at].item() == pytest.approx(token_0, abs=1e-9)
                most = max(abs(w) for w in logits.values())
                assert rows.bound[at].item() == pytest.approx(most, abs=1e-9)
            for kept, expected in ((rows.largest, largest), (rows.highest, highest)):
                found = kept[layer, head].tolist()
                assert found == pytest.approx(list(expected.values()), abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bounds_of_entropy_hold(family):
    """A B that is another row's, or a visible key that is not counted."""
    diagnosis = diagnosed(tiny(family), n=96)
    for rows in (diagnosis.rows["vanilla"][0], diagnosis.rows["lambda"][0]):
        assert (rows.entropy >= rows.visible.log() - 2 * rows.bound - 1e-9).all()
        assert (rows.entropy <= rows.visible.log() + 1e-9).all()
    assert diagnosis.rows["lambda"][0].entropy.max() <= math.log(6 + 2)
    for row in tables_of(diagnosis)["entropy"]:
        assert row["proposition_1"] <= row["mean"] <= row["ln_visible"] + 1e-9
        assert row["proposition_1_best"] >= row["proposition_1"]
        if row["side"] == "lambda":
            assert row["ln_most_visible"] == math.log(8) > row["most"]


# ---- Theorem 1


def test_logits_by_distance():
    """Pairs of queries and keys that are mixed up, or placed the wrong way round."""
    q, k = torch.randn(
        2, 4, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
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
    w = torch.randn(3, 40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w[2] = 1.0  # a head that tells nothing apart
    epsilon = torch.tensor([0.9, 1.3, 0.0], dtype=torch.float64)
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


def test_epsilon_is_the_median_of_trained_differences():
    """An epsilon that distances beyond the trained length have a say in."""
    w = torch.tensor([0.0, 1.0, 10.0, 500.0, 9000.0]).view(1, 5, 1).expand(2, 5, 3)
    generator = torch.Generator().manual_seed(0)
    assert theorem.usual_difference(w, 2, generator).tolist() == [1.0, 1.0]
    assert theorem.usual_difference(w, 3, generator).tolist() == [9.0, 9.0]  # of 1, 9, 10
    assert theorem.usual_difference(w, 1, generator).tolist() == [0.0, 0.0]


def test_the_bound():
    """Another formula than the paper's; a bound that a single group of distances has."""
    alpha = torch.tensor([1.0, 2.0, 32.0])
    found = theorem.bound(alpha, torch.tensor(3.0), r=2).tolist()
    assert found == pytest.approx([0.0, 3 / (4 * math.e), 2 * 3 / (4 * math.e)])
    assert theorem.pseudo_dimension(Alibi(4), 4096) == 1
    sizes = {4096: 8, 200: 7, 2: 1, 1: 1}
    assert {n: theorem.pseudo_dimension(Rotary(8), n) for n in sizes} == sizes


@pytest.mark.parametrize("family", FAMILIES)
def test_the_theorem_holds(family):
    """A bound above what was seen, which would refute the theorem, or us."""
    diagnosis = diagnosed(tiny(family, n_layer=3), n=96)
    alpha, bound, sup, epsilon = diagnosis.theorems()
    assert (bound <= sup).all() and (alpha >= 1).all() and (epsilon > 0).all()
    for x in (alpha, bound, sup):
        vanilla, capped = x.chunk(2, -1)
        assert (vanilla.diff(dim=-1) >= 0).all(), "more distances are told apart, not fewer"
        assert torch.equal(vanilla[..., :3], capped[..., :3]), "n of 2, 3 and 6: no ceiling yet"
        assert (capped[..., 3:] == capped[..., 3:4]).all() and (capped <= vanilla).all()
    assert alpha[..., 5].max() > 1


def test_the_distances_that_are_tried():
    """A last distance, or an early one, that is never tried."""
    assert theorem.tried(50).tolist() == list(range(50))
    many = theorem.tried(100_000).tolist()
    assert many[:3] == [0, 1, 2] and many[-1] == 99_999
    assert len(many) <= theorem.MOST_DISTANCES and many == sorted(set(many))


# ---- factor 3


def test_separation_by_hand():
    """A spread around the mean of all, or around another group's; others that count twice."""
    states = torch.randn(
        2, 4, 3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
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
    found = separation(states)
    assert found.apart == pytest.approx(by_hand(groups[0], rest))
    assert found.later == pytest.approx(by_hand(later, rest)) and found.later < found.apart
    assert found.other == pytest.approx(max(others))
    for position in range(3):
        each = [by_hand([x.tolist()], rest) for x in states[:, 0, position]]
        assert found.by_position[position] == pytest.approx(sum(each) / 2)
    plane = [found.plane[:, s].reshape(-1, 2).tolist() for s in range(4)]
    in_plane = by_hand(plane[0], plane[1] + plane[2] + plane[3])
    assert found.in_plane == pytest.approx(in_plane)


def test_the_plane_is_that_of_the_largest_variance():
    """Components of states that were not centred, or a sign that changes from run to run."""
    states = torch.randn(
        2, 4, 3, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    states[:, 0, :, 2] += 9
    found = separation(states + 100)
    points = states.view(-1, 5)
    values = torch.linalg.eigvalsh(torch.cov(points.T, correction=0)).flip(0)
    variances = found.plane.view(-1, 2).var(0, correction=0)
    torch.testing.assert_close(variances, values[:2])
    assert found.explained == pytest.approx((values[:2] / values.sum()).tolist())
    for coordinate in range(5):
        for shift in (-9, 9):
            states = torch.randn(
                2, 4, 3, 5, generator=torch.Generator().manual_seed(coordinate)
            )
            states[:, 0, :, coordinate] += shift
            plane = separation(states).plane
            assert plane[:, 0, :, 0].mean() > 0 > plane[:, 1:, :, 0].mean()


def test_one_dimension_has_a_plane_too():
    """A model of one hidden unit, where there is no second component."""
    found = separation(torch.arange(8.0).view(1, 4, 2, 1))
    assert found.plane.shape == (1, 4, 2, 2) and not found.plane[..., 1].any()
    assert found.explained == (1.0, 0.0)


# ---- which places are looked at


def test_edges_and_places():
    """A bin on both sides of the trained length, a position twice, or one beyond the text."""
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
        assert places[0].tolist() == list(range(n_first(n))) and len(places) >= 3
        assert (places.diff(dim=1) == 1).all() and n_first(n) <= 25


def test_how_much_is_read_unasked():
    """A real model that is read for days because its context is long."""
    lengths = [default_length(n) for n in (128, 256, 257, 1024, 2048, 8192)]
    assert lengths == [2048, 4096, 4096, 4096, 4096, 16384]


# ---- readings and tables


def diagnosed(model, n=96, lm=LM, texts=1, seed=0, ids=None):
    """All readings of random texts, or of one with these ids."""
    diagnosis = Diagnosis(model, n, lm, seed)
    documents = {str(s): some_tokens(n + 1, seed=s)[0].tolist() for s in range(texts)}
    diagnosis.read_all({"given": ids} if ids else documents, lambda line: None)
    return diagnosis


def words_of(diagnosis) -> dict:
    """The verdicts of a diagnosis."""
    config, lm = diagnosis.model.config, diagnosis.lm
    facts = dict(n=diagnosis.n, context_length=config.context_length, n_local=lm.n_local,
                 has_bias=diagnosis.model.scheme.has_bias)  # fmt: skip
    return verdicts(tables_of(diagnosis), facts)


def test_nll_of_each_reading():
    """A reading under another setting than its name says, or ids that are off by one."""
    model, ids = tiny("llama"), some_tokens(97, seed=0)[0].tolist()
    diagnosis = diagnosed(model)
    settings = {"vanilla": None, "lambda": LM, "with": LM, "dropped": LMInfinite(6, 0, 6)}
    assert set(diagnosis.nll) == set(settings)
    for name, lm in settings.items():
        expected = stream_nll(model, ids, lm)
        torch.testing.assert_close(diagnosis.nll[name][0], expected, atol=1e-5, rtol=0)
    window = diagnosed(model, lm=LMInfinite(6, 0, 6))
    expected = stream_nll(model, ids, LMInfinite(6, 10, 6))
    torch.testing.assert_close(window.nll["with"][0], expected, atol=1e-5, rtol=0)
    rows = {(r["reading"], r["where"]): r for r in tables_of(diagnosis)["nll"]}
    beyond = rows["vanilla", "beyond"]
    assert (beyond["first"], beyond["last"]) == (6, 96)
    vanilla = stream_nll(model, ids, None)
    assert beyond["nll"] == pytest.approx(vanilla[6:].mean().item(), abs=1e-5)
    cost = rows["dropped - with", "beyond the window"]
    both = [stream_nll(model, ids, lm)[6:].mean().item() for lm in (LMInfinite(6, 0, 6), LM)]
    assert cost["nll"] == pytest.approx(both[0] - both[1], abs=1e-5)
    assert cost["interval"][0] <= cost["nll"] <= cost["interval"][1]


def test_tables_are_means_over_heads():
    """A running maximum that falls, a mean over one text only, or another side's rows."""
    diagnosis = diagnosed(tiny("llama"), texts=2)
    tables = tables_of(diagnosis)
    for side in ("vanilla", "capped", "lambda"):
        both = [rows.largest for rows in diagnosis.rows[side]]
        running = torch.maximum(*both).cummax(-1).values
        rows = [r for r in tables["logits"] if r["side"] == side and r["layer"] == "all"]
        assert [r["last"] for r in rows] == diagnosis.edges[1:]
        assert [r["mean"] for r in rows] == pytest.approx(running.mean((0, 1)).tolist())
        spread = running.flatten(0, 1).std(0, correction=0)
        assert [r["deviation"] for r in rows] == pytest.approx(spread.tolist())
        first = [r["mean"] for r in tables["logits"] if (r["side"], r["layer"]) == (side, 0)]
        assert first == pytest.approx(running[0].mean(0).tolist())
        far = torch.tensor(diagnosis.edges[:-1]) >= 6
        beyond = next(r for r in tables["beyond"] if r["side"] == side)
        most = torch.maximum(*both)[..., far].amax(-1).mean().item()
        assert beyond["mean"] == pytest.approx(most)
    vanilla = diagnosis.rows["vanilla"]
    at = torch.cat([rows.q_positions for rows in vanilla])
    mass = torch.cat([rows.mass for rows in vanilla], -1)
    row = next(r for r in tables["mass"] if r["side"] == "vanilla")
    here = (at >= row["first"]) & (at < row["last"])
    assert (row["first"], row["last"], row["tokens"]) == (3, 6, 2)
    assert row["mean"] == pytest.approx(mass[..., here].mean().item())
    assert row["share"] == pytest.approx((2 / (at[here] + 1)).mean().item())
    row = next(r for r in tables["mass"] if r["side"] == "lambda")
    assert (row["first"], row["share"]) == (8, 0.25)
    nats = torch.cat([rows.entropy for rows in vanilla], -1)
    for row in tables["entropy"]:
        if row["side"] == "vanilla" and row["layer"] == 1:
            here = (at >= row["first"]) & (at < row["last"])
            assert row["mean"] == pytest.approx(nats[1][..., here].mean().item())


def test_the_seed_decides_what_is_sampled():
    """Numbers that differ from run to run, or a seed that does nothing."""
    model = tiny("llama", n_layer=1)
    same, again, other = (diagnosed(model, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(same.theorems()[0], again.theorems()[0])
    assert torch.equal(same.rows["lambda"][0].entropy, again.rows["lambda"][0].entropy)
    positions = [d.rows["vanilla"][0].q_positions.tolist() for d in (same, again, other)]
    assert positions[0] == positions[1] != positions[2]


class LargestTensor(TorchDispatchMode):
    """Notes how many elements the largest tensor has that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        for x in made if isinstance(made, tuple | list) else (made,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return made


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_grows_with_the_length_only(family, monkeypatch, small_chunks):
    """A tensor of n x n elements, which 16 x context_length of a real model cannot have."""
    small_chunks(queries=16, keys=64)
    monkeypatch.setattr("minilm_inf.diagnose.logits.LOGITS_AT_ONCE", 4096)
    monkeypatch.setattr("minilm_inf.diagnose.places.QUERIES_PER_OCTAVE", 4)
    monkeypatch.setattr("minilm_inf.diagnose.measure.LOGITS_PER_PIECE", 64)
    for name, value in dict(AT_ONCE=4096, MOST_DISTANCES=16, N_PAIRS=4).items():
        monkeypatch.setattr(f"minilm_inf.diagnose.theorem.{name}", value)
    monkeypatch.setattr("minilm_inf.diagnose.theorem.N_DIFFERENCES", 64)
    model, largest = tiny(family, context_length=32, n_layer=1), {}
    for n in (16 * 32, 32 * 32):
        with LargestTensor() as seen:
            tables_of(diagnosed(model, n, LMInfinite(32, 2, 32)))
        largest[n] = seen.numel
    assert largest[512] < 512 * 512 / 2
    assert largest[1024] <= 2.05 * largest[512]


# ---- verdicts


def test_a_model_without_a_factor_and_one_that_has_it():
    """A summary that says the same of every model."""
    blind = tiny("llama", n_layer=1)  # no logit is anything but 0: attention is uniform
    blind.blocks[0].qkv.weight[:48] = 0
    words = words_of(diagnosed(blind))
    assert words["factor_1"]["verdict"] == "not shown"
    assert words["factor_2"]["verdict"] == "shown"
    numbers = words["factor_2"]["numbers"]
    assert numbers["grows"] == pytest.approx(numbers["uniform_would_grow"])

    steep = tiny("mpt", n_layer=1, alibi_bias_max=0.5)  # every head looks near, at any length
    words = words_of(diagnosed(steep))
    assert words["factor_1"]["verdict"] == "shown"
    assert "downward only, as ALiBi's bias does" in words["factor_1"]["words"]
    assert words["factor_2"]["verdict"] == "not shown"
    assert all(factor["words"].startswith(factor["verdict"]) for factor in words.values())


def model_that_lives_on_token_0():
    """A network that can tell what follows, 7, only by the first token, 5, which it sees with
    uniform attention; and whose state at that token is like no other."""
    model = tiny("llama", n_layer=1, context_length=16)
    for weight in model.parameters():
        weight.data.zero_()
    for norm in (model.norm, *(m for m in model.blocks[0].modules() if hasattr(m, "eps"))):
        norm.weight.data.fill_(1)
    model.norm.weight.data.fill_(1)
    model.blocks[0].attention_norm.weight.data.fill_(1)
    model.blocks[0].mlp_norm.weight.data.fill_(1)
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
    setting = LMInfinite(16, 2, 16)
    words = words_of(diagnosed(needs, lm=setting, ids=ids))["factor_3"]
    assert words["verdict"] == "shown"
    assert words["numbers"]["apart"] > 1 and words["numbers"]["cost"] > 1
    with torch.no_grad():  # the state stands apart as before, but nothing hangs on it
        needs.head.weight[7, 2] = 0
    words = words_of(diagnosed(needs, lm=setting, ids=ids))["factor_3"]
    assert words["verdict"] == "in part" and words["numbers"]["cost"] == pytest.approx(0)
    usual = words_of(diagnosed(tiny("llama", context_length=64), n=128, texts=4,
                               lm=LMInfinite(64, 2, 64)))["factor_3"]  # fmt: skip
    assert usual["verdict"] == "not shown"


def test_keys_that_gain_weight_without_a_larger_size():
    """Logits that rise beyond the trained length, but not beyond the largest negative ones."""
    tables = {"logits": [], "beyond": [], "theorem": []}
    far = {"vanilla": 9.0, "capped": 4.0, "lambda": None}
    for side in far:
        for last in (256, 512):
            tables["logits"].append(dict(side=side, layer="all", last=last, mean=10.0))
        tables["beyond"].append(dict(side=side, layer="all", highest_mean=far[side]))
    told = dict(side="vanilla", layer="all", n=512, alpha_mean=4, bound_mean=1, sup_mean=2)
    tables["theorem"].append(told)
    facts = dict(n=512, context_length=256, has_bias=False)
    assert factor_1(tables, facts)["verdict"] == "in part"
    tables["beyond"][0]["highest_mean"] = 4.9
    assert factor_1(tables, facts)["verdict"] == "not shown"
    tables["logits"][1]["mean"] = 12.5
    assert factor_1(tables, facts)["verdict"] == "shown"


def test_what_a_short_text_cannot_tell():
    """A verdict on long texts, from one that is not longer than the trained length."""
    diagnosis = diagnosed(tiny("llama", context_length=64), n=64, lm=LMInfinite(64, 2, 64))
    words = words_of(diagnosis)
    for name in ("factor_1", "factor_2"):
        assert words[name]["verdict"] == "not measured" and "--length" in words[name]["words"]
    assert words["factor_3"]["verdict"] == "not shown"
    assert "not measured: the window holds all 64" in words["factor_3"]["words"]
    assert not [r for r in tables_of(diagnosis)["nll"] if r["reading"] == "dropped - with"]


# ---- the program


@pytest.fixture
def call(program):
    """A call of the program: arguments -> (exit code, stdout, stderr)."""
    return partial(program, main)


TABLES = {
    "logits": "side layer first last mean deviation most highest_mean highest_deviation "
    "highest_most",
    "beyond": "side layer mean deviation most highest_mean highest_deviation highest_most",
    "entropy": "side layer first last visible mean deviation most ln_visible proposition_1 "
    "proposition_1_best ln_most_visible",
    "states": "layer apart in_plane without_token_0 largest_other explained_1 explained_2",
    "positions": "layer position distance",
    "mass": "side layer first last tokens share mean deviation most token_0",
    "theorem": "side layer n epsilon alpha_mean alpha_deviation alpha_most bound_mean "
    "bound_deviation bound_most sup_mean sup_deviation sup_most most_of_sup",
    "nll": "reading where first last nll interval",
    "plane": "layer text position pc1 pc2",
}


def without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def test_words_and_files(call, texts, tmp_path, monkeypatch):
    """Another number in the file than in the words; a table without names; a half file."""
    without_matplotlib(monkeypatch)
    out = tmp_path / "deep" / "out"
    given = ["--text", texts / "a", texts / "b", "--length", 400, "--n-local", 128]
    code, words, err = call(*given, "--out", out)
    assert code == 0
    lines = words.splitlines()
    assert [line[:9] for line in lines] == ["factor 1,", "factor 2,", "factor 3,"]
    assert err.count("no figures: matplotlib is not installed") == 1
    assert err.count("\n") == 6 + 2, "three readings of each text"
    assert {path.name for path in out.iterdir()} == {
        "diagnosis.json", *(f"{name}.csv" for name in TABLES)
    }  # fmt: skip
    result = json.loads((out / "diagnosis.json").read_text())
    assert set(result) == {"settings", "factors", "tables"}
    assert set(result["tables"]) == set(TABLES) - {"plane"}
    settings = result["settings"]
    assert (settings["n"], settings["n_local"], settings["distance_ceiling"]) == (400, 128, 128)
    for line, factor in zip(lines, result["factors"].values()):
        assert line == f"factor {line[7]}, {factor['words']}."
    for name, columns in TABLES.items():
        with open(out / f"{name}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows and list(rows[0]) == columns.split(), name
        if name != "plane":
            assert len(rows) == len(result["tables"][name])
    code, printed, _ = call(*given, "--out", out, "--json")
    assert code == 0 and printed == (out / "diagnosis.json").read_text()
    assert json.loads(printed) == result, "the same flags give the same numbers"


def test_the_flags_reach_the_measure(call, texts, tmp_path, monkeypatch):
    """--n-global that is parsed and then dropped."""
    without_matplotlib(monkeypatch)
    given = ["--text", texts / "a", "--length", 300, "--n-local", 64, "--json", "--out"]
    usual, fewer, window = (
        json.loads(call(*given, tmp_path, *flags)[1])
        for flags in ([], ["--n-global", 2], ["--attention", "window"])
    )
    assert [x["settings"]["n_global"] for x in (usual, fewer, window)] == [10, 2, 0]
    mass = [x["tables"]["mass"] for x in (usual, fewer, window)]
    last = [next(r for r in rows if r["side"] == "lambda") for rows in mass]
    assert [row["tokens"] for row in last] == [10, 2, 0] and last[2]["mean"] == 0
    nll = [x["tables"]["nll"][-1]["nll"] for x in (usual, fewer, window)]
    assert nll[0] == pytest.approx(nll[2]) and nll[0] != pytest.approx(nll[1])


def test_figures(call, texts, tmp_path):
    """A figure that cannot be drawn of a model, or that is another one each time."""
    pytest.importorskip("matplotlib")
    given = ["--text", texts / "a", texts / "b", "--length", 400, "--n-local", 128]
    drawn = []
    for flags in ([], [], ["--n-local", 400], ["-m", ROOT / "weights" / "tiny-mpt"]):
        assert call(*given, *flags, "--out", tmp_path)[0] == 0
        drawn.append([(tmp_path / f"{x}.png").read_bytes() for x in ("factors", "states")])
        assert all(png.startswith(b"\x89PNG") and len(png) > 20_000 for png in drawn[-1])
    assert drawn[0] == drawn[1] != drawn[2]
    assert call("--text", texts / "a", "--length", 16, "--out", tmp_path)[0] == 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--text", "short", "--length", 400], ("short has only", "--length")),
        (["--text", "empty", "--length", 400], ("empty has only", "--length")),
        (["--text", "a"], ("has only", "--length")),
        (["--text", "latin", "--length", 20], ("latin", "not UTF-8")),
        (["--text", "missing", "--length", 20], ("cannot read", "missing")),
        (["--corpus", "."], ("no held-out documents", "minilm_inf.corpus")),
        (["--text", "a", "--length", 20, "-m", "nowhere"], ("nowhere",)),
        (["--text", "a", "--length", 20, "--out", "b"], ("cannot write to b", "--out")),
        (["--text", "a", "--length", 20, "--out", "b/c"], ("cannot write to b/c", "--out")),
        (["--text", "a", "--length", 20, "--device", "mars"], ("--device mars",)),
    ],
)
def test_what_cannot_be_measured(call, texts, monkeypatch, arguments, words):
    """A traceback for a mistyped name, or minutes of work before it is noticed."""
    monkeypatch.chdir(texts)
    before = sorted(texts.iterdir())
    code, out, err = call(*arguments)
    assert code == 1 and not out and sorted(texts.iterdir()) == before
    err = err.removeprefix(NO_FIGURES)
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert all(word in err for word in words)


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--length", 15], "--length"),
        (["--attention", "full"], "vanilla model is measured anyway"),
        (["--attention", "window", "--n-global", 3], "--n-global"),
        (["--top-k-middle", 3], "--top-k-middle"),
        (["--documents", 0], "--documents"),
        (["--seed", -1], "--seed"),
    ],
)
def test_flags_that_make_no_sense(call, arguments, word):
    """A vanilla model that is compared with itself."""
    code, out, err = call(*arguments)
    assert code == 2 and not out and word in err.splitlines()[-1]


def test_a_diagnosis_needs_no_matplotlib_to_start(texts):
    """Matplotlib imported at the top, in everybody's way."""
    program = "import sys, minilm_inf.diagnose.__main__; print('matplotlib' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.stdout.strip() == "False", run.stderr


def test_interrupted_nothing_is_left(call, texts, tmp_path, monkeypatch):
    """A folder of half a diagnosis."""

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Diagnosis, "read_all", interrupt)
    code, out, err = call("--text", texts / "a", "--length", 20, "--out", tmp_path / "x")
    assert code == 130 and not out and err.removeprefix(NO_FIGURES).strip() == "stopped"
    assert not list(tmp_path.iterdir())

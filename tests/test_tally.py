"""The sums, the bins and the intervals, against plain loops and made-up text."""

import math

import numpy as np
import pytest

from minilm_inf.evaluate import intervals, tally
from minilm_inf.evaluate.intervals import Z, blocks, interval, wilson
from minilm_inf.evaluate.pairs import Pairs
from minilm_inf.evaluate.tally import Tally, linear_edges


def made_up(n: int, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 1.5, n)


def one_text(n: int, bins: int) -> Tally:
    return Tally(np.array([n]), bins)


def fed(counter: Tally, nll: np.ndarray, chunk: int, text=0) -> Tally:
    """Give a tally the nll of the positions from 1 on, a chunk at a time."""
    for start in range(0, len(nll), chunk):
        counter.add(1 + start, nll[start : start + chunk])
    counter.end(text)
    return counter


@pytest.mark.parametrize("n", [2, 3, 5, 9, 1000, 4097])
@pytest.mark.parametrize("bins", [1, 7, 200])
def test_bins_hold_every_position_once(n, bins):
    """A position in two bins, or an empty bin, whose mean is no number; edges that are off by
    one from the millions that a reader expects."""
    found = fed(one_text(n, bins), made_up(n - 1), 64)
    rows = found.rows("linear", 0)
    assert rows[0]["first"] == 1 and rows[-1]["last"] == n
    assert all(a["last"] == b["first"] for a, b in zip(rows, rows[1:]))
    assert min(row["tokens"] for row in rows) >= 1 and len(rows) == min(bins, n - 1)
    rows = found.rows("log", 0)
    firsts = [2**k for k in range(20) if 2**k < n]
    assert [row["first"] for row in rows] == firsts
    assert [row["last"] for row in rows] == [*firsts[1:], n]
    assert linear_edges(200_000_000, 200).tolist() == [1, *range(10**6, 200 * 10**6 + 1, 10**6)]


@pytest.mark.parametrize("n, chunk", [(2, 1), (50, 7), (6000, 2048), (6000, 9999)])
def test_a_stream_is_binned_as_a_loop_would(n, chunk):
    """A token that a chunk's edge puts into the bin beside its own, or into none."""
    nll = made_up(n - 1)
    found = fed(one_text(n, 9), nll, chunk)
    assert found.total == pytest.approx(nll.sum())
    for kind in tally.KINDS:
        rows = found.rows(kind, 0)
        for row in rows:
            here = [nll[p - 1] for p in range(1, n) if row["first"] <= p < row["last"]]
            assert row["tokens"] == len(here)
            assert row["nll"] == pytest.approx(sum(here) / len(here), abs=1e-12)
        assert sum(row["tokens"] for row in rows) == n - 1


@pytest.mark.parametrize("groups", [256, 2])
def test_texts_are_averaged_by_position(monkeypatch, groups):
    """A long text that outweighs a short one in a bin, or counts where it does not reach; a
    group of texts that loses some."""
    monkeypatch.setattr(tally, "MOST_GROUPS", groups)
    lengths = np.array([30, 7, 2, 18])
    texts = [made_up(n - 1, seed) for seed, n in enumerate(lengths)]
    found = Tally(lengths, 5)
    for number, nll in enumerate(texts):
        fed(found, nll, 4, number)
    for kind in ("log", "linear"):
        for row in found.rows(kind, 0):
            positions = range(row["first"], row["last"])
            means = [
                np.mean([nll[p - 1] for p in positions if p <= len(nll)])
                for nll in texts
                if row["first"] <= len(nll)
            ]
            assert row["documents"] == len(means)
            assert row["nll"] == pytest.approx(np.mean(means), abs=1e-12)
            assert row["tokens"] == sum(p <= len(nll) for nll in texts for p in positions)
            assert row["interval"] is not None or len(means) < 2 or groups == 2
    whole = found.rows("all", 0)[0]
    assert whole["nll"] == pytest.approx(np.concatenate(texts).mean(), abs=1e-12)
    assert whole["tokens"] == sum(lengths - 1)


@pytest.mark.parametrize(
    "tokens, count", [(1, 1), (15, 15), (16, 16), (4095, 16), (4352, 17), (10**6, 128)]
)
def test_blocks_are_long_where_the_bin_is(tokens, count):
    """Blocks of a token or two, which call a passage of one mood many observations; or more
    and more of them the longer the stream is."""
    edges = blocks(5, 5 + tokens)
    assert len(edges) == count + 1 and (edges[0], edges[-1]) == (5, 5 + tokens)
    assert np.diff(edges).max() - np.diff(edges).min() <= 1


def test_intervals_are_seeded_and_of_enough_units():
    """A result that nobody can repeat; or an interval of one block, which has no width, and
    would look like certainty."""
    sums, weights = made_up(50), np.ones(50)
    assert interval(sums, weights, [1, 2]) == interval(sums, weights, [1, 2])
    assert interval(sums, weights, [1, 2]) != interval(sums, weights, [2, 2])
    rows = fed(one_text(41, 2), made_up(40), 40).rows("log", 0)
    assert [row["interval"] is None for row in rows] == [True] * 4 + [False, True]
    assert interval(np.ones(1), np.ones(1), [0]) is None


def test_an_interval_covers_the_truth_as_often_as_it_says(monkeypatch):
    """One that is too narrow by the root of something. Neighbours in the made-up text resemble
    one another, as in a real one: blocks that ignored that would cover far less. And the spread
    within texts instead of between them."""
    monkeypatch.setattr(intervals, "RESAMPLES", 200)
    rng, trials, n = np.random.default_rng(3), 200, 20_480
    covered, naive, over_texts = [], [], []
    for trial in range(trials):
        noise = rng.standard_normal(n // 32 + 1)
        nll = 3.0 + np.repeat(noise, 32)[:n] + rng.standard_normal(n)
        low, high = fed(one_text(n + 1, 1), nll, n).rows("all", trial)[0]["interval"]
        covered.append(low < 3.0 < high)
        naive.append(abs(nll.mean() - 3.0) < 1.96 * nll.std() / math.sqrt(n))
        found = Tally(np.full(20, 33), 1)
        for number in range(20):
            nll = 3.0 + rng.standard_normal() + 0.1 * rng.standard_normal(32)
            fed(found, nll, 32, number)
        low, high = found.rows("linear", trial)[0]["interval"]
        over_texts.append(low < 3.0 < high)
    assert 0.90 < np.mean(covered) < 0.99 and np.mean(naive) < 0.5
    assert 0.86 < np.mean(over_texts) < 0.99


def test_what_is_kept_does_not_grow():
    """A list that gains an entry per token, per chunk or per bin of a longer stream."""

    def kept(counter) -> int:
        return sum(array.nbytes for array in counter.arrays().values())

    sizes = [kept(one_text(n, 200)) for n in (10**7, 10**8)]
    assert sizes[1] < 1.05 * sizes[0] < 1e6
    assert kept(Pairs(10**7)) == kept(Pairs(10**8)) < 13e6
    assert kept(Tally(np.full(10**4, 500), 200)) == kept(Tally(np.full(10**3, 500), 200))


def test_a_nan_is_told(recwarn):
    """A model that fails far out: its nan must stay where it is, and warn of nothing."""
    nll = made_up(4096)
    nll[3000], nll[[100, 700]] = math.nan, math.inf
    rows = fed(one_text(4097, 4), nll, 512).rows("linear", 0)
    assert [str(row["nll"]) for row in rows[::2]] == ["inf", "nan"]
    assert all(math.isfinite(row["nll"]) for row in rows[1::2])
    assert math.isnan(rows[2]["interval"][0]) and not recwarn


# ---- the same tokens early and late


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("n_places", [130, 30])
def test_pairs_are_the_same_tokens(chunk, n_places):
    """A token that is compared with its neighbour, or with one that neither window holds; of a
    place that was read twice, the earlier time."""
    n = 400  # windows of 100: 100 to 200, and 300 to 400
    nll = made_up(n).astype(np.float32).astype(np.float64)
    places = (np.arange(n) * 7 + 3) % n_places
    found = Pairs(n)
    for start in range(1, n, chunk):
        end = min(start + chunk, n)
        found.add(start, nll[start:end], places[start:end])
    result = found.result(0)
    early = {int(places[i]): nll[i] for i in range(100, 200)}
    differences = [
        nll[i] - early[int(places[i])] for i in range(300, 400) if places[i] in early
    ]
    assert len(differences) > 0 and result["pairs"] == len(differences)
    assert result["difference"] == pytest.approx(np.mean(differences), abs=1e-9)
    assert result["early_nll"] == pytest.approx(nll[100:200].mean())
    assert result["late_nll"] == pytest.approx(nll[300:].mean())
    assert (result["tokens"], result["early_first"], result["late_first"]) == (100, 100, 300)
    low, high = result["interval"]
    assert low < result["difference"] < high


def test_a_stream_without_repetition_has_no_pairs():
    """0 / 0; and a stream too short for windows at all."""
    found = Pairs(40)
    found.add(1, np.ones(39), np.arange(39))
    assert found.result(0)["pairs"] == 0 and found.result(0)["difference"] is None
    assert found.result(0)["interval"] is None
    assert Pairs(3).result(0) is None


# ---- Wilson's interval


@pytest.mark.parametrize(
    "found, count, low, high",
    [
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
    ],
)  # fmt: skip
def test_wilson_against_published_intervals(found, count, low, high):
    """A slip in the formula. Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert [round(x, 4) for x in wilson(found, count)] == [low, high]


def test_wilson_is_where_the_test_rejects():
    """The bounds are the shares p at which (found/count - p)^2 = Z^2 p (1-p) / count."""
    for count in (1, 7, 50, 400):
        for found in range(count + 1):
            low, high = wilson(found, count)
            for p in (low, high):
                assert abs((found / count - p) ** 2 - Z * Z * p * (1 - p) / count) < 1e-12
            assert 0 <= low <= found / count <= high <= 1
    assert wilson(0, 9)[0] == 0 and wilson(9, 9)[1] == 1

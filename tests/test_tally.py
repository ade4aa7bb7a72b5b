"""The sums, the bins and the intervals, against plain loops and made-up text."""

import math

import numpy as np
import pytest

from minilm_inf.evaluate import tally
from minilm_inf.evaluate.pairs import Pairs
from minilm_inf.evaluate.tally import (
    DocumentsTally,
    StreamTally,
    blocks,
    interval,
    linear_edges,
)


def made_up(n: int, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 1.5, n)


def fed(counter, nll: np.ndarray, chunk: int, text=0):
    """Give a tally the nll of the positions from 1 on, a chunk at a time."""
    for start in range(0, len(nll), chunk):
        counter.add(1 + start, nll[start : start + chunk])
    counter.end(text)
    return counter


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 9, 1000, 4097])
@pytest.mark.parametrize("bins", [1, 7, 200])
def test_bins_hold_every_position_once(n, bins):
    """A position in two bins, or an empty bin, whose mean is no number."""
    rows = fed(StreamTally(n, bins), made_up(n - 1), 64).rows("linear", 0)
    assert rows[0]["first"] == 1 and rows[-1]["last"] == n
    assert all(a["last"] == b["first"] for a, b in zip(rows, rows[1:]))
    assert min(row["tokens"] for row in rows) >= 1 and len(rows) == min(bins, n - 1)
    rows = StreamTally(n, bins).rows("log", 0)
    firsts = [2**k for k in range(20) if 2**k < n]
    assert [row["first"] for row in rows] == firsts
    assert [row["last"] for row in rows] == [*firsts[1:], n]


def test_equal_bins_of_a_long_stream_have_round_edges():
    """Edges that are off by one from the millions that a reader expects."""
    assert linear_edges(200_000_000, 200).tolist() == [1, *range(10**6, 200 * 10**6 + 1, 10**6)]


@pytest.mark.parametrize("n, chunk", [(2, 1), (50, 1), (50, 7), (6000, 2048), (6000, 9999)])
def test_a_stream_is_binned_as_a_loop_would(n, chunk):
    """A token that a chunk's edge puts into the bin beside its own, or into none."""
    nll = made_up(n - 1)
    found = fed(StreamTally(n, 9), nll, chunk)
    for kind in ("log", "linear", "all"):
        rows = found.rows(kind, 0)
        for row in rows:
            here = [nll[p - 1] for p in range(1, n) if row["first"] <= p < row["last"]]
            assert row["tokens"] == len(here)
            assert row["nll"] == pytest.approx(sum(here) / len(here), abs=1e-12)
        assert sum(row["tokens"] for row in rows) == n - 1


def test_texts_are_averaged_by_position():
    """A long text that outweighs a short one in a bin, or counts where it does not reach."""
    lengths = np.array([30, 7, 2, 18])
    texts = [made_up(n - 1, seed) for seed, n in enumerate(lengths)]
    found = DocumentsTally(lengths, 5)
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
            assert (row["interval"] is None) == (len(means) < 2)
    whole = found.rows("all", 0)[0]
    assert whole["nll"] == pytest.approx(np.concatenate(texts).mean(), abs=1e-12)
    assert whole["tokens"] == sum(lengths - 1)


def test_many_texts_are_drawn_in_groups(monkeypatch):
    """Memory that grows with the number of texts; or texts that a group loses."""
    lengths = np.arange(2, 42)
    plain = DocumentsTally(lengths, 3)
    monkeypatch.setattr(tally, "MOST_GROUPS", 8)
    grouped = DocumentsTally(lengths, 3)
    for number, n in enumerate(lengths):
        fed(plain, made_up(n - 1, number), 9, number)
        fed(grouped, made_up(n - 1, number), 9, number)
    assert grouped.sums["log"].shape[0] == 8
    for kind in ("log", "linear", "all"):
        for a, b in zip(plain.rows(kind, 0), grouped.rows(kind, 0)):
            assert a["nll"] == pytest.approx(b["nll"], abs=1e-12)
            assert a["documents"] == b["documents"] and a["tokens"] == b["tokens"]


@pytest.mark.parametrize(
    "tokens, count", [(1, 1), (15, 15), (16, 16), (4095, 16), (4352, 17), (10**6, 128)]
)
def test_blocks_are_long_where_the_bin_is(tokens, count):
    """Blocks of a token or two, which call a passage of one mood many observations; or more
    and more of them the longer the stream is."""
    edges = blocks(5, 5 + tokens)
    assert len(edges) == count + 1 and (edges[0], edges[-1]) == (5, 5 + tokens)
    assert np.diff(edges).max() - np.diff(edges).min() <= 1


def test_too_few_units_have_no_interval():
    """An interval of one block has no width, and would look like certainty."""
    nll = made_up(40)
    rows = fed(StreamTally(41, 2), nll, 40).rows("log", 0)
    assert [row["interval"] is None for row in rows] == [True] * 4 + [False, True]
    assert interval(np.ones(1), np.ones(1), [0]) is None


def test_intervals_are_seeded():
    """A result that nobody can repeat; or the same draw for every bin."""
    sums, weights = made_up(50), np.ones(50)
    assert interval(sums, weights, [1, 2]) == interval(sums, weights, [1, 2])
    assert interval(sums, weights, [1, 2]) != interval(sums, weights, [2, 2])
    low, high = interval(sums, weights, [1, 2])
    assert low < sums.mean() < high


def test_an_interval_covers_the_truth_as_often_as_it_says(monkeypatch):
    """One that is too narrow by the root of something. Neighbours in the made-up text resemble
    one another, as in a real one: blocks that ignored that would cover far less."""
    monkeypatch.setattr(tally, "RESAMPLES", 200)
    rng, trials, n = np.random.default_rng(3), 300, 20_480
    covered = naive = 0
    for trial in range(trials):
        noise, memory = rng.standard_normal(n // 32 + 1), 3.0
        nll = memory + np.repeat(noise, 32)[:n] + rng.standard_normal(n)
        found = fed(StreamTally(n + 1, 1), nll, n)
        low, high = found.rows("all", trial)[0]["interval"]
        covered += low < memory < high
        naive += abs(nll.mean() - memory) < 1.96 * nll.std() / math.sqrt(n)
    assert 0.90 < covered / trials < 0.98
    assert naive / trials < 0.5


def test_an_interval_over_texts_covers_the_mean_of_their_kind():
    """The spread within texts instead of between them."""
    rng, trials, covered = np.random.default_rng(4), 200, 0
    for trial in range(trials):
        found = DocumentsTally(np.full(20, 33), 1)
        for number in range(20):
            nll = 3.0 + rng.standard_normal() + 0.1 * rng.standard_normal(32)
            fed(found, nll, 32, number)
        low, high = found.rows("linear", trial)[0]["interval"]
        covered += low < 3.0 < high
    assert 0.86 < covered / trials < 0.99


def test_what_is_kept_does_not_grow():
    """A list that gains an entry per token, per chunk or per bin of a longer stream."""

    def kept(counter) -> int:
        return sum(array.nbytes for array in counter.state().values())

    sizes = [kept(StreamTally(n, 200)) for n in (10**7, 10**8)]
    assert sizes[1] < 1.05 * sizes[0] < 1e6
    assert kept(Pairs(10**7)) == kept(Pairs(10**8)) < 13e6
    assert kept(DocumentsTally(np.full(10**4, 500), 200)) == kept(
        DocumentsTally(np.full(10**3, 500), 200)
    )


def test_a_nan_is_told(recwarn):
    """A model that fails far out: its nan must stay where it is, and warn of nothing."""
    nll = made_up(4096)
    nll[3000], nll[[100, 700]] = math.nan, math.inf
    rows = fed(StreamTally(4097, 4), nll, 512).rows("linear", 0)
    assert [str(row["nll"]) for row in rows[::2]] == ["inf", "nan"]
    assert all(math.isfinite(row["nll"]) for row in rows[1::2])
    assert math.isnan(rows[2]["interval"][0]) and not recwarn


# ---- the same tokens early and late


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_pairs_are_the_same_tokens(chunk):
    """A token that is compared with its neighbour, or with one that neither window holds."""
    n, n_places = 400, 130  # windows of 100: 100 to 200, and 300 to 400
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
    assert 0 < len(differences) < 100 and result["pairs"] == len(differences)
    assert result["difference"] == pytest.approx(np.mean(differences), abs=1e-9)
    assert result["early_nll"] == pytest.approx(nll[100:200].mean())
    assert result["late_nll"] == pytest.approx(nll[300:].mean())
    assert (result["tokens"], result["early_first"], result["late_first"]) == (100, 100, 300)
    low, high = result["interval"]
    assert low < result["difference"] < high


def test_of_a_place_read_twice_the_later_time_counts():
    """A window longer than all documents reads places twice, and would mix the times."""
    found = Pairs(40)
    nll = np.arange(40.0)
    found.add(1, nll[1:], np.arange(1, 40) % 3)
    assert found.result(0)["pairs"] == 10
    early = {i % 3: i for i in range(10, 20)}
    expected = np.mean([i - early[i % 3] for i in range(30, 40)])
    assert found.result(0)["difference"] == expected


def test_a_stream_without_repetition_has_no_pairs():
    """0 / 0; and a stream too short for windows at all."""
    found = Pairs(40)
    found.add(1, np.ones(39), np.arange(39))
    assert found.result(0)["pairs"] == 0 and found.result(0)["difference"] is None
    assert found.result(0)["interval"] is None
    assert Pairs(3).result(0) is None

"""The sums, the bins and the intervals, against plain loops and made-up text."""

import math

import numpy as np
import pytest

from minilm_inf.evaluate import intervals
from minilm_inf.evaluate.compare import edges
from minilm_inf.evaluate.intervals import Bins, Pairs, Z, blocks, interval, wilson


def made_up(n: int) -> np.ndarray:
    return np.random.default_rng(0).gamma(2.0, 1.5, n)


def fed(bins: Bins, nll: np.ndarray, chunk: int) -> Bins:
    """Give bins the nll of the positions from 1 on, a chunk at a time."""
    for start in range(0, len(nll), chunk):
        bins.add(1 + start, nll[start : start + chunk])
    return bins


@pytest.mark.parametrize("n, chunk", [(2, 1), (50, 7), (6000, 2048), (6000, 9999)])
@pytest.mark.parametrize("cuts", [[3, 4, 20], range(2, 6000, 97), []])
def test_a_text_is_binned_as_a_loop_would(n, chunk, cuts):
    """A token that a chunk's edge puts into the bin beside its own, or into none."""
    nll = made_up(n - 1)
    found = fed(Bins([1, *(cut for cut in cuts if cut < n), n], 0), nll, chunk)
    rows = found.rows()
    assert found.sums.sum() == pytest.approx(nll.sum())
    assert rows[0]["first"] == 1 and rows[-1]["last"] == n
    for row in rows:
        here = [nll[p - 1] for p in range(1, n) if row["first"] <= p < row["last"]]
        assert row["tokens"] == len(here)
        assert row["nll"] == pytest.approx(sum(here) / len(here), abs=1e-12)
    assert sum(row["tokens"] for row in rows) == n - 1


def test_bins_and_blocks_cover_every_position_once():
    """A position between two bins, or in both; an empty bin, whose mean is no number. Blocks of
    a token or two, which call a passage of one mood many observations; or more and more of them
    the longer the stream is."""
    for first, n in ((256, 1500), (6, 5), (1, 900), (200, 216), (8192, 20_000)):
        for per, below in ((1, False), (3, False), (2, True)):
            cuts = edges(first, n, per, below)
            assert cuts[0] == 0 and cuts[-1] == n and min(np.diff(cuts)) > 0
            assert cuts[1] == (1 if below else min(first, n)) and (first in cuts or first > n)
    for tokens, count in ((1, 1), (15, 15), (16, 16), (4095, 16), (4352, 17), (10**6, 128)):
        cuts = blocks(5, 5 + tokens)
        assert len(cuts) == count + 1 and (cuts[0], cuts[-1]) == (5, 5 + tokens)
        assert np.diff(cuts).max() - np.diff(cuts).min() <= 1


def test_an_interval_covers_the_truth_as_often_as_it_says(monkeypatch):
    """One that is too narrow by the root of something. Neighbours in the made-up text resemble
    one another, as in a real one: blocks that ignored that would cover far less. And the spread
    within texts instead of between them."""
    monkeypatch.setattr(intervals, "RESAMPLES", 200)
    rng, n = np.random.default_rng(3), 20_480
    covered, naive, over_texts = [], [], []
    for trial in range(200):
        noise = rng.standard_normal(n // 32 + 1)
        nll = 3.0 + np.repeat(noise, 32)[:n] + rng.standard_normal(n)
        low, high = fed(Bins([1, n + 1], trial), nll, n).rows()[0]["interval"]
        covered.append(low < 3.0 < high)
        naive.append(abs(nll.mean() - 3.0) < 1.96 * nll.std() / math.sqrt(n))
        texts = 3.0 + rng.standard_normal((20, 1)) + 0.1 * rng.standard_normal((20, 32))
        low, high = interval(texts.mean(1), np.ones(20), [trial])
        over_texts.append(low < 3.0 < high)
    assert 0.90 < np.mean(covered) < 0.99 and np.mean(naive) < 0.5
    assert 0.86 < np.mean(over_texts) < 0.99


def test_an_interval_of_one_unit_is_none():
    """One that has no width, and would look like certainty."""
    rows = fed(Bins([1, 2, 4, 8, 16, 32, 41], 0), made_up(40), 40).rows()
    assert [row["interval"] is None for row in rows] == [True] * 4 + [False, True]
    assert interval(np.ones(1), np.ones(1), [0]) is None


@pytest.mark.parametrize("n_places", [130, 30])
def test_pairs_are_the_same_tokens(n_places):
    """A token that is compared with its neighbour, or with one that neither window holds; of a
    place that was read twice, one time only; of no pairs, 0 / 0."""
    n = 400  # windows of 100: 100 to 200, and 300 to 400
    nll = made_up(n).astype(np.float32).astype(np.float64)
    places = (np.arange(n) * 7 + 3) % n_places
    early = {}
    for i in range(100, 200):
        early.setdefault(int(places[i]), []).append(nll[i])
    late = range(300, 400)
    pairs = [(nll[i], np.mean(early[places[i]])) for i in late if places[i] in early]
    for chunk in (1, 7, 64, 1000):
        found = Pairs(n, n_places)
        for start in range(1, n, chunk):
            end = min(start + chunk, n)
            found.add(start, nll[start:end], places[start:end])
        result = found.result()
        assert len(pairs) > 0 and result["pairs"] == len(pairs)
        assert result["difference"] == pytest.approx(np.mean([a - b for a, b in pairs]))
        assert result["early_nll"] == pytest.approx(nll[100:200].mean())
        assert result["late_nll"] == pytest.approx(nll[300:].mean())
        windows = result["tokens"], result["early_first"], result["late_first"]
        assert windows == (100, 100, 300)
        low, high = result["interval"]
        assert low < result["difference"] < high
    for n in (2, 3, 40):
        found = Pairs(n, 40)
        found.add(1, np.ones(n - 1), np.arange(n - 1))
        assert found.result() is None


def test_wilson_is_where_the_test_rejects():
    """The bounds are the shares p at which (found/count - p)^2 = Z^2 p (1-p) / count."""
    for count in (1, 7, 50, 400):
        for found in range(count + 1):
            low, high = wilson(found, count)
            for p in (low, high):
                assert abs((found / count - p) ** 2 - Z * Z * p * (1 - p) / count) < 1e-12
            assert 0 <= low <= found / count <= high <= 1
    assert wilson(0, 9)[0] == 0 and wilson(9, 9)[1] == 1

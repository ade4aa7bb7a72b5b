"""fast/band.py: consecutive queries in batched blocks."""

import math

import pytest
import torch
from conftest import SCHEMES, SETTINGS, fuzz, vectors

from minilm_inf.attention import attend
from minilm_inf.config import LMInfinite
from minilm_inf.fast import chunked
from minilm_inf.fast.chunked import chunked_attend
from minilm_inf.positions import Alibi, Rotary


@pytest.fixture
def in_band(monkeypatch):
    """A list of how many queries, one call after the other, were read as a band."""
    calls, real = [], chunked.attend_band

    def counted(q, *others):
        calls.append(q.shape[2])
        real(q, *others)

    monkeypatch.setattr(chunked, "attend_band", counted)
    return calls


@pytest.mark.parametrize(
    "draw",
    fuzz(
        21,
        60,
        n=[9, 16, 25, 40, 61],
        n_local=[1, 2, 3, 8, 13],
        n_global=[0, 1, 4, 9, 20],
        capped=[True, False],
        chunk=[2, 3, 8, 64],
        n_kv_head=[1, 2, 4],
        scheme=list(SCHEMES),
        batch=[1, 2],
    ),
    ids=lambda draw: " ".join(str(x) for x in draw.values()),
)
def test_it_is_the_definition(draw, in_band, small_chunks):
    """Catches an edge one row off, the bias of another block, a starting key seen too early."""
    small_chunks(draw["chunk"])
    n, n_local = draw["n"], draw["n_local"]
    lm = LMInfinite(n_local, draw["n_global"], n_local if draw["capped"] else None)
    positions, scheme = torch.arange(n), SCHEMES[draw["scheme"]]
    for dtype, allowed in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        x = vectors(n, batch=draw["batch"], n_kv_head=draw["n_kv_head"], dtype=dtype)
        got = chunked_attend(*x, positions, positions, scheme, lm)
        assert (got - attend(*x, positions, positions, scheme, lm)).abs().max() <= allowed
    groups = -(-draw["n_kv_head"] // 2)  # of two key heads, as small_chunks sets them
    assert sum(in_band) == 2 * n * groups


@pytest.mark.parametrize("scheme", [Rotary(8), Alibi(2)], ids=["rope", "alibi"])
def test_it_is_the_definition_at_its_real_sizes(scheme, in_band):
    """Catches a block, a run of blocks or a stretch that is right at toy sizes only."""
    n = 2 * chunked.QUERIES_PER_STRETCH + 333
    lm, positions = LMInfinite(200, 10, 200), torch.arange(n)
    q, k, v = vectors(n, batch=1, n_head=2, n_kv_head=1, dtype=torch.float32)
    got = chunked_attend(q, k, v, positions, positions, scheme, lm)
    for some in (slice(0, 430), slice(n // 2, n // 2 + 250), slice(n - 250, n)):
        right = attend(q[:, :, some], k, v, positions[some], positions, scheme, lm)
        assert (got[:, :, some] - right).abs().max() <= 1e-5
    assert sum(in_band) == n


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("lm", SETTINGS.values(), ids=SETTINGS)
def test_what_is_given_stays_as_it_is(lm, scheme, small_chunks):
    """Catches keys that are placed where the caller's own lie, over and over."""
    small_chunks(2)
    positions = torch.arange(60)
    x = vectors(60, dtype=torch.float32)
    before = [t.clone() for t in x]
    chunked_attend(*x, positions, positions, scheme, lm)
    assert all(map(torch.equal, before, x))


@pytest.mark.parametrize("n_global", [0, 2])
def test_keys_that_have_left_the_window_are_poison(n_global, in_band, small_chunks):
    """Catches NaN in the one key of a block's columns that none of its queries sees."""
    small_chunks(4)
    lm, k_positions = LMInfinite(8, n_global, 8), torch.arange(40)
    q, k, v = vectors(20, 40)
    q_positions = k_positions[20:]
    expected = chunked_attend(q, k, v, q_positions, k_positions, Rotary(8), lm)
    for x in (k, v):
        x[:, :, 2:13] = math.nan  # the first query, at 20, sees 13 to 20
    got = chunked_attend(q, k, v, q_positions, k_positions, Rotary(8), lm)
    assert (got - expected).abs().max() <= 1e-12
    assert sum(in_band) == 40

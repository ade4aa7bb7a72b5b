"""cache.py: what is kept between chunks, how much of it, and that nothing else is needed."""

import pytest
import torch
from conftest import (
    FAMILIES,
    SETTINGS,
    fuzz,
    interrupted,
    named,
    padded,
    some_tokens,
    tiny_llama,
    tiny_model,
)

from minilm_inf.config import LMInfinite
from minilm_inf.writing.saved_cache import state_of

LM = SETTINGS["LM-Infinite"]
N = 23
PER_KEY = 2 * 2 * 2 * 8 * 8  # bytes: layers, tensors, key heads, head_dim, of float64


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.mark.parametrize(
    "draw",
    fuzz(
        1,
        15,
        sizes=[(1,), (4,), (9,), (50,), (30, 1)],
        dtype=[torch.float32, torch.float64, torch.bfloat16],
        name=["LM-Infinite", "more starting than local", "sliding window"],
    ),
    ids=named,
)
def test_memory_is_the_window_and_the_starting_keys_and_then_stays(draw):
    """Catches a cache that keeps the text, a third form of each key, or a buffer with slack."""
    lm, dtype, sizes = SETTINGS[draw["name"]], draw["dtype"], list(draw["sizes"])
    cache, start = tiny_llama(dtype=dtype).new_cache(3, lm), 0
    model, tokens = tiny_llama(dtype=dtype), some_tokens(50, batch=3)
    rows = lm.n_local + 2 * lm.n_global  # starting keys also where a single token finds them
    predicted = 3 * PER_KEY // 8 * dtype.itemsize * rows
    while start < 50:
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        model(tokens[:, start : start + size], lm, cache=cache)
        start += size
        assert cache.nbytes <= predicted
        if cache.length >= lm.n_local + lm.n_global:
            assert cache.nbytes == predicted
    assert cache.length == 50


def test_memory_before_the_window_is_full(model):
    """Catches buffers that are allocated whole, a window of a million keys for three tokens,
    and an unlimited cache that drops keys, or grows by more than doubling."""
    for n_global in (0, 2, 1000):
        lm = LMInfinite(1_000_000, n_global, 1_000_000)
        cache = model.new_cache(1, lm)
        assert cache.nbytes == 0
        model(some_tokens(3), lm, cache=cache)
        kept = 4 + 2 * min(3, n_global)  # the window's, doubled; starting keys, and for a step
        assert cache.nbytes == kept * PER_KEY
    cache = model.new_cache(1)
    for length in range(1, 40):
        model(some_tokens(1), cache=cache)
        assert length * PER_KEY <= cache.nbytes <= 2 * length * PER_KEY


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_rows_of_other_lengths_go_on_alone(family, setting):
    """Catches padding that is seen once the ring has turned, and state that lives in the model
    instead of in its cache."""
    model, lm, lengths = tiny_model(family), SETTINGS[setting], [9, 2, 14]
    more, texts = some_tokens(30, batch=3, seed=5), [some_tokens(n)[0] for n in lengths]
    cache = model.new_cache(3, lm)
    model(padded(texts), lm, cache=cache, lengths=lengths)
    for step in range(30):
        if step in (2, 9):
            model(more[:1], lm, model.new_cache(1, lm))  # another text's
        logits = model(more[:, step : step + 1], lm, cache=cache)
        for row in range(3) if step % 6 == 3 else ():
            whole = torch.cat((texts[row], more[row, : step + 1]))
            alone = model(whole[None], lm, path="reference")[0, -1]
            assert (logits[row, -1] - alone).abs().max() <= 1e-10


def test_what_does_not_fit_a_cache_is_refused(model):
    """Catches a cache read under a window that it was not kept for: keys would be missing; and
    lengths of 0, or beyond the tokens, which would read padding as text."""
    tokens = some_tokens(6, batch=2)
    cache = model.new_cache(2, LM)
    for lm in (None, LMInfinite(7, 2, 6), LMInfinite(6, 3, 6), LMInfinite(6, 2, 7)):
        with pytest.raises(ValueError, match="cache was made for"):
            model(tokens, lm, cache=cache)
    with pytest.raises(ValueError, match="cache was made for 2 texts, not for 1"):
        model(tokens[:1], LM, cache=cache)
    with pytest.raises(ValueError, match="reference path keeps no cache"):
        model(tokens, LM, cache=cache, path="reference")
    model(tokens, LMInfinite(6, 2, 6), cache=cache)  # an equal setting is the same setting
    for lengths in ([6], [6, 0], [7, 6], [6, -1], [6, 2.0], [True, 6]):
        with pytest.raises(ValueError, match="lengths must be 2 whole numbers from 1 to 6"):
            model(tokens, lengths=lengths)
    with pytest.raises(ValueError, match="before anything is read"):
        model(tokens, LM, cache=cache, lengths=[6, 5])
    for padding in ([1], [1, -1]):
        with pytest.raises(ValueError, match="padding must be 2 whole numbers"):
            model.new_cache(2, padding=padding)


def test_a_refused_call_leaves_the_cache_as_it_was(model):
    """Catches tokens that are counted before they are checked, and rows that are read as padded
    because an earlier call, which was refused, was."""
    tokens = some_tokens(N, batch=2)
    cache = model.new_cache(2, LM)
    with pytest.raises(ValueError, match="out of range"):
        model(tokens + 31, LM, cache, lengths=[9, 4])
    model(tokens[:, :9], LM, cache=cache)
    for wrong in (
        torch.tensor([[31], [1]]),
        torch.tensor([[-1], [1]]),
        tokens[0],
        tokens[:, :0],
    ):
        with pytest.raises(ValueError):
            model(wrong, LM, cache=cache)
    assert cache.length == 9
    rest = model(tokens[:, 9:], LM, cache=cache)
    assert (rest - model(tokens, LM)[:, 9:]).abs().max() <= 1e-10


@pytest.mark.parametrize("where", ["blocks.0", "blocks.1.mlp", "head"])
@pytest.mark.parametrize("n_new", [1, 6])
@pytest.mark.parametrize("lm", [None, LM, LMInfinite(6, 2, 6, top_k=2)], ids=str)
def test_an_interrupted_cache_is_refused(model, lm, n_new, where):
    """Catches layers of unequal length that are read on from, with logits that are far off."""
    tokens = some_tokens(N)
    cache = model.new_cache(1, lm)
    model(tokens[:, :12], lm, cache)
    with interrupted(model.get_submodule(where)):
        model(tokens[:, 12 : 12 + n_new], lm, cache)
    for use in (
        lambda: model(tokens[:, 12:], lm, cache),
        lambda: model.read(tokens[:, 12:13], lm, cache),
        lambda: state_of(cache),
    ):
        with pytest.raises(ValueError, match="this cache was interrupted"):
            use()


@pytest.mark.parametrize("sizes", [[1], [5], [9, 1]], ids=str)
@pytest.mark.parametrize(
    "lm", [LM, SETTINGS["Λ without ceiling"], LMInfinite(6, 2, 4)], ids=str
)
def test_a_chunk_costs_the_same_far_down_a_text(model, lm, sizes):
    """Catches a tensor as long as all that was read, of which a stream has no end."""
    cache, tokens = model.new_cache(1, lm), some_tokens(30)
    model(tokens, lm, cache)
    cache.length += 6 * 10**11  # as many times around the ring; their positions are terabytes
    for size in sizes:
        assert model(tokens[:, :size], lm, cache).isfinite().all()

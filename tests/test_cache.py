"""cache.py: what is kept between chunks, how much of it, and that nothing else is needed."""

import pytest
import torch
from conftest import SETTINGS, interrupted, some_tokens, tiny_llama

from minilm_inf.config import LMInfinite
from minilm_inf.writing.saved_cache import state_of

LM = SETTINGS["LM-Infinite"]
N = 23


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.mark.parametrize("sizes", [[1], [4], [9], [50], [30, 1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["LM-Infinite", "more starting than local", "sliding window"])
def test_memory_is_the_window_and_the_starting_keys_and_then_stays(name, dtype, sizes):
    """Catches a cache that keeps the text, a third form of each key, or a buffer with slack."""
    lm, batch = SETTINGS[name], 3
    model = tiny_llama(n_layer=3, dtype=dtype)
    cache, tokens = model.new_cache(batch, lm), some_tokens(50, batch=batch)
    rows = lm.n_local + 2 * lm.n_global  # starting keys also where a single token finds them
    predicted = 3 * 2 * batch * 2 * 8 * dtype.itemsize * rows
    sizes, start = list(sizes), 0
    while start < 50:
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        model(tokens[:, start : start + size], lm, cache=cache)
        start += size
        assert cache.nbytes <= predicted
        if cache.length >= lm.n_local + lm.n_global:
            assert cache.nbytes == predicted
    assert cache.length == 50


def test_memory_before_the_window_is_full(model):
    """Catches buffers that are allocated whole: a window of a million keys for three tokens."""
    lm = LMInfinite(1_000_000, 1000, 1_000_000)
    cache = model.new_cache(1, lm)
    assert cache.nbytes == 0
    model(some_tokens(3), lm, cache=cache)
    per_key = 2 * 2 * 2 * 8 * 8  # layers, tensors, key heads, head_dim, bytes
    assert cache.nbytes == (4 + 3) * per_key, "the window's, doubled; starting keys again"


def test_full_attention_keeps_every_key(model):
    """Catches an unlimited cache that drops keys, or grows by more than doubling."""
    cache = model.new_cache(1)
    per_key = 2 * 2 * 2 * 8 * 8
    for length in range(1, 40):
        model(some_tokens(1), cache=cache)
        assert length * per_key <= cache.nbytes <= 2 * length * per_key


def test_two_caches_of_one_model_do_not_mix(model):
    """Catches state that lives in the model instead of in its cache."""
    a, b = some_tokens(N, seed=1), some_tokens(N, seed=2)
    caches = [model.new_cache(1, LM) for _ in range(2)]
    logits = ([], [])
    for i in range(N):
        for text, cache, out in zip((a, b), caches, logits):
            out.append(model(text[:, i : i + 1], LM, cache=cache))
    for text, out in zip((a, b), logits):
        assert (torch.cat(out, 1) - model(text, LM)).abs().max() <= 1e-10


def test_a_cache_of_another_kind_is_refused(model):
    """Catches a cache read under a window that it was not kept for: keys would be missing."""
    tokens = some_tokens(3, batch=2)
    cache = model.new_cache(2, LM)
    for lm in (None, LMInfinite(7, 2, 6), LMInfinite(6, 3, 6), LMInfinite(6, 2, 7)):
        with pytest.raises(ValueError, match="cache was made for"):
            model(tokens, lm, cache=cache)
    with pytest.raises(ValueError, match="cache was made for 2 texts, not for 1"):
        model(tokens[:1], LM, cache=cache)
    with pytest.raises(ValueError, match="reference path keeps no cache"):
        model(tokens, LM, cache=cache, path="reference")
    with pytest.raises(ValueError, match="cache was made for"):
        model(tokens, LM, cache=model.new_cache(2))
    model(tokens, LMInfinite(6, 2, 6), cache=cache)  # an equal setting is the same setting


def test_a_refused_call_leaves_the_cache_as_it_was(model):
    """Catches tokens that are counted before they are checked."""
    tokens = some_tokens(N)
    cache = model.new_cache(1, LM)
    model(tokens[:, :9], LM, cache=cache)
    for wrong in (torch.tensor([[31]]), torch.tensor([[-1]]), tokens[0], tokens[:, :0]):
        with pytest.raises(ValueError):
            model(wrong, LM, cache=cache)
    assert cache.length == 9
    rest = model(tokens[:, 9:], LM, cache=cache)
    assert (rest - model(tokens, LM)[:, 9:]).abs().max() <= 1e-10


@pytest.mark.parametrize("where", ["blocks.0", "blocks.1.mlp", "norm", "head"])
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
        lambda: cache.keep([0]),
    ):
        with pytest.raises(ValueError, match="this cache was interrupted"):
            use()


def test_a_refused_call_leaves_no_padding(model):
    """Catches rows that are read as padded because an earlier call, which was refused, was."""
    cache, tokens = model.new_cache(2, LM), some_tokens(9, batch=2)
    with pytest.raises(ValueError, match="out of range"):
        model(tokens + 31, LM, cache, lengths=[9, 4])
    torch.testing.assert_close(model(tokens, LM, cache), model(tokens, LM))


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

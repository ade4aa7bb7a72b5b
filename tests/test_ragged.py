"""Rows of different lengths in one batch: each is read as if it were alone."""

import math

import pytest
import torch
from conftest import SETTINGS, fuzz, some_tokens, tiny_model

from minilm_inf.fast.reading import some_is_hidden

FAMILIES = ("llama", "mpt", "gptj")
LENGTHS = ([5, 1, 9], [1, 23], [17, 16, 2, 30], [4, 4], [30, 6, 29, 1], [12])


def padded(texts: list[torch.Tensor], longest=None, filler=0) -> torch.Tensor:
    """Texts (n,) as one tensor (B, T), each with filler before it."""
    longest = longest or max(len(text) for text in texts)
    rows = [torch.cat((torch.full((longest - len(t),), filler), t)) for t in texts]
    return torch.stack(rows)


def ragged(lengths, seed=0) -> list[torch.Tensor]:
    tokens = some_tokens(max(lengths) + 3, batch=len(lengths), seed=seed)
    return [row[:n] for row, n in zip(tokens, lengths)]


def in_chunks(model, tokens, lm, lengths, sizes) -> torch.Tensor:
    """Logits of a batch that a cache carries from chunk to chunk; the last size repeats."""
    longest, sizes = tokens.shape[1], list(sizes)
    cache = model.new_cache(len(tokens), lm, padding=[longest - n for n in lengths])
    logits, start = [], 0
    while start < longest:
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        logits.append(model(tokens[:, start : start + size], lm, cache=cache))
        start += size
    return torch.cat(logits, 1)


WAYS = {
    "reference": lambda m, t, lm, n: m(t, lm, path="reference", lengths=n),
    "chunked": lambda m, t, lm, n: m(t, lm, lengths=n),
    "one cached call": lambda m, t, lm, n: m(t, lm, cache=m.new_cache(len(n), lm), lengths=n),
    "in chunks": lambda m, t, lm, n: in_chunks(m, t, lm, n, [5, 1, 8, 3]),
    "token by token": lambda m, t, lm, n: in_chunks(m, t, lm, n, [1]),
    "prefill, then decode": lambda m, t, lm, n: in_chunks(
        m, t, lm, n, [max(1, t.shape[1] - 4), 1]
    ),
}
GRID = fuzz(
    11, 90, family=FAMILIES, setting=SETTINGS, lengths=LENGTHS, way=WAYS, chunk=(3, 256)
)


@pytest.mark.parametrize("case", GRID, ids=lambda c: "-".join(str(v) for v in c.values()))
def test_each_row_is_read_as_if_alone(case, small_chunks):
    """Padding that is seen, positions that count it, or another row's starting tokens."""
    small_chunks(case["chunk"])
    lm, texts = SETTINGS[case["setting"]], ragged(case["lengths"])
    for dtype, allowed in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = tiny_model(case["family"], dtype=dtype)
        logits = WAYS[case["way"]](model, padded(texts), lm, case["lengths"])
        for row, text in zip(logits, texts):
            alone = model(text[None], lm, path="reference")[0]
            torch.testing.assert_close(row[-len(text) :], alone, atol=allowed, rtol=0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "setting", ["full attention", "LM-Infinite", "more starting than local"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_poison(family, setting, way):
    """NaN in the padding's keys and values spreads wherever 0 times it is added."""
    model, lm, lengths = tiny_model(family), SETTINGS[setting], [23, 2, 9]
    texts = ragged(lengths)
    poisoned = 30
    clean = [torch.where(text == poisoned, 3, text) for text in texts]
    expected = WAYS[way](model, padded(clean), lm, lengths)
    with torch.no_grad():
        model.embed.weight[poisoned] = math.nan
        if model.config.tied:
            model.head.weight = torch.nn.Parameter(model.embed.weight.nan_to_num(0.0))
    logits = WAYS[way](model, padded(clean, filler=poisoned), lm, lengths)
    for row, wanted, n in zip(logits, expected, lengths):
        kept = torch.arange(31) != poisoned
        assert row[-n:].isfinite().all()
        torch.testing.assert_close(row[-n:, kept], wanted[-n:, kept], atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_rows_that_end_are_forgotten(family, setting):
    """Rows dropped from the cache must leave the others as they were, to the end."""
    model, lm, lengths = tiny_model(family), SETTINGS[setting], [9, 2, 14]
    more = some_tokens(40, batch=3, seed=5)
    texts = ragged(lengths)
    cache = model.new_cache(3, lm)
    model(padded(texts), lm, cache=cache, lengths=lengths)
    rows = [0, 1, 2]
    for step in range(40):
        if step == 2:
            cache.keep([1, 2])
            rows = [1, 2]
        if step == 9:
            cache.keep([0])
            rows = [1]
        logits = model(more[rows, step : step + 1], lm, cache=cache)
        if step % 6 == 3:
            for at, row in enumerate(rows):
                whole = torch.cat((texts[row], more[row, : step + 1]))
                alone = model(whole[None], lm, path="reference")[0, -1]
                torch.testing.assert_close(logits[at, -1], alone, atol=1e-10, rtol=0)
    assert cache.batch == 1


def test_the_cache_stays_bounded_and_becomes_uniform():
    """A ragged batch that never loses its masks costs a mask in every step, for ever."""
    model, lm = tiny_model("llama"), SETTINGS["LM-Infinite"]
    cache = model.new_cache(2, lm)
    model(padded(ragged([3, 7])), lm, cache=cache, lengths=[3, 7])
    kinds, sizes = [], []
    for _ in range(30):
        kinds.append(not some_is_hidden(cache))
        model(some_tokens(1, batch=2), lm, cache=cache)
        sizes.append(cache.nbytes)
    assert not kinds[0] and kinds[-1] and kinds == sorted(kinds)
    assert kinds.index(True) < 4 + lm.n_local + lm.n_global + 1
    assert sizes[-1] == sizes[15]


def test_equal_lengths_are_no_padding():
    """Rows without padding need no masks."""
    model, lm = tiny_model("llama"), SETTINGS["LM-Infinite"]
    tokens = some_tokens(9, batch=2)
    cache = model.new_cache(2, lm)
    logits = model(tokens, lm, cache=cache, lengths=[9, 9])
    assert cache.padding == [0, 0] and not some_is_hidden(cache)
    torch.testing.assert_close(logits, model(tokens, lm), atol=1e-12, rtol=0)


def test_lengths_that_do_not_fit_are_refused():
    """A length of 0, or beyond the tokens, would read padding as text."""
    model, tokens = tiny_model("llama"), some_tokens(6, batch=2)
    for lengths in ([6], [6, 0], [7, 6], [6, -1], [6, 2.0], [True, 6]):
        with pytest.raises(ValueError, match="lengths must be 2 whole numbers from 1 to 6"):
            model(tokens, lengths=lengths)
    cache = model.new_cache(2)
    model(tokens, cache=cache)
    with pytest.raises(ValueError, match="before anything is read"):
        model(tokens, cache=cache, lengths=[6, 5])
    for padding in ([1], [1, -1]):
        with pytest.raises(ValueError, match="padding must be 2 whole numbers"):
            model.new_cache(2, padding=padding)

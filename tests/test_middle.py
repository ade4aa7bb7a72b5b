"""fast/middle.py, terminal/blocks.py: the past that comes back, by every path."""

import os
import textwrap

import pytest
import torch
from conftest import FAMILIES, fuzz, named, read_in_chunks, some_tokens, tiny_model

from minilm_inf import LMInfinite, attend, chunked_attend
from minilm_inf.fast.band import How
from minilm_inf.fast.middle import Middle
from minilm_inf.positions import Rotary
from minilm_inf.terminal import blocks
from minilm_inf.terminal.blocks import KINDS
from minilm_inf.top_k import largest, middle_logits
from minilm_inf.writing.saved_cache import restore, state_of
from minilm_inf.writing.session import Session, generate, write_all


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few tokens, so that short texts have many of them."""
    monkeypatch.setattr(blocks, "TOKENS_PER_BLOCK", 8)


TEXTS = fuzz(
    6,
    40,
    family=list(FAMILIES),
    n=[7, 20, 45],
    n_local=[1, 4, 7],
    n_global=[0, 2, 9],
    top_k=[1, 3, 40],
    first=[0, 1, 2],
    queries=["last", "all"],
    kind=KINDS,
)


@pytest.mark.parametrize("draw", TEXTS, ids=named)
def test_chunks_of_any_size_read_the_same(draw, small_blocks):
    """Catches a layer that reaches back too early, a key that is kept placed, and one that
    comes back while it is still in the window."""
    lm = LMInfinite(
        draw["n_local"], draw["n_global"], draw["n_local"], top_k=draw["top_k"],
        top_k_from_layer=draw["first"], top_k_queries=draw["queries"],
    )  # fmt: skip
    model = tiny_model(draw["family"], n_layer=3)
    tokens = some_tokens(draw["n"], batch=2) % 5  # of few kinds, so that there are ties
    right = model(tokens, lm, path="reference")
    assert (model(tokens, lm) - right).abs().max() <= 1e-10
    for chunk in (draw["n"], 4, 1):  # of "last", of the whole text the very last token reaches
        cache = model.new_cache(2, lm, middle=draw["kind"])
        found = model.head(model.prefill(tokens, lm, cache, chunk))
        assert (found[:, -1] - right[:, -1]).abs().max() <= 1e-10, chunk
    if draw["queries"] == "all":
        found = read_in_chunks(model, tokens, lm, [5, 1, 3, 1], middle=draw["kind"])
        assert (found - right).abs().max() <= 1e-10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_the_definition(family, kind, small_blocks):
    """Catches a generated token that does not reach back, or a token of the prompt that does,
    in one text and in texts of different lengths side by side."""
    model, lm = tiny_model(family), LMInfinite(5, 2, 5, top_k=3)
    prompts = [some_tokens(n, seed=n)[0].tolist() for n in (23, 9, 31)]
    alone = []
    for prompt in prompts:
        text = list(prompt)
        for n in range(1, 13):  # of the prompt the last token, and all that were written
            logits = model(torch.tensor([text]), lm, path="reference", n_reaching=n)
            text.append(int(logits[0, -1].argmax()))
        alone.append(text[len(prompt) :])
        settings = dict(temperature=0, stop_ids=(), prefill_chunk=4, middle=kind)
        assert list(generate(model, prompt, lm, 12, **settings)) == alone[-1]
    session = Session(model, lm, 4, middle=kind, n_texts=3)
    texts, logits = [[] for _ in prompts], session.read_all(prompts)
    for number, step in write_all(session, logits, 12, temperature=0):
        texts[number].append(step.id)
    assert texts == alone


# ---- searching


def kept(keys) -> Middle:
    """A middle of keys (B, H_kv, S, D) that are their own values."""
    store = Middle("ram", (*keys.shape[:2], keys.shape[3]), keys.dtype, "cpu")
    store.append(keys, keys)
    return store


def test_keys_that_are_all_but_equal(small_blocks):
    """Catches a rough score that is trusted further than its rounding goes: of keys that differ
    by less than float32 can tell in a sum, the best and most recent are found all the same."""
    generator = torch.Generator().manual_seed(2)
    one = 50 * torch.randn(1, 1, 1, 64, generator=generator, dtype=torch.float64)
    keys = (one + 1e-6 * torch.randn(1, 1, 900, 64, generator=generator)).float()
    how = How(Rotary(64), LMInfinite(20, 0, 20, top_k=4, top_k_distance=0), 1.0)
    for seed in range(20):
        generator.manual_seed(seed)
        asked = torch.randn(1, 3, 1, 64, generator=generator, dtype=torch.float64)
        found = kept(keys).find(asked, [0], 880, how)
        logits = middle_logits(asked, keys[:, :, :880], *how)
        right = largest(logits, torch.ones_like(logits, dtype=torch.bool), 4)
        assert found.columns.flatten().tolist() == right.nonzero()[:, -1].tolist(), seed


def test_what_nobody_may_see_is_never_looked_at(small_blocks):
    """Catches a NaN of a starting key, of padding or of the window that reaches a choice."""
    lm, scheme = LMInfinite(5, 2, 5, top_k=3), Rotary(8)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 2, 40, 8, generator=generator).double() for _ in range(3))
    q, positions = q[:, :, -1:], torch.arange(40) - 3
    clean = kept(k).find(q, [1], 30, How(scheme, lm, 1.0))
    right = attend(q, k, v, positions[-1:], positions, scheme, lm)
    k[:, :, :3], v[:, :, :3] = torch.nan, torch.nan
    for path in (attend, chunked_attend):
        found = path(q, k, v, positions[-1:], positions, scheme, lm)
        assert (found - right).abs().max() <= 1e-10
    k[:, :, 30:] = torch.nan
    found = kept(k).find(q, [1], 30, How(scheme, lm, 1.0))
    assert torch.equal(found.columns, clean.columns) and found.valid.all()


# ---- where it is kept


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_told(kind, small_blocks):
    """Catches a run with top-k that claims a constant memory, or counts a layer too many."""
    model, lm = tiny_model("llama", n_layer=3), LMInfinite(5, 2, 5, 3, None, 2)
    cache, sizes = model.new_cache(1, lm, middle=kind), []
    for _ in range(30):
        model(some_tokens(10), lm, cache)
        sizes.append(cache.middle_bytes)
    blocks_of_one_layer = -(-300 // 8)
    assert sizes[-1] == blocks_of_one_layer * 2 * 8 * 2 * 8 * 8 and sizes[0] < sizes[-1]
    assert cache.nbytes > cache.middle_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_goes_on(kind, small_blocks):
    """Catches a middle that is not saved, and an interrupted reading that forgets it."""
    model, lm = tiny_model("llama"), LMInfinite(5, 2, 5, top_k=3, top_k_queries="all")
    tokens = some_tokens(50)
    right = model(tokens, lm, path="reference")[:, 30:]
    before = model.new_cache(1, lm, middle=kind)
    model(tokens[:, :30], lm, before)
    state = {name: x.clone() for name, x in state_of(before).items()}
    after = model.new_cache(1, lm, middle=kind)
    restore(after, state)
    assert (model(tokens[:, 30:], lm, after) - right).abs().max() <= 1e-10


def test_files_hold_what_they_are_given_and_have_no_name(tmp_path, monkeypatch):
    """Catches a file that outlives its run, and a block that is in none."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(blocks, "TOKENS_PER_BLOCK", 3)
    store = Middle("disk", (2, 1, 4), torch.float32, "cpu")
    k = torch.arange(2 * 5 * 4.0).view(2, 1, 5, 4)
    store.append(k, -k)
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(torch.cat([block[0] for block in store.blocks], 2)[:, :, :5], k)
    assert torch.equal(torch.cat([block[1] for block in store.blocks], 2)[:, :, :5], -k)
    raw = torch.frombuffer(bytearray(b"".join(store.maps)), dtype=torch.float32)
    assert torch.equal(raw[raw > 0].sort().values, k.flatten()[1:]), "it is in no file"


def test_a_full_disk_ends_in_a_sentence(monkeypatch):
    """Catches a program that the system kills in the middle of a write."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    store = Middle("disk", (1, 1, 4), torch.float32, "cpu")
    with pytest.raises(OSError, match="has no room for another 0 MB of middle tokens: free"):
        store.append(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))


RESIDENT = """
    import torch
    from minilm_inf.fast.middle import Middle

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    store = Middle("disk", (1, 4, 128), torch.float32, "cpu")
    rows = torch.randn(1, 4, 512, 128)
    store.append(rows, rows)
    before = most = resident()
    for _ in range(12 * 8):
        store.append(rows, rows)
        most = max(most, resident())
    store.at(torch.arange(0, store.length, 64))
    print(store.nbytes, max(most, resident()) - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="only Linux tells here")
def test_a_file_does_not_stay_in_memory(python):
    """Catches mapped pages that pile up in resident memory."""
    done = python(["-c", textwrap.dedent(RESIDENT)])
    assert done.returncode == 0, done.stderr
    n_bytes, grown = map(int, done.stdout.split())
    assert n_bytes > 180e6 and grown < 60e6

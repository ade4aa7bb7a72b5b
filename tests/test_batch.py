"""Several texts that are written side by side: each as if it were alone."""

import pytest
import torch
from conftest import SETTINGS, interrupted, some_tokens, tiny_model

from minilm_inf.config import LMInfinite
from minilm_inf.writing.batch import Batch, write_all
from minilm_inf.writing.session import Session, generate, write

PROMPTS = [some_tokens(n, seed=n)[0].tolist() for n in (9, 1, 4, 25)]


def alone(model, lm, prompt, **options) -> list[int]:
    return list(generate(model, prompt, lm, **options))


def together(model, lm, prompts=PROMPTS, path="chunked", prefill_chunk=512, **options):
    batch = Batch(model, prompts, lm, path, prefill_chunk)
    written = [[] for _ in prompts]
    for number, step in write_all(batch, **options):
        written[number].append(step.id)
    return written


@pytest.mark.parametrize("family", ["llama", "mpt", "gptj"])
@pytest.mark.parametrize("setting", [None, "LM-Infinite", "more starting than local"])
@pytest.mark.parametrize("prefill_chunk", [3, 512])
def test_each_text_becomes_what_it_would_alone(family, setting, prefill_chunk):
    """Padding, shared draws, or another row's logits would write another text."""
    model, lm = tiny_model(family), setting and SETTINGS[setting]
    options = {"max_new_tokens": 20, "temperature": 1.0, "seed": 3, "repetition_penalty": 1.2}
    expected = [alone(model, lm, prompt, stop_ids=(), **options) for prompt in PROMPTS]
    assert together(model, lm, prefill_chunk=prefill_chunk, **options) == expected
    assert len({str(text) for text in expected}) > 1


def test_the_reference_path_writes_the_same():
    """The slow path is what the fast one is held to."""
    model, lm = tiny_model("gptj"), SETTINGS["LM-Infinite"]
    options = {"max_new_tokens": 12, "temperature": 0.0}
    assert together(model, lm, path="reference", **options) == together(model, lm, **options)


def test_a_text_that_ends_stops_growing():
    """Without an end of its own, each would be as long as the longest."""
    model, lm = tiny_model("llama"), SETTINGS["LM-Infinite"]
    options = {"max_new_tokens": 60, "temperature": 2.0, "seed": 2, "stop_ids": (3, 17)}
    expected = [alone(model, lm, prompt, **options) for prompt in PROMPTS]
    assert together(model, lm, **options) == expected
    assert len({len(text) for text in expected}) > 1 and min(map(len, expected)) < 60

    batch, lengths = Batch(model, PROMPTS, lm), []
    for number, _ in write_all(batch, 6, temperature=0.0):
        if number == 2 and len(batch.texts[2]) == len(PROMPTS[2]) + 2:
            batch.end(2)
        lengths.append(batch.cache.batch)
    assert [len(t) - len(p) for t, p in zip(batch.texts, PROMPTS)] == [6, 6, 2, 6]
    assert lengths[0] == 4 and lengths[-1] == 3 == len(batch.growing)


def test_ids_without_a_token_are_not_drawn():
    """MPT-7B has more ids than its tokenizer: one of those has no text."""
    model, lm = tiny_model("llama"), SETTINGS["LM-Infinite"]
    options = {"max_new_tokens": 40, "temperature": 3.0, "top_k": 0}
    assert max(max(text) for text in together(model, lm, seed=1, **options)) >= 7
    written = together(model, lm, seed=1, n_ids=7, **options)
    assert max(max(text) for text in written) == 6
    for prompt, text in zip(PROMPTS, written):
        session = Session(model, lm)
        generator = torch.Generator().manual_seed(1)
        steps = write(session, session.read(prompt), generator=generator, n_ids=7, **options)
        assert [step.id for step in steps] == text


def test_the_read_ends_where_all_texts_have():
    """An empty batch cannot be read."""
    model = tiny_model("llama")
    batch = Batch(model, PROMPTS)
    for number, _ in write_all(batch, 10, temperature=0.0):
        batch.end(number)
    assert not batch.growing and all(len(t) == len(p) + 1 for t, p in zip(batch.texts, PROMPTS))


def test_wrong_prompts_are_refused():
    """A prompt without ids has no logits; one out of range another model's text."""
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="prompt 2 is empty"):
        Batch(model, [[1], []])
    for id in (-1, 31):
        with pytest.raises(ValueError, match=f"token {id} of prompt 2 is out of range"):
            Batch(model, [[1], [1, id]])


def test_no_gradients_are_kept():
    """A graph that grows with the text is memory that grows with it."""
    model = tiny_model("mpt").requires_grad_(True)
    logits = Batch(model, PROMPTS).read()
    assert not logits.requires_grad and logits.shape == (4, 31)
    assert logits.dtype == torch.float64


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("path", ["chunked", "reference"])
@pytest.mark.parametrize("top_k", [0, 2])
def test_an_interrupted_batch_is_refused(path, before, top_k):
    """Catches rows that have lost what a layer had not read yet."""
    model, lm = tiny_model("llama"), LMInfinite(6, 2, 6, top_k=top_k)
    batch = Batch(model, PROMPTS, lm, path, prefill_chunk=4)
    list(write_all(batch, before, temperature=0.0))
    with interrupted(model.blocks[1]):
        batch.read()
    for use in (batch.read, lambda: batch.end(1)):
        with pytest.raises(ValueError, match="this batch was interrupted"):
            use()


def test_a_batch_that_was_broken_off_goes_on():
    """Catches texts that the reader had not been shown yet, and that read a token twice."""
    model, lm = tiny_model("llama"), SETTINGS["LM-Infinite"]
    whole, batch = Batch(model, PROMPTS, lm), Batch(model, PROMPTS, lm)
    list(write_all(whole, 6, temperature=0.0))
    for number, _ in write_all(batch, 3, temperature=0.0):
        if number == 1 and len(batch.texts[1]) == 4:
            break
    list(write_all(batch, 3, temperature=0.0))
    assert batch.texts == whole.texts
    batch.read()
    with pytest.raises(ValueError, match="text 1 needs one new token"):
        batch.read()


def test_logits_that_are_not_numbers():
    """Catches one text of several that is made of nothing."""
    model = tiny_model("llama")
    model.embed.weight.data[PROMPTS[1][0]] = torch.inf
    with pytest.raises(ValueError, match="not numbers"):
        list(write_all(Batch(model, PROMPTS), 3, temperature=0.0))

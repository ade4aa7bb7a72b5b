"""Sessions against the definition: what is read, what is written, and what is left to read."""

from itertools import islice

import pytest
import torch
from conftest import FAMILIES, SETTINGS, fuzz, interrupted, some_tokens, tiny_llama, tiny_model

from minilm_inf import LMInfinite, generate
from minilm_inf.writing.explain import explain
from minilm_inf.writing.sampling import seeded
from minilm_inf.writing.session import Session, write_all

LM = SETTINGS["LM-Infinite"]
TOP_K = LMInfinite(6, 2, 6, top_k=2)
PROMPTS = [some_tokens(n, seed=n)[0].tolist() for n in (9, 1, 4, 25)]
PROMPT = PROMPTS[0]


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def logits_after(model, ids, lm=LM) -> torch.Tensor:
    """The specification: all of the text, read at once by the definition; logits (V,)."""
    return model(torch.tensor([ids]), lm, path="reference")[0, -1]


def greedy(model, ids, n, lm=LM) -> list[int]:
    """The specification of greedy writing."""
    ids = list(ids)
    for _ in range(n):
        ids.append(int(logits_after(model, ids, lm).argmax()))
    return ids[-n:]


def written(model, ids=PROMPT, lm=LM, n=20, **settings) -> list[int]:
    settings.setdefault("temperature", 0.0)
    return list(generate(model, ids, lm, n, **settings))


def write(session, ids, max_new_tokens, **settings):
    """What a session of one text writes after these ids."""
    steps = write_all(session, session.read_all([ids]), max_new_tokens, **settings)
    return (step for _, step in steps)


@pytest.mark.parametrize("setting", SETTINGS)
def test_greedy_is_the_argmax_of_the_definition(model, setting):
    """A token that is read twice or never shifts every position after it; a chunk that forgets
    the one before it, or the last one only being read."""
    lm = SETTINGS[setting]
    new = greedy(model, PROMPTS[3], 20, lm)
    for prefill_chunk in (1, 5, 512):
        assert written(model, PROMPTS[3], lm, prefill_chunk=prefill_chunk) == new
    assert len(set(new)) > 3, "a constant text would hide mistakes"
    if setting == "full attention":
        assert written(model, lm=None) == written(model, lm=lm) != written(model, lm=LM)


def test_the_seed_and_the_settings_decide_the_ids(model):
    """A draw from PyTorch's global generator, which differs from run to run; a default seed,
    which hides how much a text owes to chance; a count that is one off."""
    drawn = [written(model, temperature=1.0, seed=seed) for seed in (5, 5, 6, None, None)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[3] != drawn[4]
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    assert [len(written(model, n=n, temperature=1.0, seed=5)) for n in (0, 1, 17)] == [0, 1, 17]
    assert torch.rand(1) == before


def test_stop_ids_end_the_text_and_are_not_part_of_it():
    """An EOS that is yielded would be printed, and one that is passed over is no end; a model
    that cannot end its text, since nobody told generate how it does."""
    model = tiny_llama()
    new = greedy(model, PROMPT, 20)
    stop = next(id for i, id in enumerate(new) if i > 3 and id not in new[:i])
    assert written(model, stop_ids=(99, stop)) == new[: new.index(stop)]
    object.__setattr__(model.config, "eos_ids", (stop,))
    assert written(model) == new[: new.index(stop)]
    assert written(model, stop_ids=()) == new


@pytest.mark.parametrize("end", ["count", "eos", "broken off", "nothing"])
def test_a_written_token_is_read_exactly_once(model, end):
    """The last token of a reply has not been read when the next prompt comes. A reply may end
    by its count, by an EOS, because its reader stopped asking, or before its first token; and
    what was refused must not count as read."""
    new = greedy(model, PROMPT, 12)
    stop = next(id for i, id in enumerate(new) if i > 3 and id not in new[:i])
    n = {"count": 12, "eos": new.index(stop), "broken off": 5, "nothing": 0}[end]
    session = Session(model, LM, prefill_chunk=4)
    most = n if end in ("count", "nothing") else 12
    stop_ids = (stop,) if end == "eos" else ()
    steps = list(islice(write(session, PROMPT, most, temperature=0.0, stop_ids=stop_ids),
                        n if end == "broken off" else None))  # fmt: skip
    assert [step.id for step in steps if not step.ends] == new[:n]
    assert sum(step.ends for step in steps) == (end == "eos")
    text = PROMPT + new[:n]
    for wrong in (-1, 31, 10**12):
        with pytest.raises(ValueError, match=f"token {wrong} is out of range: .* 0 to 30"):
            session.read([1, wrong])
    for more in ([3, 1, 4], [1], [5, 9, 2, 6, 5, 3]):
        text = text + more
        torch.testing.assert_close(session.read(more), logits_after(model, text))
        assert session.cache.length == len(text)


@pytest.mark.parametrize(
    "ids, settings, sentence",
    [
        ([], {}, "nothing to read"), ([1.5], {}, "token ids must be whole numbers"),
        (7, {}, "token ids must be whole"),
        *((PROMPT, {name: value}, name) for name, value in (
            ("temperature", -0.1), ("top_k", -1), ("top_p", 0.0), ("max_new_tokens", 1.5),
            ("stop_ids", 3), ("seed", 2**64), ("seed", "x"), ("prefill_chunk", 0),
        )),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_a_value_error(model, ids, settings, sentence):
    """An error of PyTorch's, layers below, would not tell what to change."""
    with pytest.raises(ValueError, match=sentence):
        list(generate(model, ids, LM, **settings))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_dtype_writes(dtype):
    """A filter or a logprob that only float64 logits survive; logits that are not numbers:
    a text of nothing, or one of the first id alone."""
    model = tiny_llama(dtype=dtype)
    new = list(generate(model, PROMPT, LM, 20, top_p=0.9, seed=0))
    assert len(new) == 20 and all(0 <= id < 31 for id in new)
    model.head.weight.data[3, 0] = torch.nan
    with pytest.raises(ValueError, match="not numbers"):
        Session(model, LM).read(PROMPT)


@pytest.mark.parametrize("where", ["blocks.1", "head"])
@pytest.mark.parametrize(
    "way", [dict(lm=None), dict(lm=LM, prefill_chunk=4), dict(lm=TOP_K, middle="disk")], ids=str
)
def test_an_interrupted_session_is_refused(model, way, where):
    """Catches a text that counts tokens which were not read, or reads some of them twice."""
    for new in ([], [3, 1, 4, 1, 5, 9]):
        session = Session(model, **way)
        session.read(PROMPT)
        session.accept(7)
        with interrupted(model.get_submodule(where)):
            session.read(new)
        for use in (session.read_all, lambda _: explain(session)):  # noqa: B023
            with pytest.raises(ValueError, match="this session was interrupted"):
                use([[2]])
        session.forget()
        right = Session(model, **way).read([*PROMPT, 7])
        torch.testing.assert_close(session.read([*PROMPT, 7]), right)


# ---- several texts


def together(model, lm, prefill_chunk=512, **settings) -> list[list[int]]:
    """What becomes of PROMPTS side by side, each by a seed of its own."""
    session, texts = Session(model, lm, prefill_chunk, n_texts=4), [[] for _ in PROMPTS]
    generators, logits = [seeded(number) for number in range(4)], session.read_all(PROMPTS)
    for number, step in write_all(session, logits, generators=generators, **settings):
        texts[number].append(step.id)
    return texts


@pytest.mark.parametrize(
    "draw",
    fuzz(0, 6, family=FAMILIES, lm=[None, LM, TOP_K, SETTINGS["more starting than local"]],
         prefill_chunk=[3, 512], stop_ids=[(), (6, 17)], n_ids=[None, 20]),
    ids=str,
)  # fmt: skip
def test_each_text_becomes_what_it_would_alone(draw):
    """Padding, shared draws, another row's logits, or a text that does not end with its own
    EOS; ids that have no text, as an MPT has more ids than its tokenizer."""
    model, lm, chunk = tiny_model(draw["family"]), draw["lm"], draw["prefill_chunk"]
    settings = {name: draw[name] for name in ("stop_ids", "n_ids")}
    settings |= dict(max_new_tokens=20, temperature=2.0, top_k=0)
    alone = []
    for number, prompt in enumerate(PROMPTS):
        session = Session(model, lm, chunk)
        steps = write(session, prompt, generators=[seeded(number)], **settings)
        alone.append([step.id for step in steps])
    assert together(model, lm, prefill_chunk=chunk, **settings) == alone
    assert len({str(text) for text in alone}) > 1
    assert max(map(max, filter(None, alone))) < (draw["n_ids"] or 31)


def test_texts_that_were_broken_off_go_on(model):
    """Catches texts that the reader had not been shown yet, and that read a token twice; a row
    with more new tokens than another, which has no place; a whole prompt's logits, of which
    nobody asks for more than the last row."""
    session, made = Session(model, LM, prefill_chunk=5, n_texts=4), []
    hook = model.head.register_forward_pre_hook(lambda _, given: made.append(given[0].shape))
    steps = write_all(session, session.read_all(PROMPTS), 3, temperature=0.0)
    first = [number for number, _ in islice(steps, 6)]
    assert first == [0, 1, 2, 3, 0, 1] and all(len(ids) == 1 for ids in session.unread)
    with pytest.raises(ValueError, match="give each as many new tokens"):
        session.read_all([[], [], [2, 3], []])
    logits = session.read_all([[]] * 4)
    hook.remove()
    assert made == [(4, 32)] * 3 and not logits.requires_grad and logits.shape == (4, 31)
    for row, prompt in enumerate(PROMPTS):
        text = prompt + greedy(model, prompt, 2)
        torch.testing.assert_close(logits[row], logits_after(model, text))
    with pytest.raises(ValueError, match="nothing to read"):
        Session(model, LM, n_texts=2).read_all([[1], []])

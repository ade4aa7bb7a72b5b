"""Sessions against the definition: what is read, what is written, and what is left to read."""

from itertools import islice

import pytest
import torch
from conftest import FAMILIES, SETTINGS, fuzz, interrupted, some_tokens, tiny_llama, tiny_model

from minilm_inf import LMInfinite, generate
from minilm_inf.writing.explain import explain
from minilm_inf.writing.sampling import seeded
from minilm_inf.writing.session import Session, write, write_all

LM = SETTINGS["LM-Infinite"]
TOP_K = LMInfinite(6, 2, 6, top_k=2)
PROMPT = some_tokens(9)[0].tolist()
PROMPTS = [some_tokens(n, seed=n)[0].tolist() for n in (9, 1, 4, 25)]
PATHS = "chunked", "reference"


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


def written(model, ids=PROMPT, lm=LM, n=30, **settings) -> list[int]:
    settings.setdefault("temperature", 0.0)
    return list(generate(model, ids, lm, n, **settings))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("path", PATHS)
def test_greedy_is_the_argmax_of_the_definition(model, path, setting):
    """A token that is read twice or never shifts every position after it."""
    lm = SETTINGS[setting]
    new = written(model, lm=lm, path=path)
    assert new == greedy(model, PROMPT, 30, lm)
    assert len(set(new)) > 3, "a constant text would hide mistakes"


def test_none_is_the_vanilla_model(model):
    """lm=None that fell back to LM-Infinite would make the comparison of the demo a lie."""
    assert written(model, lm=None) == greedy(model, PROMPT, 30, SETTINGS["full attention"])
    assert written(model, lm=None) != written(model, lm=LM)


@pytest.mark.parametrize("prefill_chunk", [1, 2, 5, 6, 7, 9, 512])
def test_the_size_of_prefill_chunks_does_not_matter(model, prefill_chunk):
    """A chunk that forgets the one before it, or the last one only being read."""
    prompt = some_tokens(23, seed=3)[0].tolist()
    assert written(model, prompt, prefill_chunk=prefill_chunk) == greedy(model, prompt, 30)


def test_the_seed_decides_the_ids(model):
    """A draw from PyTorch's global generator, which differs from run to run; a default seed,
    which hides how much a text owes to chance; a count that is one off."""
    drawn = [written(model, temperature=1.0, seed=seed) for seed in (5, 5, 6, None, None)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[3] != drawn[4]
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    assert [len(written(model, n=n, temperature=1.0, seed=5)) for n in (0, 1, 17)] == [0, 1, 17]
    assert torch.rand(1) == before


def test_the_settings_reach_the_draw(model):
    """A setting that is accepted and then dropped on the way."""
    hot = {"temperature": 5.0, "top_k": 0, "seed": 1}
    assert len(set(written(model, **hot))) > 12
    for cold in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 0.999}):
        assert written(model, **hot | cold) == greedy(model, PROMPT, 30)


def test_the_penalty_counts_prompt_and_new_tokens(model):
    """A penalty on the new tokens only lets the model copy its prompt."""
    ids = list(PROMPT)
    for _ in range(12):
        logits = logits_after(model, ids)
        for id in set(ids):
            logits[id] = logits[id] / 3 if logits[id] > 0 else logits[id] * 3
        ids.append(int(logits.argmax()))
    assert written(model, n=12, repetition_penalty=3.0) == ids[-12:]
    assert ids[-12:] != greedy(model, PROMPT, 12)


def test_stop_ids_end_the_text_and_are_not_part_of_it():
    """An EOS that is yielded would be printed, and one that is passed over is no end; a model
    that cannot end its text, since nobody told generate how it does."""
    model = tiny_llama()
    new = greedy(model, PROMPT, 30)
    stop = next(id for i, id in enumerate(new) if i > 3 and id not in new[:i])
    assert written(model, stop_ids=(99, stop)) == new[: new.index(stop)]
    object.__setattr__(model.config, "eos_ids", (stop,))
    assert written(model) == new[: new.index(stop)]
    assert written(model, stop_ids=()) == new


def test_logprobs_are_the_model_s_own(model):
    """Logprobs of the filtered or cooled distribution say nothing about the model."""
    session, ids = Session(model, LM), list(PROMPT)
    for step in write(session, session.read(PROMPT), 12, 0.5, 3, generator=seeded(0)):
        expected = logits_after(model, ids).float().log_softmax(-1)[step.id]
        assert step.logprob == pytest.approx(float(expected), abs=1e-5)
        ids.append(step.id)


@pytest.mark.parametrize("path", PATHS)
def test_a_session_in_pieces_equals_one_read(model, path):
    """What a second prompt finds must be all that was said before, and only once."""
    tokens = some_tokens(40, seed=4)[0].tolist()
    session = Session(model, LM, path, prefill_chunk=4)
    for start, end in ((0, 1), (1, 8), (8, 21), (21, 40)):
        logits = session.read(tokens[start:end])
        assert session.length == end
        torch.testing.assert_close(logits, logits_after(model, tokens[:end]))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("end", ["count", "eos", "broken off", "nothing"])
def test_a_written_token_is_read_exactly_once(model, path, end):
    """The last token of a reply has not been read when the next prompt comes. A reply may end
    by its count, by an EOS, because its reader stopped asking, or before its first token."""
    new = greedy(model, PROMPT, 12)
    stop = next(id for i, id in enumerate(new) if i > 3 and id not in new[:i])
    n = {"count": 12, "eos": new.index(stop), "broken off": 5, "nothing": 0}[end]
    session = Session(model, LM, path)
    most = n if end in ("count", "nothing") else 12
    stop_ids = (stop,) if end == "eos" else ()
    steps = write(session, session.read(PROMPT), most, temperature=0.0, stop_ids=stop_ids)
    kept = list(islice(steps, n if end == "broken off" else None))
    assert [step.id for step in kept] == new[:n]
    text = PROMPT + new[:n]
    assert session.length == len(text)
    torch.testing.assert_close(session.read([3, 1, 4]), logits_after(model, [*text, 3, 1, 4]))
    assert session.length == len(text) + 3


@pytest.mark.parametrize("path", PATHS)
def test_a_refused_read_leaves_no_trace(model, path):
    """Half a read would leave a token that is never read, and a length that is not true."""
    session = Session(model, LM, path)
    session.read(PROMPT)
    session.accept(7)
    for wrong in (-1, 31, 10**12):
        with pytest.raises(ValueError, match=f"token {wrong} is out of range: .* 0 to 30"):
            session.read([1, wrong])
    assert session.length == len(PROMPT) + 1
    torch.testing.assert_close(session.read([2]), logits_after(model, [*PROMPT, 7, 2]))


@pytest.mark.parametrize(
    "ids, settings, sentence",
    [
        ([], {}, "nothing to read"), ([1.5], {}, "token ids must be whole numbers"),
        ([True], {}, "token ids must be whole numbers"), (7, {}, "token ids must be whole"),
        *((PROMPT, {name: value}, name) for name, value in (
            ("temperature", -0.1), ("top_k", -1), ("top_p", 0.0), ("min_p", 1.0),
            ("repetition_penalty", 0.0), ("path", "fast"), ("max_new_tokens", 1.5),
            ("stop_ids", 3), ("seed", 2**64), ("seed", "x"), ("prefill_chunk", "x"),
            ("prefill_chunk", 0),
        )),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_a_value_error(model, ids, settings, sentence):
    """An error of PyTorch's, layers below, would not tell what to change."""
    with pytest.raises(ValueError, match=sentence):
        list(generate(model, ids, LM, **settings))


@pytest.mark.parametrize("lm", [None, *SETTINGS.values()], ids=["None", *SETTINGS])
def test_visible_counts_the_keys_of_the_last_query(model, lm):
    """The statistics would promise a sight that the mask does not give."""
    session = Session(model, lm)
    for length in range(1, 15):
        session.read([length])
        assert session.length == length
        n_local = length if lm is None or lm.n_local is None else lm.n_local
        n_global = 0 if lm is None else lm.n_global
        seen = [j for j in range(length) if length - 1 - j < n_local or j < n_global]
        assert session.visible == len(seen)


def test_the_cache_stops_growing():
    """A cache that keeps the forgotten middle would run out of memory some day."""
    model, sizes = tiny_llama(n_layer=1), []
    session = Session(model, LMInfinite(n_local=5, n_global=3, distance_ceiling=5))
    for id in some_tokens(60, seed=5)[0].tolist():
        session.read([id])
        sizes.append(session.cache_bytes)
    assert sizes[0] < sizes[7] and set(sizes[7:]) == {sizes[-1]}
    # One layer of 2 key heads of 8 float64: the key and the value of 8 tokens, and those of the
    # starting ones once more, where a single token finds them.
    assert sizes[-1] == 2 * 2 * 8 * 8 * (5 + 3 + 3)
    by_definition = Session(model, LM, "reference")
    by_definition.read(PROMPT)
    assert by_definition.cache_bytes == 0 and by_definition.cache is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_dtype_writes(dtype):
    """A filter or a logprob that only float32 logits survive."""
    model = tiny_llama(dtype=dtype)
    new = list(generate(model, PROMPT, LM, 20, top_p=0.9, min_p=0.01, seed=0))
    assert len(new) == 20 and all(0 <= id < 31 for id in new)


WAYS = {
    "vanilla": dict(lm=None),
    "by chunks": dict(lm=LM, prefill_chunk=4),
    "by definition": dict(lm=LM, path="reference"),
    "top-k": dict(lm=TOP_K),
    "top-k on disk": dict(lm=TOP_K, middle="disk", prefill_chunk=4),
}


@pytest.mark.parametrize("where", ["blocks.1", "head"])
@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_session_is_refused(model, way, where):
    """Catches a text that counts tokens which were not read, or reads some of them twice."""
    for new in ([], [3, 1, 4, 1, 5, 9]):
        session = Session(model, **WAYS[way])
        session.read(PROMPT)
        session.accept(7)
        with interrupted(model.get_submodule(where)):
            session.read(new)
        for use in (lambda: session.read([2]), lambda: explain(session)):  # noqa: B023
            with pytest.raises(ValueError, match="this session was interrupted"):
                use()
        fresh = session.anew().read([*PROMPT, 7])
        torch.testing.assert_close(fresh, Session(model, **WAYS[way]).read([*PROMPT, 7]))


@pytest.mark.parametrize("chunks", [1, 2, 3, 9])
@pytest.mark.parametrize("lm", [None, LM, TOP_K], ids=["vanilla", "LM-Infinite", "top-k"])
def test_what_was_left_between_chunks_is_read_next(model, lm, chunks):
    """Catches the rest of a long prompt lost, or read twice, after Ctrl-C."""
    ids, asked = some_tokens(23, seed=4)[0].tolist(), []
    session = Session(model, lm, prefill_chunk=5)
    logits = session.read(ids, enough=lambda: asked.append(0) or len(asked) == chunks)
    assert (logits is None) == (chunks < 5) and session.length == 23
    assert len(session.unread[0]) == (max(0, 23 - 5 * chunks) if chunks < 5 else 0)
    session.accept(8)
    right = Session(model, lm)
    if chunks == 9:
        right.read(ids)
        ids = []
    torch.testing.assert_close(session.read([3, 1]), right.read([*ids, 8, 3, 1]))
    assert session.length == right.length == 26 and not session.unread[0]


# ---- several texts


def together(model, lm, end=None, **settings) -> list[list[int]]:
    """What becomes of PROMPTS side by side, each by a seed of its own. end: (number, length) of
    a text that leaves."""
    names = "path", "prefill_chunk"
    options = {name: settings.pop(name) for name in names if name in settings}
    session, texts = Session(model, lm, **options, n_texts=4), [[] for _ in PROMPTS]
    generators, logits = [seeded(number) for number in range(4)], session.read_all(PROMPTS)
    for number, step in write_all(session, logits, generators=generators, **settings):
        texts[number].append(step.id)
        if end == (number, len(texts[number])):
            assert session.end(number) and session.cache.batch == 3
    return texts


@pytest.mark.parametrize(
    "draw",
    fuzz(0, 14, family=FAMILIES, lm=[None, LM, TOP_K, SETTINGS["more starting than local"]],
         path=PATHS, prefill_chunk=[3, 512], stop_ids=[(), (6, 17)], penalty=[1.0, 1.2],
         n_ids=[None, 20]),
    ids=str,
)  # fmt: skip
def test_each_text_becomes_what_it_would_alone(draw):
    """Padding, shared draws, another row's logits, or a text that does not end with its own
    EOS; ids that have no text, as an MPT has more ids than its tokenizer."""
    model, lm = tiny_model(draw["family"]), draw["lm"]
    ways = {name: draw[name] for name in ("path", "prefill_chunk")}
    settings = dict(max_new_tokens=25, temperature=2.0, top_k=0, stop_ids=draw["stop_ids"],
                    repetition_penalty=draw["penalty"], n_ids=draw["n_ids"])  # fmt: skip
    alone = []
    for number, prompt in enumerate(PROMPTS):
        session = Session(model, lm, **ways)
        steps = write(session, session.read(prompt), generator=seeded(number), **settings)
        alone.append([step.id for step in steps])
    assert together(model, lm, **ways, **settings) == alone
    assert len({str(text) for text in alone}) > 1
    assert max(map(max, filter(None, alone))) < (draw["n_ids"] or 31)


def test_a_text_that_leaves_does_not_disturb_the_others(model):
    """Rows that take each other's place; a text that costs something after its end."""
    whole = together(model, LM, max_new_tokens=6, temperature=0.0)
    found = together(model, LM, end=(2, 2), max_new_tokens=6, temperature=0.0)
    assert found == [*whole[:2], whole[2][:2], whole[3]]


def test_texts_that_were_broken_off_go_on(model):
    """Catches texts that the reader had not been shown yet, and that read a token twice."""
    session = Session(model, LM, n_texts=4)
    steps = write_all(session, session.read_all(PROMPTS), 3, temperature=0.0)
    first = [number for number, _ in islice(steps, 6)]
    assert first == [0, 1, 2, 3, 0, 1] and all(len(ids) == 1 for ids in session.unread)
    logits = session.read_all([[]] * 4)
    for row, prompt in enumerate(PROMPTS):
        text = prompt + greedy(model, prompt, 2)
        torch.testing.assert_close(logits[row], logits_after(model, text))
    assert not logits.requires_grad and logits.shape == (4, 31)


def test_wrong_prompts_are_refused(model):
    """A prompt without ids has no logits; one out of range another model's text; a row with
    more new tokens than another has no place."""
    session = Session(model, LM, n_texts=2)
    for wrong, said in (([], "nothing to read of prompt 2"), ([1, -1], "token -1 of prompt 2"),
                        ([31], "token 31 of prompt 2 is out of range")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            session.read_all([[1], wrong])
    session.read_all([[1], [2, 3]])
    with pytest.raises(ValueError, match="give each as many new tokens"):
        session.read_all([[1], [2, 3]])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("lm", [LM, TOP_K], ids=["LM-Infinite", "top-k"])
def test_interrupted_texts_are_refused(model, path, lm):
    """Catches rows that have lost what a layer had not read yet."""
    session = Session(model, lm, path, prefill_chunk=4, n_texts=4)
    list(write_all(session, session.read_all(PROMPTS), 3, temperature=0.0))
    with interrupted(model.blocks[1]):
        session.read_all([[]] * 4)
    for use in (lambda: session.read_all([[1]] * 4), lambda: session.end(1)):
        with pytest.raises(ValueError, match="this session was interrupted"):
            use()


@pytest.mark.parametrize("n_texts", [1, 4])
@pytest.mark.parametrize("path", PATHS)
def test_logits_that_are_not_numbers(path, n_texts):
    """Catches a text of nothing, or one of the first id alone, from weights that overflow."""
    model = tiny_llama()
    model.head.weight.data[3, 0] = torch.nan
    session = Session(model, LM, path, n_texts=n_texts)
    with pytest.raises(ValueError, match="not numbers"):
        session.read_all(PROMPTS[:n_texts])

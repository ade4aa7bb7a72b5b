"""The exercises in looking back: that each can be solved, and how that is counted."""

import json
import re

import numpy as np
import pytest
import torch

from minilm_inf.text.byte_pairs import END_OF_TEXT, learn_merges, tokenizer_json
from minilm_inf.text.tokenizer import load
from minilm_inf.train.practice import (
    NAMES,
    STATE_KEY,
    Practice,
    begins_with_space,
    pass_key_accuracy,
)

TEXT = """The ship went out in the morning, and the men stood at the rail. "Is it far?" said
one. Nobody knew! It was cold, it was late, and the sea was grey for as far as we could see.
"""


@pytest.fixture(scope="module")
def text(tokenizer) -> np.ndarray:
    return np.array(tokenizer.encode(TEXT * 40, bos=False))


@pytest.fixture(scope="module")
def practice(tokenizer, text):
    return Practice(tokenizer, text)


def rng(seed=0) -> np.random.Generator:
    return np.random.default_rng(seed)


def is_excerpt(ids: list[int], text: np.ndarray) -> bool:
    """Whether the ids stand in a row somewhere in the text."""
    places = np.lib.stride_tricks.sliding_window_view(text, len(ids))
    return bool((places == np.array(ids)).all(1).any())


EXERCISES = {
    "ordinary": lambda practice, rng, length: practice.ordinary(rng, length),
    "repeats": lambda practice, rng, length: practice.repeats(rng, length),
    "retrieval": lambda practice, rng, length: practice.retrieval(rng, length),
    "followed": lambda practice, rng, length: practice.retrieval(rng, length, 1.0),
    "pass_key": lambda practice, rng, length: practice.pass_key(rng, length)[0],
}


@pytest.mark.parametrize("kind", EXERCISES)
def test_every_window_has_its_length_and_begins_with_bos(practice, tokenizer, kind):
    """One token too many, or a window without its start, and no batch can be made; a draw from
    elsewhere makes a run that cannot be resumed."""
    rows = [EXERCISES[kind](practice, rng(seed), 256) for seed in (1, 1, 2)]
    assert rows[0] == rows[1] != rows[2]
    for seed in range(45):
        length = (240, 256, 257)[seed % 3]
        row = EXERCISES[kind](practice, rng(seed), length)
        assert len(row) == length and row[0] == tokenizer.bos_id
        assert tokenizer.bos_id not in row[1:]
        assert all(type(id) is int and 0 <= id < tokenizer.vocab_size for id in row)
        assert kind != "ordinary" or is_excerpt(row[1:], practice.text)


def test_repeats_come_back_again_and_again(practice):
    """A span that never returns within the window teaches nothing."""
    spans, kinds = [], []
    for seed in range(100):
        row = practice.repeats(rng(seed), 129)[1:]
        span = next(n for n in range(1, 128) if row[n:] == row[:-n])
        spans.append(span)
        kinds.append(len(set(row[:span])))
        assert min(row) >= 3, "no BOS, EOS or unknown within"
    assert min(spans) >= 8 and max(spans) < 64 and max(spans) > 55
    assert max(kinds) > 40, "the whole vocabulary is drawn from too"


def facts_and_answers(window: str):
    """What a window states and what it answers: two dicts of who -> digits."""
    asked = re.findall(r"What is the (pass key|number of (\w+))\?", window)
    answers = re.findall(r"\? The (?:pass key|number of (\w+)) is (\d+)", window)
    stated = window[: window.index("What is the")]
    numbers = r"[Tt]he number of (\w+) is (\d+)", r"(\w+)'s number is (\d+)"
    said = [(m.start(), *m.groups()) for words in numbers for m in re.finditer(words, stated)]
    for m in re.finditer(r"[Tt]he pass key(?: is|: it is) (\d+)", stated):
        said.append((m.start(), "pass key", m[1]))
    facts = {who: digits for _, who, digits in sorted(said)}
    who = [name or "pass key" for _, name in asked]
    return facts, dict(zip(who, (digits for _, digits in answers)))


@pytest.mark.parametrize("followed", [0.0, 1.0])
def test_facts_and_answers_agree(practice, tokenizer, followed):
    """An answer that was never stated teaches the model to make numbers up."""
    counts, keys, after, order = set(), 0, set(), set()
    for seed in range(150):
        row = practice.retrieval(rng(seed), 257, followed)
        window = tokenizer.decode(row)
        facts, answers = facts_and_answers(window)
        assert facts == answers and facts, window
        assert set(facts) <= {*NAMES, "pass key"}
        counts.add(len(facts))
        keys += "pass key" in facts
        after.add(window.rpartition(answers[list(answers)[-1]] + ".")[2] != "")
        order.add(list(facts) == list(answers))
        assert all(
            len(d) == 5 if n == "pass key" else 2 <= len(d) <= 5 for n, d in facts.items()
        )
    assert counts == {1, 2, 3, 4}
    assert 60 < keys < 130
    assert after == {followed > 0}
    assert order == {True, False}, "questions come in any order"


def test_facts_stand_behind_sentences_all_over_the_text(practice, tokenizer):
    """Facts that always stand in the same place are found by counting, not by looking."""
    places = []
    for seed in range(100):
        row, first = practice.pass_key(rng(seed), 257)
        window = tokenizer.decode(row)
        at = re.search(r"(The|Remember the|There is a) pass key", window).start()
        assert not at or window[:at].rstrip(' "')[-1] in ".!?\n", window
        places.append(at / len(window))
    assert min(places) == 0 and max(places) > 0.7 and len(set(places)) > 15


def test_pass_keys_end_the_window_and_stand_once_before(practice, tokenizer):
    """A key that stands twice, or nowhere, or is given away by the question."""
    keys, statements = set(), set()
    for seed in range(100):
        row, first = practice.pass_key(rng(seed), 257)
        digits = tokenizer.decode(row)[-5:]
        assert first == len(row) - 5
        assert digits.isdigit() and tokenizer.decode(row[first:]).strip() == digits
        assert all(tokenizer.decode([id]).isdigit() for id in row[first:])
        before = tokenizer.decode(row[:first])
        assert before.count(digits) == 1
        assert before.rstrip().endswith("What is the pass key? The pass key is")
        keys.add(digits)
        said = [words for words in STATE_KEY if words.format(digits) in before]
        statements.add(max(said, key=len))
    assert len(keys) > 90 and statements == set(STATE_KEY)


def test_a_fact_that_fits_exactly_needs_no_text(practice, tokenizer):
    """The smallest window must work, and one token less must be refused, not cut."""
    ending, fact = "What is it? It is 7", "It is 7."
    pieces = [tokenizer.encode(words, bos=False) for words in (fact, ending)]
    length = 1 + sum(len(piece) for piece in pieces)
    row = practice.hidden(rng(), length, [fact], ending)
    assert row == [tokenizer.bos_id, *pieces[0], *pieces[1]]
    with pytest.raises(ValueError, match=f"{length - 1} tokens have no room"):
        practice.hidden(rng(), length - 1, [fact], ending)


def test_a_small_window_is_asked_less(practice, tokenizer):
    """A run that dies after an hour, at the first draw of four long facts without room."""
    for seed in range(300):
        row = practice.retrieval(rng(seed), 130, followed=0.7)
        assert len(row) == 130
        assert "What is the" in tokenizer.decode(row[1:])
    with pytest.raises(ValueError, match="20 tokens have no room"):
        practice.retrieval(rng(), 20, followed=0.7)


def test_a_text_that_is_too_short_is_refused(tokenizer, text):
    """numpy would say `low >= high`."""
    for n in (0, 10, 256):
        practice = Practice(tokenizer, text[:n])
        with pytest.raises(ValueError, match=f"a text of {n} tokens is too short"):
            practice.ordinary(rng(), 257)
    assert len(Practice(tokenizer, text[:260]).ordinary(rng(), 257)) == 257
    with pytest.raises(ValueError, match="too short"):
        Practice(tokenizer, text[:10]).pass_key(rng(), 257)


class Guesser:
    """A stand-in for a model, whose logits are a function's guesses."""

    def __init__(self, guess, vocab_size: int):
        self.guess, self.vocab_size = guess, vocab_size
        self.embed = torch.nn.Embedding(1, 1)

    def __call__(self, rows):
        guesses = torch.tensor([self.guess(row.tolist()) for row in rows])
        return torch.nn.functional.one_hot(guesses, self.vocab_size).float()


def copied(tokenizer):
    """A guess that has understood: after the question, the key that stood in the text."""

    def guess(row):
        window = tokenizer.decode(row)
        key = re.findall(r"\d{5}", window)[0]
        ids = [tokenizer.encode(digit, bos=False)[-1] for digit in key]
        return [0] * (len(row) - 5) + ids

    return guess


def test_an_oracle_is_always_right_and_a_fool_never(practice, tokenizer):
    """Counting single digits, or the wrong places, would flatter every model; four right digits
    of five are not a pass key. What stands before the key does not count, and the last digit is
    never shown."""
    copy, lengths = copied(tokenizer), []

    def half(row):
        lengths.append(len(row))
        guesses = copy(row)
        if len(lengths) % 2:
            guesses[len(guesses) - 5 + len(lengths) // 2 % 5] = 0
        return guesses

    for guess, share in ((copy, 1.0), (half, 0.5)):
        model = Guesser(guess, tokenizer.vocab_size)
        assert pass_key_accuracy(model, practice, 257, count=20) == share
    assert set(lengths) == {256}


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A byte-level tokenizer: no space of its own before a text, one special at the front."""
    folder = tmp_path_factory.mktemp("byte-level")
    merges = learn_merges([TEXT + " ".join((*STATE_KEY, *NAMES))], 80)
    (folder / "tokenizer.json").write_text(tokenizer_json(merges), encoding="utf-8")
    about = {"eos_token": END_OF_TEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return load(folder)


def test_facts_stand_apart_whatever_the_tokenizer(byte_level, tokenizer):
    """Facts that are glued to the word before them are none that anybody would write."""
    assert begins_with_space(tokenizer) and not begins_with_space(byte_level)
    for known in (byte_level, tokenizer):
        practice = Practice(known, np.array(known.encode(TEXT * 40, bos=False)))
        for seed in range(40):
            row, first = practice.pass_key(rng(seed), 200)
            text = known.decode(row)
            assert re.search(r"(^| )(What is the pass key\?) The pass key is \d{5}$", text)
            stated = r"(?:^|(?<= ))(?:Remember|The|There)[^.]*\d{5}[.:]"
            assert re.search(stated, text[: text.index("What is the pass key?")])
            assert known.decode(row[first:]) == text[-5:] and len(row) == first + 5


def test_repeats_are_of_ordinary_tokens(byte_level):
    """A special among random tokens ends a text that goes on."""
    practice = Practice(byte_level, np.array(byte_level.encode(TEXT * 40, bos=False)))
    assert practice.ids.tolist() == list(range(1, byte_level.vocab_size))
    rows = [practice.repeats(rng(seed), 128) for seed in range(50)]
    assert all(row[0] == 0 and 0 not in row[1:] for row in rows)

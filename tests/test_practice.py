"""The exercises in looking back: that each can be solved, and how that is counted."""

import json
import re

import numpy as np
import pytest
import torch

from minilm_inf.text.byte_pairs import END_OF_TEXT, learn_merges, tokenizer_json
from minilm_inf.text.tokenizer import load
from minilm_inf.train.practice import NAMES, STATE_KEY, Practice, pass_key_accuracy

TEXT = """The ship went out in the morning, and the men stood at the rail. "Is it far?" said
one. Nobody knew! It was cold, it was late, and the sea was grey for as far as we could see.
"""


@pytest.fixture(scope="module")
def practice(tokenizer):
    return Practice(tokenizer, np.array(tokenizer.encode(TEXT * 40, bos=False)))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A byte-level tokenizer: no space of its own before a text, one special at the front."""
    folder = tmp_path_factory.mktemp("byte-level")
    merges = learn_merges([TEXT + " ".join((*STATE_KEY, *NAMES))], 80)
    (folder / "tokenizer.json").write_text(tokenizer_json(merges), encoding="utf-8")
    about = {"eos_token": END_OF_TEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return load(folder)


def rng(seed=0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("kind", ["ordinary", "repeats", "retrieval", "pass_key"])
def test_every_window_has_its_length_and_begins_with_bos(practice, tokenizer, kind):
    """One token too many, or a window without its start, and no batch can be made; a draw from
    elsewhere makes a run that cannot be resumed."""
    draw, more = getattr(practice, kind), [1.0] * (kind == "retrieval")
    rows = [draw(rng(seed), 256, *more) for seed in (1, 1, 2)]
    assert rows[0] == rows[1] != rows[2]
    for seed in range(24):
        length = (240, 256, 257)[seed % 3]
        row = draw(rng(seed), length, *more[: seed % 2])
        assert len(row) == length and row[0] == tokenizer.bos_id
        assert tokenizer.bos_id not in row[1:]
        assert all(type(id) is int and 0 <= id < tokenizer.vocab_size for id in row)
        if kind == "ordinary":
            places = np.lib.stride_tricks.sliding_window_view(practice.text, length - 1)
            assert (places == np.array(row[1:])).all(1).any()


def test_repeats_come_back_again_and_again(practice, byte_level):
    """A span that never returns within the window teaches nothing; a special among random
    tokens ends a text that goes on."""
    spans, kinds = [], []
    for seed in range(100):
        row = practice.repeats(rng(seed), 129)[1:]
        span = next(n for n in range(1, 128) if row[n:] == row[:-n])
        spans.append(span)
        kinds.append(len(set(row[:span])))
        assert min(row) >= 3, "no BOS, EOS or unknown within"
    assert min(spans) >= 8 and max(spans) < 64 and max(spans) > 55
    assert max(kinds) > 40, "the whole vocabulary is drawn from too"
    other = Practice(byte_level, np.array(byte_level.encode(TEXT, bos=False)))
    assert other.ids.tolist() == list(range(1, byte_level.vocab_size))


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
    for seed in range(80):
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
    assert counts == {1, 2, 3, 4} and 30 < keys < 70
    assert after == {followed > 0}
    assert order == {True, False}, "questions come in any order"


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_pass_keys_end_the_window_and_stand_once_before(tokenizer, byte_level, kind):
    """A key that stands twice, or nowhere, or is given away by the question; facts that are
    glued to the word before them, or always stand in the same place."""
    known = tokenizer if kind == "sentencepiece" else byte_level
    practice = Practice(known, np.array(known.encode(TEXT * 40, bos=False)))
    keys, statements, places = set(), set(), []
    for seed in range(60):
        row = practice.pass_key(rng(seed), 257)
        text = known.decode(row)
        before, digits = text[:-5], text[-5:]
        assert len(row) == 257 and all(known.decode([id]).isdigit() for id in row[-5:])
        assert known.decode(row[-5:]) == digits and before.count(digits) == 1
        assert re.search(r"(^| )What is the pass key\? The pass key is $", before)
        at = re.search(r"(The|Remember the|There is a) pass key", text).start()
        assert not at or text[at - 1] == " "
        assert text[:at].rstrip(' "')[-1:] in ("", *".!?\n"), "it follows a sentence"
        places.append(at / len(text))
        keys.add(digits)
        said = [words for words in STATE_KEY if words.format(digits) in before]
        statements.add(max(said, key=len))
    assert len(keys) > 55 and statements == set(STATE_KEY)
    assert min(places) < 0.01 and max(places) > 0.6 and len(set(places)) > 10


def test_windows_and_texts_that_are_too_small(practice, tokenizer):
    """A run that dies after an hour, at the first draw of four long facts without room; a fact
    that is cut; numpy's `low >= high`."""
    for seed in range(100):
        row = practice.retrieval(rng(seed), 130, followed=0.7)
        assert len(row) == 130 and "What is the" in tokenizer.decode(row[1:])
    with pytest.raises(ValueError, match="20 tokens have no room"):
        practice.retrieval(rng(), 20, followed=0.7)
    for n in (0, 10, 256):
        with pytest.raises(ValueError, match=f"a text of {n} tokens is too short"):
            Practice(tokenizer, practice.text[:n]).ordinary(rng(), 257)
    assert len(Practice(tokenizer, practice.text[:260]).ordinary(rng(), 257)) == 257


def test_an_oracle_is_always_right_and_a_fool_never(practice, tokenizer):
    """Counting single digits, or the wrong places, would flatter every model; four right digits
    of five are not a pass key. What stands before the key does not count, and the last digit is
    never shown."""
    seen = []

    class Oracle:
        """A stand-in for a model that copies the key that stood in the text, and is wrong in
        one digit of every row whose number is in `wrong`."""

        embed, wrong = torch.nn.Embedding(1, 1), range(0)

        def __call__(self, rows):
            guesses = torch.zeros_like(rows)
            for guess, row in zip(guesses, rows.tolist()):
                key = re.findall(r"\d{5}", tokenizer.decode(row))[0]
                guess[-5:] = torch.tensor([tokenizer.encode(d, bos=False)[-1] for d in key])
                if len(seen) in self.wrong:
                    guess[-1 - len(seen) // 2 % 5] = 0
                seen.append(len(row))
            return torch.nn.functional.one_hot(guesses, tokenizer.vocab_size).float()

    assert pass_key_accuracy(Oracle(), practice, 257, count=30) == 1.0
    seen.clear()
    Oracle.wrong = range(0, 30, 2)
    assert pass_key_accuracy(Oracle(), practice, 257, count=30) == 0.5
    assert seen == [256] * 30

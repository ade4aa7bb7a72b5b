"""Trials of retrieval: exact in length and place, of fresh filler, and answerable."""

import itertools
import re

import numpy as np
import pytest

from minilm_inf.config import LMInfinite
from minilm_inf.evaluate.retrieval import WHERE, where_it_lies
from minilm_inf.evaluate.trials import ABSENT, Pairs, PassKey, Trial
from minilm_inf.train.practice import ASK_KEY, STATE_KEY, Practice

SENTENCES = [f"The {a} {b} the {c}." for a, b, c in itertools.product(
    ("ship", "sea", "captain", "wind", "old man", "boy"),
    ("saw", "left", "found", "feared", "lost", "heard"),
    ("harbour", "whale", "land", "morning", "door", "fire"),
)]  # fmt: skip
DEPTHS = (0.0, 0.13, 0.5, 0.9, 1.0)


@pytest.fixture(scope="module")
def practice(tokenizer):
    """Filler of 216 different sentences, of about 2,000 tokens."""
    order = np.random.default_rng(0).permutation(SENTENCES)
    return Practice(tokenizer, np.array(tokenizer.encode(" ".join(order), bos=False)))


@pytest.fixture(scope="module")
def makers(practice, tokenizer):
    return {"passkey": PassKey(practice, tokenizer), "pairs": Pairs(practice, tokenizer)}


@pytest.mark.parametrize("kind", ["passkey", "pairs"])
def test_a_trial_is_what_was_asked_for(makers, tokenizer, kind):
    """A table's column that stands for other lengths, or rows that no batch can hold; a digit
    that is not the one stated; a draw from elsewhere: the same trial fifty times, or a run that
    cannot be resumed."""
    maker, answers = makers[kind], set()
    for length, seed, depth in itertools.product((190, 257, 1000), range(3), (*DEPTHS, ABSENT)):
        trial = maker.trial(length, depth, [seed])
        assert trial == maker.trial(length, depth, [seed])
        assert len(trial.ids) == length and trial.ids[0] == tokenizer.bos_id
        assert tokenizer.bos_id not in trial.ids[1:]
        answer = tokenizer.decode(trial.ids[-trial.width :])
        assert re.fullmatch(r"\d{5}" if kind == "passkey" else r"\d{4}", answer)
        assert trial.width == maker.width == len(answer)  # every digit is a piece
        answers.add((seed, answer))
        if depth != ABSENT:
            assert [trial.ids[j] for j in trial.stated] == trial.ids[-trial.width :]
            assert np.all(np.diff(trial.stated) == 1)
            assert trial.stated[-1] < length - trial.width
    assert len(answers) >= 3, "one for each seed"


@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_is_the_share_of_filler_before_the_key(makers, practice, tokenizer, depth):
    """A needle that is moved to the next sentence makes a heatmap's rows overlap; one that is
    not breaks a sentence in two. A sentence that comes again is a crutch."""
    starts = set()
    for seed, length in itertools.product(range(8), (200, 400)):
        ids = makers["passkey"].trial(length, depth, [seed]).ids
        digits, found = tokenizer.decode(ids[-5:]), []
        for words in STATE_KEY:  # every wording at every place
            key = practice.encode(words.format(digits))
            found += [(len(key), at) for at in range(length) if ids[at : at + len(key)] == key]
        (n, at), end = max(found), len(practice.encode(ASK_KEY.format(digits)))
        assert at == 1 + round(depth * (length - 1 - n - end))
        assert at == 1 or tokenizer.decode(ids[:at]).endswith(".")
        filler = ids[1:at] + ids[at + n : -end]
        windows = np.lib.stride_tricks.sliding_window_view(practice.text, len(filler))
        (place,) = np.flatnonzero((windows == np.array(filler)).all(1))
        starts.add(int(place))
    assert len(starts) > 10, "from fresh places"


def test_without_the_needle_nothing_states_it(makers, tokenizer):
    """A control that holds the answer would show how good the model is, not how it guesses."""
    for seed in range(10):
        trial = makers["passkey"].trial(256, ABSENT, [seed])
        text, digits = tokenizer.decode(trial.ids), tokenizer.decode(trial.ids[-5:])
        assert text.count("pass key") == 2 and text.count(digits) == 1 and trial.stated == ()
        trial = makers["pairs"].trial(256, ABSENT, [seed])
        text, digits = tokenizer.decode(trial.ids), tokenizer.decode(trial.ids[-4:])
        told = re.findall(r"number(?: of \w+)? is (\d{4})", text[: text.index("What is")])
        assert len(told) == 3 and digits not in told, "the other people's numbers are there"


def test_pairs_are_told_once_each_and_one_is_asked(makers, tokenizer):
    """Two people with one number, a person who is told of twice, or an answer that is not the
    one told."""
    before = []
    for seed, depth in itertools.product(range(15), DEPTHS):
        text = tokenizer.decode(makers["pairs"].trial(300, depth, [seed]).ids)
        told, asked = re.fullmatch(r"(.*)(What is .*)", text, re.S).groups()
        pattern = r"What is .*\? The number of (\w+) is (\d+)"
        name, answer = re.fullmatch(pattern, asked).groups()
        facts = r"number of (\w+) is (\d{4})|(\w+)'s number is (\d{4})"
        found = [[x for x in match if x] for match in re.findall(facts, told)]
        names, numbers = zip(*found)
        assert len(set(names)) == len(set(numbers)) == len(found) == 4
        at = names.index(name)
        assert numbers[at] == answer
        before.append((depth, at))
    assert {n for d, n in before if d == 0} == {0} and {n for d, n in before if d == 1} == {3}
    assert {n for d, n in before if d == 0.5} == {0, 1, 2, 3}


def test_what_cannot_be_made_is_told(makers, practice, tokenizer, monkeypatch):
    """A negative number of filler tokens, a text that is read beyond its end, a list of words
    without a sentence's end."""
    with pytest.raises(ValueError, match="30 tokens have no room for: .*pass key"):
        makers["passkey"].trial(30, 0.5, [0])
    short = PassKey(Practice(tokenizer, practice.text[:300]), tokenizer)
    words = np.array(tokenizer.encode("alpha beta gamma delta " * 200, bos=False))
    endless = PassKey(Practice(tokenizer, words), tokenizer)
    for depth, seed in itertools.product(DEPTHS, range(9)):
        with pytest.raises(ValueError, match="the filler has only"):
            makers["passkey"].trial(len(practice.text) + 60, depth, [seed])
        assert len(short.trial(320, depth, [seed]).ids) == 320  # all but one token of the text
        assert len(endless.trial(256, depth, [seed]).ids) == 256
    monkeypatch.setattr(practice, "encode", lambda words: [5])
    with pytest.raises(ValueError, match="cannot write"):
        PassKey(practice, tokenizer)


def test_where_it_lies_is_how_its_digits_are_seen():
    """A needle on the window's edge of which the last digits only are seen is not seen."""
    counts = dict.fromkeys(WHERE, 0)
    for n, n_local, n_global, width, at in itertools.product(
        (20, 33), (1, 4, 9, 40), (0, 3, 8), (1, 3), range(1, 16)
    ):
        trial = Trial(list(range(n)), width, tuple(range(at, at + width)))
        pairs = [(n - width - 1 + t, at + t) for t in range(width)]  # a query and its digit
        wanted = "starting" if at + width <= n_global else "middle"
        wanted = "window" if all(i - j < n_local for i, j in pairs) else wanted
        assert WHERE[where_it_lies(trial, LMInfinite(n_local, n_global, n_local))] == wanted
        counts[wanted] += 1
    assert min(counts.values()) > 50
    assert where_it_lies(Trial([1, 2], 1, ()), LMInfinite(8, 2, 8)) == -1

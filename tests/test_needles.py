"""Trials of retrieval: exact in length and place, of fresh filler, and answerable."""

import itertools
import re

import numpy as np
import pytest

from minilm_inf.config import LMInfinite
from minilm_inf.evaluate.cells import WHERE, where_it_lies
from minilm_inf.evaluate.trials import ABSENT, ALONE, Pairs, PassKey, Trial, Variables
from minilm_inf.train.practice import ASK_KEY, STATE_KEY, Practice

SENTENCES = [f"The {a} {b} the {c}." for a, b, c in itertools.product(
    ("ship", "sea", "captain", "wind", "old man", "boy"),
    ("saw", "left", "found", "feared", "lost", "heard"),
    ("harbour", "whale", "land", "morning", "door", "fire"),
)]  # fmt: skip


@pytest.fixture(scope="module")
def practice(tokenizer):
    """Filler of 216 different sentences, of about 2,000 tokens."""
    order = np.random.default_rng(0).permutation(SENTENCES)
    return Practice(tokenizer, np.array(tokenizer.encode(" ".join(order), bos=False)))


@pytest.fixture(scope="module")
def makers(practice, tokenizer):
    return {
        "passkey": PassKey(practice, tokenizer),
        "pairs": Pairs(practice, tokenizer, 4),
        "variables": Variables(practice, tokenizer, 2, 2),
    }


KINDS = ("passkey", "pairs", "variables")
DEPTHS = (0.0, 0.13, 0.5, 0.9, 1.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [190, 256, 257, 1000])
def test_a_trial_is_exactly_as_long_as_asked_for(makers, tokenizer, kind, length):
    """A table's column that stands for other lengths, or rows that no batch can hold."""
    maker = makers[kind]
    for seed, depth in itertools.product(range(12), DEPTHS):
        for trial in (maker.trial(length, depth, [seed]), maker.trial(length, ABSENT, [seed])):
            assert len(trial.ids) == length and trial.ids[0] == tokenizer.bos_id
            assert tokenizer.bos_id not in trial.ids[1:]
            answer = tokenizer.decode(trial.ids[-trial.width :])
            assert re.fullmatch(r"\d{5}" if kind == "passkey" else r"\d{4}", answer)
            assert trial.width == maker.width == len(answer)  # every digit is a piece


def statement(tokenizer, practice, trial) -> tuple[int, list[int]]:
    """Where a pass key is stated, and by which ids: found by trying every wording at every
    place."""
    digits = tokenizer.decode(trial.ids[-5:])
    found = []
    for words in STATE_KEY:
        ids = practice.encode(words.format(digits))
        found += [
            (at, ids) for at in range(len(trial.ids)) if trial.ids[at : at + len(ids)] == ids
        ]
    return max(found, key=lambda pair: len(pair[1]))


@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_is_the_share_of_filler_before_the_key(makers, practice, tokenizer, depth):
    """A needle that is moved to the next sentence makes a heatmap's rows overlap; one that is
    not breaks a sentence in two."""
    for seed, length in itertools.product(range(15), (200, 257, 900)):
        trial = makers["passkey"].trial(length, depth, [seed])
        at, ids = statement(tokenizer, practice, trial)
        end = len(practice.encode(ASK_KEY.format(tokenizer.decode(trial.ids[-5:]))))
        room = length - 1 - len(ids) - end
        assert at == 1 + round(depth * room)
        assert at == 1 or tokenizer.decode(trial.ids[:at]).endswith(".")


def test_filler_is_one_stretch_of_text(makers, practice, tokenizer):
    """A sentence that comes again is a crutch that no real text offers."""
    text, starts = practice.text, set()
    windows = {}
    for seed, depth in itertools.product(range(15), DEPTHS):
        trial = makers["passkey"].trial(400, depth, [seed, 1])
        at, ids = statement(tokenizer, practice, trial)
        end = len(practice.encode(ASK_KEY.format(tokenizer.decode(trial.ids[-5:]))))
        filler = trial.ids[1:at] + trial.ids[at + len(ids) : -end]
        if len(filler) not in windows:
            windows[len(filler)] = np.lib.stride_tricks.sliding_window_view(text, len(filler))
        places = np.flatnonzero((windows[len(filler)] == np.array(filler)).all(1))
        assert len(places) == 1
        starts.add(int(places[0]))
    assert len(starts) > 50, "from fresh places"


@pytest.mark.parametrize("kind", KINDS)
def test_stated_are_the_digits_of_the_answer(makers, tokenizer, kind):
    """A place that is off by one calls needles in the middle those of the window."""
    for seed, depth in itertools.product(range(20), DEPTHS):
        trial = makers[kind].trial(300, depth, [seed])
        stated = [trial.ids[j] for j in trial.stated]
        assert stated == trial.ids[-trial.width :]
        assert np.all(np.diff(trial.stated) == 1) and trial.stated[-1] < 300 - trial.width


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(makers, kind):
    """A draw from elsewhere: a run that cannot be resumed, or the same trial fifty times."""
    maker = makers[kind]
    for make in (lambda s: maker.trial(256, 0.4, s), lambda s: maker.trial(256, ABSENT, s),
                 lambda s: maker.trial(0, ALONE, s)):  # fmt: skip
        assert make([3, 1]) == make([3, 1])
        assert len({tuple(make([3, number]).ids) for number in range(20)}) == 20
    answers = {tuple(maker.trial(256, 0.4, [s]).ids[-maker.width :]) for s in range(20)}
    assert len(answers) > 15


def test_without_the_needle_nothing_states_it(makers, tokenizer):
    """A control that holds the answer would show how good the model is, not how it guesses."""
    for seed in range(20):
        trial = makers["passkey"].trial(256, ABSENT, [seed])
        window, digits = tokenizer.decode(trial.ids), tokenizer.decode(trial.ids[-5:])
        assert window.count("pass key") == 2 and window.count(digits) == 1
        assert trial.stated == () and where_it_lies(trial, LMInfinite(8, 2, 8)) == -1
        trial = makers["pairs"].trial(256, ABSENT, [seed])
        window, digits = tokenizer.decode(trial.ids), tokenizer.decode(trial.ids[-4:])
        told = re.findall(r"number(?: of \w+)? is (\d{4})", window[: window.index("What is")])
        assert len(told) == 3 and digits not in told, "the other people's numbers are there"


@pytest.mark.parametrize("kind", KINDS)
def test_the_question_alone_is_the_end_of_a_trial(makers, tokenizer, kind):
    """A question in other words is another control."""
    for seed in range(10):
        trial = makers[kind].trial(0, ALONE, [seed])
        window = tokenizer.decode(trial.ids)
        digits = tokenizer.decode(trial.ids[-trial.width :])
        assert trial.ids[0] == tokenizer.bos_id and window.count(digits) == 1
        pattern = r"What is the (pass key|number of \w+)\? The \1 is \d+"
        assert re.fullmatch(pattern, window.strip())


def test_pairs_are_told_once_each_and_one_is_asked(makers, tokenizer):
    """Two people with one number, a person who is told of twice, or an answer that is not the
    one told."""
    before = []
    for seed, depth in itertools.product(range(25), DEPTHS):
        window = tokenizer.decode(makers["pairs"].trial(300, depth, [seed]).ids)
        told, asked = window[: window.index("What is")], window[window.index("What is") :]
        found = {}
        for pattern in (r"number of (\w+) is (\d{4})", r"(\w+)'s number is (\d{4})"):
            for match in re.finditer(pattern, told):
                assert match[1] not in found
                found[match[1]] = match[2], match.start()
        assert len(found) == len({number for number, _ in found.values()}) == 4
        name, answer = re.fullmatch(
            r"What is .*\? The number of (\w+) is (\d+)", asked
        ).groups()
        assert found[name][0] == answer
        before.append((depth, sum(at < found[name][1] for _, at in found.values())))
    assert {n for d, n in before if d == 0} == {0} and {n for d, n in before if d == 1} == {3}
    assert {n for d, n in before if d == 0.5} == {0, 1, 2, 3}


def test_no_two_people_have_one_number(practice, tokenizer):
    """A wrong person's number that counts as the right one's."""
    maker = Pairs(practice, tokenizer, 8, digits=1)
    for seed in range(10):
        window = tokenizer.decode(maker.trial(400, 0.5, [seed]).ids)
        told = re.findall(r"(?:number(?: of \w+)?) is (\d)", window[: window.index("What is")])
        assert len(told) == len(set(told)) == 8


def test_variables_are_chains_that_can_be_followed(makers, tokenizer):
    """A name that is used before it has a value, or a question whose answer another chain
    gives."""
    mixed = 0
    for seed, depth in itertools.product(range(25), DEPTHS):
        trial = makers["variables"].trial(300, depth, [seed])
        window = tokenizer.decode(trial.ids)
        told, asked = window[: window.index("What is")], window[window.index("What is") :]
        values, hops, order = {}, {}, []
        for match in re.finditer(r"number of (\w+) is (?:(\d+)|the number of (\w+))", told):
            name, number, source = match.groups()
            assert name not in values
            values[name] = number or values[source]  # KeyError: not told yet
            hops[name] = 0 if number else hops[source] + 1
            order.append(values[name])
        assert sorted(hops.values()) == [0, 0, 1, 1, 2, 2] and len(set(values.values())) == 2
        name, answer = re.fullmatch(
            r"What is .*\? The number of (\w+) is (\d+)", asked
        ).groups()
        assert hops[name] == 2 and values[name] == answer
        mixed += len(list(itertools.groupby(order))) > 2
    assert mixed > 60


def test_a_length_without_room_is_told(makers, practice, tokenizer):
    """A negative number of filler tokens, or a text that is read beyond its end."""
    with pytest.raises(ValueError, match="30 tokens have no room for: .*pass key"):
        makers["passkey"].trial(30, 0.5, [0])
    for depth in (0.0, 0.5, 1.0):
        with pytest.raises(ValueError, match="--filler repeat"):
            makers["passkey"].trial(len(practice.text) + 60, depth, [0])
        text = practice.text[:300]
        short = PassKey(Practice(tokenizer, text), tokenizer)
        lengths = [len(short.trial(320, depth, [seed]).ids) for seed in range(20)]
        assert set(lengths) == {320}, "all but one token of the text"


def test_text_without_sentences_still_fills(tokenizer):
    """A list of words has no sentence's end, and a choice among none is an error."""
    text = np.array(tokenizer.encode("alpha beta gamma delta " * 200, bos=False))
    maker = PassKey(Practice(tokenizer, text), tokenizer)
    assert {len(maker.trial(256, d, [s]).ids) for d in DEPTHS for s in range(5)} == {256}


# ---- where it lies


def seen_as(i: int, j: int, lm: LMInfinite) -> str:
    """How a query at i sees the key at j without top_k, by walking over what it sees."""
    for d in range(lm.n_local):
        if i - d == j:
            return "window"
    for start in range(lm.n_global):
        if start == j:
            return "starting"
    return "middle"


def test_where_it_lies_is_how_its_digits_are_seen():
    """A needle on the window's edge of which the last digits only are seen is not seen."""
    counts = {"starting": 0, "middle": 0, "window": 0}
    for n, n_local, n_global, width, at in itertools.product(
        (20, 33), (1, 4, 9, 40), (0, 3, 8), (1, 3), range(1, 16)
    ):
        lm = LMInfinite(n_local, n_global, n_local)
        trial = Trial(list(range(n)), width, tuple(range(at, at + width)))
        kinds = {seen_as(n - width - 1 + t, at + t, lm) for t in range(width)}
        wanted = kinds.pop() if len(kinds) == 1 else "middle"
        assert WHERE[where_it_lies(trial, lm)] == wanted
        counts[wanted] += 1
    assert min(counts.values()) > 50
    seen = where_it_lies(Trial(list(range(20)), 2, (3, 4)), LMInfinite(None, 0, 5))
    assert WHERE[seen] == "window"

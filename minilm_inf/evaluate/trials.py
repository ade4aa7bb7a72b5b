"""One question about a long text: filler with facts in it, the question, and the answer.

A trial is a row of exactly `length` ids, BOS (where the tokenizer puts one before a text) and
the answer among them, and a pure function of its maker, its length and depth, and a seed. Depth
is the share of the filler's tokens that come before the fact that is asked for. The filler is
an excerpt that is moved until a sentence ends just there: the fact neither misses its place nor
breaks a sentence. Wording and joints are practice's, from which the models of weights/ learned.

    PassKey   the paper's task: one pass key
    Pairs     several people's numbers, one of which is asked for
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..train.practice import ASK_KEY, ASK_NUMBER, NAMES, STATE_KEY, STATE_NUMBER, Practice

ABSENT, ALONE = "absent", "alone"  # controls, in the place of a depth
REPEATED = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
)
"""The filler of the paper's passkey test, after Mohtashami and Jaggi (2305.16300)."""


class Trial(NamedTuple):
    """A row of ids that ends with its answer.

    width: how many ids the answer has. stated: the places of the ids that state it in the text;
    none where the text does not.
    """

    ids: list[int]
    width: int
    stated: tuple[int, ...]


class Maker:
    """Makes the trials of one task; a task fills in _facts.

    practice: how words are encoded, and the text from which filler is taken.
    _facts(rng, depth): the facts, in the order in which they must stand, which of them states
        the answer, and the question with its answer.
    digits: how many an answer has; of the answers with as many, only those of the tokenizer's
        commonest number of tokens are asked for.
    """

    def __init__(self, practice: Practice, tokenizer, digits: int):
        self.practice, self.digits = practice, digits
        self.decode = tokenizer.decode
        self.ends = practice.sentence_ends(practice.text)
        rng = np.random.default_rng(0)
        widths = [self._width(draw(rng, digits)) for _ in range(64)]
        self.width = max(set(widths), key=widths.count)

    def trial(self, length: int, depth: float | str, seed: list[int]) -> Trial:
        """The trial with the answer stated at `depth`; ABSENT: nothing states it, and what else
        there is to be told is; ALONE: the question, with nothing but BOS before it.

        Raises ValueError for a length that has no room for it, and for a text that is too short
        to fill it.
        """
        rng = np.random.default_rng(seed)
        at = 0.5 if depth in (ABSENT, ALONE) else depth
        facts, asked, ending = self._facts(rng, at)
        if depth == ALONE:
            ids = [*self.practice.bos, *self.practice.encode(ending)]
            return Trial(ids, self.width, ())
        if depth == ABSENT:
            del facts[asked]
            asked = None
        return self._hidden(rng, length, at, facts, asked, ending)

    def draw(self, rng: np.random.Generator) -> str:
        """Digits whose number of tokens is `width`."""
        while True:
            digits = draw(rng, self.digits)
            if self._width(digits) == self.width:
                return digits

    def _width(self, digits: str) -> int:
        ids = self.practice.encode(f"is {digits}")
        if digits not in self.decode(ids):
            raise ValueError(f"the tokenizer cannot write {digits}: it has no ids for digits")
        return len(self.with_digits(ids))

    def with_digits(self, ids: list[int]) -> list[int]:
        """The places of the ids that hold digits."""
        return [at for at, id in enumerate(ids) if any(map(str.isdigit, self.decode([id])))]

    def _hidden(self, rng, length, depth, facts, asked, ending) -> Trial:
        """Filler with the facts in it, and the ending.

        asked: which of the facts states the answer, at `depth`; those before it stand before
        it, those after it after it. None: they stand anywhere.
        """
        pieces = [self.practice.encode(words) for words in facts]
        end = self.practice.encode(ending)
        room = length - len(self.practice.bos) - len(end) - sum(map(len, pieces))
        if room < 0:
            words = " ".join([*facts, ending])[:200]
            raise ValueError(
                f"{length} tokens have no room for: {words} Choose larger --lengths, or a "
                "model that was trained on longer texts"
            )
        place = round(depth * room)
        filler = self._filler(rng, place, room)
        cuts = self._cuts(rng, filler, place, len(pieces), asked)
        row, starts = list(self.practice.bos), []
        for piece, here, there in zip(pieces, [0, *cuts], cuts):
            row += filler[here:there]
            starts.append(len(row))
            row += piece
        row += filler[cuts[-1] if cuts else 0 :] + end
        stated = ()
        if asked is not None:
            stated = tuple(starts[asked] + at for at in self.with_digits(pieces[asked]))
        return Trial(row, self.width, stated)

    def _filler(self, rng, place: int, room: int) -> list[int]:
        """`room` ids of text from a place where a sentence ends after the first `place`."""
        text = self.practice.text
        check_filler(text, room + 1)
        # text[s - 1] ends a sentence, text[s - place : s - place + room] is the filler.
        low, high = max(place, 1), len(text) - room + place
        sentences = self.ends[slice(*np.searchsorted(self.ends, [low, high + 1]))]
        s = int(rng.choice(sentences) if len(sentences) else rng.integers(low, high + 1))
        return text[s - place : s - place + room].tolist()

    def _cuts(self, rng, filler, place: int, count: int, asked: int | None) -> list[int]:
        """Where the facts stand, as numbers of filler ids before them, in order."""
        ends = self.practice.sentence_ends(filler)
        places = np.array([0, *ends])
        if asked is None:
            return sorted(map(int, rng.choice(places, count)))
        before = rng.choice(places[places <= place], asked)
        after = rng.choice(np.append(place, ends[ends > place]), count - asked - 1)
        return [*sorted(map(int, before)), place, *sorted(map(int, after))]


class PassKey(Maker):
    """The paper's task: one pass key of five digits, and the question for it."""

    def __init__(self, practice: Practice, tokenizer, digits: int = 5):
        super().__init__(practice, tokenizer, digits)

    def _facts(self, rng, depth) -> tuple[list[str], int, str]:
        digits = self.draw(rng)
        return [rng.choice(STATE_KEY).format(digits)], 0, ASK_KEY.format(digits)


class Pairs(Maker):
    """Several people's numbers, one of which is asked for."""

    def __init__(self, practice: Practice, tokenizer, count: int, digits: int = 4):
        self.count = count
        super().__init__(practice, tokenizer, digits)

    def _facts(self, rng, depth) -> tuple[list[str], int, str]:
        names, numbers = rng.permutation(NAMES)[: self.count], self.distinct(rng)
        facts = [rng.choice(STATE_NUMBER).format(*pair) for pair in zip(names, numbers)]
        asked = int(rng.binomial(self.count - 1, depth))  # the others stand anywhere
        name, number = names[asked], numbers[asked]
        return facts, asked, ASK_NUMBER.format(name, name, number)

    def distinct(self, rng) -> list[str]:
        """`count` numbers that all differ. Raises ValueError where there are too few."""
        found: list[str] = []
        for _ in range(100 * self.count):
            number = self.draw(rng)
            if number not in found:
                found.append(number)
            if len(found) == self.count:
                return found
        raise ValueError(
            f"there are fewer than {self.count} numbers of {self.digits} digits that have the "
            "same number of tokens: take fewer --pairs"
        )


def check_filler(text: np.ndarray, needed: int):
    """Raise ValueError where a text has fewer tokens than are needed."""
    if len(text) < needed:
        raise ValueError(
            f"the filler has only {len(text):,} tokens, and {needed:,} are needed: give more "
            "text with --text FILE, or --filler repeat"
        )


def draw(rng: np.random.Generator, digits: int) -> str:
    return "".join(str(digit) for digit in rng.integers(0, 10, digits))

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

ABSENT = "absent"  # in the place of a depth: a control, in which nothing states the answer


class Trial(NamedTuple):
    """A row of ids that ends with its answer, which has `width` of them. stated: the places of
    the ids that state it in the text; none where the text does not."""

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

    digits: int

    def __init__(self, practice: Practice, tokenizer, digits: int | None = None):
        self.practice, self.decode = practice, tokenizer.decode
        self.digits = digits or self.digits
        self.ends = practice.sentence_ends(practice.text)
        rng = np.random.default_rng(0)
        widths = [self._width(self._any(rng)) for _ in range(64)]
        self.width = max(set(widths), key=widths.count)

    def trial(self, length: int, depth: float | str, seed: list[int]) -> Trial:
        """The trial with the answer stated at `depth`; ABSENT: nothing states it, and what else
        there is to be told stands anywhere. Raises ValueError for a length that has no room for
        it, and a text that is too short.
        """
        rng = np.random.default_rng(seed)
        facts, asked, ending = self._facts(rng, 0.5 if depth == ABSENT else depth)
        if depth == ABSENT:
            del facts[asked]
            return Trial(self.practice.hidden(rng, length, facts, ending), self.width, ())
        row, end = list(self.practice.bos), self.practice.encode(ending)
        pieces = [self.practice.encode(words) for words in facts]
        room = length - len(row) - len(end) - sum(map(len, pieces))
        if room < 0:
            raise ValueError(
                f"{length} tokens have no room for: {' '.join([*facts, ending])[:200]} Choose "
                "larger --lengths, or a model that was trained on longer texts"
            )
        place, stated = round(depth * room), []
        filler = self._filler(rng, place, room)
        cuts = [0, *self._cuts(rng, filler, place, len(pieces), asked), room]
        for number, piece in enumerate([*pieces, end]):
            row += filler[cuts[number] : cuts[number + 1]]
            if number == asked:
                stated = self._with_digits(piece, len(row))
            row += piece
        return Trial(row, self.width, tuple(stated))

    def _any(self, rng: np.random.Generator) -> str:
        return "".join(str(digit) for digit in rng.integers(0, 10, self.digits))

    def _number(self, rng: np.random.Generator) -> str:
        """Digits whose number of tokens is `width`."""
        while self._width(digits := self._any(rng)) != self.width:
            pass
        return digits

    def _width(self, digits: str) -> int:
        ids = self.practice.encode(f"is {digits}")
        if digits not in self.decode(ids):
            raise ValueError(f"the tokenizer cannot write {digits}: it has no ids for digits")
        return len(self._with_digits(ids))

    def _with_digits(self, ids: list[int], first: int = 0) -> list[int]:
        """The places of the ids that hold digits, counted from `first`."""
        texts = enumerate((self.decode([id]) for id in ids), first)
        return [at for at, text in texts if any(map(str.isdigit, text))]

    def _filler(self, rng, place: int, room: int) -> list[int]:
        """`room` ids of text from a place where a sentence ends after the first `place`."""
        text = self.practice.text
        if len(text) <= room:
            raise ValueError(
                f"the filler has only {len(text):,} tokens, and {room + 1:,} are needed: give "
                "more text, or ask less of it (smaller --lengths, or --trials 0)"
            )
        # text[s - 1] ends a sentence, text[s - place : s - place + room] is the filler.
        low, high = max(place, 1), len(text) - room + place
        sentences = self.ends[slice(*np.searchsorted(self.ends, [low, high + 1]))]
        s = int(rng.choice(sentences) if len(sentences) else rng.integers(low, high + 1))
        return text[s - place : s - place + room].tolist()

    def _cuts(self, rng, filler, place: int, count: int, asked: int) -> list[int]:
        """Where the facts stand, as numbers of filler ids before them, in order. asked: the one
        that stands at `place`; those before it stand before it, those after it after it."""
        ends = self.practice.sentence_ends(filler)
        before = rng.choice([0, *ends[ends <= place]], asked)
        after = rng.choice([place, *ends[ends > place]], count - asked - 1)
        return [*sorted(map(int, before)), place, *sorted(map(int, after))]


class PassKey(Maker):
    """The paper's task: one pass key of five digits, and the question for it; `states` and
    `asks` hold a model's trained wording, and may be replaced."""

    states, asks, digits = STATE_KEY, ASK_KEY, 5

    def _facts(self, rng, depth) -> tuple[list[str], int, str]:
        digits = self._number(rng)
        return [rng.choice(self.states).format(digits)], 0, self.asks.format(digits)


class Pairs(Maker):
    """Four people's numbers, all different, one of which is asked for; words as PassKey's."""

    states, asks, count, digits = STATE_NUMBER, ASK_NUMBER, 4, 4

    def _facts(self, rng, depth) -> tuple[list[str], int, str]:
        names, numbers = rng.permutation(NAMES)[: self.count], {}
        while len(numbers) < self.count:
            numbers[self._number(rng)] = None
        facts = [rng.choice(self.states).format(*pair) for pair in zip(names, numbers)]
        asked = int(rng.binomial(self.count - 1, depth))  # the others stand anywhere
        name, number = names[asked], list(numbers)[asked]
        return facts, asked, self.asks.format(name, number)

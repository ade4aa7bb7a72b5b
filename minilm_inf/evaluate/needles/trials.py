"""One question about a long text: filler with a fact in it, the question, and the answer.

A trial is a row of exactly `length` ids, BOS (where the tokenizer puts one before a text) and
the answer among them, and a pure function of its maker, its length and depth, and a seed. Depth
is the share of the filler's tokens that come before the fact. The filler is an excerpt that is
moved until a sentence ends just there: the fact neither misses its place nor breaks a sentence.
Wording and joints are practice's, from which the models of weights/ learned.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...train.practice import ASK_KEY, STATE_KEY, Practice

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
        the answer, the question with its answer, and the answer's digits.
    digits: how many an answer has; of the answers with as many, only those of the tokenizer's
        commonest number of tokens are asked for.
    """

    def __init__(self, practice: Practice, tokenizer, digits: int):
        self.practice, self.digits = practice, digits
        self.decode = tokenizer.decode
        self.ends = practice.sentence_ends(practice.text)
        rng = np.random.default_rng(0)
        widths = [len(self._answer(draw(rng, digits))) for _ in range(64)]
        self.width = max(set(widths), key=widths.count)

    def trial(self, length: int, depth: float, seed: list[int]) -> Trial:
        """The trial with the answer stated at `depth`. Raises ValueError for a length that has
        no room for it, and for a text that is too short to fill it."""
        rng = np.random.default_rng(seed)
        facts, asked, ending, answer = self._facts(rng, depth)
        return self._hidden(rng, length, depth, facts, asked, ending, answer)

    def absent(self, length: int, seed: list[int]) -> Trial:
        """A question and its answer behind a text that does not state it; what else there is
        to be told is."""
        rng = np.random.default_rng(seed)
        facts, asked, ending, answer = self._facts(rng, 0.5)
        others = facts[:asked] + facts[asked + 1 :]
        return self._hidden(rng, length, 0.5, others, None, ending, answer)

    def alone(self, seed: list[int]) -> Trial:
        """The question and its answer, and nothing before them but the tokenizer's BOS."""
        _, _, ending, _ = self._facts(np.random.default_rng(seed), 0.5)
        ids = [*self.practice.bos, *self.practice.encode(ending)]
        return Trial(ids, self.width, ())

    def draw(self, rng: np.random.Generator) -> str:
        """Digits whose number of tokens is `width`."""
        while True:
            digits = draw(rng, self.digits)
            if len(self._answer(digits)) == self.width:
                return digits

    def _answer(self, digits: str) -> list[int]:
        ids = self.practice.encode(f"is {digits}")
        if digits not in self.decode(ids):
            raise ValueError(f"the tokenizer cannot write {digits}: it has no ids for digits")
        first, last = self.span(ids, digits)
        return ids[first:last]

    def span(self, ids: list[int], digits: str) -> tuple[int, int]:
        """The shortest stretch of ids that holds the digits, the first of several."""
        last = len(ids)
        while last > 0 and digits in self.decode(ids[: last - 1]):
            last -= 1
        first = last
        while first > 0 and digits not in self.decode(ids[first:last]):
            first -= 1
        return first, last

    def _hidden(self, rng, length, depth, facts, asked, ending, answer) -> Trial:
        """Filler with the facts in it, and the ending.

        asked: which of the facts states the answer, at `depth`; those before it stand before
        it, those behind it behind. None: they stand anywhere.
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
            first, last = self.span(pieces[asked], answer)
            stated = tuple(range(starts[asked] + first, starts[asked] + last))
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
        behind = rng.choice(np.append(place, ends[ends > place]), count - asked - 1)
        return [*sorted(map(int, before)), place, *sorted(map(int, behind))]


class PassKey(Maker):
    """The paper's task: one pass key of five digits, and the question for it."""

    def __init__(self, practice: Practice, tokenizer, digits: int = 5):
        super().__init__(practice, tokenizer, digits)

    def _facts(self, rng, depth) -> tuple[list[str], int, str, str]:
        digits = self.draw(rng)
        return [rng.choice(STATE_KEY).format(digits)], 0, ASK_KEY.format(digits), digits


def check_filler(text: np.ndarray, needed: int):
    """Raise ValueError where a text has fewer tokens than are needed."""
    if len(text) < needed:
        raise ValueError(
            f"the filler has only {len(text):,} tokens, and {needed:,} are needed: give more "
            "text with --text FILE, or --filler repeat"
        )


def draw(rng: np.random.Generator, digits: int) -> str:
    return "".join(str(digit) for digit in rng.integers(0, 10, digits))

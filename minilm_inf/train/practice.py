"""Exercises in looking back: windows in which something said early must be copied late.

Within a laptop's budget, text alone does not teach a small model to copy. Two exercises do:
spans of random tokens that occur again and again, and then facts (a pass key, a person's
number) that are stated once in ordinary text and asked for at the window's end. A window is a
row of `length` ids that begins with BOS, where the tokenizer puts one before a text; every
random choice comes from the generator that is handed in.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from ..text.tokenizer import opening
from ..writing.sampling import require_numbers

NAMES = """Alice Arthur Bertha Charles Clara Daniel Edith Edward Emily Frank George Grace Hannah
Harriet Henry Isabel Jacob James Jane John Julia Laura Lewis Lucy Margaret Martha Mary Nathan
Oliver Oscar Peter Philip Rachel Robert Rose Samuel Sarah Simon Susan Thomas Walter
William""".split()

STATE_KEY = (
    "The pass key is {}.", "The pass key is {}. Remember it.",
    "Remember the pass key: it is {}.",
    "There is a pass key, and the pass key is {}. Do not forget it.",
)  # fmt: skip
ASK_KEY = "What is the pass key? The pass key is {}"
STATE_NUMBER = (
    "The number of {} is {}.", "Remember that the number of {} is {}.", "{}'s number is {}.",
)  # fmt: skip
ASK_NUMBER = "What is the number of {0}? The number of {0} is {1}"


class Practice:
    """Windows made from a tokenizer's pieces and ordinary text.

    text: ids (N,) of ordinary text. bos: what every window begins with, an id or none. last:
    the ids that end a sentence.
    """

    def __init__(self, tokenizer, text: np.ndarray):
        one, other = (tokenizer.encode(words, bos=False)[-1:] for words in ("a", " a"))
        space = "" if one == other else " "  # as sentencepiece puts it before every text
        self.encode = lambda words: tokenizer.encode(space + words, bos=False)
        self.bos, self.text, self.tokenizer = opening(tokenizer), text, tokenizer
        pieces = {id: tokenizer.decode([id]) for id in np.unique(text).tolist()}
        marks = (".", "!", "?", "\n")
        last = [id for id in pieces if pieces[id].rstrip('"').endswith(marks)]
        self.last = np.array(last, dtype=np.int64)

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """All ids but the special ones."""
        every = range(self.tokenizer.vocab_size)
        return np.array([id for id in every if self.tokenizer.bytes_of(id)])

    def sentence_ends(self, ids) -> np.ndarray:
        """How many ids of some text stand before each end of a sentence."""
        return np.flatnonzero(np.isin(ids, self.last)) + 1

    def ordinary(self, rng: np.random.Generator, length: int) -> list[int]:
        """BOS, then text from a random place on."""
        return [*self.bos, *self.excerpt(rng, length)][:length]

    def excerpt(self, rng: np.random.Generator, length: int) -> list[int]:
        """Text from a random place on. Raises ValueError where there is not as much."""
        if len(self.text) <= length:
            raise ValueError(
                f"a text of {len(self.text)} tokens is too short for windows: give "
                f"{length + 1} or more"
            )
        start = int(rng.integers(0, len(self.text) - length))
        return self.text[start : start + length].tolist()

    def repeats(self, rng: np.random.Generator, length: int) -> list[int]:
        """BOS, then one random span of 8 to length/2 tokens, over and over."""
        span = int(rng.integers(8, length // 2))
        ids = self.ids if rng.random() >= 0.5 else rng.choice(self.ids, 64, replace=False)
        row = np.tile(rng.choice(ids, span), length // span + 1)
        return [*self.bos, *row.tolist()][:length]

    def retrieval(self, rng: np.random.Generator, length: int, followed=0.0) -> list[int]:
        """BOS, text with one to four facts in it, then a question and answer for each.

        followed: the share of windows in which other text follows, up to a quarter of the
        window; without any, a model that writes on past its answers only asks again. Where a
        small vocabulary needs more tokens than there are, nothing follows, then less is asked.
        """
        facts, questions, after = [], [], []
        names = rng.permutation(NAMES)
        key_at = int(rng.integers(0, 4))  # which fact is the pass key, if there are so many
        for i in range(int(rng.integers(1, 5))):
            said, asked, words = STATE_KEY, ASK_KEY, (five_digits(rng),)
            if i != key_at:
                said, asked = STATE_NUMBER, ASK_NUMBER
                words = names[i], words[0][: int(rng.integers(2, 6))]
            facts.append(rng.choice(said).format(*words))
            questions.append(asked.format(*words) + ".")
        rng.shuffle(questions)
        if followed and rng.random() < followed:
            after = self.ordinary(rng, int(rng.integers(2, length // 4)))[len(self.bos) :]
        while True:
            try:
                asked = " ".join(questions)
                return self.hidden(rng, length - len(after), facts, asked) + after
            except ValueError:
                if not after and len(questions) == 1:
                    raise
                questions, after = questions if after else questions[:-1], []

    def pass_key(self, rng: np.random.Generator, length: int) -> list[int]:
        """A window with one pass key, its question, and the five digits at the very end."""
        digits = five_digits(rng)
        fact = rng.choice(STATE_KEY).format(digits)
        return self.hidden(rng, length, [fact], ASK_KEY.format(digits))

    def hidden(self, rng, length: int, facts: list[str], ending: str) -> list[int]:
        """BOS, text with the facts after random sentences, then the ending: `length` ids."""
        pieces, end = [self.encode(fact) for fact in facts], self.encode(ending)
        room = length - len(self.bos) - len(end) - sum(map(len, pieces))
        if room < 0:
            raise ValueError(f"{length} tokens have no room for: {' '.join(facts)} {ending}")
        filler, row = self.excerpt(rng, room), list(self.bos)
        places = np.array([0, *self.sentence_ends(filler)])
        cuts = [0, *sorted(rng.choice(places, len(pieces)).tolist()), room]
        for piece, here, there in zip([*pieces, end], cuts, cuts[1:]):
            row += filler[here:there] + piece
        return row


def five_digits(rng: np.random.Generator) -> str:
    return "".join(str(digit) for digit in rng.integers(0, 10, 5))


@torch.no_grad()
def pass_key_accuracy(model, practice: Practice, window: int, count: int = 100, seed: int = 0):
    """The share of pass keys within one window whose five digits are all the likeliest ids.

    The digits stand in the window, so this is exactly what greedy decoding would write.
    """
    rng, found = np.random.default_rng(seed), 0
    keys = torch.tensor([practice.pass_key(rng, window) for _ in range(count)])
    for rows in keys.to(model.embed.weight.device).split(20):
        logits = model(rows[:, :-1])[:, -5:]  # (B, 5, V), what is thought to follow
        require_numbers(logits)
        found += int((logits.argmax(-1) == rows[:, -5:]).all(-1).sum())
    return found / count

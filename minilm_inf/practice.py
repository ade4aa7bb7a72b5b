"""Exercises in looking back: windows in which something said early must be copied late.

Text alone teaches a small model no copying within the budget of a laptop. Two exercises do, in this
order: spans of random tokens that occur again and again, and then facts (a pass key, a person's
number) that are stated once in ordinary text and asked for at the window's end. A window is a row of
`length` ids that begins with BOS; every random choice comes from the generator that is handed in.
"""

from __future__ import annotations

import numpy as np
import torch

NAMES = """Alice Arthur Bertha Charles Clara Daniel Edith Edward Emily Frank George Grace Hannah
Harriet Henry Isabel Jacob James Jane John Julia Laura Lewis Lucy Margaret Martha Mary Nathan Oliver
Oscar Peter Philip Rachel Robert Rose Samuel Sarah Simon Susan Thomas Walter William""".split()

STATE_KEY = (
    "The pass key is {}.",
    "The pass key is {}. Remember it.",
    "Remember the pass key: it is {}.",
    "There is a pass key, and the pass key is {}. Do not forget it.",
)
ASK_KEY = "What is the pass key? The pass key is {}"
STATE_NUMBER = (
    "The number of {} is {}.",
    "Remember that the number of {} is {}.",
    "{}'s number is {}.",
)
ASK_NUMBER = "What is the number of {}? The number of {} is {}"


class Practice:
    """Windows made from a tokenizer's pieces and ordinary text.

    tokenizer: anything with encode(text, bos), bos_id and vocab_size. text: ids (N,) of ordinary text.
    """

    def __init__(self, tokenizer, text: np.ndarray):
        self.encode = lambda words: tokenizer.encode(words, bos=False)
        self.bos_id = tokenizer.bos_id
        self.text = text
        self.ids = np.arange(3, tokenizer.vocab_size)  # all but <unk>, <s> and </s>
        pieces = [tokenizer.decode([id]) for id in range(tokenizer.vocab_size)]
        self.ends_sentence = np.array([p.rstrip('"').endswith((".", "!", "?", "\n")) for p in pieces])

    def ordinary(self, rng: np.random.Generator, length: int) -> list[int]:
        """BOS, then text from a random place on."""
        start = int(rng.integers(0, len(self.text) - length))
        return [self.bos_id, *self.text[start : start + length - 1].tolist()]

    def repeats(self, rng: np.random.Generator, length: int) -> list[int]:
        """BOS, then one random span of 8 to length/2 tokens, over and over."""
        span = int(rng.integers(8, length // 2))
        ids = self.ids
        if rng.random() < 0.5:
            ids = rng.choice(ids, 64, replace=False)
        row = np.tile(rng.choice(ids, span), length // span + 1)[: length - 1]
        return [self.bos_id, *row.tolist()]

    def retrieval(self, rng: np.random.Generator, length: int) -> list[int]:
        """BOS, text with one to four facts somewhere in it, then a question and answer for each."""
        facts, questions = [], []
        names = rng.permutation(NAMES)
        key_at = int(rng.integers(0, 4))  # which of the facts is the pass key, if there are so many
        for i in range(int(rng.integers(1, 5))):
            digits = "".join(str(d) for d in rng.integers(0, 10, 5))
            if i == key_at:
                facts.append(rng.choice(STATE_KEY).format(digits))
                questions.append(ASK_KEY.format(digits) + ".")
            else:
                name, number = names[i], digits[: int(rng.integers(2, 6))]
                facts.append(rng.choice(STATE_NUMBER).format(name, number))
                questions.append(ASK_NUMBER.format(name, name, number) + ".")
        rng.shuffle(questions)
        return self.hidden(rng, length, facts, " ".join(questions))

    def pass_key(self, rng: np.random.Generator, length: int) -> tuple[list[int], int]:
        """A window with one pass key, its question, and the five digits at the very end.

        Returns the window and the place of the first digit.
        """
        digits = "".join(str(d) for d in rng.integers(0, 10, 5))
        fact = rng.choice(STATE_KEY).format(digits)
        row = self.hidden(rng, length, [fact], ASK_KEY.format(digits))
        return row, length - 5

    def hidden(self, rng, length: int, facts: list[str], ending: str) -> list[int]:
        """BOS, text with the facts behind random sentences, then the ending: `length` ids."""
        pieces = [self.encode(fact) for fact in facts]
        end = self.encode(ending)
        room = length - 1 - len(end) - sum(len(piece) for piece in pieces)
        if room < 0:
            raise ValueError(f"{length} tokens have no room for: {' '.join(facts)} {ending}")
        start = int(rng.integers(0, len(self.text) - room)) if room else 0
        filler = self.text[start : start + room].tolist()
        places = np.array([0, *(np.flatnonzero(self.ends_sentence[filler]) + 1)])
        row = [self.bos_id]
        cuts = [0, *sorted(int(cut) for cut in rng.choice(places, len(pieces))), room]
        for piece, here, there in zip([*pieces, end], cuts, cuts[1:]):
            row += filler[here:there] + piece
        return row


@torch.no_grad()
def pass_key_accuracy(model, practice: Practice, window: int, count: int = 100, seed: int = 0):
    """The share of pass keys within one window whose five digits are all the likeliest ids.

    The digits stand in the window, so this is exactly what greedy decoding would write.
    """
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(count):
        row, first = practice.pass_key(rng, window)
        row = torch.tensor([row], device=model.embed.weight.device)
        guesses = model(row[:, :-1])[0].argmax(-1)  # (T - 1,), the guesses for ids 1 .. T - 1
        found += bool((guesses[first - 1 :] == row[0, first:]).all())
    return found / count

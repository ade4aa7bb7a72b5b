"""Recall of one fact among several: pairs of names and numbers, and chains of assignments.

`Variables` is variable tracking in the style of RULER (Hsieh et al., 2404.06654): a value is
given to one name and handed on to others, beside chains with other values. It asks for the
value of a chain's last name, in the words of practice, and not for a list of names: its numbers
are not comparable with RULER's leaderboard.
"""

from __future__ import annotations

from ...train.practice import ASK_NUMBER, NAMES, STATE_NUMBER, Practice
from .trials import Maker

ASSIGN = "The number of {} is {}."
HAND_ON = "The number of {} is the number of {}."


class Pairs(Maker):
    """Several people's numbers, one of which is asked for."""

    def __init__(self, practice: Practice, tokenizer, count: int, digits: int = 4):
        self.count = count
        super().__init__(practice, tokenizer, digits)

    def _facts(self, rng, depth) -> tuple[list[str], int, str, str]:
        names, numbers = rng.permutation(NAMES)[: self.count], self.distinct(rng, self.count)
        facts = [rng.choice(STATE_NUMBER).format(*pair) for pair in zip(names, numbers)]
        asked = int(rng.binomial(self.count - 1, depth))  # the others stand anywhere
        name, number = names[asked], numbers[asked]
        return facts, asked, ASK_NUMBER.format(name, name, number), number

    def distinct(self, rng, count: int) -> list[str]:
        """Numbers of which no two are the same. Raises ValueError where there are too few."""
        found: list[str] = []
        for _ in range(100 * count):
            number = self.draw(rng)
            if number not in found:
                found.append(number)
            if len(found) == count:
                return found
        raise ValueError(
            f"there are fewer than {count} numbers of {self.digits} digits that have the same "
            "number of tokens: take more --digits"
        )


class Variables(Pairs):
    """Chains of assignments: a value, and `hops` names that it is handed on to.

    The chains stand mixed, each in its own order; depth is that of the value that is asked for.
    """

    def __init__(self, practice: Practice, tokenizer, count: int, hops: int, digits: int = 4):
        self.hops = hops
        super().__init__(practice, tokenizer, count, digits)

    def _facts(self, rng, depth) -> tuple[list[str], int, str, str]:
        names = rng.permutation(NAMES)[: self.count * (self.hops + 1)]
        numbers = self.distinct(rng, self.count)
        chain_of = rng.permutation([i for i in range(self.count) for _ in range(self.hops + 1)])
        asked_chain = int(rng.integers(0, self.count))
        facts, said = [], [0] * self.count
        for chain in chain_of.tolist():
            at = chain * (self.hops + 1) + said[chain]
            if said[chain] == 0:
                if chain == asked_chain:
                    asked = len(facts)
                facts.append(ASSIGN.format(names[at], numbers[chain]))
            else:
                facts.append(HAND_ON.format(names[at], names[at - 1]))
            said[chain] += 1
        last, number = names[(asked_chain + 1) * (self.hops + 1) - 1], numbers[asked_chain]
        return facts, asked, ASK_NUMBER.format(last, last, number), number

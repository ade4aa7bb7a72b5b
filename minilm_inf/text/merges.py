"""Merges of BPE, held to what tiktoken and sentencepiece do without them.

A file of merges allows only the pairs that it lists. tiktoken and sentencepiece join any two
neighbours that are a token together, those of the lowest rank first. The two agree exactly if,
for every token, BPE on the token's own letters arrives at a pair that is listed: for whatever
stands around these letters, as long as no token reaches across their ends, the steps within
them are the same. Files of which that is not true are refused; none is known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from itertools import pairwise

from ..terminal.files import shown
from ..terminal.json_parts import Part

LONGEST_TOKEN = 256  # letters; of those in use, 128


def merges_of(model: Part, vocab: dict[str, int]) -> list[list[str]]:
    """The merges in their order, each written "a b" or ["a", "b"]. Raises ValueError for one
    whose parts, or what they become, the vocabulary lacks."""
    pairs = []
    for merge in model["merges"].items():
        pair = merge.value.split(" ") if isinstance(merge.value, str) else merge.value
        are_two = isinstance(pair, list) and [*map(type, pair)] == [str, str] and all(pair)
        if not are_two or not {*pair, "".join(pair)} <= vocab.keys():
            raise merge.wrong("two tokens of its vocabulary, and both joined another")
        pairs.append(pair)
    return pairs


def ranked(
    model: Part, vocab: dict[str, int], singles: Iterable[str], words: Collection[str] = ()
) -> dict[str, int]:
    """All tokens that are looked for, each with its rank: single letters, what merges make in
    their order, and other words, which are tokens where they stand alone.

    Raises ValueError where these ranks would not find the same tokens as the merges.
    """
    merges, listed = merges_of(model, vocab), defaultdict(list)
    for pair in merges:
        listed["".join(pair)].append(pair)
    if [pair for pairs in listed.values() for pair in pairs] != merges:
        raise model.error("its merges that make the same token do not stand together")
    every = dict.fromkeys([*singles, *listed, *words])
    ranks = {token: rank for rank, token in enumerate(every)}
    for token in [*listed, *words]:
        parts = joined(token, ranks)
        alone = token in words and 2 != len(parts) <= LONGEST_TOKEN
        if not alone and parts not in listed[token]:
            raise model.error(
                f"its merges do not make {shown(token)} of {shown(parts)}, as tiktoken and "
                "sentencepiece would"
            )
    return ranks


def joined(token: str, ranks: dict[str, int]) -> list[str]:
    """The two parts that BPE makes a token of in its last step, or more if it never gets there,
    or where a token is longer than any in use.

    Neighbours that are a token together become one, those of the lowest rank first, and of
    equal ranks the leftmost (Sennrich et al., arXiv 1508.07909).

    >>> joined("abc", {"bc": 0, "ab": 1, "abc": 2})
    ['a', 'bc']
    """
    parts = list(token)
    while 2 < len(parts) <= LONGEST_TOKEN:
        pairs = enumerate(pairwise(parts))
        rank, at = min((ranks.get(a + b, len(ranks)), at) for at, (a, b) in pairs)
        if rank == len(ranks):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts

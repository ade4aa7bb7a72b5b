"""How a byte-level BPE tokenizer is learned: the pair that occurs most often becomes one token,
and again, until there are enough (Sennrich et al., arXiv 1508.07909).

Text is cut into words first (a word keeps the space before it, every digit stands alone), and
no token reaches beyond a word. The result is a tokenizer.json, which text.tokenizer and the
tokenizers library both read.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

from .byte_level import byte_letters

END_OF_TEXT = "<|endoftext|>"
# The cuts that the file's pre-tokenizers make, as far as Python's own expressions know letters
# and digits; where they differ (²), a merge may go unused.
WORDS = re.compile(r"\d|'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?(?:[^\s\w]|_)+|\s+(?![^\s\d])|\s+")

LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
         "use_regex": True}  # fmt: skip
DIGITS = {"type": "Sequence", "pretokenizers": [
    {"type": "Digits", "individual_digits": True}, LEVEL]}  # fmt: skip


def learn_merges(texts: Iterable[str], count: int) -> list[tuple[bytes, bytes]]:
    """The first `count` merges, most frequent first; of equally frequent pairs the smaller.

    Raises ValueError where the texts have no more pairs to merge.
    """
    counts = Counter(word for text in texts for word in WORDS.findall(text))
    # A word is a string in which each token is one letter: a byte has that of its number.
    words = [word.encode("utf-8").decode("latin-1") for word in counts]
    tokens = {chr(byte): bytes([byte]) for byte in range(256)}
    weights = list(counts.values())
    frequency: Counter = Counter()
    places = defaultdict(set)  # the words that hold a pair, or once did

    def add(number: int, sign: int):
        for pair in pairwise(words[number]):
            frequency[pair] += sign * weights[number]
            places[pair].add(number)

    for number in range(len(words)):
        add(number, 1)
    merges: dict[bytes, tuple[bytes, bytes]] = {}  # by what they make
    while len(merges) < count:
        found = ((-n, tokens[a], tokens[b], a, b) for (a, b), n in frequency.items())
        n, *merge, a, b = min(found, default=(0, "", ""))
        if n >= 0:
            raise ValueError(
                f"the text has only {len(merges)} pairs to merge, not {count}: give more text "
                "or a smaller vocabulary"
            )
        if b"".join(merge) in merges:
            del frequency[a, b]  # another pair makes this token
            continue
        letter = chr(256 + len(merges))
        tokens[letter] = b"".join(merge)
        merges[tokens[letter]] = tuple(merge)
        for number in places.pop((a, b)):
            add(number, -1)
            words[number] = words[number].replace(a + b, letter)
            add(number, 1)
    return list(merges.values())


def tokenizer_json(merges: list[tuple[bytes, bytes]]) -> str:
    """The tokenizer.json of these merges: END_OF_TEXT is id 0, and is put before every text."""
    letters = byte_letters()
    pairs = [["".join(letters[byte] for byte in token) for token in pair] for pair in merges]
    tokens = [END_OF_TEXT, *letters, *map("".join, pairs)]
    vocab = {token: id for id, token in enumerate(tokens)}
    return byte_level_json(vocab, pairs, {END_OF_TEXT: True}, DIGITS, END_OF_TEXT)


def byte_level_json(
    vocab: dict[str, int],
    merges: list,
    marks: dict[str, bool],
    pre_tokenizer: dict,
    bos: str | None,
    ignore_merges: bool = False,
) -> str:
    """The text of a byte-level tokenizer.json, as the tokenizers library reads it.

    marks: tokens that are found before a text is cut -> whether they are special; bos: the
    token before every text, if any.
    """
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    first, second = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": ignore_merges}
    raw = {
        "version": "1.0",
        "added_tokens": [
            {"id": vocab[token], "content": token, "special": special, **flags}
            for token, special in marks.items()
        ],
        "pre_tokenizer": pre_tokenizer,
        "post_processor": bos and {
            "type": "TemplateProcessing", "single": [begin, first],
            "pair": [begin, first, begin, second],
            "special_tokens": {bos: {"id": bos, "ids": [vocab[bos]], "tokens": [bos]}},
        },
        "decoder": LEVEL,
        "model": model,
    }  # fmt: skip
    return json.dumps(raw, ensure_ascii=False, indent=1) + "\n"

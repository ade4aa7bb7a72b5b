"""Byte-level BPE: a text is bytes, and frequent runs of bytes are tokens (GPT-2 and after).

A text is cut into words by one expression, and within a word neighbours that are a token
together become one, those of the lowest rank first, until there are none. tiktoken does both.
Other expressions than these are refused: an unknown one may take for ever.
"""

from __future__ import annotations

import re

import tiktoken

from ..terminal.json_parts import Part
from .around import Around, Tokenizer
from .merges import ranked

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
EVERY_DIGIT_THEN_GPT2 = (  # where a digit follows, a run of spaces has ended: GPT2 saw no more
    r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
)
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
LONGEST_SPACE = 200_000  # characters; tiktoken's own limit lies between 300,000 and a million
TOO_MUCH_SPACE = re.compile(rf"\s{{{LONGEST_SPACE + 1}}}")


def byte_letters() -> list[str]:
    """The character that stands for each byte in a file: itself where it can be printed.

    >>> byte_letters()[32:36]
    ['Ġ', '!', '"', '#']
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


class ByteLevelTokenizer(Tokenizer):
    """Byte-level BPE at work, from a vocabulary (token in letters -> id) and a model's merges.

    pattern:     the expression that cuts a text into words.
    whole_words: whether a word that is a token is taken whole, though no merges lead there.
    Raises ValueError where tiktoken would not find the same ids.
    """

    def __init__(
        self, model: Part, vocab: dict, around: Around, pattern: str, whole_words: bool = False
    ):
        byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}

        def spelled(token: str) -> bytes:
            all_bytes = byte_of.keys() >= {*token}
            return bytes(map(byte_of.get, token)) if all_bytes else token.encode()

        added = {token.id: token.content for token in around.added}
        plain = vocab.keys() - {*added.values()}
        words = {token for token in plain if whole_words and byte_of.keys() >= {*token}}
        ranks = ranked(model, vocab, byte_of, words)
        self.ids = [vocab.get(token) for token in ranks]  # None for a byte without a token
        self.encoding = tiktoken.Encoding(
            "minilm_inf", pat_str=pattern, special_tokens={},
            mergeable_ranks={spelled(token): rank for token, rank in ranks.items()},
        )  # fmt: skip
        self.tokens = {id: spelled(token) for token, id in vocab.items()}
        self.tokens |= {id: content.encode() for id, content in added.items()}
        super().__init__(around, max(self.tokens) + 1)

    def _encode_text(self, text: str, begun: bool) -> list[int]:
        """The ids of a text without added tokens, wherever it stands."""
        if TOO_MUCH_SPACE.search(text):
            raise ValueError(
                f"the text holds more than {LONGEST_SPACE:,} white spaces in a row, which "
                "tiktoken cannot encode: take some out"
            )
        ids = [self.ids[rank] for rank in self.encoding.encode_ordinary(text)]
        if None in ids:  # SmolLM2 lacks six control characters
            raise ValueError(
                "the text holds a byte, mostly a control character, that is no token of this "
                "tokenizer: take it out"
            )
        return ids

    def bytes_of(self, id: int, opening: bool = False) -> bytes:
        """The bytes of one id: none for a special one, and for one that no token has."""
        hidden = self.checked(id) in self.special_ids
        return b"" if hidden else self.tokens.get(int(id), b"")

"""Byte-level BPE: a text is bytes, and frequent runs of bytes are tokens (GPT-2 and after).

A text goes through these steps, each of which a tokenizer may leave out:

    added tokens        "<|endoftext|>", NeoX's runs of spaces: found first, and whole
    normalisation       NFC
    pre-tokenization    the text is cut into words; no token reaches beyond its word
    BPE                 within a word, neighbours that are a token together become one, those
                        of the lowest rank first, until there are none

The last two are tiktoken's work. recipe_files.py makes a Recipe of what a folder holds.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass

import tiktoken

from .around import Around, Tokenizer
from .merging import merged

LONGEST_SPACE = 200_000  # characters; tiktoken's own limit lies between 300,000 and a million
TOO_MUCH_SPACE = re.compile(rf"\s{{{LONGEST_SPACE + 1}}}")


@dataclass(frozen=True, kw_only=True)
class Recipe(Around):
    """All that makes a byte-level tokenizer, whichever files it comes from.

    ranks:   token -> rank, every single byte among them; ids: rank -> id, None for a byte that
             the vocabulary lacks.
    tokens:  id -> its bytes, those of added tokens too.
    cuts:    functions from a text to its parts, each applied to every part of the one before.
    pattern: the expression that cuts such a part into words.
    prefix_space: a part that begins without a space is given one.
    words:   pattern as a function like those of cuts; needed only where a byte is lacking.
    """

    ranks: dict[bytes, int]
    ids: list[int | None]
    tokens: dict[int, bytes]
    pattern: str
    cuts: tuple[Callable[[str], list[str]], ...] = ()
    prefix_space: bool = False
    words: Callable[[str], list[str]] | None = None


class ByteLevelTokenizer(Tokenizer):
    """A Recipe at work."""

    def __init__(self, recipe: Recipe):
        super().__init__(recipe, max(recipe.tokens) + 1)
        self.recipe = recipe
        self.encoding = tiktoken.Encoding(
            "minilm_inf",
            pat_str=recipe.pattern,
            mergeable_ranks=recipe.ranks,
            special_tokens={},
        )
        lacking = (
            byte for byte in range(256) if recipe.ids[recipe.ranks[bytes([byte])]] is None
        )
        self.lacking = bytes(lacking)

    def _encode_text(self, text: str, begun: bool) -> list[int]:
        """The ids of a text without added tokens, wherever it stands. Raises ValueError for a
        run of more than 200,000 white spaces."""
        if TOO_MUCH_SPACE.search(text):
            raise ValueError(
                f"the text holds more than {LONGEST_SPACE:,} white spaces in a row, which "
                "tiktoken cannot encode: take some out"
            )
        parts = [text]
        for cut in self.recipe.cuts:
            parts = [smaller for part in parts for smaller in cut(part)]
        if self.recipe.prefix_space:
            parts = [part if part.startswith(" ") else " " + part for part in parts]
        ids = self.recipe.ids
        return [ids[rank] for part in parts for rank in self._ranks(part)]

    def _ranks(self, part: str) -> list[int]:
        """The ranks of a part's tokens. A byte that the vocabulary lacks is left out before its
        neighbours are joined (SmolLM2 lacks a few control characters)."""
        if not self.lacking or not set(part.encode()) & set(self.lacking):
            return self.encoding.encode_ordinary(part)
        words = (
            word.encode().translate(None, self.lacking) for word in self.recipe.words(part)
        )
        ranks = self.recipe.ranks
        return [ranks[token] for word in words for token in joined(word, ranks, least=1)]

    def decode(self, ids: list[int]) -> str:
        """The text of ids; special ones leave no trace, and bytes that form no character become
        U+FFFD.

        Raises ValueError for an id outside 0 .. vocab_size - 1.
        """
        return b"".join(self.bytes_of(id) for id in ids).decode("utf-8", "replace")

    def bytes_of(self, id: int) -> bytes:
        """The bytes of one id: none for a special one, and for one that no token has."""
        hidden = self.checked(id) in self.special_ids
        return b"" if hidden else self.recipe.tokens.get(int(id), b"")

    def stream(self, begun: bool = False) -> ByteStream:
        """A decoder for ids that arrive one by one. A text that continues another (`begun`)
        looks no different here."""
        return ByteStream(self)


class ByteStream:
    """Text as it becomes certain: bytes wait until they form a character.

    What push returns, joined, with flush at the end, is decode of all ids at once.
    """

    def __init__(self, tokenizer: ByteLevelTokenizer):
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The text that this id completes, perhaps none."""
        return self.decoder.decode(self.tokenizer.bytes_of(id))

    def flush(self) -> str:
        """The text of whatever still waits."""
        return self.decoder.decode(b"", final=True)


def byte_letters() -> list[str]:
    """The character that stands for each byte in a file: itself where it can be printed.

    >>> byte_letters()[32:36]
    ['Ġ', '!', '"', '#']
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def joined(token: bytes, ranks: dict[bytes, int], least: int = 2) -> list[bytes]:
    """What BPE makes of bytes: as few parts as it can, but not fewer than `least`. With two,
    that is what a token is made of in the last step, if BPE gets there.

    >>> joined(b"abc", {b"bc": 0, b"ab": 1, b"abc": 2})
    [b'a', b'bc']
    """

    def merge(a: bytes, b: bytes):
        rank = ranks.get(a + b)
        return None if rank is None else (rank, a + b)

    return merged([token[at : at + 1] for at in range(len(token))], merge, least)

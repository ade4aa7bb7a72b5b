"""Byte-level BPE: a text is bytes, and frequent runs of bytes are tokens (GPT-2 and after).

A text goes through these steps, each of which a tokenizer may leave out:

    added tokens        "<|endoftext|>", NeoX's runs of spaces: found first, and whole
    normalisation       NFC
    pre-tokenization    the text is cut into words; no token reaches beyond its word
    BPE                 within a word, neighbours that are a token together become one, those
                        of the lowest rank first, until there are none

The last two are tiktoken's work. bpe_files.py makes such a tokenizer of what a folder holds.
"""

from __future__ import annotations

import re

import tiktoken

from .around import Around, Tokenizer
from .words import cut

LONGEST_SPACE = 200_000  # characters; tiktoken's own limit lies between 300,000 and a million
TOO_MUCH_SPACE = re.compile(rf"\s{{{LONGEST_SPACE + 1}}}")


class ByteLevelTokenizer(Tokenizer):
    """Byte-level BPE at work.

    ranks:   token -> rank, every single byte among them; ids: rank -> id, None for a byte that
             the vocabulary lacks.
    tokens:  id -> its bytes, those of added tokens too.
    pattern: the expression that cuts a text into words.
    prefix_space: a text that begins without a space is given one.
    """

    def __init__(
        self,
        around: Around,
        ranks: dict[bytes, int],
        ids: list[int | None],
        tokens: dict[int, bytes],
        pattern: str,
        prefix_space: bool = False,
    ):
        super().__init__(around, max(tokens) + 1)
        self.ranks, self.ids, self.tokens = ranks, ids, tokens
        self.pattern, self.prefix_space = pattern, prefix_space
        self.encoding = tiktoken.Encoding(
            "minilm_inf", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )
        self.lacking = bytes(b for b in range(256) if ids[ranks[bytes([b])]] is None)

    def _encode_text(self, text: str, begun: bool) -> list[int]:
        """The ids of a text without added tokens, wherever it stands. Raises ValueError for a
        run of more than 200,000 white spaces."""
        if TOO_MUCH_SPACE.search(text):
            raise ValueError(
                f"the text holds more than {LONGEST_SPACE:,} white spaces in a row, which "
                "tiktoken cannot encode: take some out"
            )
        if self.prefix_space and not text.startswith(" "):
            text = " " + text
        return [self.ids[rank] for rank in self._ranks(text)]

    def _ranks(self, text: str) -> list[int]:
        """The ranks of a text's tokens. A byte that the vocabulary lacks is left out before its
        neighbours are joined (SmolLM2 lacks a few control characters)."""
        if not set(text.encode()) & set(self.lacking):
            return self.encoding.encode_ordinary(text)
        words = [word.encode() for word in cut(text, self.pattern)]
        words = [word.translate(None, self.lacking) for word in words]
        pieces = map(self.encoding._encode_single_piece, filter(None, words))
        return [rank for piece in pieces for rank in piece]

    def bytes_of(self, id: int) -> bytes:
        """The bytes of one id: none for a special one, and for one that no token has."""
        hidden = self.checked(id) in self.special_ids
        return b"" if hidden else self.tokens.get(int(id), b"")


def byte_letters() -> list[str]:
    """The character that stands for each byte in a file: itself where it can be printed.

    >>> byte_letters()[32:36]
    ['Ġ', '!', '"', '#']
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def joined(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two parts that BPE makes a token of in its last step, or more if it never gets there.

    Neighbours that are a token together become one, those of the lowest rank first, and of
    equal ranks the leftmost (Sennrich et al., arXiv 1508.07909).

    >>> joined(b"abc", {b"bc": 0, b"ab": 1, b"abc": 2})
    [b'a', b'bc']
    """
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        pairs = enumerate(zip(parts, parts[1:]))
        found = [(ranks[a + b], at) for at, (a, b) in pairs if a + b in ranks]
        if not found:
            break
        _, at = min(found)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts

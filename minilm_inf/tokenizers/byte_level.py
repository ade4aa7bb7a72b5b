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
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import tiktoken

LONGEST_SPACE = 200_000  # characters; tiktoken's own limit lies between 300,000 and a million
TOO_MUCH_SPACE = re.compile(rf"\s{{{LONGEST_SPACE + 1}}}")
NEWER_MARKS = re.compile(
    "([\u07fd\u0897-\u089f\u08ca-\u08d3\u09fe\u0c3c\u0d3b-\u0d3c\u0eba\u1715\u1abf-\u1ace"
    "\u1df6-\u1dfa\ua82c\U00010d24-\U00010d27\U00010d69-\U00010d6d\U00010eab-\U00010eac"
    "\U00010efc-\U00010eff\U00010f46-\U00010f50\U00010f82-\U00010f85\U00011070\U0001133b"
    "\U0001145e\U00011839-\U0001183a\U00011930\U0001193d-\U0001193e\U00011943\U000119e0"
    "\U00011a34\U00011a47\U00011a99\U00011d42\U00011d44-\U00011d45\U00011d97"
    "\U00011f41-\U00011f42\U00016ff0-\U00016ff1\U0001e08f\U0001e130-\U0001e136\U0001e2ae"
    "\U0001e2ec-\U0001e2ef\U0001e4ec-\U0001e4ef\U0001e5ee-\U0001e5ef"
    "\U000105c0-\U000105ff\U00011380-\U000113ff\U00016100-\U0001613f\U00016d40-\U00016d7f])"
)
"""The combining marks that Unicode gained after version 9, whose tables the tokenizers library
uses: it leaves them where they stand."""


@dataclass(frozen=True)
class Added:
    """A token that stands beside the merges.

    special:    it marks a place, and is no text: decode leaves it out.
    normalized: it is looked for in the normalised text, not in the text as it is.
    """

    content: str
    id: int
    special: bool
    normalized: bool = False


@dataclass(frozen=True)
class Recipe:
    """All that makes a byte-level tokenizer, whichever files it comes from.

    ranks:   token -> rank, every single byte among them; ids: rank -> id, None for a byte that
             the vocabulary lacks.
    tokens:  id -> its bytes, those of added tokens too.
    cuts:    functions from a text to its parts, each applied to every part of the one before.
    pattern: the expression that cuts such a part into words.
    prefix_space: a part that begins without a space is given one.
    before, after: ids that stand around every text.
    words:   pattern as a function like those of cuts; needed only where a byte is lacking.
    """

    ranks: dict[bytes, int]
    ids: list[int | None]
    tokens: dict[int, bytes]
    pattern: str
    added: tuple[Added, ...] = ()
    cuts: tuple[Callable[[str], list[str]], ...] = ()
    nfc: bool = False
    prefix_space: bool = False
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    eos_id: int | None = None
    words: Callable[[str], list[str]] | None = None


class ByteLevelTokenizer:
    """A Recipe at work.

    bos_id is what encode puts before a text, and eos_id what ends one; None where there is
    none. vocab_size is the last id plus one, whether or not all ids before it are in use.
    """

    def __init__(self, recipe: Recipe):
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
        self.special_ids = {added.id for added in recipe.added if added.special}
        self.finders = {special: self._finders(special) for special in (True, False)}
        self.vocab_size = max(recipe.tokens) + 1
        self.bos_id = recipe.before[-1] if recipe.before else None
        self.eos_id = recipe.eos_id

    def _finders(self, special: bool):
        """What finds added tokens in a text as it is, and in a normalised one."""
        added = [a for a in self.recipe.added if special or not a.special]
        raw = {a.content: a.id for a in added if not a.normalized}
        later = {self._normalise(a.content): a.id for a in added if a.normalized}
        return finder(raw), finder(later)

    def encode(self, text: str, bos: bool = True, special: bool = True) -> list[int]:
        """The ids of a text, and around it what the tokenizer's files ask for (mostly BOS, or
        nothing), unless bos is False.

        special: whether a special token that is written out in the text becomes its id.
        Raises ValueError for text that is not Unicode (half of a surrogate pair), and for a run
        of more than 200,000 white spaces.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not Unicode: {error}") from error
        if TOO_MUCH_SPACE.search(text):
            raise ValueError(
                f"the text holds more than {LONGEST_SPACE:,} white spaces in a row, which "
                "tiktoken cannot encode: take some out"
            )
        in_raw, in_normalised = self.finders[special]
        ids: list[int] = []
        for piece, id in in_raw(text):
            if id is not None:
                ids.append(id)
                continue
            for part, part_id in in_normalised(self._normalise(piece)):
                ids += self._encode_words(part) if part_id is None else (part_id,)
        return [*self.recipe.before, *ids, *self.recipe.after] if bos else ids

    def _normalise(self, text: str) -> str:
        return nfc(text) if self.recipe.nfc else text

    def _encode_words(self, text: str) -> list[int]:
        """The ids of a text without added tokens."""
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
        if not 0 <= id < self.vocab_size:
            raise ValueError(
                f"id {id} is out of range: the tokenizer has the ids 0 to {self.vocab_size - 1}"
            )
        return b"" if id in self.special_ids else self.recipe.tokens.get(int(id), b"")

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


def finder(tokens: dict[str, int]):
    """A function that finds these tokens in a text, the longest where several begin: it gives
    the text's pieces in order, each with its token's id, or None.

    >>> finder({"  ": 1, "    ": 2})("a    b")
    [('a', None), ('    ', 2), ('b', None)]
    """
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    if not longest_first:
        return lambda text: [(text, None)] if text else []
    pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def find(text: str) -> list[tuple[str, int | None]]:
        pieces = pattern.split(text)  # a piece of text, a token, a piece of text, ...
        found = [(piece, tokens[piece] if at % 2 else None) for at, piece in enumerate(pieces)]
        return [pair for pair in found if pair[0]]

    return find


def nfc(text: str) -> str:
    """A text in NFC as the tokenizers library has it, with which such models were trained.

    >>> nfc("e\u0301")
    'é'
    """
    pieces = NEWER_MARKS.split(text)  # a piece of text, a newer mark, a piece of text, ...
    return "".join(
        piece if at % 2 else unicodedata.normalize("NFC", piece)
        for at, piece in enumerate(pieces)
    )


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
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > least:
        ranked = [(ranks.get(a + b), at) for at, (a, b) in enumerate(zip(parts, parts[1:]))]
        ranked = [pair for pair in ranked if pair[0] is not None]
        if not ranked:
            break
        _, at = min(ranked)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts

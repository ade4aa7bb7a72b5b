"""What every tokenizer does around its own encoding of plain text.

added tokens      "<|endoftext|>", NeoX's runs of spaces: found first, and whole
normalisation     NFC, or ▁ for a space; then the added tokens that are looked for in it
plain text        sentencepiece's work, or tiktoken's
before, after     BOS and EOS

And back: each id stands for bytes, which become text as soon as they form a character.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass

from ..terminal.json_parts import is_unicode

SPACES = frozenset(
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008"
    "\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
UNKNOWN = " ⁇ ".encode()  # what sentencepiece shows for a piece that may stand for any text
EACH_BYTE = "minilm_inf.each_byte"  # how sentencepiece shows bytes that form no character
codecs.register_error(EACH_BYTE, lambda error: ("\ufffd", error.start + 1))


@dataclass(frozen=True)
class Added:
    """A token that stands beside the vocabulary's own.

    special:     it marks a place, and is no text: decode leaves it out.
    normalized:  it is looked for in the normalised text, not in the text as it is.
    lstrip, rstrip: it takes the white space before it, or after it, with it.
    """

    content: str
    id: int
    special: bool
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True, kw_only=True)
class Around:
    """All of a tokenizer but its vocabulary and merges.

    before, after: the ids that stand around every text.
    bos_token_id: the id of the token that a folder names as BOS, whether or not it stands
        before every text; None where it names none.
    """

    added: tuple[Added, ...] = ()
    normalise: Callable[[str], str] = str
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    bos_token_id: int | None = None
    eos_id: int | None = None

    def content(self, token: Added) -> str:
        """The text of an added token in a text that is decoded; where normalising has changed
        it, a special one counts as text there. So it is in the tokenizers library."""
        return self.normalise(token.content) if token.normalized else token.content


class Tokenizer:
    """The encoding of every tokenizer; a kind of its own adds _encode_text and bytes_of.

    bos_id is what encode puts before a text, and eos_id what ends one; None where there is
    none. vocab_size is the last id plus one, whether or not all ids before it are in use.
    errors: what the bytes become that form no character, for Python's decoder.
    """

    errors = "replace"

    def __init__(self, around: Around, vocab_size: int):
        self.around, self.vocab_size = around, vocab_size
        self.special_ids = {
            a.id for a in around.added if a.special and around.content(a) == a.content
        }
        self.marks = {a.content: a.id for a in around.added}
        self.finders = {special: self._finders(special) for special in (True, False)}
        self.bos_id = around.before[-1] if around.before else None
        self.bos_token_id, self.eos_id = around.bos_token_id, around.eos_id

    def _finders(self, special: bool):
        """What finds added tokens in a text as it is, and in a normalised one."""
        added = [a for a in self.around.added if special or not a.special]
        contents = [(self.around.content(a), a) for a in added]
        raw = {content: a for content, a in contents if not a.normalized}
        later = {content: a for content, a in contents if a.normalized}
        return finder(raw), finder(later)

    def encode(
        self, text: str, bos: bool = True, special: bool = True, begun: bool = False
    ) -> list[int]:
        """The ids of a text, and around it what the tokenizer's files ask for (mostly BOS, or
        nothing), unless bos is False.

        special: whether a special token that is written out in the text becomes its id.
        begun: whether the text continues another, as after a mark: a space that stands for a
            text's beginning alone is then not put before it.
        Raises ValueError for text that is not Unicode (half of a surrogate pair).
        """
        if not is_unicode(text):
            raise ValueError(
                "the text is not Unicode: it holds half of a surrogate pair; take it out"
            )
        in_raw, in_normalised = self.finders[special]
        ids: list[int] = []
        for piece, id in in_raw(text):
            if id is not None:
                ids.append(id)
                begun = True
                continue
            for part, part_id in in_normalised(self.around.normalise(piece)):
                ids += self._encode_text(part, begun) if part_id is None else (part_id,)
                begun = True
        return [*self.around.before, *ids, *self.around.after] if bos else ids

    def mark_id(self, content: str) -> int | None:
        """The id of the added token that is written so, None where there is none."""
        return self.marks.get(content)

    def decode(self, ids: list[int]) -> str:
        """The text of ids; special ones leave no trace, and bytes that form no character become
        U+FFFD.

        Raises ValueError for an id outside 0 .. vocab_size - 1.
        """
        stream = self.stream()
        return "".join(map(stream.push, ids)) + stream.flush()

    def stream(self, begun: bool = False) -> Stream:
        """A decoder for ids that arrive one by one; `begun` if they continue a text."""
        return Stream(self, begun)

    def opening_bytes(self, id: int) -> bytes | None:
        """bytes_of an id with which a text begins."""
        return self.bytes_of(id)

    def checked(self, id: int) -> int:
        """An id as it is. Raises ValueError for one outside 0 .. vocab_size - 1."""
        if not 0 <= id < self.vocab_size:
            raise ValueError(
                f"id {id} is out of range: the tokenizer has the ids 0 to {self.vocab_size - 1}"
            )
        return int(id)


class Stream:
    """Text as it becomes certain: bytes wait until they form a character.

    What push returns, joined, with flush at the end, is decode of all ids at once.
    """

    def __init__(self, tokenizer: Tokenizer, begun: bool):
        self.tokenizer, self.begun = tokenizer, begun
        self.decoder = codecs.getincrementaldecoder("utf-8")(tokenizer.errors)

    def push(self, id: int) -> str:
        """The text that this id completes, perhaps none."""
        raw = self.tokenizer.bytes_of(id)
        if raw != b"" and not self.begun:
            self.begun, raw = True, self.tokenizer.opening_bytes(id)
        return self.decoder.decode(UNKNOWN if raw is None else raw)

    def flush(self) -> str:
        """The text of whatever still waits."""
        return self.decoder.decode(b"", final=True)


def finder(tokens: dict[str, Added]):
    """A function that finds these tokens in a text, the longest where several begin: it gives
    the text's pieces in order, each with its token's id, or None.

    >>> finder({"  ": Added("  ", 1, False), "    ": Added("    ", 2, False)})("a    b")
    [('a', None), ('    ', 2), ('b', None)]
    """
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    if not longest_first:
        return lambda text: [(text, None)] if text else []
    pattern = re.compile("|".join(map(re.escape, longest_first)))

    def find(text: str) -> list[tuple[str, int | None]]:
        found: list[tuple[str, int | None]] = []
        end = 0
        for match in pattern.finditer(text):
            token, start, stop = tokens[match[0]], max(match.start(), end), match.end()
            if stop <= end:
                continue
            while token.lstrip and start > end and text[start - 1] in SPACES:
                start -= 1
            while token.rstrip and stop < len(text) and text[stop] in SPACES:
                stop += 1
            found += ((text[end:start], None), (text[start:stop], token.id))
            end = stop
        found.append((text[end:], None))
        return [(piece, id) for piece, id in found if piece or id is not None]

    return find

"""What every tokenizer does around its own encoding of plain text.

added tokens      "<|endoftext|>", NeoX's runs of spaces: found first, and whole
plain text        normalised where a file asks for it; then sentencepiece's work, or tiktoken's
before, after     BOS and EOS

And back: each id stands for bytes, which become text as soon as they form a character.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..terminal.json_parts import is_unicode

UNKNOWN = " ⁇ ".encode()  # what sentencepiece shows for a piece that may stand for any text


@dataclass(frozen=True)
class Added:
    """A token that stands beside the vocabulary's own. A special one marks a place, and is no
    text: decode leaves it out."""

    content: str
    id: int
    special: bool


@dataclass(frozen=True, kw_only=True)
class Around:
    """All of a tokenizer but its vocabulary and merges.

    normalise: what a text becomes first; the second argument says whether it continues another.
    before, after: the ids that stand around every text.
    bos_token_id: the id of the token that a folder names as BOS, whether or not it stands
        before every text; None where it names none.
    """

    added: tuple[Added, ...] = ()
    normalise: Callable[[str, bool], str] = lambda text, begun: text
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    bos_token_id: int | None = None
    eos_id: int | None = None


class Tokenizer:
    """The encoding of every tokenizer; a kind of its own adds _encode_text and bytes_of.

    bos_id is what encode puts before a text, and eos_id what ends one; None where there is
    none. vocab_size is the last id plus one, whether or not all ids before it are in use.
    marks: the ids of the tokens that a chat template can write, by their texts.
    """

    def __init__(self, around: Around, vocab_size: int):
        self.around, self.vocab_size = around, vocab_size
        self.special_ids = {token.id for token in around.added if token.special}
        self.marks = {token.content: token.id for token in around.added}
        self.finder = longest_first(self.marks)
        self.words = longest_first(t.content for t in around.added if not t.special)
        self.bos_id = around.before[-1] if around.before else None
        self.bos_token_id, self.eos_id = around.bos_token_id, around.eos_id
        for id in (*around.before, *around.after):
            self.checked(id)

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
        ids: list[int] = []
        for at, part in enumerate((self.finder if special else self.words).split(text)):
            if at % 2:  # between two parts of the text stands a token
                ids.append(self.marks[part])
            elif part:
                inside = begun or at > 0
                ids += self._encode_text(self.around.normalise(part, inside), inside)
        return [*self.around.before, *ids, *self.around.after] if bos else ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special ones leave no trace, and bytes that form no character become
        U+FFFD.

        Raises ValueError for an id outside 0 .. vocab_size - 1.
        """
        stream = self.stream()
        return "".join(map(stream.push, ids)) + stream.flush()

    def stream(self, begun: bool = False) -> Stream:
        """A decoder for ids that arrive one by one; `begun` if they continue a text."""
        return Stream(self, begun)

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
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The text that this id completes, perhaps none."""
        raw = self.tokenizer.bytes_of(id)
        if raw != b"" and not self.begun:
            self.begun, raw = True, self.tokenizer.bytes_of(id, opening=True)
        return self.decoder.decode(UNKNOWN if raw is None else raw)

    def flush(self) -> str:
        """The text of whatever still waits."""
        return self.decoder.decode(b"", final=True)


def longest_first(tokens: Iterable[str]) -> re.Pattern:
    """What finds tokens in a text, the longest where several begin.

    >>> longest_first(["  ", "    "]).split("a    b")
    ['a', '    ', 'b']
    """
    ordered = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered)) or '(?!)'})")

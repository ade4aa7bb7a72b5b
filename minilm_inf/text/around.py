"""What every tokenizer does around its own encoding of plain text.

added tokens      "<|endoftext|>", NeoX's runs of spaces: found first, and whole
normalisation     NFC, or ▁ for a space; then the added tokens that are looked for in it
plain text        sentencepiece's, byte-level BPE's, or BPE's with byte fallback
before, after     BOS and EOS
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from .json_parts import is_unicode

SPACES = frozenset(
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008"
    "\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
OTHER_LETTERS = re.compile(
    "[\u200c\u200d\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169"
    "\U0001f170-\U0001f189\u0897\u0cf3\u0ece\u1c89-\u1c8a\ua7cb-\ua7cd\ua7da-\ua7dc"
    "\U000105c0-\U000105f3\U00010d40-\U00010d65\U00010d69-\U00010d6d\U00010d6f-\U00010d85"
    "\U00010ec2-\U00010ec4\U00010efc-\U00010eff\U0001123f-\U00011241\U00011380-\U00011389"
    "\U0001138b\U0001138e\U00011390-\U000113b5\U000113b7-\U000113c0\U000113c2\U000113c5"
    "\U000113c7-\U000113ca\U000113cc-\U000113d3\U000113e1-\U000113e2\U000116d0-\U000116e3"
    "\U00011bc0-\U00011be0\U00011bf0-\U00011bf9\U00011f00-\U00011f10\U00011f12-\U00011f3a"
    "\U00011f3e-\U00011f42\U00011f50-\U00011f5a\U0001342f\U00013440-\U00013455"
    "\U00013460-\U000143fa\U00016100-\U00016139\U00016d40-\U00016d6c\U00016d70-\U00016d79"
    "\U00018cff\U0001b132\U0001b155\U0001ccf0-\U0001ccf9\U0001df25-\U0001df2a"
    "\U0001e030-\U0001e06d\U0001e08f\U0001e4d0-\U0001e4f9\U0001e5d0-\U0001e5fa\U0002b739"
    "\U0002ebf0-\U0002ee5d\U00031350-\U000323af]"
)
"""What counts as a letter beside a token of one word: joiners and letters in circles, which are
none by their category, and letters that Unicode gained between versions 14, of Python 3.11, and
16, of the tokenizers library."""


@dataclass(frozen=True)
class Added:
    """A token that stands beside the vocabulary's own.

    special:     it marks a place, and is no text: decode leaves it out.
    normalized:  it is looked for in the normalised text, not in the text as it is.
    single_word: it is none where a letter or a digit touches it.
    lstrip, rstrip: it takes the white space before it, or after it, with it.
    """

    content: str
    id: int
    special: bool
    normalized: bool = False
    single_word: bool = False
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
    """The encoding of every tokenizer; a kind of its own adds _encode_text, bytes_of, decode
    and stream.

    bos_id is what encode puts before a text, and eos_id what ends one; None where there is
    none. vocab_size is the last id plus one, whether or not all ids before it are in use.
    """

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

    def checked(self, id: int) -> int:
        """An id as it is. Raises ValueError for one outside 0 .. vocab_size - 1."""
        if not 0 <= id < self.vocab_size:
            raise ValueError(
                f"id {id} is out of range: the tokenizer has the ids 0 to {self.vocab_size - 1}"
            )
        return int(id)


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
            if stop <= end or (token.single_word and touches_a_word(text, *match.span())):
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


def touches_a_word(text: str, start: int, stop: int) -> bool:
    """Whether a letter, mark, digit or underscore stands before start, or at stop."""
    beside = text[start - 1 : start] if start else ""
    return any(
        unicodedata.category(letter)[0] in "LM"
        or unicodedata.category(letter) in ("Nd", "Nl", "Pc")
        or OTHER_LETTERS.match(letter) is not None
        for letter in beside + text[stop : stop + 1]
    )

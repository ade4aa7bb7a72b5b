"""What is done to a text before its tokens are looked for, as a tokenizer.json's normalizer
says it: NFC, Prepend and Replace, one after the other."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from ..terminal.json_parts import Part

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


def normalise_from_json(raw: Part) -> Callable[[str], str]:
    """A normalizer, which may be null, as a function of a text. Raises ValueError for what is
    not implemented."""
    steps = [_step(step) for step in flat(raw, "normalizers")]

    def normalise(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return normalise


def flat(raw: Part, name: str) -> list[Part]:
    """A part that may be a sequence of steps (under this name), as a list; none for null."""
    found, waiting = [], [raw]
    while waiting:
        part = waiting.pop()
        if not part.is_null and part["type"].text("") == "Sequence":
            waiting += reversed(part[name].items())
        elif not part.is_null:
            found.append(part)
    return found


def _step(raw: Part) -> Callable[[str], str]:
    raw["type"].only("NFC", "Prepend", "Replace")
    if raw["type"].value == "NFC":
        return nfc
    if raw["type"].value == "Prepend":
        before = raw["prepend"].text()
        return lambda text: before + text if text else text
    old, new = plain_text(raw["pattern"]), raw["content"].text()
    if len(new) > len(old):  # a few such steps would make any text endless
        raise raw["content"].wrong("no longer than what it replaces")
    return lambda text: text.replace(old, new)


def plain_text(pattern: Part) -> str:
    """The text that a pattern looks for. Raises ValueError for an expression, and for none."""
    if not pattern["String"].text(""):
        raise pattern.wrong('a "String" of at least one character (no expression)')
    return pattern["String"].value


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

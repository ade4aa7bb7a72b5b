"""How a text is cut into words, as the pre_tokenizer of a tokenizer.json says it.

    ByteLevel   GPT-2's expression, or none; the last step, since it makes bytes of the text
    Split       an expression or a text of the file's own
    Digits      each digit alone, or runs of them
    Sequence    one after the other, each within the parts that the one before made

The last of them becomes tiktoken's expression, and those before it functions of Python's re,
which has to be told what \\p{L} is. Whatever else a file asks for is refused with a sentence.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
EVERY_DIGIT_THEN_GPT2 = (  # where a digit follows, a run of spaces has ended: GPT2 saw no more
    r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
)
DIGITS = {True: r"\p{N}", False: r"\p{N}+"}  # individual_digits
WHITE_SPACE = r"\t-\r\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# What the two kinds of expressions, or Python's, read in another way.
UNKNOWN = re.compile(r"\\[hHRXGKAZzbBwWyYN]|\[\[|&&|\(\?<|\(\?[^:!=i>]|\(\?i[^:]")


class Words(NamedTuple):
    """Recipe's fields of these names."""

    cuts: tuple[Callable[[str], list[str]], ...]
    pattern: str
    prefix_space: bool


def words_from_json(raw) -> Words:
    """What a tokenizer.json's pre_tokenizer asks for. Raises ValueError for what is not
    implemented."""
    steps = _flat(raw)
    if not steps or steps[-1].get("type") != "ByteLevel":
        raise ValueError(
            "its pre_tokenizer does not end in ByteLevel, and nothing else is implemented: use "
            "the model's tokenizer.model, if it has one"
        )
    *steps, last = steps
    patterns = [_pattern(step) for step in steps]
    if last.get("use_regex", True):
        patterns.append(GPT2)
    if patterns == [DIGITS[True], GPT2]:
        patterns = [EVERY_DIGIT_THEN_GPT2]
    patterns = patterns or [r"[\s\S]+"]
    *first, final = patterns
    if final not in (GPT2, EVERY_DIGIT_THEN_GPT2):
        final = f"{final}|(?:(?!{final})[\\s\\S])+"  # what lies between matches is a word too
    return Words(
        tuple(cut_by(pattern) for pattern in first), final, last.get("add_prefix_space", True)
    )


def _flat(raw) -> list[dict]:
    """A pre_tokenizer as a list of steps; none for null."""
    if raw is None:
        return []
    if raw.get("type") == "Sequence":
        return [step for part in raw["pretokenizers"] for step in _flat(part)]
    return [raw]


def _pattern(step: dict) -> str:
    """The expression whose matches, and what lies between them, are the parts of a text."""
    kind = step.get("type")
    if kind == "Digits":
        return DIGITS[bool(step.get("individual_digits", False))]
    if kind != "Split":
        raise ValueError(
            f"its pre_tokenizer has the step {kind!r}, which is not implemented: only "
            "ByteLevel, Split, Digits and sequences of these are"
        )
    behavior = step.get("behavior")
    if behavior != "Isolated" or step.get("invert"):
        raise ValueError(
            f"its pre_tokenizer splits with the behavior {behavior!r} and invert "
            f"{step.get('invert')}; only 'Isolated' is implemented, and not inverted"
        )
    if "String" in step["pattern"]:
        return re.escape(step["pattern"]["String"])
    pattern = step["pattern"]["Regex"]
    found = UNKNOWN.search(pattern)
    if found:
        raise ValueError(
            f"its pre_tokenizer splits by an expression with {found[0]!r}, which is not "
            "implemented"
        )
    return pattern


def cut_by(pattern: str) -> Callable[[str], list[str]]:
    """A function that cuts a text at both ends of every match.

    >>> cut_by(r"\\p{N}")("ab12c")
    ['ab', '1', '2', 'c']
    """
    try:
        expression = re.compile(in_python(pattern), re.MULTILINE)
    except re.error as error:
        raise ValueError(f"its pre_tokenizer's expression cannot be read: {error}") from error

    def cut(text: str) -> list[str]:
        parts, end = [], 0
        for match in expression.finditer(text):
            parts += (text[end : match.start()], match[0])
            end = match.end()
        parts.append(text[end:])
        return [part for part in parts if part]

    return cut


def in_python(pattern: str) -> str:
    """An expression of Oniguruma's as one of Python's: \\p{L}, \\s and \\d written out."""
    written, inside = [], False
    for piece in re.findall(r"\\[pP]\{\^?\w+\}|\\.|[\s\S]", pattern):
        ranges = _ranges(piece)
        if ranges is None:
            inside = piece == "[" or (inside and piece != "]")
            written.append(piece)
        elif inside and ranges.startswith("^"):
            raise ValueError(
                f"its pre_tokenizer's expression has {piece} in a class, which is not "
                "implemented"
            )
        else:
            written.append(ranges if inside else f"[{ranges}]")
    return "".join(written)


def _ranges(piece: str) -> str | None:
    """What a class of one of Oniguruma's escapes holds, ^ in front for all others."""
    named = re.fullmatch(r"\\([pP])\{(\^?)(\w+)\}", piece)
    if named:
        negative = (named[1] == "P") != (named[2] == "^")
        return "^" * negative + characters(named[3])
    negative = "^" * (piece in (r"\S", r"\D"))
    if piece in (r"\s", r"\S"):
        return negative + WHITE_SPACE
    if piece in (r"\d", r"\D"):
        return negative + characters("Nd")
    return None


@functools.cache
def characters(category: str) -> str:
    """The characters of a general category (L, Nd, ...), as ranges in a class of re's."""
    points = [
        unicodedata.category(chr(p)).startswith(category) for p in range(sys.maxunicode + 1)
    ]
    edges = [p for p, (a, b) in enumerate(zip([False, *points], [*points, False])) if a != b]
    if not edges:
        raise ValueError(f"its pre_tokenizer's expression has an unknown category, {category}")
    return "".join(rf"\U{a:08x}-\U{b - 1:08x}" for a, b in zip(edges[::2], edges[1::2]))

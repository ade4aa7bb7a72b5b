"""How a text is cut into words, as the pre_tokenizer of a byte-level tokenizer.json says it.

    ByteLevel   GPT-2's expression, or none; the last step, since it makes bytes of the text
    Split       an expression or a text of the file's own
    Digits      each digit alone, or runs of them
    Sequence    one after the other, each within the parts that the one before made

A last step that many models share is tiktoken's work, and all others are functions of Python's
re, which has to be told what \\p{L} is. An expression of a stranger's may take for ever: one
that is not among KNOWN must be so plain that it never reads a character more than a few times.
Whatever else a file asks for is refused with a sentence.
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from ..terminal.files import shown
from .json_parts import Part
from .normalizers import flat, plain_text

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
EVERY_DIGIT_THEN_GPT2 = (  # where a digit follows, a run of spaces has ended: GPT2 saw no more
    r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
)
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
KNOWN = (GPT2, EVERY_DIGIT_THEN_GPT2, LLAMA3_PATTERN, QWEN2)
WHOLE = r"[\s\S]+"
SPACES_AT_AN_END = {r"\s+$": r"(?<!\s)\s+$"}  # DeepSeek's, and the same without trying twice
DIGITS = {True: r"\p{N}", False: r"\p{N}+"}  # individual_digits
WHITE_SPACE = r"\t-\r\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# What the two kinds of expressions, or Python's, read in another way.
UNKNOWN = re.compile(r"\\[hHRXGKAZzbBwWyYN]|\[\[|&&|\(\?<|\(\?[^:!=i>]|\(\?i[^:]")
ITEM = re.compile(  # a character, or a class of them, and how often; or what divides branches
    r"(?:\\[pP]\{\^?\w{1,20}\}|\\.|\[(?:\\.|[^\]\\])+\]|[^\\\[\](){}|*+?^$])"
    r"(?P<often>[?*+]|\{[1-4](?:,[1-4]?)?\})?|(?P<bar>\|)",
    re.DOTALL,
)
FEW = r"(?:once|\{\d\})"
BRANCH = re.compile(  # how often its items come, one after the other
    rf"(?=.*(?:{FEW}|\+|,))(?:{FEW} ?)*(?:(?:\?|\{{\d,\d\}}) ?)?(?:{FEW} ?)*"
    r"(?:(?:[*+]|\{\d,\})(?: [?*])*)?"
)
MOST_ITEMS = MOST_STEPS = 32


class Words(NamedTuple):
    """Recipe's fields of these names."""

    cuts: tuple[Callable[[str], list[str]], ...]
    pattern: str
    prefix_space: bool


def words_from_json(raw: Part) -> Words:
    """What a tokenizer.json's pre_tokenizer asks for. Raises ValueError for what is not
    implemented."""
    steps = flat(raw, "pretokenizers")
    if not steps or steps[-1]["type"].value != "ByteLevel":
        raise raw.wrong("a sequence that ends in ByteLevel (nothing else is implemented)")
    if len(steps) > MOST_STEPS:
        raise raw.wrong(f"a sequence of at most {MOST_STEPS} steps")
    *steps, last = steps
    patterns = [_pattern(step) for step in steps]
    if last["use_regex"].flag(True):
        patterns.append(GPT2)
    if patterns == [DIGITS[True], GPT2]:
        patterns = [EVERY_DIGIT_THEN_GPT2]
    final = patterns.pop() if patterns and patterns[-1] in KNOWN else WHOLE
    try:
        cuts = tuple(cut_by(pattern) for pattern in patterns)
    except ValueError as error:
        raise ValueError(f"{raw.file}: {error}") from error
    return Words(cuts, final, last["add_prefix_space"].flag(True))


def _pattern(step: Part) -> str:
    """The expression whose matches, and what lies between them, are the parts of a text."""
    step["type"].only("ByteLevel", "Digits", "Split")
    if step["type"].value == "Digits":
        return DIGITS[step["individual_digits"].flag()]
    if step["type"].value == "ByteLevel":
        raise step.wrong("the last step of the pre_tokenizer")
    step["behavior"].only("Isolated")
    step["invert"].only(None, False)
    if "Regex" not in step["pattern"]:
        return re.escape(plain_text(step["pattern"]))
    pattern = step["pattern"]["Regex"].text()
    found = UNKNOWN.search(pattern)
    if found:
        raise ValueError(
            f"{step.file}: its pre_tokenizer splits by an expression with {shown(found[0])}, "
            "which is not implemented"
        )
    if pattern in KNOWN or is_plain(pattern):
        return pattern
    if pattern in SPACES_AT_AN_END:
        return SPACES_AT_AN_END[pattern]
    raise ValueError(
        f"{step.file}: its pre_tokenizer splits by the expression {shown(pattern)}, which is "
        "neither a well-known model's nor so plain that it could not take for ever: copy the "
        "model's tokenizer.model there, if it has one"
    )


def is_plain(pattern: str) -> bool:
    """Whether an expression never reads a text much more often than once: each branch is
    characters and classes, of which one may come in several lengths, then a run of any length,
    and after that nothing that must be there. It matches at least one character.

    >>> [is_plain(pattern) for pattern in (r"\\s?\\p{L}+|[0-9]{1,3}", "(a+)+$", "a+b", "a*")]
    [True, False, False, False]
    """
    items, end = [], 0
    while end < len(pattern):
        item = ITEM.match(pattern, end)
        if item is None or len(items) == MOST_ITEMS:
            return False
        items.append("|" if item["bar"] else item["often"] or "once")
        end = item.end()
    branches = " ".join(items).split("|")
    return all(BRANCH.fullmatch(branch.strip()) for branch in branches)


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
    ranges = [(first, last) for name, first, last in runs() if name.startswith(category)]
    if not ranges:
        raise ValueError(f"its pre_tokenizer's expression has an unknown category, {category}")
    return "".join(rf"\U{first:08x}-\U{last:08x}" for first, last in ranges)


@functools.cache
def runs() -> list[tuple[str, int, int]]:
    """All characters: a category, and the first and the last of a run that has it."""
    found, end = [], 0
    every = map(unicodedata.category, map(chr, range(sys.maxunicode + 1)))
    for category, run in itertools.groupby(every):
        start, end = end, end + sum(1 for _ in run)
        found.append((category, start, end - 1))
    return found

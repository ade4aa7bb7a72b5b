"""How a text is cut into words, as the pre_tokenizer of a byte-level tokenizer.json says it.

    ByteLevel            GPT-2's expression
    Digits, ByteLevel    the same, and every digit alone (SmolLM2)
    Split, ByteLevel     an expression of the file's own: that of Llama 3 or of Qwen

Each is one expression, and cutting by it is tiktoken's work. Any other is refused: a stranger's
may take for ever, and several one after the other are another program's invention.
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
import unicodedata

from ..terminal.json_parts import Part
from .normalizers import flat

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
EVERY_DIGIT_THEN_GPT2 = (  # where a digit follows, a run of spaces has ended: GPT2 saw no more
    r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
)
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
WHITE_SPACE = r"\t-\r\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


def pattern_from_json(raw: Part) -> tuple[str, bool]:
    """A pre_tokenizer's expression, and whether a text gets a space before it. Raises
    ValueError for one that is not implemented."""
    *steps, last = flat(raw, "pretokenizers") or [raw]
    if last["type"].value != "ByteLevel" or len(steps) > 1:
        raise raw.wrong("ByteLevel, after Digits or one Split (nothing else is implemented)")
    prefix_space = last["add_prefix_space"].flag(True)
    by_gpt2, pattern = last["use_regex"].flag(True), GPT2
    for step in steps:
        step["type"].only("Digits", "Split")
        last["use_regex"].only(*((None, True) if step["type"].value == "Digits" else (False,)))
        pattern = EVERY_DIGIT_THEN_GPT2
        if step["type"].value == "Digits":
            step["individual_digits"].only(True)
        else:
            step["behavior"].only("Isolated")
            step["invert"].only(None, False)
            step["pattern"]["Regex"].only(LLAMA3_PATTERN, QWEN2, GPT2)
            pattern = step["pattern"]["Regex"].value
    if not steps and not by_gpt2:
        raise last["use_regex"].wrong("true where nothing else cuts the text")
    return pattern, prefix_space


def cut(text: str, pattern: str) -> list[str]:
    """The words of a text, by one of the expressions above.

    >>> cut("it's 12", GPT2)
    ['it', "'s", ' 12']
    """
    return [match[0] for match in in_python(pattern).finditer(text)]


@functools.cache
def in_python(pattern: str) -> re.Pattern:
    """An expression of tiktoken's as one of Python's: \\p{L}, \\p{N} and \\s written out."""
    written, inside = "", False
    for piece in re.findall(r"\\p\{\w\}|\\.|[\s\S]", pattern):
        inside = piece == "[" or (inside and piece != "]")
        ranges = WHITE_SPACE if piece in (r"\s", r"\S") else None
        if piece.startswith(r"\p"):
            ranges = characters(piece[3])
        if ranges is None:
            written += piece
        else:
            written += ranges if inside else f"[{'^' * (piece == chr(92) + 'S')}{ranges}]"
    return re.compile(written)


@functools.cache
def characters(category: str) -> str:
    """The characters of a general category, L or N, as ranges in a class of re's."""
    ranges, end = "", 0
    every = map(unicodedata.category, map(chr, range(sys.maxunicode + 1)))
    for is_one, run in itertools.groupby(every, lambda name: name.startswith(category)):
        start, end = end, end + sum(1 for _ in run)
        if is_one:
            ranges += rf"\U{start:08x}-\U{end - 1:08x}"
    return ranges

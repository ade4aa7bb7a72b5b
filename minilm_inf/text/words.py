"""How a text is normalised and cut into words before its bytes are joined.

    NFC                  as the tokenizers library has it
    ByteLevel            GPT-2's expression
    Digits, ByteLevel    the same, and every digit alone (SmolLM2)
    Split, ByteLevel     an expression of the file's own: that of Llama 3 or of Qwen

Each is one expression, and cutting by it is tiktoken's work. Any other is refused: a stranger's
may take for ever, and several one after the other are another program's invention.
"""

from __future__ import annotations

import re
import unicodedata

from ..terminal.json_parts import Part

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
EVERY_DIGIT_THEN_GPT2 = (  # where a digit follows, a run of spaces has ended: GPT2 saw no more
    r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
)
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
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


def pattern_of(raw: Part, steps: list[Part]) -> str:
    """The expression of a pre_tokenizer's steps. Raises ValueError for one that is not
    implemented."""
    *before, last = steps
    kinds = [step["type"].value for step in steps]
    if kinds not in (["ByteLevel"], ["Digits", "ByteLevel"], ["Split", "ByteLevel"]):
        raise raw.wrong("ByteLevel, after Digits or one Split (nothing else is implemented)")
    last["add_prefix_space"].only(False)
    last["use_regex"].only(*((False,) if "Split" in kinds else (None, True)))
    if not before:
        return GPT2
    if "Digits" in kinds:
        before[0]["individual_digits"].only(True)
        return EVERY_DIGIT_THEN_GPT2
    before[0]["behavior"].only("Isolated")
    before[0]["invert"].only(None, False)
    return before[0]["pattern"]["Regex"].only(LLAMA3_PATTERN, QWEN2, GPT2)

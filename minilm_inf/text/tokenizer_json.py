"""A tokenizer.json, the tokenizers library's file: byte-level BPE, or a Llama's BPE.

Which of the two it is, its pre_tokenizer tells: byte-level where a step of it is. Every part is
read as that library reads it, or refused. Files beside it only name BOS and EOS: whether they
stand around a text is told by its post_processor alone, as in transformers.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from ..terminal.json_parts import Part, part_of
from . import sentence_pieces as pieces
from .around import Around, Tokenizer
from .byte_level import EVERY_DIGIT_THEN_GPT2, GPT2, LLAMA3_PATTERN, QWEN2, of_letters
from .merges import ranked
from .named_tokens import added_token, ends, kept
from .sentence_pieces import SPACE, SentencePieceTokenizer

NFC = {"type": "NFC"}
LEVEL, DIGITS = {"type": "ByteLevel"}, {"type": "Digits", "individual_digits": True}
WORDS = [([LEVEL], GPT2), ([DIGITS, LEVEL], EVERY_DIGIT_THEN_GPT2)]
for pattern in (GPT2, LLAMA3_PATTERN, QWEN2):
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    WORDS.append(([split, LEVEL | {"use_regex": False}], pattern))
"""A byte-level pre_tokenizer, and the expression that cuts a text into words as it does."""

PREPEND = {"type": "Prepend", "prepend": SPACE}
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
METASPACE = {"type": "Metaspace", "replacement": SPACE, "split": False}
SCHEMES = [
    ([PREPEND, SPACES], [], "each"),
    ([SPACES], [], "never"),
    ([], [METASPACE | {"prepend_scheme": "always"}], "always"),
    ([], [METASPACE | {"prepend_scheme": "first"}], "first"),
]
"""A Llama's normalizer, its pre_tokenizer, and when they put a space before a text."""

BACK = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
DECODER = [BACK, {"type": "ByteFallback"}, {"type": "Fuse"}]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
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


def from_tokenizer_json(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json. Raises ValueError for what cannot be done exactly."""
    raw = part_of(path)
    model, normalizer = raw["model"], values(raw["normalizer"], "normalizers")
    model["type"].only(None, "BPE")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        model[name].only(None, "")
    model["dropout"].only(None, 0.0)
    vocab = model["vocab"].ids()
    if not vocab:
        raise model["vocab"].wrong("an object of tokens and their ids")
    added = [added_token(entry) for entry in raw["added_tokens"].items()]
    for entry, token in zip(raw["added_tokens"].items(), added):
        # NFC leaves spaces alone: they are found in a text as in the normalised one.
        if normalizer and (normalizer != [NFC] or token.content.strip(" ")):
            entry["normalized"].only(None, False)
    added = kept(added, vocab, path)
    fields = ends(path.parent, vocab | {token.content: token.id for token in added})
    fields |= zip(("before", "after"), around(raw["post_processor"]))
    parts = Around(added=added, normalise=nfc if NFC in normalizer else str, **fields)
    cuts = values(raw["pre_tokenizer"], "pretokenizers")
    for steps, pattern in WORDS:
        if steps == cuts and normalizer in ([], [NFC]):
            raw["decoder"]["type"].only(None, "ByteLevel")
            return of_letters(model, vocab, parts, pattern, model["ignore_merges"].flag())
    for *steps, scheme in SCHEMES:
        if steps == [normalizer, cuts]:
            return _llama(raw, vocab, parts, scheme)
    raise raw["pre_tokenizer"].wrong(
        "with its normalizer that of a byte-level tokenizer or of a Llama (only those are "
        "implemented that MPT, GPT-J and Llamas have: copy the model's tokenizer.model there)"
    )


def _llama(raw: Part, vocab: dict, parts: Around, scheme: str) -> SentencePieceTokenizer:
    """The tokenizer of a Llama's file, which is made of a sentencepiece model, and is made one
    here again."""
    model = raw["model"]
    decoder = values(raw["decoder"], "decoders")
    if decoder not in (DECODER, [*DECODER, STRIP]):
        raise raw["decoder"].wrong("Replace, ByteFallback, Fuse and perhaps Strip")
    kinds = {f"<0x{byte:02X}>": pieces.BYTE for byte in range(256)}
    if not (model["byte_fallback"].flag() and vocab.keys() >= kinds.keys()):
        raise model["byte_fallback"].wrong("true, with a token for each byte")
    model["ignore_merges"].only(None, False)
    unknown, tokens = model["unk_token"].text(), sorted(vocab, key=vocab.get)
    if unknown not in vocab or vocab[tokens[-1]] >= len(tokens):
        raise model["vocab"].wrong("one with its unk_token, and with all ids")
    kinds[unknown] = pieces.UNKNOWN
    ranks = ranked(model, vocab, ())

    def piece(token: str) -> tuple[str, float, int]:
        # A control piece is never joined, as a token that no merge makes.
        joinable = len(token) == 1 or token in ranks
        kind = pieces.NORMAL if joinable else pieces.CONTROL
        return token, -float(ranks.get(token, 0)), kinds.get(token, kind)

    content = pieces.model_proto(list(map(piece, tokens)), {}, prefix=False, extra=False)
    return SentencePieceTokenizer(
        content, raw.file, parts, tokens=tokens, scheme=scheme, strips=STRIP in decoder
    )


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


def values(raw: Part, name: str) -> list[dict]:
    """The same steps as they are written, but for what is the default, or changes no ids."""
    usual = {"trim_offsets": (True, False), "use_regex": (True,), "invert": (False,)}
    found = []
    for step in flat(raw, name):
        more = {"add_prefix_space": (step["type"].value == "Metaspace",)}
        same = (usual | more).items()
        left = {key for key, values in same if step[key].value in (*values, None)}
        found.append({key: value for key, value in step.value.items() if key not in left})
    return found


def around(raw: Part) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a post_processor puts before and after a text."""
    before, after = [], []
    for step in flat(raw, "processors"):
        if step["type"].only("ByteLevel", "TemplateProcessing") == "ByteLevel":
            continue
        sides: list[list[int]] = [[]]
        for part in step["single"].items():
            if "Sequence" in part:
                sides.append([])
                continue
            name = part["SpecialToken"]["id"].text()
            sides[-1] += [id.id() for id in step["special_tokens"][name]["ids"].items()]
        if len(sides) != 2:
            raise step["single"].wrong("a template in which the text stands once")
        before, after = [*sides[0], *before], [*after, *sides[1]]
    return tuple(before), tuple(after)


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

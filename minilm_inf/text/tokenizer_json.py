"""A tokenizer.json, the tokenizers library's file: byte-level BPE, or a Llama's BPE.

Which of the two it is, its pre_tokenizer tells: byte-level where a step of it is. Every part is
read as that library reads it, or refused. Files beside it only name BOS and EOS: whether they
stand around a text is told by its post_processor alone, as in transformers.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

from ..terminal.files import named
from ..terminal.json_parts import Part, part_of
from . import sentence_pieces as pieces
from .around import Around, Tokenizer
from .byte_level import EVERY_DIGIT_THEN_GPT2, GPT2, LLAMA3_PATTERN, QWEN2, ByteLevelTokenizer
from .merges import ranked
from .named_tokens import added_token, ends, kept
from .sentence_pieces import SPACE, SentencePieceTokenizer, processor_of


def nfc(text: str, begun: bool) -> str:
    """A text in NFC, by Unicode's newest tables; the tokenizers library has those of Unicode 9,
    and leaves combining marks that are newer where they stand."""
    return unicodedata.normalize("NFC", text)


def spaced(text: str, begun: bool) -> str:
    """A text with a space before it, unless it begins with one."""
    return text if text.startswith((" ", SPACE)) else " " + text


NFC = {"type": "NFC"}
LEVEL, DIGITS = {"type": "ByteLevel"}, {"type": "Digits", "individual_digits": True}
WORDS = [([LEVEL], GPT2), ([DIGITS, LEVEL], EVERY_DIGIT_THEN_GPT2)]
for pattern in (GPT2, LLAMA3_PATTERN, QWEN2):
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    WORDS.append(([split, LEVEL | {"use_regex": False}], pattern))
PREPEND = {"type": "Prepend", "prepend": SPACE}
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
METASPACE = {"type": "Metaspace", "replacement": SPACE, "split": False}
ALWAYS, FIRST = (METASPACE | {"prepend_scheme": scheme} for scheme in ("always", "first"))
KINDS = [
    *(([], cuts, lambda text, begun: text, pattern) for cuts, pattern in WORDS),
    *(([NFC], cuts, nfc, pattern) for cuts, pattern in WORDS),
    ([PREPEND, SPACES], [], lambda text, begun: " " + text, None),
    ([SPACES], [], lambda text, begun: text, None),
    ([], [ALWAYS], spaced, None),
    ([], [FIRST], lambda text, begun: text if begun else spaced(text, begun), None),
]
"""A normalizer and a pre_tokenizer, what both make of a text, and the expression that cuts it
into words as a byte-level pre_tokenizer does; None for a Llama's."""

BACK = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
DECODER = [BACK, {"type": "ByteFallback"}, {"type": "Fuse"}]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


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
    fields = ends(path.parent, added, vocab)
    fields |= zip(("before", "after"), around(raw["post_processor"]))
    cuts = values(raw["pre_tokenizer"], "pretokenizers")
    for *steps, normalise, pattern in KINDS:
        if steps == [normalizer, cuts]:
            parts = Around(added=added, normalise=normalise, **fields)
            if pattern is None:
                return _llama(raw, vocab, parts)
            raw["decoder"]["type"].only(None, "ByteLevel")
            return ByteLevelTokenizer(
                model, vocab, parts, pattern, model["ignore_merges"].flag()
            )
    names = ", ".join(str(step.get("type")) for step in [*normalizer, *cuts])
    raise raw.error(
        f"it prepares a text for BPE ({named(names or 'no steps')}) in another way than GPT-2, "
        "GPT-J, MPT, Llama, Mistral, Qwen2 and SmolLM2, the only ones that are implemented: "
        "copy the model's tokenizer.model there, if it has one"
    )


def _llama(raw: Part, vocab: dict, parts: Around) -> SentencePieceTokenizer:
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
    ranks = ranked(model, vocab, ())
    kinds = dict.fromkeys(ranks, pieces.NORMAL) | kinds | {unknown: pieces.UNKNOWN}

    def piece(token: str) -> tuple[str, float, int]:
        # A control piece is never joined, as a token that no merge makes.
        other = pieces.NORMAL if len(token) == 1 else pieces.CONTROL
        return token, -float(ranks.get(token, 0)), kinds.get(token, other)

    content = pieces.model_proto(list(map(piece, tokens)), {}, prefix=False, extra=False)
    model = processor_of(content, raw.file)
    return SentencePieceTokenizer(
        parts, model, model, dict(enumerate(tokens)), STRIP in decoder
    )


def flat(raw: Part, name: str) -> list[Part]:
    """The steps of a part, which is one or a sequence of them under this name, or null."""
    if raw.is_null:
        return []
    return raw[name].items() if raw["type"].text("") == "Sequence" else [raw]


def values(raw: Part, name: str) -> list[dict]:
    """The same steps as they are written, without what is the default, or changes no ids."""
    usual = {"trim_offsets": (True, False), "use_regex": (True,), "invert": (False,)}
    found = []
    for step in flat(raw, name):
        usual["add_prefix_space"] = (step["type"].value == "Metaspace",)
        parts = ((key, part.value) for key, part in step.fields().items())
        found.append({k: v for k, v in parts if v not in (None, *usual.get(k, ()))})
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

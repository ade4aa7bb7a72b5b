"""A tokenizer.json, the tokenizers library's file: byte-level BPE, or BPE with byte fallback.

Which of the two it is, its pre_tokenizer tells: byte-level where a step of it is. Every part is
read as that library reads it, or refused. Files beside it only name BOS and EOS: whether they
stand around a text is told by its post_processor alone, as in transformers.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..terminal.files import shown
from ..terminal.json_parts import Part, part_of
from .around import Around, Tokenizer
from .bpe_files import BYTE_OF, byte_level
from .byte_level import ByteLevelTokenizer
from .llama_json import from_llama_json
from .named_tokens import added_token, ends, kept
from .normalizers import flat, normalise_from_json
from .words import pattern_from_json

REMEDY = (
    "copy the model's tokenizer.model there, or save the tokenizer with transformers as one of "
    "byte-level BPE, or of BPE with byte fallback"
)


def from_tokenizer_json(path: Path, limit: int | None = None) -> Tokenizer:
    """The tokenizer of a tokenizer.json; limit: the model's ids, see tokenizer.load. Raises
    ValueError for what cannot be done exactly."""
    raw = part_of(path)
    model = raw["model"]
    if model["type"].text("BPE") != "BPE":
        kind = model["type"].text()
        raise ValueError(f"{path}: its model is {kind}, and only BPE is implemented: {REMEDY}")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        model[name].only(None, "")
    model["dropout"].only(None, 0.0)
    vocab = model["vocab"].ids()
    if not vocab:
        raise model["vocab"].wrong("an object of tokens and their ids")
    added = [added_token(entry) for entry in raw["added_tokens"].items()]
    added, vocab = kept(added, vocab, limit, path)
    fields = ends(path.parent, vocab | {a.content: a.id for a in added})
    fields |= zip(("before", "after"), around(raw["post_processor"]))
    normalise = normalise_from_json(raw["normalizer"])
    parts = Around(added=added, normalise=normalise, **fields)
    merges, steps = merges_of(model, vocab), flat(raw["pre_tokenizer"], "pretokenizers")
    if any(step["type"].value == "ByteLevel" for step in steps):
        return _byte_level(raw, vocab, merges, parts)
    if len(steps) > 1 or any(step["type"].value != "Metaspace" for step in steps):
        raise ValueError(
            f"{path}: its pre_tokenizer is neither null, Metaspace nor one that ends in "
            f"ByteLevel, and nothing else is implemented: {REMEDY}"
        )
    return from_llama_json(raw, vocab, merges, steps, parts)


def _byte_level(raw: Part, vocab: dict, merges: list, parts: Around) -> ByteLevelTokenizer:
    """A byte-level tokenizer of a file's model and the parts around it."""
    model = raw["model"]
    if not model["unk_token"].is_null and not BYTE_OF.keys() <= vocab.keys():
        raise ValueError(
            f"{raw.file}: it writes {shown(model['unk_token'].value)} for bytes that its "
            f"vocabulary lacks, which is not implemented: {REMEDY}"
        )
    raw["decoder"]["type"].only(None, "ByteLevel")
    pattern, prefix_space = pattern_from_json(raw["pre_tokenizer"])
    whole_words = model["ignore_merges"].flag()
    try:
        return byte_level(
            parts, vocab, merges, whole_words, pattern=pattern, prefix_space=prefix_space
        )
    except ValueError as error:
        raise ValueError(f"{raw.file} cannot be used exactly: {error}") from error


def merges_of(model: Part, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """The merges in their order, each written "a b" or ["a", "b"]. Raises ValueError for one
    whose parts, or what they become, the vocabulary lacks."""
    merges, pairs = model["merges"].items(), []
    for merge in merges:
        pair = merge.value.split(" ") if isinstance(merge.value, str) else merge.value
        if not isinstance(pair, list) or not all(isinstance(token, str) for token in pair):
            raise merge.wrong("two tokens")
        if len(pair) != 2 or not all(pair):
            raise merge.wrong("two tokens")
        a, b = pair
        if not (a in vocab and b in vocab and a + b in vocab):
            raise merge.wrong("two tokens of its vocabulary, and both joined another")
        pairs.append((a, b))
    return pairs


def around(raw: Part) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a post_processor puts before and after a text."""
    before, after = [], []
    for step in flat(raw, "processors"):
        step["type"].only("ByteLevel", "TemplateProcessing")
        if step["type"].value == "TemplateProcessing":
            sides = _template(step)
            before, after = [*sides[0], *before], [*after, *sides[1]]
    return tuple(before), tuple(after)


def _template(raw: Part) -> tuple[list[int], list[int]]:
    sides: list[list[int]] = [[]]
    for part in raw["single"].items():
        if "Sequence" in part:
            sides.append([])
            continue
        name = part["SpecialToken"]["id"].text()
        sides[-1] += [id.id() for id in raw["special_tokens"][name]["ids"].items()]
    if len(sides) != 2:
        raise raw["single"].wrong("a template in which the text stands once")
    return sides[0], sides[1]


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
         "use_regex": True}  # fmt: skip


def byte_level_json(
    vocab: dict[str, int],
    merges: list,
    marks: dict[str, bool],
    pre_tokenizer: dict,
    bos: str | None,
    ignore_merges: bool = False,
) -> str:
    """The text of a byte-level tokenizer.json, as the tokenizers library reads it.

    marks: tokens that are found before a text is cut -> whether they are special; bos: the
    token before every text, if any.
    """
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": vocab[token], "content": token, "special": special, **flags}
        for token, special in marks.items()
    ]
    first, second = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    before = bos and {
        "type": "TemplateProcessing", "single": [begin, first],
        "pair": [begin, first, begin, second],
        "special_tokens": {bos: {"id": bos, "ids": [vocab[bos]], "tokens": [bos]}},
    }  # fmt: skip
    raw = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": pre_tokenizer, "post_processor": before,
        "decoder": LEVEL,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
            "byte_fallback": False, "ignore_merges": ignore_merges, "vocab": vocab,
            "merges": merges,
        },
    }  # fmt: skip
    return json.dumps(raw, ensure_ascii=False, indent=1) + "\n"

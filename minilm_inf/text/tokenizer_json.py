"""A tokenizer.json, the tokenizers library's file: byte-level BPE, or a Llama's BPE.

Which of the two it is, its pre_tokenizer tells: byte-level where a step of it is. Every part is
read as that library reads it, or refused. Files beside it only name BOS and EOS: whether they
stand around a text is told by its post_processor alone, as in transformers.

A Llama's file is made of a sentencepiece model, which is made of it again here: sentencepiece
joins any neighbours that are a piece together, those of the highest score first. So where the
merges are all pairs that make a token, token by token, both do the same.
"""

from __future__ import annotations

from pathlib import Path

from ..terminal.files import shown
from ..terminal.json_parts import Part, part_of
from .around import Around, Tokenizer
from .byte_level import byte_level
from .named_tokens import added_token, check_added, ends
from .piece_model import BYTE, CONTROL, NORMAL, UNKNOWN, model_proto
from .sentence_pieces import SPACE, SentencePieceTokenizer
from .words import nfc, pattern_of

REMEDY = (
    "copy the model's tokenizer.model there, or save the tokenizer with transformers as one of "
    "byte-level BPE, or of BPE with byte fallback"
)
NFC = {"type": "NFC"}
PREPEND = {"type": "Prepend", "prepend": SPACE}
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
METASPACE = {"type": "Metaspace", "replacement": SPACE, "split": False}
SCHEMES = {  # a Llama's normalizer, its pre_tokenizer and when they put a space before a text
    "each": ([PREPEND, SPACES], []),
    "never": ([SPACES], []),
    "always": ([], [METASPACE | {"prepend_scheme": "always"}]),
    "first": ([], [METASPACE | {"prepend_scheme": "first"}]),
}
DECODER = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def from_tokenizer_json(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json. Raises ValueError for what cannot be done exactly."""
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
    merges, normalizer = merges_of(model, vocab), values(raw["normalizer"], "normalizers")
    added = tuple(added_token(entry) for entry in raw["added_tokens"].items())
    check_added(added, vocab, path)
    for token in added:
        spaced = PREPEND in normalizer or (
            SPACES in normalizer and {" ", SPACE} & {*token.content}
        )
        if token.normalized and (spaced or nfc(token.content) != token.content):
            raise ValueError(
                f"{path}: its added token {shown(token.content)} is changed by its normalizer, "
                f"which is not implemented: {REMEDY}"
            )
    fields = ends(path.parent, vocab | {token.content: token.id for token in added})
    fields |= zip(("before", "after"), around(raw["post_processor"]))
    parts = Around(added=added, normalise=nfc if NFC in normalizer else str, **fields)
    if not any(step["type"].value == "ByteLevel" for step in flat(raw["pre_tokenizer"])):
        return _llama(raw, vocab, merges, normalizer, parts)
    if normalizer not in ([], [NFC]):
        raise raw["normalizer"].wrong("null or NFC (nothing else is implemented)")
    raw["decoder"]["type"].only(None, "ByteLevel")
    pattern = pattern_of(raw["pre_tokenizer"], flat(raw["pre_tokenizer"]))
    try:
        return byte_level(parts, vocab, merges, pattern, model["ignore_merges"].flag())
    except ValueError as error:
        raise ValueError(f"{path} cannot be used exactly: {error}") from error


def _llama(
    raw: Part, vocab: dict, merges: list, normalizer: list, parts: Around
) -> SentencePieceTokenizer:
    """The tokenizer of a Llama's file."""
    model, cuts = raw["model"], values(raw["pre_tokenizer"])
    known = [scheme for scheme, steps in SCHEMES.items() if steps == (normalizer, cuts)]
    if not known:
        raise ValueError(
            f"{raw.file}: its normalizer and its pre_tokenizer are not those of a Llama, nor "
            f"those of ByteLevel, and nothing else is implemented: {REMEDY}"
        )
    decoder = values(raw["decoder"], "decoders")
    if decoder not in (DECODER, [*DECODER, STRIP]):
        raise raw["decoder"].wrong("Replace, ByteFallback, Fuse and perhaps Strip")
    kinds = {f"<0x{byte:02X}>": BYTE for byte in range(256)}
    if not (model["byte_fallback"].flag() and vocab.keys() >= kinds.keys()):
        raise model["byte_fallback"].wrong("true, with a token for each byte")
    model["ignore_merges"].only(None, False)
    unknown = model["unk_token"].text()
    tokens = {id: token for token, id in vocab.items()}
    if unknown not in vocab or set(tokens) != set(range(len(tokens))):
        raise model["vocab"].wrong("one with the unk_token in which no id is left out")
    kinds[unknown] = UNKNOWN
    scores = _scores(model, vocab, merges)

    def piece(token: str) -> tuple[str, float, int]:
        # A control piece is never joined, as a token that no merge makes.
        joinable = len(token) == 1 or token in scores
        return token, scores.get(token, 0.0), kinds.get(token, NORMAL if joinable else CONTROL)

    pieces = [piece(tokens[id]) for id in range(len(tokens))]
    content = model_proto(pieces, {}, prefix=False, extra=False)
    return SentencePieceTokenizer(
        content, raw.file, parts, tokens=tokens, scheme=known[0], strips=STRIP in decoder
    )


def _scores(model: Part, vocab: dict, merges: list[tuple[str, str]]) -> dict[str, float]:
    """What sentencepiece orders its pieces by: token -> minus the rank of its first merge."""
    listed: dict[str, list[int]] = {}
    scores: dict[str, float] = {}
    for rank, (a, b) in enumerate(merges):
        listed.setdefault(a + b, []).append(rank)
        scores.setdefault(a + b, -float(rank))
    for token, ranks in listed.items():
        cuts = (at for at in range(1, len(token)) if {token[:at], token[at:]} <= vocab.keys())
        together = ranks == list(range(ranks[0], ranks[0] + len(ranks)))
        if {len(merges[rank][0]) for rank in ranks} != set(cuts) or not together:
            raise ValueError(
                f"{model.file}: the merges that make {shown(token)} are not all that could, "
                "one after the other, which is not implemented"
            )
    return scores


def merges_of(model: Part, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """The merges in their order, each written "a b" or ["a", "b"]. Raises ValueError for one
    whose parts, or what they become, the vocabulary lacks."""
    pairs = []
    for merge in model["merges"].items():
        pair = merge.value.split(" ") if isinstance(merge.value, str) else merge.value
        if not isinstance(pair, list) or len(pair) != 2 or not all(pair):
            raise merge.wrong("two tokens")
        if not all(
            isinstance(token, str) and token in vocab for token in (*pair, "".join(pair))
        ):
            raise merge.wrong("two tokens of its vocabulary, and both joined another")
        pairs.append(tuple(pair))
    return pairs


def flat(raw: Part, name: str = "pretokenizers") -> list[Part]:
    """A part that may be a sequence of steps (under this name), as a list; none for null."""
    found, waiting = [], [raw]
    while waiting:
        part = waiting.pop()
        if not part.is_null and part["type"].text("") == "Sequence":
            waiting += reversed(part[name].items())
        elif not part.is_null:
            found.append(part)
    return found


def values(raw: Part, name: str = "pretokenizers") -> list[dict]:
    """The same steps as they are written, without what older files add to them."""
    return [
        {key: value for key, value in step.value.items() if key != "add_prefix_space"}
        for step in flat(raw, name)
    ]


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

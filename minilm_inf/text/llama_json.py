"""A Llama's tokenizer.json, BPE with bytes for what no token covers, as a sentencepiece model.

Such a file is made of a sentencepiece model, which can be made of it again: sentencepiece joins
any neighbours that are a piece together, those of the highest score first. So where the merges
are all pairs that make a token, token by token, both do the same; anything else is refused.
"""

from __future__ import annotations

import functools
import re

from ..terminal.files import shown
from ..terminal.json_parts import Part
from .around import Around
from .piece_model import BYTE, CONTROL, NORMAL, UNKNOWN, model_proto
from .sentence_pieces import SPACE, SentencePieceTokenizer

DECODER = ["Replace", "ByteFallback", "Fuse"]  # and Strip, which takes the first space


def from_llama_json(raw: Part, vocab: dict, merges: list, steps: list[Part], around: Around):
    """The tokenizer of a file; steps: of its pre_tokenizer. Raises ValueError for one that
    sentencepiece would not do exactly so."""
    model = raw["model"]
    words = functools.partial(_words, *_metaspace(steps[0])) if steps else _whole
    if " " in "".join(words(around.normalise("a b"), False)):
        raise raw["normalizer"].wrong("one that makes each space a ▁, as Metaspace would")
    bytes_of = [f"<0x{byte:02X}>" for byte in range(256)]
    if not (model["byte_fallback"].flag() and vocab.keys() >= set(bytes_of)):
        raise model["byte_fallback"].wrong("true, with a token for each byte")
    model["ignore_merges"].only(None, False)
    unknown = model["unk_token"].text()
    if unknown not in vocab:
        raise model["unk_token"].wrong("a token of its vocabulary")
    tokens = {id: token for token, id in vocab.items()}
    if set(tokens) != set(range(len(tokens))):
        raise ValueError(f"{raw.file}: its vocabulary leaves out ids, which is not implemented")
    scores, kinds = _scores(model, vocab, merges), dict.fromkeys(bytes_of, BYTE)
    kinds[unknown] = UNKNOWN

    def piece(token: str) -> tuple[str, float, int]:
        # A control piece is never joined, as a token that no merge makes.
        joinable = len(token) == 1 or token in scores
        kind = kinds.get(token, NORMAL if joinable else CONTROL)
        return token, scores.get(token, 0.0), kind

    pieces = [piece(tokens[id]) for id in range(len(tokens))]
    content = model_proto(pieces, {}, prefix=False, extra=False)
    strips = _strips(raw["decoder"])
    return SentencePieceTokenizer(content, raw.file, around, tokens, False, words, strips)


def _scores(model: Part, vocab: dict, merges: list[tuple[str, str]]) -> dict[str, float]:
    """What sentencepiece orders its pieces by: token -> minus the rank of its first merge."""
    scores: dict[str, float] = {}
    listed: dict[str, set[int]] = {}
    newest = None
    for rank, (a, b) in enumerate(merges):
        token = a + b
        if token in scores and token != newest:
            raise ValueError(
                f"{model.file}: the merges that make {shown(token)} do not stand together"
            )
        scores.setdefault(token, -float(rank))
        listed.setdefault(token, set()).add(len(a))
        newest = token
    for token, cuts in listed.items():
        known = (at for at in range(1, len(token)) if {token[:at], token[at:]} <= vocab.keys())
        if cuts != set(known) or not set(token) <= vocab.keys():
            raise ValueError(
                f"{model.file}: its merges make {shown(token)} of some of its parts only, "
                "which is not implemented"
            )
    return scores


def _whole(text: str, begun: bool) -> list[str]:
    return [text]


def _metaspace(step: Part) -> tuple[str, bool]:
    """When it puts a space before a text, and whether every space begins a word."""
    step["replacement"].only(SPACE)
    step["prepend_scheme"].only(None, "always", "first", "never")
    scheme = step["prepend_scheme"].text("always")
    if scheme != "never" and not step["add_prefix_space"].flag(True):
        raise step["add_prefix_space"].wrong("true where prepend_scheme is not never")
    return scheme, step["split"].flag(True)


def _words(scheme: str, split: bool, text: str, begun: bool) -> list[str]:
    """What Metaspace makes of a text; begun: whether it is not the first piece."""
    text = text.replace(" ", SPACE)
    wanted = scheme == "always" or (scheme == "first" and not begun)
    if wanted and not text.startswith(SPACE):
        text = SPACE + text
    return re.findall(f"{SPACE}[^{SPACE}]*|[^{SPACE}]+", text) if split else [text]


def _strips(raw: Part) -> bool:
    """Whether a decoder takes the space before a text."""
    steps = raw["decoders"].items()
    if [step["type"].value for step in steps] not in (DECODER, [*DECODER, "Strip"]):
        raise raw.wrong(
            f"{', '.join(DECODER)}, and perhaps Strip (nothing else is implemented)"
        )
    steps[0]["pattern"]["String"].only(SPACE)
    steps[0]["content"].only(" ")
    for step in steps[3:]:
        for name, value in (("content", " "), ("start", 1), ("stop", 0)):
            step[name].only(value)
    return len(steps) > len(DECODER)

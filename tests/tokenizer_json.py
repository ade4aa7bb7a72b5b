"""The parts of a tokenizer.json, as the tokenizers library writes it, and small whole ones.

fixtures/tokenizers/ holds a vocab.json and a merges.txt (500 merges, learned from fuzzed texts
by text/byte_pairs.py), of which the byte-level kinds are made here; those with byte fallback
are made of weights/tiny-llama's pieces.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import sentencepiece

from minilm_inf.text.byte_level import LLAMA3_PATTERN
from minilm_inf.text.byte_pairs import DIGITS, LEVEL

FOLDER = Path(__file__).parent / "fixtures" / "tokenizers"
PIECES = Path(__file__).parents[1] / "weights" / "tiny-llama" / "tokenizer.model"
BARE = LEVEL | {"use_regex": False}


def folder_of(path: Path, **contents) -> Path:
    """A folder with JSON files of these contents, by the names before their dots."""
    for name, content in contents.items():
        (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return path


def added(id: int, content: str, special: bool = True, normalized: bool = False) -> dict:
    """An entry of added_tokens."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return {"id": id, "content": content, "special": special, "normalized": normalized, **flags}


def split(pattern: str) -> dict:
    """A pre-tokenizer that cuts at both ends of every match."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
            "invert": False}  # fmt: skip


def steps(name: str, *parts: dict) -> dict:
    """Normalizers, pretokenizers, processors or decoders one after the other."""
    return {"type": "Sequence", name: list(parts)}


def template(token: str, id: int) -> dict:
    """A post-processor that puts one special token before a text."""
    first, second = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, first],
        "pair": [first, second],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    }


def whole(vocab, merges, pre_tokenizer, added_tokens, ignore_merges=False, **more) -> dict:
    """A tokenizer.json of a byte-level BPE; `more` replaces its other parts."""
    model = {"type": "BPE", "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges}
    parts = {"pre_tokenizer": pre_tokenizer, "added_tokens": added_tokens, "model": model}
    return {"version": "1.0", "normalizer": None, "decoder": LEVEL, **parts, **more}


def kinds(vocab: dict[str, int], merges: list[str]) -> dict[str, dict]:
    """A tokenizer.json of every byte-level structure but Llama 3's, all on the same merges.

    vocab: token in letters -> id, "<|endoftext|>" among them, the ids without gaps.
    """
    n = len(vocab)
    end = added(vocab["<|endoftext|>"], "<|endoftext|>")
    spaces = (added(n + 1 + at, " " * (24 - at), False, normalized=True) for at in range(23))
    neox = [end, added(n, "<|padding|>"), *spaces]
    return {
        "GPT-2, json": whole(vocab, merges, LEVEL, [end]),
        "SmolLM2": whole(vocab, merges, DIGITS, [end]),
        "NeoX, NFC": whole(vocab, merges, LEVEL, neox, normalizer={"type": "NFC"}),
    }


def every_merge(vocab: dict[str, int]) -> list[list[str]]:
    """Every two tokens that make a third, in its order."""
    cuts = ((token[:at], token[at:]) for token in vocab for at in range(1, len(token)))
    return [[a, b] for a, b in cuts if a in vocab and b in vocab]


def llama3(spelled: list[str]) -> dict:
    """The tokenizer.json of ranked tokens, as Llama 3 has it: every pair is a merge.

    spelled: the tokens in letters, by rank; the specials' ids follow.
    """
    vocab, start = {token: rank for rank, token in enumerate(spelled)}, len(spelled)
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    return whole(
        vocab, every_merge(vocab),
        steps("pretokenizers", split(LLAMA3_PATTERN), BARE),
        [added(id, token) for id, token in enumerate(specials, start)],
        ignore_merges=True,
        post_processor=steps("processors", LEVEL, template(specials[0], start)),
    )  # fmt: skip


PREPEND = {"type": "Prepend", "prepend": "▁"}
UNDERLINE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
SPACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
BYTES, FUSE = {"type": "ByteFallback"}, {"type": "Fuse"}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def metaspace(scheme: str, split: bool) -> dict:
    """A pre-tokenizer, and the decoder of the same name."""
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def piece_kinds() -> dict[str, dict]:
    """A tokenizer.json of every structure of a Llama's that is implemented, all on tiny-llama's
    pieces: <unk>, <s> and </s> are 0, 1 and 2, then 256 bytes, then pieces."""
    model = sentencepiece.SentencePieceProcessor(str(PIECES))
    vocab = {model.IdToPiece(id): id for id in range(len(model))}
    n, merges = len(vocab), every_merge(vocab)
    own = [added(id, token) for token, id in vocab.items() if id < 3]
    llama = steps("decoders", SPACE, BYTES, FUSE, STRIP)

    def made(tokens=(), decoder=llama, pre=None, merges=merges, **more):
        raw = whole(vocab, merges, pre, [*own, *tokens], decoder=decoder, **more)
        raw["model"] |= {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
        return raw

    plain = [added(n, "[INST]"), added(vocab["ab"], "ab", False), added(n + 1, "=>", False)]
    flagged = [token | {"normalized": True} for token in plain]
    blanks = [added(n, "\n\n", False), added(n + 1, "  ", False)]
    both = template("<s>", 1)
    both["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    both["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    legacy = steps("normalizers", PREPEND, UNDERLINE)
    return {
        "Llama 2": made(
            normalizer=legacy, post_processor=template("<s>", 1),
            merges=[" ".join(pair) for pair in merges],
        ),
        "Llama, first": made(flagged, pre=metaspace("first", False), post_processor=both),
        "Prepend, added": made(plain, normalizer=legacy),
        "Metaspace": made(flagged, pre=metaspace("always", False)),
        "Gemma's steps": made(
            blanks, steps("decoders", SPACE, BYTES, FUSE), normalizer=UNDERLINE
        ),
    }  # fmt: skip


def small_kinds() -> dict[str, dict]:
    """Every byte-level kind of tokenizer.json, on the vocabulary of the fixtures."""
    vocab = json.loads((FOLDER / "vocab.json").read_text(encoding="utf-8"))
    lines = (FOLDER / "merges.txt").read_text(encoding="utf-8").split("\n")
    ranked = [token for token in vocab if token != "<|endoftext|>"]
    made = kinds(vocab, [line for line in lines[1:] if line])
    return made | {"Llama 3, json": llama3(ranked)}


def checksums(texts: list[str], encode, decode) -> dict[str, int]:
    """A checksum of all texts' ids, of what these decode to, and of what every second of them
    does, in which characters are torn."""
    ids = [list(encode(text)) for text in texts]
    rows = {"ids": ids, "text": [decode(row) for row in ids],
            "torn": [decode(row[::2]) for row in ids]}  # fmt: skip
    return {name: zlib.crc32(repr(values).encode()) for name, values in rows.items()}

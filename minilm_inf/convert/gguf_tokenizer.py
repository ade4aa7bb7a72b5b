"""The tokenizer in a GGUF's metadata, as the files that stand beside a checkpoint.

    tokenizer.ggml.model "gpt2"    byte-level BPE: tokens and merges   -> tokenizer.json
    tokenizer.ggml.model "llama"   sentencepiece: pieces and scores    -> tokenizer.model

and in both cases a tokenizer_config.json with the special tokens and the chat template. How the
text is cut into words is not in a GGUF: tokenizer.ggml.pre only names it, and a name is known
here or refused.
"""

from __future__ import annotations

import json
import struct

from ..terminal.files import named, shown
from ..text.words import LLAMA3_PATTERN

REQUIRED = object()
KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false", list: "list"}
NO_BOS = "its text begins with a BOS, but tokenizer.ggml.bos_token_id is missing"
KNOWN = "model pre tokens token_type merges add_bos_token token_type_count".split()
KNOWN_IN_PIECES = "scores add_space_prefix remove_extra_whitespaces".split()
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type


def _byte_level(use_regex: bool) -> dict:
    return {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
        "use_regex": use_regex,
    }  # fmt: skip


def _sequence(first: dict, use_regex: bool) -> dict:
    return {"type": "Sequence", "pretokenizers": [first, _byte_level(use_regex)]}


GPT2 = _byte_level(use_regex=True)
SMOLLM = _sequence({"type": "Digits", "individual_digits": True}, use_regex=True)
LLAMA3 = _sequence(
    {
        "type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated",
        "invert": False,
    },
    use_regex=False,
)  # fmt: skip
WORDS = {  # tokenizer.ggml.pre -> pre_tokenizer
    "gpt-2": GPT2, "smollm": SMOLLM, "llama-bpe": LLAMA3, "llama3": LLAMA3, "llama-v3": LLAMA3,
}  # fmt: skip


def tokenizer_files(fields: dict, context_length: int) -> dict[str, bytes]:
    """The files' names and contents, from a GGUF's metadata.

    Raises ValueError, in one sentence, for a tokenizer that cannot be written exactly.
    """
    _only_what_is_implemented(fields)
    kind, tokens = _get(fields, "model", str), _list(fields, "tokens", str)
    types = _list(fields, "token_type", int)
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ValueError(f"its {len(tokens)} tokens and {len(types)} token types do not fit")
    if not set(types) <= set(range(1, 7)):
        raise ValueError("its tokenizer.ggml.token_type holds a number that is no type")
    specials = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        id = _get(fields, f"{key}_token_id", int, None)
        if id is not None and not 0 <= id < len(tokens):
            raise ValueError(f"tokenizer.ggml.{key}_token_id is {id}, which is no token")
        specials[name] = None if id is None else tokens[id]
    if kind == "gpt2":
        files = {"tokenizer.json": _tokenizer_json(fields, tokens, types, specials["bos"])}
    elif kind == "llama":
        files = {"tokenizer.model": _tokenizer_model(fields, tokens, types, specials)}
    else:
        raise ValueError(
            f'its tokenizer.ggml.model is {shown(kind)}, and only "gpt2" and "llama" are '
            "implemented"
        )
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast" if kind == "gpt2" else "LlamaTokenizer",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": _adds_bos(fields),
    }
    about |= {f"{name}_token": token for name, token in specials.items() if token is not None}
    template = fields.get("tokenizer.chat_template")
    if isinstance(template, str):
        about["chat_template"] = template
    return files | {"tokenizer_config.json": _json(about)}


def _only_what_is_implemented(fields: dict):
    """Raise ValueError, by name, for a field that may change the ids of a text."""
    kind = fields.get("tokenizer.ggml.model")
    for key, value in fields.items():
        name = key.removeprefix("tokenizer.ggml.")
        ours = name == key or name in KNOWN or name.endswith("_token_id")
        off = value is False and name in ("add_eos_token", "add_sep_token", "add_space_prefix")
        if not (ours or off or (kind == "llama" and name in KNOWN_IN_PIECES)):
            raise ValueError(f"its {named(key)} is {shown(value)}, which is not implemented")


def _json(value: dict) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _get(fields: dict, name: str, kind: type, default=REQUIRED):
    """A fact of the tokenizer. Raises ValueError where it is missing or of another kind."""
    value = fields.get(f"tokenizer.ggml.{name}")
    if value is None and default is not REQUIRED:
        return default
    if not isinstance(value, kind):
        raise ValueError(f"its tokenizer.ggml.{name} is missing, or no {KINDS[kind]}")
    return value


def _list(fields: dict, name: str, kind: type) -> list:
    """A list of the tokenizer. Raises ValueError where it is missing or of another kind."""
    values = _get(fields, name, list)
    if not all(type(value) is kind for value in values):
        raise ValueError(f"its tokenizer.ggml.{name} holds what is no {KINDS[kind]}")
    return values


def _adds_bos(fields: dict) -> bool:
    """Whether BOS stands before every text; where nothing is said, as llama.cpp has it."""
    llama3 = WORDS.get(fields.get("tokenizer.ggml.pre")) is LLAMA3
    usual = llama3 or fields["tokenizer.ggml.model"] == "llama"
    return _get(fields, "add_bos_token", bool, usual)


def _tokenizer_json(fields: dict, tokens: list, types: list, bos: str | None) -> bytes:
    """tokenizer.json in the tokenizers library's format.

    Every token is in the vocabulary, with its id; those that mark places are added tokens too,
    so that they are found whole before the text is cut.
    """
    pre = _get(fields, "pre", str, "absent")
    if pre not in WORDS:
        raise ValueError(
            f"its tokenizer.ggml.pre is {shown(pre)}, and how that cuts a text into words is "
            f"not known here (known are {', '.join(WORDS)})"
        )
    merges = _list(fields, "merges", str)
    known = set(tokens)
    for merge in merges:
        pair = merge.split(" ")
        if len(pair) != 2 or not {*pair, "".join(pair)} <= known:
            raise ValueError(f"its merge {shown(merge)} is not of two tokens that make a third")
    added = [
        {
            "id": id, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": kind == CONTROL,
        }
        for id, (token, kind) in enumerate(zip(tokens, types))
        if kind in (CONTROL, USER_DEFINED)
    ]  # fmt: skip
    return _json(
        {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": None, "pre_tokenizer": WORDS[pre],
            "post_processor": _before(bos, tokens) if _adds_bos(fields) else None,
            "decoder": {**_byte_level(use_regex=True), "add_prefix_space": True},
            "model": {
                "type": "BPE", "dropout": None, "unk_token": None,
                "continuing_subword_prefix": None, "end_of_word_suffix": None,
                "fuse_unk": False, "byte_fallback": False,
                "ignore_merges": WORDS[pre] is LLAMA3,
                "vocab": {token: id for id, token in enumerate(tokens)}, "merges": merges,
            },
        }
    )  # fmt: skip


def _before(bos: str | None, tokens: list) -> dict:
    """The post_processor that puts BOS before a text."""
    if bos is None:
        raise ValueError(NO_BOS)
    mark, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"id": "A", "type_id": 0}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [mark, {"Sequence": text}],
        "pair": [mark, {"Sequence": text}, mark, second],
        "special_tokens": {bos: {"id": bos, "ids": [tokens.index(bos)], "tokens": [bos]}},
    }


def _tokenizer_model(fields: dict, tokens: list, types: list, specials: dict) -> bytes:
    """tokenizer.model: a sentencepiece ModelProto, field by field.

    The types of a GGUF are sentencepiece's own, and so are the scores. Llama's tokenizers do
    not normalise; whoever does says so by a field that is refused above.
    """
    scores = _list(fields, "scores", float)
    if len(scores) != len(tokens) or types.count(UNKNOWN) != 1:
        raise ValueError("its pieces, scores and one unknown piece do not fit together")
    if not _adds_bos(fields):
        raise ValueError("its tokenizer.ggml.add_bos_token is false, which is not implemented")
    if specials["bos"] is None:
        raise ValueError(NO_BOS)
    pieces = b"".join(
        _field(1, _field(1, token.encode()) + _float(2, score) + _number(3, kind))
        for token, score, kind in zip(tokens, scores, types)
    )
    names = {  # without a name sentencepiece takes <s>; the name of no piece means none
        45: specials["unk"] or tokens[types.index(UNKNOWN)], 46: specials["bos"],
        47: specials["eos"] or "none", 48: specials["pad"] or "none",
    }  # fmt: skip
    trainer = _number(3, 2)  # model_type: BPE
    trainer += _number(4, len(tokens)) + _number(35, BYTE in types)  # vocab_size, byte_fallback
    trainer += b"".join(_field(number, name.encode()) for number, name in names.items())
    prefix = _get(fields, "add_space_prefix", bool, True)
    spaces = _get(fields, "remove_extra_whitespaces", bool, False)
    normalizer = _field(1, b"identity") + _number(3, prefix) + _number(4, spaces)
    normalizer += _number(5, 1)  # escape_whitespaces: a space is written as ▁
    return pieces + _field(2, trainer) + _field(3, normalizer)


def _varint(value: int) -> bytes:
    """A whole number in protobuf's spelling: seven bits a byte, the lowest first.

    >>> _varint(300).hex()
    'ac02'
    """
    out = []
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(int(value))


def _float(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)

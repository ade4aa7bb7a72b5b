"""A sentencepiece model as the bytes of its file, a ModelProto of protobuf, field by field."""

from __future__ import annotations

import struct

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces


def model_proto(pieces: list[tuple[str, float, int]], names: dict, **spaces: bool) -> bytes:
    """The model of pieces: (text, score, type) by id; neighbours that make the piece with the
    highest score are joined first.

    names: "bos", "eos" and "pad" -> the piece of that name, or None.
    spaces: prefix, whether a space is put before a text; extra, whether more than one in a row
    are made one.
    """
    proto = b"".join(
        _field(1, _field(1, text.encode()) + _float(2, score) + _number(3, kind))
        for text, score, kind in pieces
    )
    unknown = next(text for text, _, kind in pieces if kind == UNKNOWN)
    trainer = _number(3, 2) + _number(4, len(pieces))  # model_type BPE, vocab_size
    trainer += _number(35, any(kind == BYTE for *_, kind in pieces))  # byte_fallback
    # Without a name sentencepiece takes <s>; the name of no piece means none.
    trainer += _field(45, unknown.encode())
    for number, name in ((46, "bos"), (47, "eos"), (48, "pad")):
        trainer += _field(number, (names.get(name) or "none").encode())
    normalizer = _field(1, b"identity") + _number(3, spaces["prefix"])
    normalizer += _number(4, spaces["extra"]) + _number(5, 1)  # a space is written as ▁
    return proto + _field(2, trainer) + _field(3, normalizer)


def _number(number: int, value: int, wire: int = 0) -> bytes:
    """A field that is a whole number, in protobuf's spelling: seven bits a byte, the lowest
    first.

    >>> _number(1, 300).hex()
    '08ac02'
    """
    out = []
    for rest in (number << 3 | wire, int(value)):
        while rest > 127:
            out.append(rest & 127 | 128)
            rest >>= 7
        out.append(rest)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    return _number(number, len(content), wire=2) + content


def _float(number: int, value: float) -> bytes:
    return bytes([number << 3 | 5]) + struct.pack("<f", value)

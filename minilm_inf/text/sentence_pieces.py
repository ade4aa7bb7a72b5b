"""Sentencepiece tokenizers: Llama 1 and 2, Mistral, TinyLlama, this project's tiny-llama."""

from __future__ import annotations

import struct
from pathlib import Path

import sentencepiece

from .around import Around, Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces
SPACE = "▁"
WITHOUT_SPACE = b"\x1a\x02\x18\x00"  # appended to a model: normalizer_spec.add_dummy_prefix = 0


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model.

    processor: it at work; inside: the same within a text, where it mostly puts no space before
    what it reads. tokens: the pieces' texts by their ids, but of those that are no text.
    strips: whether the space before a decoded text goes.
    """

    def __init__(self, around: Around, processor, inside, tokens: dict[int, str], strips: bool):
        self.processor, self.inside, self.strips = processor, inside, strips
        self.n_pieces = processor.GetPieceSize()
        super().__init__(around, max([self.n_pieces, *(a.id + 1 for a in around.added)]))
        controls = (id for id in range(self.n_pieces) if id not in tokens)
        self.marks = {processor.IdToPiece(id): id for id in controls} | self.marks
        self.tokens = tokens | {token.id: token.content for token in around.added}

    def _encode_text(self, text: str, begun: bool) -> list[int]:
        return (self.inside if begun else self.processor).EncodeAsIds(text)

    def bytes_of(self, id: int, opening: bool = False) -> bytes | None:
        """The bytes that an id stands for inside a text, or where one begins (opening), without
        the space that stands for its beginning: none for a special token or a control piece,
        and None for the unknown piece, which may stand for any."""
        own = self.checked(id) < self.n_pieces
        if id in self.special_ids:
            return b""
        if own and self.processor.IsUnknown(id):
            return None
        if own and self.processor.IsByte(id):
            return bytes.fromhex(self.tokens[id][3:5])  # "<0x41>"
        text = self.tokens.get(id, "")
        text = text.removeprefix(SPACE) if opening and self.strips else text
        return text.replace(SPACE, " ").encode()


def processor_of(content: bytes, path: Path) -> sentencepiece.SentencePieceProcessor:
    """A sentencepiece model at work. Raises ValueError for bytes that are none."""
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
        for id in range(processor.GetPieceSize()):
            processor.IdToPiece(id)
    except (RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not a readable sentencepiece model: fetch it again, or train one"
        ) from error
    return processor


def model_proto(pieces: list[tuple[str, float, int]], names: dict, **spaces: bool) -> bytes:
    """The bytes of a model (a ModelProto of protobuf) of pieces: (text, score, type) by id;
    neighbours that make the piece with the highest score are joined first.

    names: "bos", "eos" and "pad" -> the piece of that name, or None.
    spaces: prefix, whether a space is put before a text; extra, whether more than one in a row
    are made one.
    """
    unknown = next(text for text, _, kind in pieces if kind == UNKNOWN)
    # Without a name sentencepiece takes <s>; the name of no piece means none.
    named = (names.get(name) or "none" for name in ("bos", "eos", "pad"))
    trainer = _message(
        (3, 2), (4, len(pieces)),  # model_type BPE, vocab_size
        (35, any(kind == BYTE for *_, kind in pieces)),  # byte_fallback
        *((45 + at, text.encode()) for at, text in enumerate([unknown, *named])),
    )  # fmt: skip
    normalizer = _message(  # a space is written as ▁
        (1, b"identity"), (3, spaces["prefix"]), (4, spaces["extra"]), (5, 1)
    )
    each = (_message((1, text.encode()), (2, score), (3, kind)) for text, score, kind in pieces)
    return _message(*((1, piece) for piece in each), (2, trainer), (3, normalizer))


def _message(*fields: tuple[int, bytes | float | int]) -> bytes:
    """Numbered fields in protobuf's spelling."""
    out = []
    for number, value in fields:
        if isinstance(value, bytes):
            out += _number(number << 3 | 2), _number(len(value)), value
        elif isinstance(value, float):
            out += _number(number << 3 | 5), struct.pack("<f", value)
        else:
            out += _number(number << 3), _number(int(value))
    return b"".join(out)


def _number(value: int) -> bytes:
    """A whole number in protobuf's spelling: seven bits a byte, the lowest first.

    >>> _number(300).hex()
    'ac02'
    """
    out = []
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])

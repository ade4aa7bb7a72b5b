"""sentencepiece: pieces of text in which a space is written as ▁, and bytes for what no piece
covers (Llama 1 and 2, Mistral, TinyLlama, and this project's tiny-llama)."""

from __future__ import annotations

import codecs
import dataclasses
import functools
from itertools import groupby
from pathlib import Path

import sentencepiece

from .around import Around, Tokenizer

WITHOUT_SPACE = b"\x1a\x02\x18\x00"  # appended to a model: normalizer_spec.add_dummy_prefix = 0


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model.

    around: tokens that a checkpoint has added after the model's pieces; those of the model's
        own that are listed again are left out, so that a control piece (BOS) that is written
        out in a text is text.
    spaced: whether text after an added token gets a space before it, as at the beginning.
    Raises ValueError for bytes that sentencepiece cannot read.
    """

    def __init__(self, content: bytes, path: Path, around: Around, spaced: bool = False):
        self.content, self.spaced = content, spaced
        self.processor = processor_of(content, path)
        self.n_pieces = self.processor.GetPieceSize()
        added = tuple(token for token in around.added if token.id >= self.n_pieces)
        vocab_size = max([self.n_pieces, *(token.id + 1 for token in added)])
        super().__init__(dataclasses.replace(around, added=added), vocab_size)
        self.words = {token.id: token.content for token in added if not token.special}
        special = (self.processor.IsControl, self.processor.IsUnknown, self.processor.IsByte)
        ids = range(self.n_pieces)
        self.ordinary_id = next(id for id in ids if not any(test(id) for test in special))

    @functools.cached_property
    def inside(self) -> sentencepiece.SentencePieceProcessor:
        """The same model inside a text: no space is put before what it reads, nor taken."""
        return processor_of(self.content + WITHOUT_SPACE, "tokenizer.model")

    def _encode_text(self, text: str, begun: bool) -> list[int]:
        inside = begun and not self.spaced
        return (self.inside if inside else self.processor).EncodeAsIds(text)

    def mark_id(self, content: str) -> int | None:
        """The id of the added token or the control piece that is written so, if any."""
        if content in self.marks:
            return self.marks[content]
        id = self.processor.PieceToId(content)
        return id if self.processor.IsControl(id) else None

    def decode(self, ids: list[int]) -> str:
        """The text of ids; BOS, EOS, special tokens and other control ids leave no trace.

        Raises ValueError for an id outside 0 .. vocab_size - 1.
        """
        text, processor = "", self.processor
        written = [id for id in map(self.checked, ids) if not self.leaves_no_trace(id)]
        for word, run in groupby(written, self.words.get):
            run_ids = list(run)
            text += processor.DecodeIds(run_ids) if word is None else word * len(run_ids)
            processor = self.inside
        return text

    def stream(self, begun: bool = False) -> Stream:
        """A decoder for ids that arrive one by one; `begun` if they continue a text."""
        return Stream(self, begun)

    def byte(self, id: int) -> int | None:
        """The byte (0 to 255) that an id stands for, None if it stands for a piece of text."""
        if self.checked(id) >= self.n_pieces or not self.processor.IsByte(id):
            return None
        return int(self.processor.IdToPiece(id)[1:-1], 16)  # "<0x41>"

    def bytes_of(self, id: int) -> bytes | None:
        """The bytes that an id stands for inside a text: none for a special token or a control
        piece, and None for the unknown piece, which may stand for any."""
        if self.leaves_no_trace(id):
            return b""
        if id in self.words:
            return self.words[id].encode()
        if self.processor.IsUnknown(id):
            return None
        byte = self.byte(id)
        if byte is not None:
            return bytes([byte])
        return self.processor.IdToPiece(id).replace("▁", " ").encode()

    def leaves_no_trace(self, id: int) -> bool:
        """Whether an id is a special token, none at all, or a control piece such as BOS."""
        if self.checked(id) >= self.n_pieces:
            return id not in self.words
        return self.processor.IsControl(id)


def processor_of(content: bytes, path: Path | str) -> sentencepiece.SentencePieceProcessor:
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


class Stream:
    """Text as it becomes certain: bytes wait until they form a character.

    What push returns, joined, with flush at the end, is decode of all ids at once. Where the
    text continues one that was shown before (`begun`), a leading space is kept, as it is inside
    a text: the ids are then decoded behind an ordinary piece, whose own text is taken away
    again.
    """

    def __init__(self, tokenizer: SentencePieceTokenizer, begun: bool = False):
        self.tokenizer = tokenizer
        self.begun = begun
        self.waiting: list[int] = []

    def push(self, id: int) -> str:
        """The text that this id completes, perhaps none."""
        self.waiting.append(id)
        values = [self.tokenizer.byte(id) for id in self.waiting]
        if values[-1] is None:
            return self.flush()
        return self._release(complete_bytes(bytes(values)))

    def flush(self) -> str:
        """The text of whatever still waits."""
        return self._release(len(self.waiting))

    def _release(self, count: int) -> str:
        ready, self.waiting = self.waiting[:count], self.waiting[count:]
        if not ready:
            return ""
        before = [self.tokenizer.ordinary_id] if self.begun else []
        text = self.tokenizer.decode(before + ready)[len(self.tokenizer.decode(before)) :]
        traceless = all(self.tokenizer.leaves_no_trace(id) for id in ready)
        self.begun = self.begun or not traceless  # "▁" first is no text
        return text


def complete_bytes(raw: bytes) -> int:
    """How many leading bytes of `raw` can be decoded whatever follows.

    Those behind them are the beginning of one character. Bytes that begin none are complete.

    >>> complete_bytes("é".encode() + "€".encode()[:2])
    2
    """
    at = 0
    while at < len(raw):
        for length in range(1, min(4, len(raw) - at) + 1):
            try:
                if codecs.decode(raw[at : at + length], "utf-8"):
                    break
            except UnicodeDecodeError:
                continue
        else:
            try:
                codecs.getincrementaldecoder("utf-8")().decode(raw[at:])
                return at
            except UnicodeDecodeError:
                length = 1
        at += length
    return at

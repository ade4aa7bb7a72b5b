"""sentencepiece: pieces of text in which a space is written as ▁, and bytes for what no piece
covers (Llama 1 and 2, Mistral, TinyLlama, and this project's tiny-llama)."""

from __future__ import annotations

import codecs
from pathlib import Path

import sentencepiece


class SentencePieceTokenizer:
    """A sentencepiece model. bos_id and eos_id are None where the model has none.

    marks: special tokens, content -> id, that a checkpoint has added behind the model's pieces
        (a padding token, mostly). They leave no trace in a text, and cannot be written in one:
        programs do not agree on the spaces around them.
    Raises ValueError for a file that sentencepiece cannot read.
    """

    def __init__(self, path: Path, marks: dict[str, int] | None = None):
        self.marks = marks or {}
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.LoadFromSerializedProto(Path(path).read_bytes())
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{path} is not a readable sentencepiece model: fetch it again, or train one"
            ) from error
        self.n_pieces = self.processor.GetPieceSize()
        # A file lists the model's own specials as well.
        self.marks = {mark: id for mark, id in self.marks.items() if id >= self.n_pieces}
        self.vocab_size = max([self.n_pieces, *(id + 1 for id in self.marks.values())])
        self.bos_id = self._special(self.processor.bos_id())
        self.eos_id = self._special(self.processor.eos_id())
        special = (self.processor.IsControl, self.processor.IsUnknown, self.processor.IsByte)
        ids = range(self.n_pieces)
        self.ordinary_id = next(id for id in ids if not any(test(id) for test in special))

    @staticmethod
    def _special(id: int) -> int | None:
        return id if id >= 0 else None

    def encode(self, text: str, bos: bool = True, special: bool = True) -> list[int]:
        """The ids of a text, BOS in front unless bos is False. "" is BOS alone, or nothing.

        special: whether a mark in the text is refused, or text like any other. A control piece
        (BOS) that is written out in a text is text.
        Raises ValueError for text that is not Unicode (half of a surrogate pair), or that holds
        one of the marks.
        """
        mark = next((mark for mark in self.marks if special and mark in text), None)
        if mark is not None:
            raise ValueError(
                f"the text holds {mark!r}, which was added to a sentencepiece model: how the "
                "text around it is cut is not implemented"
            )
        try:
            ids = self.processor.EncodeAsIds(text.encode("utf-8").decode("utf-8"))
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not Unicode: {error}") from error
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids; BOS, EOS and other control ids leave no trace.

        Raises ValueError for an id outside 0 .. vocab_size - 1.
        """
        return self.processor.DecodeIds(
            [self._checked(id) for id in ids if not self.n_pieces <= id < self.vocab_size]
        )

    def stream(self, begun: bool = False) -> Stream:
        """A decoder for ids that arrive one by one; `begun` if they continue a text."""
        return Stream(self, begun)

    def byte(self, id: int) -> int | None:
        """The byte (0 to 255) that an id stands for, None if it stands for a piece of text."""
        if self.leaves_no_trace(id) or not self.processor.IsByte(id):
            return None
        return int(self.processor.IdToPiece(id)[1:-1], 16)  # "<0x41>"

    def bytes_of(self, id: int) -> bytes | None:
        """The bytes that an id stands for inside a text: none for a mark or a control piece,
        and None for the unknown piece, which may stand for any."""
        if self.leaves_no_trace(id):
            return b""
        if self.processor.IsUnknown(id):
            return None
        byte = self.byte(id)
        if byte is not None:
            return bytes([byte])
        return self.processor.IdToPiece(id).replace("▁", " ").encode()

    def leaves_no_trace(self, id: int) -> bool:
        """Whether an id is a mark, or a control piece such as BOS."""
        return self._checked(id) >= self.n_pieces or self.processor.IsControl(id)

    def _checked(self, id: int) -> int:
        if not 0 <= id < self.vocab_size:
            raise ValueError(
                f"id {id} is out of range: the tokenizer has the ids 0 to {self.vocab_size - 1}"
            )
        return int(id)


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

"""Text to ids and back.

A tokenizer.model of sentencepiece (Llama 1 and 2, Mistral, TinyLlama, and the tiny models of this
project): pieces of text in which a space is written as ▁, and bytes for what no piece covers.
"""

from __future__ import annotations

from pathlib import Path

import sentencepiece

SPACE = "\u2581"


class SentencePieceTokenizer:
    """A sentencepiece model. bos_id and eos_id are None where the model has none."""

    def __init__(self, path: Path):
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.LoadFromSerializedProto(Path(path).read_bytes())
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{path} is not a readable sentencepiece model; fetch it again, or train one"
            ) from error
        self.vocab_size = self.processor.GetPieceSize()
        self.bos_id = self._special(self.processor.bos_id())
        self.eos_id = self._special(self.processor.eos_id())

    @staticmethod
    def _special(id: int) -> int | None:
        return id if id >= 0 else None

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """The ids of a text, BOS in front unless bos is False."""
        ids = self.processor.EncodeAsIds(text)
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids; BOS, EOS and other control ids leave no trace."""
        return self.processor.DecodeIds([self._checked(id) for id in ids])

    def stream(self) -> Stream:
        """A decoder for ids that arrive one by one."""
        return Stream(self)

    def _checked(self, id: int) -> int:
        if not 0 <= id < self.vocab_size:
            raise ValueError(
                f"id {id} is out of range: the tokenizer has the ids 0 to {self.vocab_size - 1}"
            )
        return int(id)


class Stream:
    """Text as it becomes certain: bytes wait until they form a character.

    What push returns, joined, and flush at the end, is what decode would give for all ids at once.
    """

    def __init__(self, tokenizer: SentencePieceTokenizer):
        self.tokenizer = tokenizer
        self.waiting = []  # ids that may not yet be printed
        self.printed_any = False

    def push(self, id: int) -> str:
        """The text that this id completes, perhaps none."""
        raise AssertionError

"""Text to ids and back, by whatever tokenizer a checkpoint's folder holds.

    tokenizer.model            sentencepiece (Llama 1 and 2, Mistral, TinyLlama), or tiktoken's
                               ranks (Llama 3)
    tokenizer.json             byte-level BPE (GPT-NeoX for MPT, GPT-J, Llama 3, SmolLM2)
    vocab.json, merges.txt     byte-level BPE in GPT-2's files

The first of these that is there is used. Every tokenizer has encode, decode, stream, bos_id,
eos_id and vocab_size.
"""

from __future__ import annotations

from pathlib import Path

from .checkpoint import check_folder
from .files import read_json
from .tokenizers.byte_level import ByteLevelTokenizer
from .tokenizers.recipe_files import (
    from_rank_file,
    from_tokenizer_json,
    from_vocab_and_merges,
    is_rank_file,
)
from .tokenizers.sentence_pieces import SentencePieceTokenizer


def load(folder) -> SentencePieceTokenizer | ByteLevelTokenizer:
    """The tokenizer that a checkpoint's folder holds. Raises ValueError, in one sentence, where
    it holds none, or one that cannot be used exactly."""
    folder = Path(folder)
    check_folder(folder)
    model, json_file = folder / "tokenizer.model", folder / "tokenizer.json"
    if model.is_file():
        if is_rank_file(model):
            return ByteLevelTokenizer(from_rank_file(model))
        return sentence_pieces(model, added_tokens(folder))
    if json_file.is_file():
        return ByteLevelTokenizer(from_tokenizer_json(json_file))
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return ByteLevelTokenizer(from_vocab_and_merges(folder))
    raise ValueError(
        f"{folder} holds no tokenizer: copy the model's tokenizer.model or tokenizer.json there"
    )


def added_tokens(folder: Path) -> list[dict]:
    """What files beside a tokenizer.model add to it, as tokenizer.json spells it."""
    if (folder / "tokenizer.json").is_file():
        return read_json(folder / "tokenizer.json").get("added_tokens") or []
    if (folder / "added_tokens.json").is_file():
        added = read_json(folder / "added_tokens.json")
        return [{"content": token, "id": id, "special": True} for token, id in added.items()]
    return []


def sentence_pieces(path: Path, added: list[dict]) -> SentencePieceTokenizer:
    """A sentencepiece model and its added marks. Raises ValueError for other added tokens."""
    marks = {token["content"]: token["id"] for token in added if token.get("special")}
    tokenizer = SentencePieceTokenizer(path, marks)
    for token in added:
        if token["id"] >= tokenizer.n_pieces and not token.get("special"):
            raise ValueError(
                f"{token['content']!r} was added to {path}: a sentencepiece model with added "
                "words is not implemented"
            )
    return tokenizer


def opening(tokenizer) -> list[int]:
    """What encode puts before a text: BOS, or nothing."""
    bos = tokenizer.bos_id
    return [bos] if bos is not None and tokenizer.encode("a")[:1] == [bos] else []


class StopAt:
    """Text that passes until one of `stops` is complete in it, however it was cut into pieces.

    What could still become a stop text is held back.
    """

    def __init__(self, stops: list[str]):
        self.stops = stops
        self.held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that may be shown now; `stopped` is set where a stop text was found."""
        self.held += text
        found = [at for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self.held = self.held[: min(found)], ""
            return shown
        keep = max(
            (
                n
                for stop in self.stops
                for n in range(1, len(stop))
                if self.held.endswith(stop[:n])
            ),
            default=0,
        )
        cut = len(self.held) - keep
        shown, self.held = self.held[:cut], self.held[cut:]
        return shown

    def flush(self) -> str:
        """What was held back, where no stop text came of it."""
        shown, self.held = self.held, ""
        return shown

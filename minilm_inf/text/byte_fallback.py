"""BPE on characters, with bytes for those that no token has (a Llama's tokenizer.json).

A space is written as ▁, by the normalizer or by the pre-tokenizer Metaspace, which may also put
one before a text. What no token covers becomes bytes, each a token like <0xE2>, or the unknown
token. All is done as the tokenizers library does it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from .around import Around, Tokenizer
from .decoders import BYTE, Decoder
from .merging import merged

SPACE = "▁"
LONGEST_KEPT = 40  # characters of a word whose ids are remembered


@dataclass(frozen=True)
class Metaspace:
    """The pre-tokenizer. scheme: whether a mark is put before the "first" piece of a text,
    "always", or "never"; split: whether every mark begins a word of its own."""

    mark: str
    scheme: str
    split: bool

    def words(self, text: str, begun: bool) -> list[str]:
        """The words of a text; begun: whether it is not the first piece."""
        text = text.replace(" ", self.mark)
        wanted = self.scheme == "always" or (self.scheme == "first" and not begun)
        if wanted and not text.startswith(self.mark):
            text = self.mark + text
        mark = re.escape(self.mark)
        return re.findall(f"{mark}[^{mark}]*|[^{mark}]+", text) if self.split else [text]


@dataclass(frozen=True, kw_only=True)
class Pieces(Around):
    """All that makes such a tokenizer.

    vocab:   token -> id. merges: (id, id) -> (rank, id of both together).
    ignore_merges: a word that is a token is taken whole.
    unknown: the id for characters that have none; fuse_unknown: one for a run of them.
    decoder: begins a Decoder, for a text that continues another or not.
    """

    vocab: dict[str, int]
    merges: dict[tuple[int, int], tuple[int, int]]
    decoder: Callable[[bool], Decoder]
    ignore_merges: bool = False
    byte_fallback: bool = False
    unknown: int | None = None
    fuse_unknown: bool = False
    metaspace: Metaspace | None = None


class ByteFallbackTokenizer(Tokenizer):
    """Pieces at work."""

    def __init__(self, pieces: Pieces):
        self.pieces = pieces
        self.tokens = {id: token for token, id in pieces.vocab.items()}
        self.tokens |= {added.id: pieces.content(added) for added in pieces.added}
        super().__init__(pieces, max(self.tokens) + 1)
        bytes_of = (pieces.vocab.get(f"<0x{byte:02X}>") for byte in range(256))
        self.byte_ids = list(bytes_of) if pieces.byte_fallback else [None] * 256
        self.cut = self._cut()
        self._remembered = functools.lru_cache(2**16)(self._merged)

    def _cut(self) -> re.Pattern | None:
        """Where a text may be cut before BPE, since no merge joins both sides of the place:
        before a ▁ that does not follow certain characters. None where that is nowhere."""
        if SPACE not in self.pieces.vocab:
            return None
        pairs = ((self.tokens[a], self.tokens[b]) for a, b in self.pieces.merges)
        joins = {a[-1] for a, b in pairs if b[0] == SPACE}
        if ">" in joins:  # so does a byte's token end
            return None
        behind = f"(?<![{''.join(map(re.escape, sorted(joins)))}])" if joins else ""
        return re.compile(f"{behind}(?={SPACE})")

    def _encode_text(self, text: str, begun: bool) -> list[int]:
        """The ids of a text without added tokens."""
        pieces, ids = self.pieces, []
        words = [text] if pieces.metaspace is None else pieces.metaspace.words(text, begun)
        for word in words:
            if pieces.ignore_merges and word in pieces.vocab:
                ids.append(pieces.vocab[word])
                continue
            for part in [word] if self.cut is None else self.cut.split(word):
                short = len(part) <= LONGEST_KEPT
                ids += self._remembered(part) if short else self._merged(part)
        return ids

    def _merged(self, word: str) -> list[int]:
        merges = self.pieces.merges
        return merged(self._letters(word), lambda a, b: merges.get((a, b)))

    def _letters(self, word: str) -> list[int]:
        """The ids of a word before anything is merged. An unknown character is written when the
        next known one comes, after bytes that stand in between: so does the library."""
        unknown, ids, waiting = self.pieces.unknown, [], False
        for letter in word:
            id = self.pieces.vocab.get(letter)
            found = [id] if id is not None else [self.byte_ids[b] for b in letter.encode()]
            if None not in found:
                if waiting and id is not None:
                    ids.append(unknown)
                    waiting = False
                ids += found
            elif unknown is not None:
                if waiting and not self.pieces.fuse_unknown:
                    ids.append(unknown)
                waiting = True
        return [*ids, unknown] if waiting else ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids; special ones leave no trace.

        Raises ValueError for an id outside 0 .. vocab_size - 1.
        """
        decoder = self.pieces.decoder(False)
        return decoder.push(self.shown(ids)) + decoder.flush()

    def shown(self, ids: list[int]) -> list[str]:
        """The tokens of ids without special ones, and ids that no token has."""
        hidden = self.special_ids
        tokens = [self.tokens.get(id) for id in map(self.checked, ids) if id not in hidden]
        return [token for token in tokens if token is not None]

    def stream(self, begun: bool = False) -> PieceStream:
        """A decoder for ids that arrive one by one; `begun` if they continue a text."""
        return PieceStream(self, begun)

    def bytes_of(self, id: int) -> bytes | None:
        """The bytes that an id stands for inside a text: none for a special one and for one
        that no token has, and None for the unknown one, which may stand for any."""
        if self.checked(id) == self.pieces.unknown:
            return None
        token = "" if id in self.special_ids else self.tokens.get(int(id), "")
        byte = BYTE.fullmatch(token)
        return bytes.fromhex(byte[1]) if byte else token.replace(SPACE, " ").encode()


class PieceStream:
    """Text as it becomes certain: what push returns, joined, with flush at the end, is decode
    of all ids at once."""

    def __init__(self, tokenizer: ByteFallbackTokenizer, begun: bool):
        self.tokenizer, self.decoder = tokenizer, tokenizer.pieces.decoder(begun)

    def push(self, id: int) -> str:
        """The text that this id completes, perhaps none."""
        return self.decoder.push(self.tokenizer.shown([id]))

    def flush(self) -> str:
        """The text of whatever still waits."""
        return self.decoder.flush()

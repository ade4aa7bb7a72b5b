"""Which token comes next: each document on its own, or all of them joined into one stream.

    source     where the ids are: texts, encoded, or a file of ids that stays on disk
    reading    in which order they are read: Separate or Joined

A reading is asked for any stretch of any of its texts and remembers nothing, so a run that was
interrupted needs to know no more than where it was.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from .. import corpus
from ..terminal.files import read_text, shown

PIECE = 1 << 20  # ids that are in memory at a time when all of a file is looked at


def texts_of(options) -> dict[str, str]:
    """The texts that --text or --corpus names."""
    if options.text:
        return {str(path): read_text(path) for path in options.text}
    return corpus.documents(options.corpus, held_out=True)


class Encoded:
    """Texts as ids, in memory: lengths (N,) of the documents, names, and their UTF-8 bytes.

    Raises ValueError for a text without any token.
    """

    def __init__(self, texts: dict[str, str], tokenizer, with_eos: bool):
        """with_eos: whether each document ends with EOS, if the tokenizer has one."""
        end = [tokenizer.eos_id] if with_eos and tokenizer.eos_id is not None else []
        self.names, self.documents = list(texts), []
        for name, text in texts.items():
            ids = tokenizer.encode(text, bos=False)
            if not ids:
                raise ValueError(f"{name} is empty: there is nothing to score in it")
            self.documents.append(np.array([*ids, *end], dtype=np.int32))
        self.n_bytes = [len(text.encode()) for text in texts.values()]
        self.lengths = np.array([len(ids) for ids in self.documents])
        self.n_end = len(end)

    def name(self, document: int) -> str:
        return self.names[document]

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """The ids from start to stop (exclusive) of one document: int64."""
        return self.documents[document][start:stop].astype(np.int64)


class TokensFile:
    """A .npy file of whole numbers: one dimension is one document, two are a row for each.

    Only what is asked for is read. It is read, not mapped: the pages of a mapped file stay in
    the resident memory of who has seen them. Raises ValueError, in one sentence, for a file
    that is no such array, and for an id that a model of vocab_size ids does not have.
    """

    n_bytes = None  # how long the texts were, nobody knows
    n_end = 0

    def __init__(self, path: Path, vocab_size: int):
        self.path, self.vocab_size = path, vocab_size
        array = opened(path)
        if array.dtype.kind not in "iu":
            raise ValueError(
                f"{path} holds {shown(str(array.dtype))}: the ids must be whole numbers"
            )
        if array.size == 0:
            raise ValueError(f"{path} holds no ids: there is nothing to score")
        if array.ndim not in (1, 2) or not array.flags.c_contiguous:
            raise ValueError(
                f"{path} has the shape {array.shape} in an order that is not implemented: save "
                "one document as (N,), or several as the rows of (D, N), in C order"
            )
        self.by_row, self.dtype, self.offset = array.ndim == 2, array.dtype, array.offset
        n_documents, width = array.shape if self.by_row else (1, len(array))
        self.lengths = np.full(n_documents, width)

    def name(self, document: int) -> str:
        return f"row {document} of {self.path}" if self.by_row else str(self.path)

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """The ids from start to stop (exclusive) of one document: int64."""
        first = document * int(self.lengths[0]) + start
        where = self.offset + first * self.dtype.itemsize
        found = np.fromfile(self.path, self.dtype, stop - start, offset=where)
        if len(found) < stop - start:
            raise ValueError(f"{self.path} has become shorter while it was read")
        wrong = (found < 0) | (found >= self.vocab_size)
        if wrong.any():
            at = int(wrong.argmax())
            raise ValueError(
                f"{self.name(document)} holds the id {found[at]} (token {start + at}), but the "
                f"model has the ids 0 to {self.vocab_size - 1}: it was made for another model"
            )
        return found.astype(np.int64)


def opened(path: Path) -> np.ndarray:
    """The array that a .npy file holds, mapped, not read. Raises ValueError where it holds
    none."""
    if not path.is_file():
        raise ValueError(f"cannot read {path}: it is no file")
    try:
        with np.errstate(over="ignore"):  # of a size that no file has
            return np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # whatever becomes of a stranger's header in numpy
        raise ValueError(
            f"{path} is not a whole .npy file of ids: write it with numpy.save"
        ) from error


def digest(source) -> str:
    """The SHA-256 of all ids of a source, as little-endian int64, each document's after how
    many they are."""
    found = hashlib.sha256()
    for document, length in enumerate(source.lengths.tolist()):
        found.update(length.to_bytes(8, "little"))
        for start in range(0, length, PIECE):
            ids = source.read(document, start, min(start + PIECE, length))
            found.update(ids.astype("<i8").tobytes())
    return found.hexdigest()


class Reading:
    """Texts that are read one after another, each from nothing.

    lengths: (N,) tokens of each text, its BOS among them.
    Places: a token's index in all documents of the source laid end to end; -1 for BOS.
    """

    def __init__(self, source, bos_id: int | None):
        self.source, self.bos_id = source, bos_id
        ends = np.cumsum(source.lengths)
        self.starts = ends - source.lengths  # the place of each document's first token
        self.n_places = int(ends[-1])
        self.n_bos = 0 if bos_id is None else 1

    def read(self, text: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids from start to stop (exclusive) of a text, and their places: int64 both."""
        n_bos = self.n_bos
        pieces = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        if start < n_bos:
            pieces = [(np.array([self.bos_id]), np.array([-1]))]
        for document, first, last in self.stretches(text, max(start - n_bos, 0), stop - n_bos):
            places = np.arange(first, last) + self.starts[document]
            pieces.append((self.source.read(document, first, last), places))
        ids, places = zip(*pieces)
        return np.concatenate(ids), np.concatenate(places)


class Separate(Reading):
    """Every document is a text; `length` tokens of it at most.

    Raises ValueError for a document of which nothing could be scored.
    """

    is_stream = False

    def __init__(self, source, bos_id: int | None, length: int | None):
        super().__init__(source, bos_id)
        self.lengths = source.lengths + self.n_bos
        if length is not None:
            self.lengths = np.minimum(self.lengths, length)
        if self.lengths.min() < 2:
            short = source.name(int(self.lengths.argmin()))
            raise ValueError(f"{short} has fewer than two tokens: there is nothing to score")

    def stretches(self, text: int, start: int, stop: int):
        """(document, first, last) of the pieces that stand there in a text without its BOS."""
        yield text, start, stop


class Joined(Reading):
    """One text of `length` tokens: all documents in their order, and then again and again, in
    an order that is drawn for each pass from (seed, the pass's number).

    length None: one pass. There is one BOS, at the beginning, and EOS wherever one document
    meets the next, if the source's documents end with it. Raises ValueError where there are
    fewer than two tokens to read.
    """

    is_stream = True

    def __init__(self, source, bos_id: int | None, length: int | None, seed: int):
        super().__init__(source, bos_id)
        self.seed = seed
        one_pass = self.n_bos + self.n_places - source.n_end
        self.lengths = np.array([one_pass if length is None else length])
        if self.lengths[0] < 2:
            raise ValueError(f"{source.name(0)} has fewer than two tokens to read")

    def order(self, number: int) -> np.ndarray:
        """The documents of a pass (from 0) in the order in which it reads them."""
        count = len(self.source.lengths)
        if number == 0:
            return np.arange(count)
        return np.random.default_rng([self.seed, number]).permutation(count)

    def stretches(self, text: int, start: int, stop: int):
        """As Separate.stretches."""
        while start < stop:
            number, offset = divmod(start, self.n_places)
            order = self.order(number)
            ends = np.cumsum(self.source.lengths[order])
            at = int(np.searchsorted(ends, offset, side="right"))
            document = int(order[at])
            length = int(self.source.lengths[document])
            first = length - (int(ends[at]) - offset)
            last = min(length, first + stop - start)
            yield document, first, last
            start += last - first

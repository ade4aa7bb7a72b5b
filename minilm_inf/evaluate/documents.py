"""Documents as ids: each on its own, cut to one length, or all joined into one stream."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from .. import corpus
from ..terminal.files import named, read_text
from ..text.tokenizer import opening


def add_texts(parser):
    """The flags that name texts."""
    text = parser.add_argument_group("text, from one of these").add_mutually_exclusive_group()
    text.add_argument("--text", type=Path, nargs="+", metavar="FILE",
                      help="your own UTF-8 files")  # fmt: skip
    text.add_argument("--corpus", type=Path, default=Path("corpus"), metavar="FOLDER",
                      help="held-out documents of minilm_inf.corpus (%(default)s)")  # fmt: skip


def texts_of(options) -> dict[str, str]:
    """The texts that --text or --corpus names. Raises ValueError where there are none."""
    if options.text:
        return {str(path): read_text(path) for path in options.text}
    if not options.corpus.is_dir():
        raise ValueError(
            f"there is no folder {named(options.corpus)}: make it by python -m "
            f"minilm_inf.corpus {named(options.corpus)}, or name your own texts with --text"
        )
    return corpus.documents(options.corpus, held_out=True)


def encoded(texts: dict[str, str], tokenizer, length: int) -> dict[str, list[int]]:
    """The first length + 1 ids of each text, BOS among them where the tokenizer puts one
    before a text. Raises ValueError for a shorter text."""
    documents = {}
    for name, text in texts.items():
        ids = opening(tokenizer) + tokenizer.encode(text, bos=False)
        if len(ids) < length + 1:
            raise ValueError(
                f"{name} has only {len(ids)} tokens: choose a smaller --length, or another text"
            )
        documents[name] = ids[: length + 1]
    return documents


class Stream:
    """All documents as one text: BOS, if there is one, and then each document in the order
    given, with EOS, if there is one, between them. Where it repeats, they come again and again,
    in an order that is drawn for each pass from the pass's number.

    documents: the ids of each; length: tokens in all, one pass unless told. A token's place is
    its index in all documents laid end to end, -1 for BOS; bytes: (places,), how many of the
    text each token is, None where the tokenizer cannot tell. Raises ValueError for a document
    without tokens, and where nothing could be scored.
    """

    def __init__(self, texts: dict[str, str], tokenizer, repeats: bool, length=None):
        self.bos = opening(tokenizer)[:1]
        end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        self.documents = []
        for name, text in texts.items():
            ids = tokenizer.encode(text, bos=False)
            if not ids:
                raise ValueError(f"{name} is empty: there is nothing to score in it")
            self.documents.append(np.array([*ids, *end]))
        self.ids = np.concatenate(self.documents)
        self.bytes = self._bytes(texts, tokenizer)
        one_pass = len(self.bos) + len(self.ids) - len(end)
        self.length = length or one_pass if repeats else min(one_pass, length or one_pass)
        if self.length < 2:
            raise ValueError("the text has fewer than two tokens: there is nothing to score")
        self.one_pass = functools.lru_cache(1)(self._one_pass)

    def _bytes(self, texts: dict[str, str], tokenizer) -> np.ndarray | None:
        known = {id: tokenizer.bytes_of(id) for id in np.unique(self.ids).tolist()}
        if None in known.values():
            return None
        found = []
        for ids, text in zip(self.documents, texts.values()):
            n_bytes = np.array([len(known[id]) for id in ids.tolist()])
            # Where a document begins, some tokenizers put a space that no text holds.
            n_bytes[0] -= n_bytes.sum() == len(text.encode()) + 1
            found.append(n_bytes)
        return np.concatenate(found)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids from start to stop (exclusive), and their places: int64 both. It depends on
        nothing that was read before."""
        at = np.arange(start, stop) - len(self.bos)
        number, offset = np.divmod(at.clip(0), len(self.ids))
        passes = [self.one_pass(k)[offset[number == k]] for k in np.unique(number).tolist()]
        places = np.where(at < 0, -1, np.concatenate([at[:0], *passes]))
        ids = self.ids[places]
        ids[at < 0] = self.bos
        return ids, places

    def _one_pass(self, number: int) -> np.ndarray:
        """The places of all tokens in the order in which a pass, from 0, reads them."""
        ends = np.cumsum([len(ids) for ids in self.documents])
        places = np.split(np.arange(ends[-1]), ends[:-1])  # of each document
        if number:
            order = np.random.default_rng([0, number]).permutation(len(places))
            places = [places[document] for document in order]
        return np.concatenate(places)

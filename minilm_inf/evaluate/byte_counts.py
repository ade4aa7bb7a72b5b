"""How many bytes of text some tokens are, for bits per byte: models of different vocabularies
read different numbers of tokens, but the same bytes."""

from __future__ import annotations

import numpy as np

UNKNOWN = -1


class ByteCounts:
    """The bytes of every id of a model, and of every token of a source.

    tokenizer None: no id's bytes are known.
    """

    def __init__(self, tokenizer, vocab_size: int, source):
        self.by_id = bytes_by_id(tokenizer, vocab_size)
        self.added_spaces = self._added_spaces(tokenizer, source)  # places, ascending

    def _added_spaces(self, tokenizer, source) -> np.ndarray:
        """Where a document begins with a space that its tokenizer put there (sentencepiece
        does): the token's bytes are one more than the text's."""
        if source.n_bytes is None:
            return np.empty(0, np.int64)
        starts = np.cumsum(source.lengths) - source.lengths
        found = []
        for number, (place, n_bytes) in enumerate(zip(starts.tolist(), source.n_bytes)):
            ids = source.read(number, 0, int(source.lengths[number]))
            first = tokenizer.bytes_of(int(ids[0])) or b""
            if first.startswith(b" ") and self.by_id[ids].sum() == n_bytes + 1:
                found.append(place)
        return np.array(found, np.int64)

    def count(self, ids: np.ndarray, places: np.ndarray) -> tuple[int, int]:
        """The bytes of tokens (T,) at these places, and how many of them have unknown ones."""
        n_bytes = self.by_id[ids]
        unknown = int(np.count_nonzero(n_bytes == UNKNOWN))
        spaces = np.searchsorted(self.added_spaces, places + 1)
        spaces -= np.searchsorted(self.added_spaces, places)
        return int(n_bytes.sum()) + unknown - int(spaces.sum()), unknown


def bytes_by_id(tokenizer, vocab_size: int) -> np.ndarray:
    """The number of bytes that each id stands for: 0 for a special one, UNKNOWN for one that
    the tokenizer does not have, or that may stand for any text."""
    counts = np.full(vocab_size, UNKNOWN, np.int64)
    for id in range(0 if tokenizer is None else min(tokenizer.vocab_size, vocab_size)):
        found = tokenizer.bytes_of(id)
        if found is not None:
            counts[id] = len(found)
    return counts

"""How many bytes of text some tokens are, for bits per byte: models of different vocabularies
read different numbers of tokens, but the same bytes."""

from __future__ import annotations

import numpy as np

UNKNOWN = -1


class ByteCounts:
    """The bytes of every id of a model, and of every token of a source.

    by_id: 0 for a special id, UNKNOWN for one that the tokenizer does not have, or that may
    stand for any text. added_spaces: the places of tokens whose space no text holds: where a
    document begins, some tokenizers (sentencepiece's) put one.
    """

    def __init__(self, tokenizer, vocab_size: int, source):
        """tokenizer None: no id's bytes are known."""
        self.by_id = np.full(vocab_size, UNKNOWN, np.int64)
        for id in range(0 if tokenizer is None else min(tokenizer.vocab_size, vocab_size)):
            found = tokenizer.bytes_of(id)
            self.by_id[id] = UNKNOWN if found is None else len(found)
        self.added_spaces = []
        starts = np.cumsum(source.lengths) - source.lengths
        for number, n_bytes in enumerate(source.n_bytes or []):
            ids = source.read(number, 0, int(source.lengths[number]))
            if self.by_id[ids].sum() == n_bytes + 1:
                self.added_spaces.append(starts[number])

    def count(self, ids: np.ndarray, places: np.ndarray) -> tuple[int, int]:
        """The bytes of tokens (T,) at these places, and how many of them have unknown ones."""
        n_bytes = self.by_id[ids]
        unknown = int(np.count_nonzero(n_bytes == UNKNOWN))
        spaces = int(np.isin(places, self.added_spaces).sum())
        return int(n_bytes.sum()) + unknown - spaces, unknown

"""What a layer needs beside weights and cache while it reads: an estimate, within 25%.

It counts the large tensors of two moments, attention and MLP, and takes the larger. What matrix
libraries use inside is not counted: on the CPU some megabytes, whatever the text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...config import LMInfinite, ModelConfig
from ...fast import band, chunk, middle
from ...fast.middle import TOKENS_PER_BLOCK


@dataclass(frozen=True)
class Reading:
    """How texts are read side by side. has_bias: by ALiBi; is_ragged: some are padded."""

    config: ModelConfig
    lm: LMInfinite
    dtype: torch.dtype
    has_bias: bool
    batch: int = 1
    is_ragged: bool = False

    @property
    def exact(self) -> int:
        """Bytes of a number of the softmax."""
        return max(self.dtype.itemsize, torch.float32.itemsize)

    @property
    def queries(self) -> int:
        """Numbers in all queries of a token."""
        return self.config.n_head * self.config.head_dim

    @property
    def keys(self) -> int:
        """Numbers in all keys of a token, and in all its values."""
        return self.config.n_kv_head * self.config.head_dim


def working_bytes(r: Reading, before: int, tokens: int) -> int:
    """At the peak of reading `tokens` of each text, which follow `before` others."""
    config, vector = r.config, r.batch * tokens * r.dtype.itemsize
    held = 2 * config.n_embd + r.queries + 2 * r.keys  # embedding, x; queries, keys, values
    inner = 4 if config.family == "llama" else 2  # gate, up, silu, product; up and its gelu
    mlp = r.queries + 2 * config.n_embd + inner * config.n_inner
    angles = 0 if r.has_bias else tokens * config.head_dim * r.exact
    attention = 2 * r.queries * vector + attention_bytes(r, before, tokens)
    return angles + held * vector + max(mlp * vector, attention)


def attention_bytes(r: Reading, before: int, tokens: int) -> int:
    """Beside queries, keys, values and what is gathered, in the way that reading.py chooses."""
    lm, width = r.lm, r.dtype.itemsize
    is_plain = not r.is_ragged and (r.has_bias or lm.distance_ceiling in (None, lm.n_local))
    seen = before + tokens if lm.n_local is None else min(before, lm.n_local) + tokens
    search = search_bytes(r, before, tokens, seen) if lm.top_k else 0
    if tokens == 1 and is_plain:
        return max(mask_bytes(r, tokens, seen), search)
    if lm.n_local is None and is_plain:
        return r.batch * tokens * r.keys * width + mask_bytes(r, tokens, seen)
    copies = 2 if width == r.exact else 2 + 2 * r.exact // width  # in order, and exact
    window = 0 if lm.n_local is None else copies * r.batch * seen * r.keys * width
    logits = band_bytes(r, before, tokens) if is_plain else chunk_bytes(r, tokens, seen)
    return window + max(logits, search)


def mask_bytes(r: Reading, tokens: int, seen: int) -> int:
    """attend_all's mask while it is made, and the one before it; one_token.py's bias."""
    if tokens == seen and not r.has_bias:
        return 0
    heads, width = r.config.n_head if r.has_bias else 1, r.dtype.itemsize
    rows = max(1, min(tokens, 256, chunk.LOGITS_AT_ONCE // (heads * seen)))
    return rows * seen * (heads * (8 + 2 * width) if r.has_bias else 16 + width)


def band_bytes(r: Reading, before: int, tokens: int) -> int:
    """band.py's mask, and the logits and vectors of the blocks that share a key head."""
    config, columns = r.config, min(r.lm.n_local, before + tokens) + band.ROWS
    mask = band.ROWS * columns * (config.n_head if r.has_bias else 1)
    group = config.n_head // config.n_kv_head
    early = 0 if before or r.has_bias else min(tokens, r.lm.n_local)
    block = group * band.ROWS * columns
    blocks = min(max(1, band.BLOCK_LOGITS // block), -(-(tokens - early) // band.ROWS))
    logits = blocks * (block + 4 * group * band.ROWS * config.head_dim)
    first = 4 * r.batch * early * group * config.head_dim
    return max(mask * (8 + r.exact), mask * r.exact + max(logits, first) * r.exact)


def chunk_bytes(r: Reading, tokens: int, seen: int) -> int:
    """chunk.py's logits, thrice, and which of them are seen."""
    most = chunk.LOGITS_AT_ONCE // (r.batch * r.config.n_head * seen)
    rows = max(1, min(chunk.QUERIES_AT_ONCE, most, tokens))
    near = seen if r.lm.n_local is None else min(seen, r.lm.n_local + rows - 1)
    logits = r.batch * (3 * r.exact + 2) + (4 if r.has_bias else 0)  # a bias is for all rows
    return r.config.n_head * rows * near * logits + 2 * r.batch * near * r.keys * r.exact


def search_bytes(r: Reading, before: int, tokens: int, seen: int) -> int:
    """middle.py's search: of the keys scored at a time, them and their logits in float64; then
    chunk.py's logits."""
    queries = tokens if r.lm.top_k_queries == "all" else 1
    rows = r.batch * r.config.n_head * min(queries, chunk.QUERIES_AT_ONCE)
    at_once = min(TOKENS_PER_BLOCK, max(64, middle.LOGITS_AT_ONCE // rows))
    keys = min(at_once, max(0, before + tokens - r.lm.n_local))
    found = rows * r.lm.top_k * r.config.head_dim * 2 * r.exact
    scored = keys * (r.batch * r.keys * 8 + rows * 50)
    return found + max(scored, chunk_bytes(r, queries, seen))


def reference_bytes(r: Reading, tokens: int) -> int:
    """Of a text that is read whole by attention.attend: logits of all pairs, three times, their
    distances, and a bias of every head."""
    heads = r.config.n_head
    per_pair = heads * 3 * r.exact + 2 * 8 + (8 * heads if r.has_bias else 0)
    vectors = r.config.n_embd + 4 * r.queries + 2 * r.keys
    return r.batch * tokens * (tokens * per_pair + vectors * r.dtype.itemsize)

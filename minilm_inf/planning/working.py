"""What a layer needs while it reads a chunk: the bytes of PyTorch's tensors, by formula.

Letters as in config.py; w is the width of a number in bytes, e that of a number of the softmax:
4, of float64 8. The peak is the larger of two moments, and what all layers share is beside
either:

    shared     angles                                   T * rotary_dim * e
               masks, where there are any               (below)
    attention  x, queries, keys, values                 B * T * (E + H * D + 2 * H_kv * D) * w
               keys, placed                             B * T * H_kv * D * w
               the ring in order, the chunk behind it   2 * B * (n_local + T) * H_kv * D * w
               what is gathered                         B * T * H * D * w
               what band.py or chunked.py make of it    (below)
    MLP        x, x behind attention, its norm          3 * B * T * E * w
               queries, keys, values, gathered          B * T * (2 * H * D + 2 * H_kv * D) * w
               up, gate, silu(gate), their product      4 * B * T * n_inner * w
                 (MPT, GPT-J: up and its gelu)          2 * B * T * n_inner * w

What kernels and matrix libraries use inside does not show here. It does not grow with the text:
on the CPU some megabytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config import LMInfinite, ModelConfig
from ..fast import band, chunked, middle
from ..fast.blocks import TOKENS_PER_BLOCK
from ..fast.one_token import shape_can_be_fixed as ring_and_starting


@dataclass(frozen=True)
class Reading:
    """How texts are read side by side.

    rotary_dim: how many coordinates turn; None where there is a bias instead (ALiBi).
    batch:      texts; is_ragged: whether some of them are padded.
    is_cached:  whether a cache carries them from chunk to chunk.
    is_fused:   whether there is a fused attention that tells the log-sum-exp: on the CPU.
    """

    config: ModelConfig
    lm: LMInfinite
    dtype: torch.dtype
    rotary_dim: int | None
    batch: int = 1
    is_ragged: bool = False
    is_cached: bool = True
    is_fused: bool = True

    @property
    def width(self) -> int:
        return self.dtype.itemsize

    @property
    def exact(self) -> int:
        return max(self.width, torch.float32.itemsize)

    @property
    def n_local(self) -> int:
        return sight.FUTURE if self.lm.n_local is None else self.lm.n_local

    @property
    def queries(self) -> int:
        """Numbers in all queries of a token."""
        return self.config.n_head * self.config.head_dim

    @property
    def keys(self) -> int:
        """Numbers in all keys of a token, and in all its values."""
        return self.config.n_kv_head * self.config.head_dim

    @property
    def group(self) -> int:
        return self.config.n_head // self.config.n_kv_head


def working_bytes(r: Reading, before: int, tokens: int) -> int:
    """Of a chunk of `tokens`, behind `before` others: the peak without cache and logits."""
    config, rows = r.config, r.batch * tokens
    qkv = r.queries + 2 * r.keys
    attention = config.n_embd + qkv
    mlp = 3 * config.n_embd + qkv + r.queries
    if config.family == "llama":
        mlp += max(4 * config.n_inner, 3 * config.n_inner + config.n_embd)
    else:
        mlp += max(2 * config.n_inner, config.n_inner + config.n_embd)
    if config.family == "gptj":  # whose norm serves the MLP too
        attention += config.n_embd
    if getattr(config, "qk_ln", False):
        attention, mlp = attention + 2 * r.queries, mlp + 2 * r.queries
    angles = tokens * (r.rotary_dim or 0) * r.exact
    if (
        not r.lm.top_k
        and tokens == 1
        and ring_and_starting(r.lm)
        and before >= r.n_local + r.lm.n_global
    ):
        return rows * max(attention + r.queries, mlp) * r.width + one_token_bytes(r)
    kept, made = mask_bytes(r, before, tokens)
    attention = rows * attention * r.width + attention_bytes(r, before, tokens, made)
    attention += reaching_bytes(r, before, tokens)
    return angles + kept + max(attention, rows * mlp * r.width)


def reaching_bytes(r: Reading, before: int, tokens: int) -> int:
    """middle.py's search: of the keys that are scored at a time, them in float64 and all that
    their logits become on the way to a choice; and of all pages the bounds."""
    queries = tokens if r.lm.top_k_queries == "all" else 1
    queries = min(queries, sight.QUERIES_PER_CHUNK)
    found = max(0, before + tokens - r.n_local)
    if not (r.lm.top_k and found):
        return 0
    rows = r.batch * queries * r.config.n_head
    keys = max(middle.TOKENS_PER_PAGE, middle.LOGITS_AT_ONCE // rows)
    keys = min(keys, TOKENS_PER_BLOCK, found)
    per_logit = 8 * 5 + 4 * 2 + 3  # float64 and int64, float32, bool
    bounds = 2 * found // middle.TOKENS_PER_PAGE * r.batch * r.keys
    layers = max(0, r.config.n_layer - r.lm.top_k_from_layer)
    return keys * (r.batch * r.keys * 8 + rows * per_logit) + layers * bounds * r.width


def one_token_bytes(r: Reading) -> int:
    """decoding.OneToken's, beside the vectors of its token."""
    dim, lm = r.config.head_dim, r.lm
    if r.rotary_dim is None:  # distances, and the bias of every head in float64 and in its own
        return (lm.n_local + lm.n_global) * (16 + r.config.n_head * (8 + r.exact))
    placed = 0  # the starting keys of all layers, and for this query placed
    if lm.distance_ceiling is not None:
        placed = r.batch * lm.n_global * r.keys * r.config.n_layer
    return 2 * dim * dim * r.exact + placed * (r.width + 2 * r.exact)


def reference_bytes(r: Reading, tokens: int) -> int:
    """Of a text that is read whole by attention.attend: the logits of all pairs, three times;
    their distances, twice; and a bias of every head."""
    pairs = r.batch * tokens * tokens
    logits = pairs * r.config.n_head * 3 * r.exact
    bias = pairs * r.config.n_head * torch.float64.itemsize if r.rotary_dim is None else 0
    rows = r.batch * tokens * (r.config.n_embd + 4 * r.queries + 2 * r.keys) * r.width
    return logits + bias + pairs * 2 * torch.int64.itemsize + rows


def attention_bytes(r: Reading, before: int, tokens: int, made: int) -> int:
    """From queries, keys and values to what is gathered; made: mask_bytes' second."""
    rows, end = r.batch * tokens, before + tokens
    placed = 0 if r.rotary_dim is None else rows * r.keys * r.width
    window = 0
    if not r.is_cached:
        window = rows * r.keys * r.width if window_is_capped(r.lm) else 0
    elif tokens > 1 and end > r.n_local:
        kinds = 2 + window_is_capped(r.lm)
        window = kinds * r.batch * (min(before, r.n_local) + tokens) * r.keys * r.width
    early, gathered = early_queries(r, before, tokens), rows * r.queries * r.width
    moments = [early_bytes(r, before, early, made)] if early else []
    if early < tokens:
        moments = [gathered + moment for moment in (*moments, band_bytes(r, tokens - early))]
    return placed + window + max(moments)


def early_queries(r: Reading, before: int, tokens: int) -> int:
    """chunked.early: how many queries of the chunk are not the middle of a Λ."""
    lm = r.lm
    if lm.top_k and lm.top_k_queries == "all":
        return tokens
    if r.rotary_dim is None or lm.n_local is None or window_is_capped(lm):
        return tokens
    far = lm.distance_ceiling is not None and lm.distance_ceiling > lm.n_local
    if before + tokens < lm.n_global or (lm.n_global and far):
        return tokens
    beyond_padding = before - lm.n_global >= max(lm.n_local, lm.distance_ceiling or 0)
    if r.is_ragged and not beyond_padding:
        return tokens
    return min(tokens, max(0, lm.n_local - before))


def band_bytes(r: Reading, tokens: int) -> int:
    """band.py's, for a stretch of queries: the logits of the blocks that share a key head, and
    beside them those blocks' queries, placed and copied, and what they gather, in both runs.

    A GPU has triangles.py instead, which keeps no logits: there this is too much.
    """
    n, rows = r.n_local, band.QUERIES_PER_BLOCK
    stretch = min(tokens, chunked.QUERIES_PER_STRETCH)
    found = 0
    if r.width != r.exact:  # queries, keys and values in float32
        found = r.batch * (stretch * r.queries + 2 * (n + stretch) * r.keys) * r.exact
    blocks = max(1, band.LOGITS_AT_ONCE // (r.group * rows * (n + rows)))
    blocks = min(blocks, -(-stretch // rows))
    vectors = (2 + 2 * (r.lm.n_global > 0)) * r.config.head_dim
    return found + blocks * r.group * rows * (n + rows + vectors) * r.exact


def is_vanilla(r: Reading, before: int, tokens: int) -> bool:
    """Sight.is_vanilla: plain causal attention, which a kernel of its own computes."""
    ceiling = sight.FUTURE if r.lm.distance_ceiling is None else r.lm.distance_ceiling
    alone = before == 0 and not r.is_ragged and r.rotary_dim is not None
    return alone and tokens <= r.n_local and tokens - 1 <= ceiling


def seen_keys(r: Reading, before: int, tokens: int) -> tuple[int, int, int]:
    """Queries of one of sight.py's chunks, the keys that it sees, and the most in a softmax."""
    queries = min(tokens, sight.QUERIES_PER_CHUNK)
    most = sight.KEYS_PER_BLOCK * sight.QUERIES_PER_CHUNK // queries
    return queries, min(before + tokens, r.n_local + queries - 1), most


def early_bytes(r: Reading, before: int, early: int, made: int) -> int:
    """Of the queries that have no whole window behind them, or need masks or a bias."""
    rows = r.batch * early
    placed = 0 if r.rotary_dim is None else rows * r.queries
    gathered = rows * r.queries * r.width
    if is_vanilla(r, before, early):
        turned = placed * r.exact if r.width != r.exact else 0
        return placed * r.width + max(turned, gathered + rows * r.config.n_head * r.exact)
    if r.width != r.exact:  # the queries in float32
        placed += rows * r.queries
    queries, keys, most = seen_keys(r, before, early)
    parts = -(-keys // most) + (r.lm.n_global > 0)
    one = r.batch * queries * (r.queries + r.config.n_head) * r.exact
    found = (parts + (2 if r.group > 1 else 0) + 1) * one
    if r.width != r.exact:
        found += 2 * r.batch * min(keys, most) * r.keys * r.exact
    if window_is_capped(r.lm) or not r.is_fused:
        found += 3 * r.batch * queries * min(keys, most) * r.config.n_head * r.exact
    gathered = gathered if early > queries else 0
    return placed * r.exact + gathered + max(found, made)


def mask_bytes(r: Reading, before: int, tokens: int) -> tuple[int, int]:
    """Masks that stay for all layers, and what is beside them while they are made.

    A bias is one for every head and key; else only what is seen in part has a mask. Sight keeps
    MASKS_KEPT, which chunks of the same distances share.
    """
    early = early_queries(r, before, tokens)
    if early == 0 or is_vanilla(r, before, early):
        return 0, 0
    rows = r.batch if r.is_ragged else 1
    heads = rows * (r.config.n_head if r.rotary_dim is None else r.group)
    kept: dict[tuple, int] = {}
    last: dict[tuple, int] = {}  # what the chunk before sees, which is in use until the next
    most = highest = clearings = 0
    made = rows * 2 * torch.int64.itemsize  # distances and their copy, and of a bias float64
    made += heads * torch.float64.itemsize if r.rotary_dim is None else 0
    starts = list(range(before, before + early, sight.QUERIES_PER_CHUNK))
    for start in starts + starts:  # a second layer begins with what the first one left
        stop = min(start + sight.QUERIES_PER_CHUNK, before + early)
        here = {}
        for key, numbers in masked_blocks(r, start, stop):
            is_new = (clearings, key) not in kept
            if is_new and len(kept) >= sight.MASKS_KEPT:
                kept, clearings = {}, clearings + 1
            here[clearings, key] = kept[clearings, key] = heads * numbers * r.exact
            held = sum((kept | last | here).values())
            most, highest = max(most, held), max(highest, held + is_new * numbers * made)
        last = here
    return most, highest - most


def masked_blocks(r: Reading, start: int, stop: int):
    """The blocks of keys for which the queries start to stop need a mask: what tells it from
    others, and its size for one head."""
    queries, has_bias = stop - start, r.rotary_dim is None
    most = sight.KEYS_PER_BLOCK * sight.QUERIES_PER_CHUNK // queries
    for first in range(max(0, start - r.n_local + 1), stop, most):
        last = min(first + most, stop)
        is_seen_whole = last <= start + 1 and stop - 1 - first < r.n_local
        if has_bias or r.is_ragged or not is_seen_whole:
            yield (start - first, last - first, queries), queries * (last - first)
    starting = min(r.lm.n_global, stop - r.n_local)
    if starting > 0 and (has_bias or start - starting + 1 < r.n_local):
        yield (start, queries), queries * starting

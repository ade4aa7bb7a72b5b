"""The band as one Triton kernel: what a GPU runs, and TRITON_INTERPRET=1 on any machine.

A program takes some consecutive queries of one head past the keys that they see, a tile at a
time, and keeps of them what a softmax needs: the highest logit so far, the sum of the weights
and the weighted sum of the values. Whenever a higher logit comes, both sums shrink to its
measure. So the n x n logits never exist, and the keys are those of the definition:

    starting keys, at home         the window of the program's queries
    | 0 1 2 3 |            first - n_local + 1 | hides | all seen | hides | last

The window's keys are placed and meet placed queries. Starting keys are kept at -C (see
band.How) and meet the queries as they are, which finds each of them exactly C away; without a
ceiling both are placed. What no query of a tile sees is not even read.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .band import How

NEVER = 1 << 60  # a ceiling that no distance reaches
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def sizes(dim: int, dtype: torch.dtype) -> dict:
    """How many queries and keys a program has at once, so that registers hold them and shared
    memory stays below the 99 KiB of a small GPU."""
    wide = 0 if dim <= 64 else 1 if dim <= 128 else 2
    of_float32 = (64, 32, 8, 2), (32, 32, 4, 2), (32, 16, 4, 1)
    of_short = (128, 64, 8, 3), (128, 64, 8, 3), (64, 32, 8, 2)
    chosen = (of_float32 if dtype == torch.float32 else of_short)[wide]
    return dict(zip(("QUERIES", "KEYS", "num_warps", "num_stages"), chosen))


@triton.jit
def product(a, b):
    """a @ b, summed in float32. The interpreter takes bfloat16 for integers here."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="tf32x3")
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def pass_keys(
    state, q, k_ptr, v_ptr, k_step, v_step, low, high, n_seen, first, slope, scale, ceiling,
    STARTING: tl.constexpr, HIDES: tl.constexpr, BIAS: tl.constexpr, KEYS: tl.constexpr,
    DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The online softmax over keys `low` to `high`. first: how far each query stands beyond key
    0. A query sees the window's keys nearer than n_seen, or the starting keys that are not."""
    top, total, gathered = state
    column, at = tl.arange(0, WIDTH), tl.arange(0, KEYS)
    for begin in range(low, high, KEYS):
        key = begin + at
        there = (key < high)[:, None]
        if DIM < WIDTH:
            there &= (column < DIM)[None, :]
        k = tl.load(k_ptr + key[:, None] * k_step + column[None, :], mask=there, other=0.0)
        v = tl.load(v_ptr + key[:, None] * v_step + column[None, :], mask=there, other=0.0)
        logits = product(q, tl.trans(k)) * scale
        d = first[:, None] - key[None, :]
        if BIAS:
            logits -= slope * tl.minimum(d, ceiling).to(tl.float32)
        if HIDES:
            seen = (d >= n_seen) if STARTING else (d >= 0) & (d < n_seen)
            logits = tl.where(seen & (key < high)[None, :], logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights, shrunk = tl.exp2(logits - base[:, None]), tl.exp2(top - base)
        total = total * shrunk + tl.sum(weights, 1)
        gathered = gathered * shrunk[:, None] + product(weights.to(v.dtype), v)
        top = new_top
    return top, total, gathered


@triton.jit
def band(
    placed, unplaced, k, v, start_k, start_v, out, firsts, slopes, k_steps, v_steps,
    start_k_steps, start_v_steps, n_queries, n_keys, n_starting, n_local, ceiling, scale,
    H: tl.constexpr, GROUP: tl.constexpr, BIAS: tl.constexpr, DIM: tl.constexpr,
    WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A program's queries, of the row and head that its second number names. The keys are
    consecutive, the last query's own last; firsts: (B,), the first query's position."""
    row, head = tl.program_id(1) // H, tl.program_id(1) % H
    key_head, column = head // GROUP, tl.arange(0, WIDTH)
    first, begin = tl.load(firsts + row), tl.program_id(0) * QUERIES
    query, before = begin + tl.arange(0, QUERIES), n_keys - n_queries
    there = (query < n_queries)[:, None] & (column < DIM)[None, :]
    places = (tl.program_id(1).to(tl.int64) * n_queries + query)[:, None] * DIM
    places += column[None, :]
    k += row * k_steps[0] + key_head * k_steps[1]
    v += row * v_steps[0] + key_head * v_steps[1]
    start_k += row * start_k_steps[0] + key_head * start_k_steps[1]
    start_v += row * start_v_steps[0] + key_head * start_v_steps[1]
    slope = tl.load(slopes + head) if BIAS else 0.0
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    state = top, tl.zeros([QUERIES], tl.float32), tl.zeros([QUERIES, WIDTH], tl.float32)
    own, high = before + begin, before + tl.minimum(begin + QUERIES, n_queries)
    text = tl.maximum(before - first, 0).to(tl.int32)  # the first key that is no padding
    low = tl.minimum(tl.maximum(own - n_local + 1, text), high)
    all_from = low + tl.cdiv(tl.maximum(high - n_local - low, 0), KEYS) * KEYS
    all_from = tl.minimum(all_from, high)
    all_to = tl.maximum(low + tl.maximum(own + 1 - low, 0) // KEYS * KEYS, all_from)
    ends = low, all_from, all_to, high
    q, at = tl.load(placed + places, mask=there, other=0.0), before + query
    for part in tl.static_range(3):  # the second hides nothing
        state = pass_keys(state, q, k, v, k_steps[2], v_steps[2], ends[part], ends[part + 1],
                          n_local, at, slope, scale, ceiling, False, part != 1, BIAS, KEYS, DIM,
                          WIDTH)  # fmt: skip
    q, at = tl.load(unplaced + places, mask=there, other=0.0), first + query
    left = tl.maximum(first + high - before - n_local, 0)  # keys that the last window has left
    _, total, gathered = pass_keys(
        state, q, start_k, start_v, start_k_steps[2], start_v_steps[2], 0,
        tl.minimum(left, n_starting).to(tl.int32), n_local, at, slope, scale, ceiling, True,
        True, BIAS, KEYS, DIM, WIDTH,
    )  # fmt: skip
    gathered /= tl.where(total == 0, 1.0, total)[:, None]
    tl.store(out + places, gathered.to(q.dtype), mask=there)


def launch(placed, unplaced, k, v, starting, firsts: Tensor, how: How) -> Tensor:
    """What placed and unplaced queries (B, H, T, D) gather from placed k, v (B, H_kv, S, D) and
    the starting keys and values (B, H_kv, G, D). firsts: (B,), the first query's position."""
    (batch, heads, n_queries, dim), (_, n_kv_head, n_keys, _) = placed.shape, v.shape
    scheme, lm, scale = how
    queries, out = [x.contiguous() for x in (placed, unplaced)], placed.new_empty(placed.shape)
    keys = [x if x.stride(3) == 1 else x.contiguous() for x in (k, v, *starting)]
    slopes = scheme.slopes.float().to(out.device) / math.log(2) if scheme.has_bias else firsts
    ceiling = NEVER if lm.distance_ceiling is None else lm.distance_ceiling
    setting = sizes(dim, placed.dtype)
    band[triton.cdiv(n_queries, setting["QUERIES"]), batch * heads](
        *queries, *keys, out, firsts, slopes, *(x.stride()[:3] for x in keys), n_queries,
        n_keys, keys[2].shape[2], lm.n_local or n_keys, ceiling, scale / math.log(2), heads,
        heads // n_kv_head, scheme.has_bias, dim, max(16, triton.next_power_of_2(dim)),
        **setting,
    )  # fmt: skip
    return out

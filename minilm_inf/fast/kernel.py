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

from ..config import FULL_ATTENTION, LMInfinite
from ..positions import PLACED
from ..terminal.checks import check_attention
from .band import How, fits_band

LOG2_E = math.log2(math.e)
NEVER = 1 << 60  # a ceiling that no distance reaches
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def sizes(dim: int, dtype: torch.dtype) -> dict:
    """How many queries and keys a program has at once, so that registers hold them and shared
    memory stays below the 99 KiB of a small GPU."""
    if dtype != torch.float32:
        queries, keys, stages = (128, 64, 3) if dim <= 128 else (64, 32, 2)
    else:
        queries, keys, stages = (64 if dim <= 64 else 32), (32 if dim <= 128 else 16), 2
    warps = 4 if queries == 32 else 8
    return dict(QUERIES=queries, KEYS=keys, num_warps=warps, num_stages=stages)


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
    placed, unplaced, k, v, start_k, start_v, out, firsts, slopes, q_steps, k_steps, v_steps,
    start_k_steps, start_v_steps, out_steps, n_queries, n_keys, n_starting, n_local, ceiling,
    scale, H: tl.constexpr, GROUP: tl.constexpr, BIAS: tl.constexpr, DIM: tl.constexpr,
    WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A program's queries, of the head and row that its second number names. The keys are
    consecutive, the last query's own last; firsts: (B,), the first query's position."""
    row, head = tl.program_id(1) // H, tl.program_id(1) % H
    key_head, column = head // GROUP, tl.arange(0, WIDTH)
    first, begin = tl.load(firsts + row), tl.program_id(0) * QUERIES
    query, before = begin + tl.arange(0, QUERIES), n_keys - n_queries
    there = (query < n_queries)[:, None] & (column < DIM)[None, :]
    k += row * k_steps[0] + key_head * k_steps[1]
    v += row * v_steps[0] + key_head * v_steps[1]
    places = row * q_steps[0] + head * q_steps[1] + query[:, None] * q_steps[2] + column[None, :]
    slope = tl.load(slopes + head) if BIAS else 0.0
    state = (
        tl.full([QUERIES], float("-inf"), tl.float32), tl.zeros([QUERIES], tl.float32),
        tl.zeros([QUERIES, WIDTH], tl.float32),
    )  # fmt: skip
    own, last = before + begin, before + tl.minimum(begin + QUERIES, n_queries) - 1
    text = tl.maximum(before - first, 0).to(tl.int32)  # the first key that is no padding
    high = last + 1
    low = tl.minimum(tl.maximum(own - n_local + 1, text), high)
    all_from = low + tl.cdiv(tl.maximum(last - n_local + 1 - low, 0), KEYS) * KEYS
    all_from = tl.minimum(all_from, high)
    all_to = tl.maximum(low + tl.maximum(own + 1 - low, 0) // KEYS * KEYS, all_from)
    q, at = tl.load(placed + places, mask=there, other=0.0), before + query
    state = pass_keys(state, q, k, v, k_steps[2], v_steps[2], low, all_from, n_local, at, slope,
                      scale, ceiling, False, True, BIAS, KEYS, DIM, WIDTH)  # fmt: skip
    state = pass_keys(state, q, k, v, k_steps[2], v_steps[2], all_from, all_to, n_local, at,
                      slope, scale, ceiling, False, False, BIAS, KEYS, DIM, WIDTH)  # fmt: skip
    state = pass_keys(state, q, k, v, k_steps[2], v_steps[2], all_to, high, n_local, at, slope,
                      scale, ceiling, False, True, BIAS, KEYS, DIM, WIDTH)  # fmt: skip
    left = first + last - before - n_local + 1  # starting keys that the last query's window left
    n_starting = tl.minimum(tl.maximum(left, 0), n_starting).to(tl.int32)
    q = tl.load(unplaced + places, mask=there, other=0.0)
    start_k += row * start_k_steps[0] + key_head * start_k_steps[1]
    start_v += row * start_v_steps[0] + key_head * start_v_steps[1]
    _, total, gathered = pass_keys(
        state, q, start_k, start_v, start_k_steps[2], start_v_steps[2], 0, n_starting, n_local,
        first + query, slope, scale, ceiling, True, True, BIAS, KEYS, DIM, WIDTH,
    )  # fmt: skip
    gathered /= tl.where(total == 0, 1.0, total)[:, None]
    places = row * out_steps[0] + head * out_steps[1] + query[:, None] * out_steps[2]
    tl.store(out + places + column[None, :], gathered.to(q.dtype), mask=there)


def launch(placed, unplaced, k, v, starting, firsts: Tensor, how: How, out: Tensor):
    """Run it: placed and unplaced queries (B, H, T, D), placed k and v (B, H_kv, S, D), the
    starting keys and values (B, H_kv, G, D), and (B,), the first query's position, -> out."""
    (_, heads, n_queries, dim), (_, n_kv_head, n_keys, _) = placed.shape, v.shape
    scheme, lm, scale = how
    tensors = [x if x.stride(3) == 1 else x.contiguous()
               for x in (placed, unplaced, k, v, *starting)]  # fmt: skip
    if tensors[0].stride() != tensors[1].stride():
        tensors[:2] = (x.contiguous() for x in tensors[:2])
    slopes = scheme.slopes.float().to(out.device) * LOG2_E if scheme.has_bias else firsts
    steps = [x.stride()[:3] for x in (*tensors[1:], out)]
    setting = sizes(dim, placed.dtype)
    grid = triton.cdiv(n_queries, setting["QUERIES"]), len(out) * heads
    band[grid](
        *tensors, out, firsts, slopes, *steps, n_queries, n_keys, tensors[4].shape[2],
        n_keys if lm.n_local is None else lm.n_local,
        NEVER if lm.distance_ceiling is None else lm.distance_ceiling, scale * LOG2_E,
        heads, heads // n_kv_head, scheme.has_bias, dim, max(16, triton.next_power_of_2(dim)),
        **setting,
    )  # fmt: skip


def kernel_band(q, place, shift, keys, values, starting, first: int, how: How, out, _head=0):
    """band.attend_band by the kernel, with the same arguments; heads are counted from 0."""
    placed, keys = place(q, slice(shift, shift + q.shape[2])), keys[:, :, -values.shape[2] :]
    starts = [x[:, :, : how.lm.n_global] for x in starting[:2]]
    firsts = torch.full((len(q),), first, device=q.device)
    launch(placed, placed if how.home is None else q, keys, values, starts, firsts, how, out)


def kernel_attend(
    q: Tensor, k: Tensor, v: Tensor, q_positions: Tensor, k_positions: Tensor, scheme,
    lm: LMInfinite | None, scale: float | None = None, n_reaching: int | None = None,
) -> Tensor:  # fmt: skip
    """attention.attend by the kernel: the same arguments and errors.

    Raises NotImplementedError for float64, heads of more than 256, positions that are not
    consecutive, a ceiling within reach that is not n_local, middle keys and gradients.
    """
    check_attention(q, k, v, q_positions, k_positions, scheme, lm, scale, n_reaching)
    scheme, lm = scheme or PLACED, lm or FULL_ATTENTION
    scale, batch, n = 1 / math.sqrt(q.shape[-1]) if scale is None else scale, len(q), k.shape[2]
    i, j = (x.expand(batch, -1).to(q.device).long() for x in (q_positions, k_positions))
    if not q.shape[2]:
        return torch.empty_like(q)
    ceiling = lm.distance_ceiling
    if ceiling is not None and int(i.max()) < ceiling:
        lm = LMInfinite(lm.n_local, lm.n_global)
    how, learns = How(scheme, lm, float(scale)), any(x.requires_grad for x in (q, k, v))
    consecutive = (j.diff() == 1).all() and torch.equal(i, j[:, n - q.shape[2] :])
    starts_within = ((j[:, 0] > 0) & (j[:, 0] < lm.n_global)).any() or len(set((j[:, 0] > 0).tolist())) > 1
    if (
        q.dtype == torch.float64 or q.shape[-1] > 256 or not consecutive or starts_within
        or not fits_band(how) or lm.top_k or learns and torch.is_grad_enabled()
    ):  # fmt: skip
        raise NotImplementedError
    n_starting = 0 if lm.n_local is None or j[0, 0] > 0 else min(lm.n_global, n)
    own = (torch.arange(n_starting, device=q.device) - j[:, :1]).clamp(max=n - 1)  # (B, G)
    starting = [x.take_along_dim(own[:, None, :, None], 2) for x in (k, v)]
    placed, k = scheme.place(q, i), scheme.place(k, j)
    at = own + j[:, :1] if how.home is None else torch.tensor([how.home], device=q.device)
    starting[0], out = scheme.place(starting[0], at), torch.empty_like(q)
    firsts = i[:, 0].contiguous()
    launch(placed, placed if how.home is None else q, k, v, starting, firsts, how, out)
    return out

"""Any queries of one text: the definition, shown only the keys that these queries can see.

At most 256 queries at a time meet two kinds of keys, side by side under one softmax:

    starting keys | window                  # seen
        # #       | # # # . . .             . not seen: lambda_mask's predicates say which
        # #       | . # # # . .
        # #       | . . # # # .

A key that is neither has a weight of exactly 0 in the definition, so leaving it out changes
nothing. This serves whatever the band does not: gaps, any ceiling, gradients, and the middle
keys that come back, which are a third kind.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..lambda_mask import distances, is_local, is_past
from .band import How, Keys

QUERIES_AT_ONCE = 256
LOGITS_AT_ONCE = 1 << 23


class Found(NamedTuple):
    """The middle keys that come back: logits, values and which are keys at all, where a query
    has fewer than k; (B, H, T, k), (B, H, T, k, D), (B, H, T, k)."""

    logits: Tensor
    v: Tensor
    valid: Tensor


def attend_chunks(
    q: Tensor, q_positions: Tensor, window: Keys, starting: Keys, how: How, reach=None
) -> Tensor:
    """What queries gather, (B, H, T, D), as many at a time as memory allows.

    q, q_positions: not placed; (T,), ascending, counted as the keys' positions are
    reach: middle.Reach of these queries, where the middle comes back to them
    """
    most = LOGITS_AT_ONCE // (q.shape[0] * q.shape[1] * max(1, window.k.shape[2]))
    rows = max(1, min(QUERIES_AT_ONCE, most))
    out = []
    for start in range(0, q.shape[2], rows):
        here = slice(start, start + rows)
        some, positions = q[:, :, here], q_positions[here]
        n_local = how.lm.n_local
        first = 0 if n_local is None else int(positions[0]) - n_local + 1
        near = window.between(first, int(positions[-1]))
        found = reach.find(some, here) if reach else None
        out.append(attend_chunk(some, positions, near, starting, how, found))
    return torch.cat(out, 2) if out else torch.empty_like(q)


def attend_chunk(q, q_positions, window: Keys, starting: Keys, how: How, found=None) -> Tensor:
    """attend_chunks for one chunk: logits, mask, softmax and weighted sum, as in attend."""
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    unplaced = q.to(exact)
    placed = how.scheme.place(unplaced, q_positions)
    logits, seen, values = [], [], []
    for keys, is_window in ((window, True), (starting, False)):
        d = distances(q_positions, keys.positions)  # (T, S)
        local = is_local(d, how.lm.n_local)
        sees = is_past(d) & (local if is_window else ~local)
        logits.append(logits_of(unplaced, placed, keys, d, sees, how))
        seen.append(sees.to(q.device).expand(*q.shape[:3], -1))
        # What nobody sees has no influence, not even as NaN.
        seen_by_none = ~sees.any(0)[:, None].to(q.device)  # (S, 1)
        values.append(keys.v.to(exact).masked_fill(seen_by_none, 0))
    if found is not None:
        logits.append(found.logits.to(exact))
        seen.append(found.valid)
    logits, seen, v = torch.cat(logits, -1), torch.cat(seen, -1), torch.cat(values, 2)
    weights = logits.masked_fill(~seen, torch.finfo(exact).min).softmax(-1)
    weights = weights.masked_fill(~seen, 0)  # (B, H, T, window | starting | found)
    out = by_key_head(weights[..., : v.shape[2]], v)
    if found is not None:
        of_found = weights[..., v.shape[2] :]
        out = out + torch.einsum("bhtk,bhtkd->bhtd", of_found, found.v.to(exact))
    return out.to(q.dtype)


def logits_of(unplaced, placed, keys: Keys, d, sees, how: How) -> Tensor:
    """w(q, k, min(d, C)) as distance_ceiling.py defines it, (B, H, T, S); what nobody sees may
    be anything."""
    scheme, (ceiling, dtype) = how.scheme, (how.lm.distance_ceiling, placed.dtype)
    within = torch.ones_like(sees) if ceiling is None or scheme.has_bias else d <= ceiling
    some_beyond = bool((sees & ~within).any())
    logits = None
    if not some_beyond or bool((sees & within).any()):
        logits = by_key_head(placed, keys.at(keys.positions, scheme, dtype).mT)
    if some_beyond:
        capped = by_key_head(unplaced, keys.at(torch.tensor(-ceiling), scheme, dtype).mT)
        within = within.to(capped.device)
        logits = capped if logits is None else torch.where(within, logits, capped)
    logits = logits * how.scale
    if scheme.has_bias:
        d = d if ceiling is None else d.clamp(max=ceiling)
        logits = logits + scheme.bias(d.to(logits.device)).to(dtype)
    return logits


def by_key_head(x: Tensor, keys: Tensor) -> Tensor:
    """x @ keys, of all query heads with the key head that they share: (B, H, T, N) and
    (B, H_kv, N, M) -> (B, H, T, M)."""
    batch, n_head, length, width = x.shape
    rows = n_head // keys.shape[1] * length
    products = x.reshape(batch, keys.shape[1], rows, width) @ keys
    return products.view(batch, n_head, length, keys.shape[3])

"""Any chunk of queries: the definition, shown only the keys that these queries can see.

At most 256 queries at a time meet two kinds of keys, side by side under one softmax:

    starting keys | window                  # seen
        # #       | # # # . . .             . not seen: lambda_mask's predicates say which
        # #       | . # # # . .
        # #       | . . # # # .

A key that is neither has a weight of exactly 0 in the definition, so leaving it out changes
nothing. This serves whatever the two special cases do not: rows of different lengths, gaps,
any ceiling, gradients, and the middle keys that come back, which are a third kind.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..config import LMInfinite
from ..distance_ceiling import place_fixed
from ..lambda_mask import distances, is_global, is_local, is_past, is_text

QUERIES_AT_ONCE = 256
LOGITS_AT_ONCE = 1 << 23
NOWHERE = 1 << 62  # a position in everybody's future, for a starting key that a row lacks


class Keys(NamedTuple):
    """Keys of one kind, each placed at the position where it is kept, and their values.

    k, v:      (B, H_kv, S, D)
    positions: of the tokens themselves, integers on the CPU, (S,) or (B, S)
    home:      the one position where all are kept; None: each at its own
    """

    k: Tensor
    v: Tensor
    positions: Tensor
    home: int | None = None

    def at_own(self, scheme) -> Tensor:
        """Each key at its own position, where a placed query finds it."""
        return self.k if self.home is None else scheme.place(self.k, self.positions - self.home)

    def at(self, position: int, scheme) -> Tensor:
        """All keys at one position: what is placed twice stands at the sum of both."""
        if self.home is None:
            return scheme.place(self.k, position - self.positions)
        if self.home == position:
            return self.k
        return place_fixed(scheme, position - self.home, self.k.dtype, self.k.device)(self.k)


def at_ceiling(k: Tensor, scheme, lm: LMInfinite) -> Tensor:
    """Unplaced starting keys at home, at -C: where an unplaced query, which is one at 0, finds
    each of them exactly C away."""
    return place_fixed(scheme, -lm.distance_ceiling, k.dtype, k.device)(k)


class Found(NamedTuple):
    """The middle keys that come back: logits, values and which are keys at all, where a query
    has fewer than k; (B, H, T, k), (B, H, T, k, D), (B, H, T, k)."""

    logits: Tensor
    v: Tensor
    valid: Tensor


def attend_chunks(
    q: Tensor, q_positions: Tensor, window: Keys, starting: Keys, scheme, lm: LMInfinite,
    scale: float, origin=0, middle=None,
) -> Tensor:  # fmt: skip
    """What queries gather, (B, H, T, D), as many at a time as memory allows.

    q, q_positions: not placed; integers on the CPU, (T,) or (B, T), ascending as the window's
    origin: the position of a text's first token, or (B, 1) of each row's: before it is padding
    middle: a function of some queries, and of which rows they are, that gives their Found
    """
    most = LOGITS_AT_ONCE // (q.shape[0] * q.shape[1] * max(1, window.k.shape[2]))
    rows = max(1, min(QUERIES_AT_ONCE, most))
    out = []
    for start in range(0, q.shape[2], rows):
        here = slice(start, start + rows)
        positions, some = q_positions[..., here], q[:, :, here]
        near = in_reach(window, positions, lm)
        found = middle(some, here) if middle else None
        out.append(
            attend_chunk(some, positions, near, starting, scheme, lm, scale, origin, found)
        )
    return torch.cat(out, 2) if out else torch.empty_like(q)


def in_reach(window: Keys, q_positions: Tensor, lm: LMInfinite) -> Keys:
    """The slice of ascending keys in which these queries have their windows."""
    oldest, newest = q_positions[..., :1], q_positions[..., -1:]
    if lm.n_local is not None:
        oldest = oldest - lm.n_local + 1
    keys = window.positions
    if oldest.dim() > keys.dim():
        keys = keys.expand(len(oldest), -1)
    oldest, newest = (x.expand(*keys.shape[:-1], 1).contiguous() for x in (oldest, newest))
    keys = keys.contiguous()
    start = 0 if lm.n_local is None else int(torch.searchsorted(keys, oldest).min())
    stop = max(start, int(torch.searchsorted(keys, newest, right=True).max()))
    k, v, positions, home = window
    return Keys(k[:, :, start:stop], v[:, :, start:stop], positions[..., start:stop], home)


def attend_chunk(
    q, q_positions, window: Keys, starting: Keys, scheme, lm, scale, origin=0, found=None
) -> Tensor:
    """attend_chunks for one chunk, in which the window may have any order."""
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    unplaced = q.to(exact)
    placed = scheme.place(unplaced, q_positions)
    logits, seen, values = [], [], []
    for keys, is_window in ((window, True), (starting, False)):
        if not keys.k.shape[2]:
            continue
        d = distances(q_positions, keys.positions)  # (T, S) or (B, T, S)
        local, text = is_local(d, lm.n_local), keys.positions - origin
        sees = local & is_past(d) & is_text(text)
        if not is_window:
            sees = ~local & is_past(d) & is_global(text, lm.n_global)
        logits.append(logits_of(unplaced, placed, keys, d, sees, scheme, lm, scale))
        # What nobody sees has no influence, not even as NaN.
        unseen = ~sees.any(-2)[..., None, :, None].to(q.device)
        values.append(keys.v.to(exact).masked_fill(unseen, 0))
        sees = sees.unsqueeze(-3).to(q.device)
        seen.append(sees.expand(*q.shape[:3], sees.shape[-1]))
    if found is not None:
        logits.append(found.logits.to(exact))
        seen.append(found.valid)
    if not logits:
        return torch.zeros_like(q)
    seen = torch.cat(seen, -1)  # (B, H, T, all keys)
    logits = torch.cat(logits, -1).masked_fill(~seen, torch.finfo(exact).min)
    weights = logits.softmax(-1).masked_fill(~seen, 0)
    sizes = [v.shape[2] for v in values]
    parts = weights.split([*sizes, weights.shape[-1] - sum(sizes)], -1)
    out = sum(by_key_head(part, v) for part, v in zip(parts, values))
    if found is not None:
        out = out + torch.einsum("bhtk,bhtkd->bhtd", parts[-1], found.v.to(exact))
    return out.to(q.dtype)


def logits_of(unplaced, placed, keys: Keys, d, sees, scheme, lm: LMInfinite, scale) -> Tensor:
    """w(q, k, min(d, C)) as distance_ceiling.py defines it, (B, H, T, S); what nobody sees may
    be anything."""
    ceiling, keys = lm.distance_ceiling, keys._replace(k=keys.k.to(placed.dtype))
    below = ceiling is None or bool((sees & (d < ceiling)).any())
    beyond = ceiling is not None and (not below or bool((sees & (d > ceiling)).any()))
    if below:
        logits = by_key_head(placed, keys.at_own(scheme).mT) * scale
    if beyond:
        # From home at -C, where the starting keys are kept, an unplaced query is C away.
        capped = by_key_head(unplaced, keys.at(-ceiling, scheme).mT) * scale
        within = (d <= ceiling).unsqueeze(-3).to(capped.device)
        logits = torch.where(within, logits, capped) if below else capped
    if scheme.has_bias:
        d = d if ceiling is None else d.clamp(max=ceiling)
        logits = logits + scheme.bias(d.to(logits.device)).to(logits.dtype)
    return logits


def by_key_head(x: Tensor, keys: Tensor) -> Tensor:
    """x @ keys, of all query heads with the key head that they share: (B, H, T, N) and
    (B, H_kv, N, M) -> (B, H, T, M)."""
    products = x.reshape(x.shape[0], keys.shape[1], -1, x.shape[-1]) @ keys
    return products.view(*x.shape[:3], keys.shape[-1])

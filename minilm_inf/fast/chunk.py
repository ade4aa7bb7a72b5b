"""Whatever is no band: the definition itself, on some queries at a time, shown only those keys
that they can see.

    starting keys | window                  # seen
        # #       | # # # . . .             . not seen
        # #       | . # # # . .
        # #       | . . # # # .

A key that is neither has a weight of exactly 0 in the definition, so leaving it out changes
nothing. This serves gaps, any ceiling, gradients, and queries that reach back to the middle:
these are shown all keys, since they score them all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention import attend
from .band import How

QUERIES_AT_ONCE = 256
LOGITS_AT_ONCE = 1 << 23


def attend_chunks(
    q, k, v, q_positions: Tensor, k_positions: Tensor, how: How, n_reaching: int = 0
) -> Tensor:
    """attention.attend's numbers, (B, H, T, D), for positions (T,) and (S,), on the CPU, that
    ascend. Nothing is placed; the last n_reaching queries reach back."""
    scheme, lm, scale = how
    n, out = q.shape[2] - n_reaching, []
    for first, last in ((0, n), (n, q.shape[2])):
        reaches = first == n and n_reaching > 0
        shown = len(k_positions)
        if lm.n_local is not None and not reaches:
            shown = min(shown, lm.n_local + lm.n_global + QUERIES_AT_ONCE)
        rows = LOGITS_AT_ONCE // (q.shape[0] * q.shape[1] * max(1, shown))
        rows = max(1, min(QUERIES_AT_ONCE, rows))
        for start in range(first, last, rows):
            here = slice(start, min(start + rows, last))
            keys = seen_by(q_positions[here], k_positions, lm, reaches)
            some = (x.index_select(2, keys.to(x.device)) for x in (k, v))
            positions = q_positions[here], k_positions[keys]
            count = here.stop - start if reaches else 0
            out.append(attend(q[:, :, here], *some, *positions, scheme, lm, scale, count))
    return torch.cat(out, 2) if out else torch.empty_like(q)


def seen_by(q_positions: Tensor, k_positions: Tensor, lm, reaches: bool) -> Tensor:
    """Which keys some of these queries may see, as ascending columns."""
    oldest = (
        0 if reaches or lm.n_local is None else max(0, int(q_positions[0]) - lm.n_local + 1)
    )
    ends = torch.tensor([0, min(lm.n_global, oldest), oldest, int(q_positions[-1]) + 1])
    text, starting, window, end = torch.searchsorted(k_positions, ends).tolist()
    return torch.cat((torch.arange(text, starting), torch.arange(window, max(window, end))))

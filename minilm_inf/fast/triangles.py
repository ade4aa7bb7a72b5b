"""The middle of a long text on a GPU: band.py's numbers through PyTorch's fused kernels.

Of n_local queries at a time, what each sees of its window is two triangles:

    keys:       the block before    the queries' own
    query a     . # # #             # . . .
                . . # #             # # . .
                . . . #             # # # .
    query a+3   . . . .             # # # #

The second is plain causal attention. The first, with queries and keys reversed, is causal
attention too, one row shorter. No mask, no arithmetic in vain, and no logits in memory: a fused
kernel hands back what was gathered and the log of the softmax's sum, by which all are joined.
Blocks are rows of a batch, so that a few calls do for many of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .band import Band


def fused_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float):
    """What q (B, H, T, D) gathers from k, v (B, H, S, D), and the logs of its sums (B, H, T);
    by the kernel that the device has for the dtype. causal: T = S."""
    if q.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash(q, k, v, is_causal=causal, scale=scale)
    if q.dtype in (torch.float16, torch.bfloat16):
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        gathered, log_sum = flash(q, k, v, is_causal=causal, scale=scale)[:2]
    else:
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        gathered, log_sum = efficient(q, k, v, None, True, is_causal=causal, scale=scale)[:2]
    return gathered, log_sum[:, :, : q.shape[2]]  # which may come padded


class Triangles(Band):
    """Band, with n_local queries at a time for a block, and what remains for another."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, first: int, n_near: int, out: Tensor):
        n_local, length, group = self.n_local, q.shape[2], q.shape[1] // k.shape[1]
        k, v = (x if group == 1 else x.repeat_interleave(group, 1) for x in (k, v))
        whole = length // n_local * n_local
        for start, stop in ((0, whole), (whole, length)):
            if start == stop:
                continue
            rows, size = slice(start, stop), min(n_local, stop - start)
            placed = self.place(q[:, :, rows], slice(first + start, first + stop))
            # The block before each, and its own: of whole blocks, all keys but the last, and
            # all but the first.
            before = [by_block(x[:, :, start : max(stop, start + n_local)], n_local)
                      for x in (k, v)]  # fmt: skip
            own = [by_block(x[:, :, start + n_local : stop + n_local], size) for x in (k, v)]
            seen = self._window(by_block(placed, size), before, own)
            seen = [tuple(of_text(x, len(q)) for x in part) for part in seen]
            if self.starting is not None:
                seen.append(self._starting(q[:, :, rows] if self.capped else placed,
                                           n_near - start))  # fmt: skip
            out[:, :, rows] = join(seen)

    def _window(self, q: Tensor, before: list[Tensor], own: list[Tensor]) -> list:
        """The triangles of blocks of queries (N, H, T, D), and what of the block before all of
        them see: weighted values (N, H, T, D) and the logs of sums (N, H, T, 1)."""
        count = q.shape[2]
        seen = [self._fused(q, *own, causal=True)]
        if count < self.n_local:
            seen.append(self._fused(q, *(x[:, :, count:] for x in before), causal=False))
        if count > 1:
            turned = [q[:, :, :-1].flip(2), *(x[:, :, 1:count].flip(2) for x in before)]
            gathered, log_sum = (x.flip(2) for x in self._fused(*turned, causal=True))
            nothing = torch.full_like(log_sum[:, :, :1], -torch.inf)
            log_sum = torch.cat((log_sum, nothing), 2)  # the last query sees its own block only
            seen.append((torch.cat((gathered, torch.zeros_like(q[:, :, :1])), 2), log_sum))
        return seen

    def _fused(self, q, k, v, causal: bool) -> tuple[Tensor, Tensor]:
        gathered, log_sum = fused_attention(q, k, v, causal, self.scale)
        return gathered, log_sum.unsqueeze(-1)

    def _starting(self, q: Tensor, n_near: int) -> tuple[Tensor, Tensor]:
        """What queries gather from the starting keys, of which the first query has n_near in
        its window still: (B, H, T, D), (B, H, T, 1)."""
        shape, (k, v) = q.shape, self.starting
        q = q.reshape(len(q), k.shape[1], -1, shape[-1])  # together what shares a key head
        exact = torch.float64 if q.dtype == torch.float64 else torch.float32
        logits = ((q * self.scale) @ k.mT).to(exact).view(*shape[:3], -1)
        if n_near > 0:
            hidden = torch.ones(logits.shape[2:], dtype=torch.bool, device=q.device)
            hidden = hidden.triu(k.shape[2] - n_near)
            logits = logits.masked_fill(hidden, torch.finfo(exact).min)
        weights = logits.softmax(-1).to(v.dtype).view(len(q), k.shape[1], -1, k.shape[2])
        return (weights @ v).view(shape), logits.logsumexp(-1, keepdim=True)


def by_block(x: Tensor, size: int) -> Tensor:
    """(B, H, N * size, D) -> (B * N, H, size, D)."""
    return x.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1)


def of_text(x: Tensor, batch: int) -> Tensor:
    """(B * N, H, size, ..) -> (B, H, N * size, ..)."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)


def join(seen: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Softmaxes over different keys as one over all: each one's share is its sum's share."""
    log_sums = torch.cat([log_sum for _, log_sum in seen], -1).softmax(-1)  # (.., T, parts)
    return sum(x * share for (x, _), share in zip(seen, log_sums.split(1, -1)))

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
    """Band, with n_local queries at a time for a block."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, first: int, n_near: int, out: Tensor):
        group = q.shape[1] // k.shape[1]
        for start in range(0, q.shape[2], self.n_local):
            rows = slice(start, min(start + self.n_local, q.shape[2]))
            count = rows.stop - start
            here = q[:, :, rows]
            placed = self.place(here, slice(first + start, first + rows.stop))
            keys = slice(start, rows.stop + self.n_local)
            near = (x[:, :, keys].repeat_interleave(group, 1) for x in (k, v))
            seen = self._window(placed, *near, count)
            if self.starting is not None:
                asked = here if self.capped else placed
                seen.append(self._starting(asked, n_near - start))
            out[:, :, rows] = join(seen)

    def _window(self, q: Tensor, k: Tensor, v: Tensor, count: int) -> list:
        """The triangles of `count` queries, and what of the block before all of them see:
        weighted values (B, H, T, D) and the logs of sums (B, H, T, 1)."""
        own = slice(self.n_local, self.n_local + count)
        seen = [self._fused(q, k[:, :, own], v[:, :, own], causal=True)]
        if count < self.n_local:
            whole = slice(count, self.n_local)
            seen.append(self._fused(q, k[:, :, whole], v[:, :, whole], causal=False))
        if count > 1:
            turned = [x.flip(2) for x in (q[:, :, :-1], k[:, :, 1:count], v[:, :, 1:count])]
            gathered, log_sum = (x.flip(2) for x in self._fused(*turned, causal=True))
            nothing = torch.full_like(log_sum[:, :, :1], -torch.inf)
            log_sum = torch.cat((log_sum, nothing), 2)  # the last query sees its own block only
            seen.append((torch.cat((gathered, torch.zeros_like(q[:, :, :1])), 2), log_sum))
        return seen

    def _fused(self, q, k, v, causal: bool) -> tuple[Tensor, Tensor]:
        gathered, log_sum = fused_attention(q, k, v, causal, self.scale)
        return gathered, log_sum.unsqueeze(-1)

    def _starting(self, q: Tensor, n_near: int) -> tuple[Tensor, Tensor]:
        """Each key head's _sum_starting as one: (B, H, T, D), (B, H, T, 1)."""
        n_rows, n_kv_head = self.starting[0].shape[:2]
        by_head = q.unflatten(1, (n_kv_head, -1))
        found = [
            [self._sum_starting(by_head[row : row + 1, head], row, head, n_near)
             for head in range(n_kv_head)]
            for row in range(n_rows)
        ]  # fmt: skip
        gathered, log_sum = (
            torch.cat([torch.cat([heads[i] for heads in row], 1) for row in found])
            for i in range(2)
        )
        return gathered, log_sum.unsqueeze(-1)


def join(seen: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Softmaxes over different keys as one over all: each one's share is its sum's share."""
    log_sums = torch.cat([log_sum for _, log_sum in seen], -1).softmax(-1)  # (.., T, parts)
    return sum(x * share for (x, _), share in zip(seen, log_sums.split(1, -1)))

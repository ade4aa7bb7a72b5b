"""The Triton kernel's doors: it is called as attention.attend is, and as band.attend_band is.

On a GPU it reads every band, where PyTorch brings Triton; where there is none, band.py does.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace

import torch
from torch import Tensor

from ..config import FULL_ATTENTION, LMInfinite
from ..positions import PLACED
from ..terminal.checks import check_attention
from .band import How, fits_band

QUERIES_PER_STRETCH = 8192


def serves(q: Tensor) -> bool:
    """Whether the kernel can take such queries (B, H, T, D), and is there."""
    is_known = q.dtype != torch.float64 and q.shape[3] <= 256
    return is_known and importlib.util.find_spec("triton") is not None


def launch(*how):
    """triton_band.launch; Triton is imported where it is needed, and not before."""
    from . import triton_band

    return triton_band.launch(*how)


def kernel_text(q, k, v, k_positions: Tensor, starting: tuple, how: How) -> Tensor:
    """chunked.read_as_band by the kernel. As many queries at once as there are keys in a
    window, so that placed keys take no memory that grows with the text. starting: keys at
    home, their values, (B, H_kv, G, D), and their positions."""
    n_queries, n, out = q.shape[2], k.shape[2], torch.empty_like(q)
    reach = min(n, how.lm.n_local or n) - 1
    stretch = max(reach, QUERIES_PER_STRETCH)
    for start in range(0, n_queries, stretch):
        own = n - n_queries + start  # the first query's own key
        here, there = slice(start, start + stretch), slice(max(0, own - reach), own + stretch)
        place = how.scheme.at(k_positions[there], q.dtype, q.device)
        keys, first = (place(k[:, :, there]), v[:, :, there]), int(k_positions[own])
        band = place, own - there.start, *keys, starting, first, how, out[:, :, here]
        kernel_band(q[:, :, here], *band)
    return out


def kernel_band(q, place, shift, keys, values, starting, first: int, how: How, out, _head=0):
    """band.attend_band by the kernel: the same arguments, for all heads."""
    placed, keys = place(q, slice(shift, shift + q.shape[2])), keys[:, :, -values.shape[2] :]
    *starting, positions = starting  # which are consecutive
    first -= int(positions[0]) if len(positions) else 0
    firsts = torch.full((len(q),), first, device=q.device)
    unplaced = placed if how.home is None else q
    out.copy_(launch(placed, unplaced, keys, values, starting, firsts, how))


def kernel_attend(
    q: Tensor, k: Tensor, v: Tensor, q_positions: Tensor, k_positions: Tensor, scheme,
    lm: LMInfinite | None, scale: float | None = None, n_reaching: int | None = None,
) -> Tensor:  # fmt: skip
    """attention.attend by the kernel: the same arguments and errors.

    Raises NotImplementedError for float64, heads of more than 256, positions that are not
    consecutive, rows that begin in different places after 0, a ceiling within reach that is not
    n_local, middle keys and gradients.
    """
    check_attention(q, k, v, q_positions, k_positions, scheme, lm, scale, n_reaching)
    scheme, lm, n = scheme or PLACED, lm or FULL_ATTENTION, k.shape[2]
    i, j = (x.expand(len(q), -1).to(q.device).long() for x in (q_positions, k_positions))
    if not i.numel():
        return torch.empty_like(q)
    if lm.distance_ceiling is not None and i.max() < lm.distance_ceiling:
        lm = replace(lm, distance_ceiling=None)
    how = How(scheme, lm, 1 / math.sqrt(q.shape[3]) if scale is None else float(scale))
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    begin = int(j[0, 0].clamp(min=0))
    consecutive = (j.diff() == 1).all() and torch.equal(i, j[:, n - q.shape[2] :])
    fits = consecutive and (j[:, 0].clamp(min=0) == begin).all() and fits_band(how)
    if learns or lm.top_k or not fits or q.dtype == torch.float64 or q.shape[3] > 256:
        raise NotImplementedError("the kernel does not do this: take chunked_attend")
    n_starting = 0 if lm.n_local is None else min(max(lm.n_global - begin, 0), n)
    own = torch.arange(n_starting, device=q.device) - j[:, :1].clamp(max=0)  # (B, G)
    own = own.clamp(max=n - 1)
    starting = [x.take_along_dim(own[:, None, :, None], 2) for x in (k, v)]
    home = own + j[:, :1] if how.home is None else torch.tensor([how.home], device=q.device)
    starting[0], placed = scheme.place(starting[0], home), scheme.place(q, i)
    unplaced, firsts = placed if how.home is None else q, i[:, 0] - begin
    return launch(placed, unplaced, scheme.place(k, j), v, starting, firsts, how)

"""Theorem 1 as a number: to tell many distances apart, logits must be large.

    sup |w| >= (alpha(n) / 2)^(1 / 2r) * epsilon / 4e

w(q, k, d) is the logit of a query and a key at distance d. The theorem says of the family of
functions w(., ., d), d < n, that if alpha(n) of them differ pairwise by more than epsilon, then
the largest |w| is at least that. It rests on a bound on packing numbers in L1 of any
distribution of (q, k) (Pollard; Haussler), so it holds for a finite sample as well:

    the sample  queries and keys of the checkpoint itself, from within the trained length; each
                pair is asked at every distance tried, from 0 to the length of the text
    differ      the mean of |w(q, k, d) - w(q, k, d')| over the sample
    alpha(n)    how many distances a greedy search keeps that all differ by more than epsilon,
                from 0 on upward, each against all that were kept. The true number is at least
                this, and a smaller one makes the bound smaller, so the bound stays true.
    epsilon     the median difference of two distances within the trained length: two distances
                count as told apart where they are as different as two that the model was
                trained with usually are. Of each head its own.
    r           the pseudo-dimension of the family, for which an upper bound serves. ALiBi: the
                functions differ by constants only, so 1. RoPE: each is a fixed function plus a
                combination of rotary_dim ones (of each pair of coordinates the two products
                that cos and sin weigh), so at most rotary_dim; and at most log2(n), since n
                functions cannot do more. The smaller one.
    sup         the largest |w| over the same sample and the same distances

Under the ceiling C there are only the distances 0 to C, and both sides stop growing there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

N_PAIRS = 64  # of the whole sample, per head
MOST_DISTANCES = 512  # that are tried
AT_ONCE = 1 << 22  # numbers of placed queries
N_DIFFERENCES = 4096  # pairs of trained distances whose median is epsilon


def tried(n: int) -> Tensor:
    """Distances from 0 to n - 1, ascending: all, or half of them even and half even on a log
    scale."""
    if n <= MOST_DISTANCES:
        return torch.arange(n)
    half = MOST_DISTANCES // 2
    even = torch.linspace(0, n - 1, half, dtype=torch.float64)
    octaves = torch.logspace(0, math.log2(n - 1), half, base=2, dtype=torch.float64)
    return torch.cat((even, octaves)).round().long().clamp(0, n - 1).unique()


def some_pairs(n: int, count: int, generator) -> tuple[Tensor, Tensor]:
    """Positions of queries and of keys, (count,) each: a key never after its query."""
    q = torch.randint(n, (count,), generator=generator)
    part = torch.rand(count, generator=generator, dtype=torch.float64)
    return q, (part * (q + 1)).long()


def logits_by_distance(q: Tensor, k: Tensor, distances: Tensor, scheme, scale: float) -> Tensor:
    """w(q, k, d) of each pair at each distance: (H, P, D) twice, (M,) -> (H, M, P)."""
    pieces = []
    for some in distances.to(q.device).split(max(1, AT_ONCE // q.numel())):
        every = q.unsqueeze(2).expand(-1, -1, len(some), -1)  # (H, P, M, D)
        products = torch.einsum("hpmd,hpd->hmp", scheme.place(every, some), k) * scale
        pieces.append(products + scheme.bias(some[:, None]).to(products.dtype))
    return torch.cat(pieces, 1)


def difference(w: Tensor, a, b) -> Tensor:
    """The mean difference of the logits (H, M, P) at the distances numbered a and b: (H, ..)"""
    return (w[:, a] - w[:, b]).abs().mean(-1)


def usual_difference(w: Tensor, n_trained: int, generator) -> Tensor:
    """The median difference of two of the first n_trained distances: (H, M, P) -> (H,)."""
    if n_trained < 2:
        return w.new_zeros(len(w))
    a = torch.randint(n_trained, (N_DIFFERENCES,), generator=generator)
    b = (a + 1 + torch.randint(n_trained - 1, a.shape, generator=generator)) % n_trained
    found = [difference(w, *some) for some in zip(a.split(512), b.split(512))]
    return torch.cat(found, -1).median(-1).values


def told_apart(w: Tensor, epsilon: Tensor) -> Tensor:
    """Which distances the greedy search keeps: (H, M, P), (H, 1) -> (H, M)."""
    kept = torch.ones(w.shape[:2], dtype=torch.bool, device=w.device)
    for d in range(w.shape[1] - 1):
        after = slice(d + 1, None)
        differ = difference(w, after, slice(d, d + 1)) > epsilon
        kept[:, after] &= differ | ~kept[:, d : d + 1]
    return kept


def pseudo_dimension(scheme, n: int) -> int:
    """An upper bound for the family of the distances below n."""
    own = 1 if scheme.has_bias else scheme.rotary_dim
    return max(1, min(own, int(math.log2(max(n, 1)))))


def bound(alpha: Tensor, epsilon: Tensor, r) -> Tensor:
    """What the theorem asks of sup |w|; of a single group, from which nothing is told apart,
    nothing."""
    return (alpha >= 2) * (alpha / 2) ** (1 / (2 * r)) * epsilon / (4 * math.e)


def theorem(
    w: Tensor, distances: Tensor, n_trained: int, lengths: list[int], scheme, generator
) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, bound and sup of each head for lengths that ascend: (H, lengths) each.

    w: (H, M, P) at the distances (M,), ascending; n_trained: the trained length.
    """
    epsilon = usual_difference(w, int((distances < n_trained).sum()), generator)[:, None]
    kept, size = told_apart(w, epsilon), w.abs().amax(-1)
    below = [slice(0, int((distances < n).sum())) for n in lengths]
    alpha = torch.stack([kept[:, some].sum(-1) for some in below], -1)
    sup = torch.stack([size[:, some].amax(-1) for some in below], -1)
    r = torch.tensor([pseudo_dimension(scheme, n) for n in lengths], device=w.device)
    # r grows with n: what a shorter length asks for may be more, and holds here as well.
    return alpha, bound(alpha, epsilon, r).cummax(-1).values, sup

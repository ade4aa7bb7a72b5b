"""What a kernel is asked: questions of a few calls each, in an order in which each adds one
thing to those before it.

Other implementations failed at these sizes: texts of the window's length, one more or less,
or a multiple of it; one query; a window of one; more starting tokens than window.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from ..config import FULL_ATTENTION, LMInfinite
from ..lambda_mask import lambda_mask
from ..positions import Alibi, Rotary

L, G, D = 24, 4, 32
LM = LMInfinite(n_local=L, n_global=G, distance_ceiling=L)
WINDOW = replace(LM, n_global=0)


class Call(NamedTuple):
    """What a kernel is asked: the last n_queries of n_keys consecutive tokens, or of more.

    shape:   (B, H, H_kv, D)
    first:   the position of the first key
    padding: how many tokens of each row are none, at its beginning
    jump:    how many positions the text leaves out after its first n_global tokens
    poison:  whether what nobody sees is NaN
    blind:   whether queries that see no key are compared, too
    """

    n_queries: int
    n_keys: int
    lm: LMInfinite
    scheme: Rotary | Alibi
    shape: tuple[int, int, int, int] = (2, 4, 2, D)
    first: int = 0
    padding: tuple[int, ...] = ()
    jump: int = 0
    poison: bool = False
    blind: bool = False

    def __str__(self) -> str:
        lm, scheme = self.lm, self.scheme
        kind = "ALiBi" if scheme.has_bias else f"RoPE {scheme.layout} {scheme.rotary_dim}"
        words = f"{self.n_queries} of {self.n_keys} tokens, {self.shape}, {kind}, "
        return words + f"n_local {lm.n_local} n_global {lm.n_global} C {lm.distance_ceiling}"


def questions() -> dict[str, tuple[str, list[Call]]]:
    """Name -> (what is new in it, the calls)."""
    alibi, ask = Alibi(6), partial(Call, scheme=Rotary(D))

    def text(n: int, lm: LMInfinite, **others) -> Call:
        return ask(n, n, lm, **others)

    one, biased = dict(shape=(1, 2, 2, D)), dict(shape=(1, 6, 6, D), scheme=alibi)
    pairs = dict(one, scheme=Rotary(D // 2, layout="pairs"))
    ragged, far = dict(padding=(0, 7)), dict(first=200_000_000)
    wide, sizes = LMInfinite(100, 5, 100), (L, L + 1, 2 * L, 3 * L - 1)
    tiny, many = LMInfinite(1, 1, 1), LMInfinite(L, 3 * L, L)
    distant = replace(LM, distance_ceiling=1000)
    found = {
        "positions": (
            "a text within the window: places, scale, softmax",
            [text(16, WINDOW, **how) for how in (one, pairs, biased)],
        ),
        "shapes": (
            "batches, grouped heads, fewer queries than keys, odd lengths",
            [text(16, WINDOW, shape=(2, 4, 4, D)), text(16, WINDOW), text(1, WINDOW),
             text(16, WINDOW, shape=(1, 4, 1, D)), text(13, WINDOW), ask(5, 13, WINDOW),
             ask(1, 16, WINDOW), text(13, WINDOW, shape=(1, 2, 1, 40))],
        ),
        "window": (
            "texts longer than the window",
            [*(text(n, WINDOW) for n in sizes), ask(5, 70, WINDOW), ask(1, 70, WINDOW),
             text(9, replace(tiny, n_global=0)), text(70, WINDOW, **biased),
             text(70, FULL_ATTENTION)],
        ),
        "starting": (
            "starting tokens, with no ceiling in reach",
            [*(text(n, distant) for n in sizes), ask(5, 70, distant), ask(1, 70, distant),
             text(9, replace(tiny, distance_ceiling=1000)),
             text(70, replace(many, distance_ceiling=1000)), text(70, distant, **biased)],
        ),
        "ceiling": (
            "the ceiling",
            [*(text(n, LM) for n in sizes), ask(5, 70, LM), ask(1, 70, LM), text(9, tiny),
             text(70, many), text(70, LM, **pairs), text(70, LM, **biased),
             text(70, replace(LM, distance_ceiling=L - 3)),
             text(70, replace(LM, distance_ceiling=L + 5))],
        ),
        "padding": (
            "rows of different lengths: a negative position is no token",
            [text(13, WINDOW, **ragged), text(70, LM, **ragged), ask(5, 70, LM, **ragged),
             text(70, LM, shape=(2, 6, 6, D), scheme=alibi, **ragged)],
        ),
        "poison": (
            "NaN in the keys and values that nobody sees",
            [ask(5, 70, LM, poison=True), text(70, LM, poison=True, **ragged),
             ask(5, 70, LM, poison=True, **biased)],
        ),
        "far": (
            "positions around 200,000,000",
            [text(70, WINDOW, **far), ask(1, 20, WINDOW, **far),
             ask(5, 40, LM, jump=200_000_000), text(70, WINDOW, **far, **biased)],
        ),
        "blocks": (
            "texts of many blocks",
            [text(1037, wide, **one), text(700, LMInfinite(256, 5, 256), shape=(1, 2, 1, 80)),
             ask(300, 1000, wide, **one), text(600, wide, **biased)],
        ),
        "blind": (
            "a query that sees nothing gathers zeros",
            [text(13, LM, blind=True, **ragged), text(70, LM, padding=(20, 70), blind=True)],
        ),
        "top_k": (
            "the middle keys that come back",
            [text(70, replace(LM, top_k=3, top_k_queries=queries), **how)
             for queries in ("last", "all") for how in (one, biased)],
        ),
    }  # fmt: skip
    earlier = ("shapes", "window", "starting", "ceiling", "padding")
    calls = [call for name in earlier for call in found[name][1][-3:]]
    return found | {"backward": ("the gradients of q, k and v", calls)}


def arguments(call: Call, dtype, device, placed: bool) -> tuple:
    """The seven arguments of a call."""
    (batch, n_head, n_kv_head, dim), n, m = call.shape, call.n_queries, call.n_keys
    generator, lm, scheme = torch.Generator().manual_seed(n * m), call.lm, call.scheme
    sizes = ((batch, heads, n_tokens, dim) for heads, n_tokens in
             ((n_head, n), (n_kv_head, m), (n_kv_head, m)))  # fmt: skip
    q, k, v = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    j = torch.arange(m) + call.first
    j[lm.n_global :] += call.jump
    if call.padding:
        j = j - torch.tensor(call.padding)[:, None]
    i = j[..., m - n :]
    if placed:
        q, k = scheme.place(q, i), scheme.place(k, j)
        scheme, lm = None, replace(lm, distance_ceiling=None)
    if call.poison:
        seen = lambda_mask(i, j, lm).any(-2).expand(batch, m)[:, None, :, None]
        k, v = k.masked_fill(~seen, torch.nan), v.masked_fill(~seen, torch.nan)
    return *(x.to(device, dtype) for x in (q, k, v)), i.to(device), j.to(device), scheme, lm

"""What a text costs a model, in nats per token, in two ways.

As one stream: the text passes once, and a cache carries what later tokens see of it. A text has
its own easy and hard places, so the other way scores the same tokens by re-encoding: the
vanilla model on BOS (if the tokenizer has one) and the last tokens, context_length in all,
again and again, a stride of context_length / 2 apart. What a method loses against that is its
own loss, and not the text's difficulty.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..config import LMInfinite
from ..transformer import Transformer
from ..writing.sampling import require_numbers


def nll_of(model: Transformer, hidden: Tensor, following: Tensor) -> Tensor:
    """-log p, in nats, of the ids (T,) that follow hidden states (T, E): (T,), float64 on the
    CPU. The softmax is in float32 or better. Raises ValueError for what is not a number."""
    logits = model.head(hidden)  # (T, V)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    nll = logits.logsumexp(-1) - logits.gather(-1, following[:, None])[:, 0]
    require_numbers(nll)
    return nll.double().cpu()


def nll_by_piece(model: Transformer, hidden: Tensor, following: Tensor, size=512) -> Tensor:
    """nll_of, with the logits of `size` positions at a time."""
    pieces = zip(hidden.split(size), following.split(size))
    return torch.cat([nll_of(model, x, ids) for x, ids in pieces])


@torch.inference_mode()
def stream_nll(
    model: Transformer, ids: list[int], lm: LMInfinite | None, chunk=512,
    read: Callable | None = None,
) -> Tensor:  # fmt: skip
    """The nll, in nats, of every id but the first, read as one stream: (n - 1,), float64.

    Entry i belongs to the query at position i. One chunk's logits exist at a time. read: other
    ways to read on than with lm and a cache, from the next tokens (1, T) to their hidden states
    (1, T, E). Raises ValueError for fewer than two ids, and for logits that are not numbers.
    """
    if len(ids) < 2:
        raise ValueError("there is nothing to score: give at least two tokens")
    read = read or partial(model.read, lm=lm, cache=model.new_cache(1, lm))
    tokens = torch.tensor([ids], device=model.embed.weight.device)
    pieces = zip(tokens[:, :-1].split(chunk, 1), tokens[0, 1:].split(chunk))
    return torch.cat([nll_of(model, read(here)[0], following) for here, following in pieces])


@torch.inference_mode()
def reencoded_nll(model: Transformer, ids: list[int], n_bos=1, length=None) -> Tensor:
    """The same entries as stream_nll's, each scored within a fresh window of `length` tokens,
    the trained length unless told.

    The first window is the text's own beginning; a later one is the first n_bos ids (BOS, or
    none) and the ids before the last that it scores, and scores the second half of them.
    """
    length = length or model.config.context_length
    left, stride, at_once = len(ids) - 1, length // 2, max(1, 4096 // length)
    tokens = torch.tensor(ids, device=model.embed.weight.device)
    hidden = model.read(tokens[None, :length][:, :left])[0]
    found = [nll_by_piece(model, hidden, tokens[1 : length + 1])]
    starts = range(stride, left - stride, max(1, stride))
    for first in range(0, len(starts), at_once):
        some = starts[first : first + at_once]
        rows = [torch.cat((tokens[:n_bos], tokens[s + n_bos : s + length + 1])) for s in some]
        rows = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (B, length + 1)
        hidden = model.read(rows[:, :-1])[:, length - stride :].flatten(0, 1)
        following = rows[:, length - stride + 1 :].flatten()
        found.append(nll_by_piece(model, hidden, following))
    return torch.cat(found)[:left]


def edges(first: int, n: int, per_doubling: int = 1, below: bool = False) -> list[int]:
    """Edges of bins of the positions 0 to n: `first`, such as the trained length, and then so
    many to a doubling; and as many below it.

    >>> edges(256, 1500), edges(32, 100, 3), edges(8, 40, below=True)
    ([0, 256, 512, 1024, 1500], [0, 32, 40, 51, 64, 81, 100], [0, 1, 2, 4, 8, 16, 32, 40])
    """
    steps = range(-64 * per_doubling * below, 64 * per_doubling)
    found = {round(first * 2 ** (step / per_doubling)) for step in steps}
    return [0, *sorted(edge for edge in found if 0 < edge < n), n]

"""What a text costs a model, in nats per token, in two ways.

As one stream: the text passes once, and a cache carries what later tokens see of it. A text has
its own easy and hard places, so the other way scores the same tokens by re-encoding: the
vanilla model on BOS (if the tokenizer has one) and the last tokens, context_length in all,
again and again, a stride of context_length / 2 apart. What LM-Infinite loses against it, it
loses; what vanilla loses, it loses to its context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

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


def stream_nll(model: Transformer, ids: list[int], lm: LMInfinite | None, chunk=512) -> Tensor:
    """The nll, in nats, of every id but the first, read as one stream: (n - 1,), float64.

    Entry i belongs to the query at position i. One chunk's logits exist at a time. Raises
    ValueError for fewer than two ids.
    """
    cache = model.new_cache(1, lm)
    pieces = stream_pieces(model, ids, lambda tokens: model.read(tokens, lm, cache), chunk)
    return torch.cat(list(pieces))


@torch.inference_mode()
def stream_pieces(
    model: Transformer, ids: list[int], read: Callable[[Tensor], Tensor], chunk: int
) -> Iterator[Tensor]:
    """stream_nll chunk by chunk, for any way to read on: `read` maps the next tokens (1, T) to
    their hidden states (1, T, E)."""
    if len(ids) < 2:
        raise ValueError("there is nothing to score: give at least two tokens")
    tokens = torch.tensor([ids], device=model.embed.weight.device)
    for here, following in zip(tokens[:, :-1].split(chunk, 1), tokens[0, 1:].split(chunk)):
        yield nll_of(model, read(here)[0], following)


def reencoded_nll(model: Transformer, ids: list[int], n_bos: int = 1) -> Tensor:
    """The same entries as stream_nll's, each scored within a fresh window of the trained
    length."""
    length = model.config.context_length
    return torch.cat(list(reencoded_pieces(model, ids, length, max(1, 4096 // length), n_bos)))


@torch.inference_mode()
def reencoded_pieces(
    model: Transformer, ids: list[int], length: int, batch: int, n_bos: int = 1
) -> Iterator[Tensor]:
    """The nll of every id but the first, each within a window of `length` tokens of its own, in
    pieces of `batch` windows.

    The first window is the text's own beginning; a later one is the first n_bos ids (BOS, or
    none) and the ids before the last that it scores, and scores the second half of them.
    """
    left, stride = len(ids) - 1, length // 2
    tokens = torch.tensor(ids, device=model.embed.weight.device)
    hidden = model.read(tokens[None, :length][:, :left])[0]
    yield nll_by_piece(model, hidden, tokens[1 : length + 1], max(1, stride))
    left -= len(hidden)
    starts = list(range(stride, len(ids) - 1 - stride, max(1, stride)))
    for first in range(0, len(starts), batch):
        some = starts[first : first + batch]
        rows = [torch.cat((tokens[:n_bos], tokens[s + n_bos : s + length + 1])) for s in some]
        rows = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (B, length + 1)
        hidden = model.read(rows[:, :-1])[:, length - stride :].flatten(0, 1)
        following = rows[:, length - stride + 1 :].flatten()
        yield nll_by_piece(model, hidden, following, stride)[:left]
        left -= len(hidden)


def edges(first: int, n: int, per_doubling: int = 1) -> list[int]:
    """Edges of bins of the positions 0 to n: `first`, such as the trained length, and then so
    many to a doubling.

    >>> edges(256, 1500), edges(32, 100, 3)
    ([0, 256, 512, 1024, 1500], [0, 32, 40, 51, 64, 81, 100])
    """
    found = {round(first * 2 ** (k / per_doubling)) for k in range(64 * per_doubling)}
    return [0, *sorted(edge for edge in found if edge < n), n]

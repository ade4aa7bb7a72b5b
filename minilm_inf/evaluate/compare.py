"""What a text costs a model, in nats per token, in two ways, and the table of the model cards.

As one stream: the text passes once, and a cache carries what later tokens see of it. A text has
its own easy and hard places, so the other way scores the same tokens by re-encoding: the
vanilla model on BOS (if the tokenizer has one) and the last tokens, context_length in all,
again and again, a stride of context_length / 2 apart. What LM-Infinite loses against it, it
loses; what vanilla loses, it loses to its context.

The cards show vanilla, LM-Infinite and re-encoding side by side. More methods are in
comparing/, which scores them with the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import LMInfinite
from ..text.tokenizer import opening
from ..transformer import Transformer
from ..writing.sampling import require_numbers


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
    for start in range(0, len(ids) - 1, chunk):
        here = tokens[:, start : min(start + chunk, len(ids) - 1)]
        following = tokens[:, start + 1 : start + 1 + here.shape[1]]
        yield _nll(model.head(read(here)), following)[0]


def reencoded_nll(
    model: Transformer, ids: list[int], batch: int | None = None, n_bos: int = 1
) -> Tensor:
    """The same entries as stream_nll's, each scored within a fresh window of the trained
    length; batch: how many windows are read together (as many as have 4,096 tokens); n_bos: as
    in reencoded_pieces."""
    length = model.config.context_length
    batch = batch or windows_at_once(length)
    return torch.cat(list(reencoded_pieces(model, ids, length, batch, n_bos)))


@torch.inference_mode()
def reencoded_pieces(
    model: Transformer, ids: list[int], length: int, batch: int, n_bos: int = 1
) -> Iterator[Tensor]:
    """The nll of every id but the first, each within a window of `length` tokens of its own, in
    pieces of `batch` windows.

    The first window is the text's own beginning; a later one is the first n_bos ids (BOS, or
    none) and the ids before the last that it scores, and scores the second half of them. The
    logits of one half of one window exist at a time.
    """
    left, stride = len(ids) - 1, length // 2
    tokens = torch.tensor(ids, device=model.embed.weight.device)
    hidden = model.read(tokens[None, :length][:, :left])
    pieces = _nll_by_piece(model, hidden, tokens[None, 1 : length + 1], max(1, stride))
    yield pieces
    left -= len(pieces)
    starts = list(range(stride, len(ids) - 1 - stride, max(1, stride)))
    for first in range(0, len(starts), batch):
        some = starts[first : first + batch]
        rows = [torch.cat((tokens[:n_bos], tokens[s + n_bos : s + length + 1])) for s in some]
        rows = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (B, length + 1)
        hidden = model.read(rows[:, :-1])[:, length - stride :]
        pieces = _nll_by_piece(model, hidden, rows[:, length - stride + 1 :], stride)[:left]
        yield pieces
        left -= len(pieces)


def windows_at_once(length: int) -> int:
    """How many windows of a length are read together: as many as have 4,096 tokens, or one."""
    return max(1, 4096 // length)


def _nll_by_piece(model, hidden: Tensor, following: Tensor, size: int) -> Tensor:
    """_nll of each row in turn, `size` logits at a time: (B, T, E), (B, T) -> (B * T,)."""
    pieces = []
    for row, ids in zip(hidden, following):
        for x, some in zip(row.split(size), ids.split(size)):
            pieces.append(_nll(model.head(x)[None], some[None])[0])
    return torch.cat(pieces)


def _nll(logits: Tensor, following: Tensor) -> Tensor:
    """-log p of the ids that follow: (B, T, V), (B, T) -> (B, T) in float64 on the CPU."""
    nll = F.cross_entropy(logits.float().flatten(0, 1), following.flatten(), reduction="none")
    return nll.view(following.shape).double().cpu()


def bins(context_length: int, n: int) -> list[tuple[int, int]]:
    """Ranges of positions that double: the trained length, then as much again, and so on to n.

    >>> bins(256, 1500)
    [(0, 256), (256, 512), (512, 1024), (1024, 1500)]
    """
    edges = [0, context_length]
    while edges[-1] < n:
        edges.append(2 * edges[-1])
    return [(a, min(b, n)) for a, b in zip(edges, edges[1:]) if a < n]


def by_position(
    model,
    documents: dict[str, list[int]],
    lm: LMInfinite,
    report=print,
    chunk: int = 512,
    n_bos: int = 1,
) -> list[dict]:
    """Mean nll per bin and method over documents of ids, each beginning with n_bos of BOS.

    The documents must have the same length. Raises ValueError for logits that are not numbers.
    Returns a row per bin: first, last (exclusive),
    vanilla, lm_infinite, reencoded, in nats per token.
    """
    n = len(next(iter(documents.values()))) - 1
    ranges = bins(model.config.context_length, n)
    sums = {name: torch.zeros(n, dtype=torch.float64) for name in METHODS}
    for done, (name, ids) in enumerate(documents.items(), 1):
        sums["vanilla"] += stream_nll(model, ids, None, chunk)
        sums["lm_infinite"] += stream_nll(model, ids, lm, chunk)
        sums["reencoded"] += reencoded_nll(model, ids, n_bos=n_bos)
        require_numbers(torch.stack(list(sums.values())))
        report(f"{done}/{len(documents)} {name}")
    means = {name: total / len(documents) for name, total in sums.items()}
    return [
        {"first": a, "last": b, **{name: float(means[name][a:b].mean()) for name in METHODS}}
        for a, b in ranges
    ]


METHODS = ("vanilla", "lm_infinite", "reencoded")


def table(rows: list[dict]) -> str:
    """by_position's rows as a Markdown table."""
    lines = [
        "| positions | vanilla | LM-Infinite | re-encoding | LM-Infinite - re-encoding |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        values = [f"{row[name]:.2f}" for name in METHODS]
        gap = round(row["lm_infinite"] - row["reencoded"], 2) + 0.0  # + 0.0: there is no -0.00
        lines.append(
            f"| {row['first']:,} to {row['last']:,} | {' | '.join(values)} | {gap:+.2f} |"
        )
    return "\n".join(lines)


def encoded(texts: dict[str, str], tokenizer, length: int) -> dict[str, list[int]]:
    """The first length + 1 ids of each text, BOS among them where the tokenizer puts one
    before a text. Raises ValueError for a shorter text."""
    documents, bos = {}, opening(tokenizer)
    for name, text in texts.items():
        # A token is rarely longer than 8 characters.
        ids = bos + tokenizer.encode(text[: 8 * length], bos=False)
        if len(ids) < length + 1:
            ids = bos + tokenizer.encode(text, bos=False)
        if len(ids) < length + 1:
            raise ValueError(
                f"{name} has only {len(ids)} tokens: choose a smaller --length, or another text"
            )
        documents[name] = ids[: length + 1]
    return documents

"""What a model may be asked to read: the checks of its public calls, in one place."""

from __future__ import annotations

import torch
from torch import Tensor


def check_call(tokens: Tensor, vocab_size: int, lm, cache, path: str, paths):
    """Raise ValueError where the arguments of Transformer.forward do not fit together."""
    if path not in paths:
        raise ValueError(f'path must be "chunked" or "reference", not {path!r}')
    whole = tokens.dtype in (torch.int32, torch.int64)
    if tokens.dim() != 2 or 0 in tokens.shape or not whole:
        raise ValueError(
            "tokens must be int64 (or int32) of shape (B, T) with at least one token, not "
            f"{tokens.dtype} of shape {tuple(tokens.shape)}"
        )
    if tokens.device.type == "cpu":  # a GPU would have to wait for the answer
        low, high = (int(x) for x in tokens.aminmax())
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"token {low if low < 0 else high} is out of range: the vocabulary has the "
                f"ids 0 to {vocab_size - 1}"
            )
    if cache is None:
        return
    if path == "reference":
        raise ValueError("the reference path keeps no cache: give it the whole text each time")
    if cache.lm != lm:
        raise ValueError(f"this cache was made for {cache.lm}, not for {lm}")
    if cache.batch != tokens.shape[0]:
        raise ValueError(
            f"this cache was made for {cache.batch} texts, not for {tokens.shape[0]}"
        )


def padding_of(tokens: Tensor, lengths: list[int] | None) -> Tensor | None:
    """How many tokens of padding each row of tokens (B, T) begins with: (B,), None for none.

    Raises ValueError for lengths that are not B whole numbers from 1 to T.
    """
    if lengths is None:
        return None
    batch, longest = tokens.shape
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in lengths)
    if len(lengths) != batch or not whole or not all(1 <= n <= longest for n in lengths):
        raise ValueError(
            f"lengths must be {batch} whole numbers from 1 to {longest}, one for each row, not "
            f"{lengths}"
        )
    return longest - torch.tensor(lengths, device="cpu")

"""A cache as named tensors, and back: what a run, or a session, that is to go on must save.

Where a ring wraps depends on nothing but how much was read, and so does its size. So a fresh
cache, told how much that is, knows the shape of every tensor that it must find.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fast.cache import Cache
from ..terminal.checks import fitting


def state_of(cache: Cache) -> dict[str, Tensor]:
    """All that a fresh cache needs to go on from here, by name; the buffers themselves. Raises
    ValueError for a cache that an exception interrupted."""
    cache.check_whole()
    state = {"length": torch.tensor(cache.length, device="cpu")}
    for number, layer in enumerate(cache.layers):
        ring = layer.ring[:, :, :, : layer.n_slots(cache.length)]  # a settled ring has all
        state |= {f"{number}.ring": ring, f"{number}.starting": layer.starting}
        for block, x in enumerate(layer.middle.blocks if layer.middle else ()):
            count = layer.middle.length - block * layer.middle.per_block
            state[f"{number}.middle.{block}"] = x[:, :, :, :count]
    return state


def restore(cache: Cache, state: dict[str, Tensor]):
    """Make a fresh cache of the same model, lm and padding what `state` was taken of. Raises
    ValueError for a state of any other."""
    state = dict(state)
    length = int(fitting(state.pop("length", None), (), torch.int64))
    if not 0 <= length < 2**53:
        raise ValueError(f"a cache cannot hold {length} tokens")
    like = cache.layers[0].ring
    two, batch, n_kv_head, _, head_dim = like.shape

    def found(name: str, count: int) -> Tensor:
        # In memory of its own, as the run had it: a kernel's last bits may depend on how its
        # numbers lie there, and those of a file lie anywhere.
        shape = two, batch, n_kv_head, count, head_dim
        return fitting(state.pop(name, None), shape, like.dtype).to(like.device, copy=True)

    for at, layer in enumerate(cache.layers):
        count = layer.n_starting(length - min(cache.padding))
        ring = F.pad(found(f"{at}.ring", layer.n_slots(length)), (0, 0, count, 0))
        layer.set(ring, found(f"{at}.starting", count))
        middle = layer.middle
        for start in range(0, length, middle.per_block) if middle else ():
            name = f"{at}.middle.{start // middle.per_block}"
            middle.append(*found(name, min(middle.per_block, length - start)))
    if state:
        raise ValueError(f"this cache has no {next(iter(state))}")
    cache.length = length

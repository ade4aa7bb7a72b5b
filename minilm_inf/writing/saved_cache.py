"""A cache as named tensors, and back: what a run that is to go on later must save.

Where a ring wraps depends on nothing but how much was read, and so does its size. So a fresh
cache, told how much that is, knows the shape of every tensor that it must find.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import fitting, taken
from ..fast.cache import Cache, LayerCache
from ..fast.middle import Middle


def state_of(cache: Cache) -> dict[str, Tensor]:
    """All that a fresh cache needs to go on from here, by name; the buffers themselves. Raises
    ValueError for a cache that an exception interrupted."""
    cache.check_whole()
    counts = {"length": cache.length, "padding": cache.padding}
    state = {name: torch.tensor(x, device="cpu") for name, x in counts.items()}
    for number, layer in enumerate(cache.layers):
        state |= {f"{number}.ring": layer.ring, f"{number}.starting": layer.starting}
        for block, pair in enumerate(layer.middle.pairs if layer.middle else ()):
            count = layer.middle.length - block * layer.middle.per_block
            for kind, x in zip("kv", pair):
                state[f"{number}.middle.{kind}.{block}"] = x[:, :, :count]
    return state


def restore(cache: Cache, state: dict[str, Tensor]):
    """Make a fresh cache of the same model, batch and lm what `state` was taken of. Raises
    ValueError for a state of any other."""
    state = dict(state)
    length = int(fitting(state.pop("length", None), (), torch.int64))
    cache.pad(fitting(state.pop("padding", None), (cache.batch,), torch.int64).tolist())
    if not 0 <= max(cache.padding) <= length < 2**53 or min(cache.padding) < 0:
        raise ValueError(f"a cache cannot hold {length} tokens, of which {cache.padding} pad")
    for number, layer in enumerate(cache.layers):
        restore_layer(layer, taken(state, str(number)), length, cache.padding)
    if state:
        raise ValueError(f"this cache has no {next(iter(state))}")
    cache.length = length


def restore_layer(layer: LayerCache, state: dict[str, Tensor], length: int, padding: list[int]):
    """restore, for one layer."""
    ring = layer.n_columns(length, length - max(padding))
    starting = layer.n_starting(length - min(padding))
    found = []
    for name, count in (("ring", ring), ("starting", starting)):
        old = getattr(layer, name)
        new = fitting(state.pop(name, None), (*old.shape[:3], count, old.shape[4]), old.dtype)
        # In memory of its own, as the run had it: a kernel's last bits may depend on how its
        # numbers lie there, and those of a file lie anywhere.
        found.append(new.to(old.device, copy=True))
    layer.set(*found)
    if layer.middle:
        restore_middle(layer.middle, taken(state, "middle"), length)
    if state:
        raise ValueError(f"this layer has no {next(iter(state))}")


def restore_middle(middle: Middle, state: dict[str, Tensor], length: int):
    """restore, for what a layer keeps for top-k."""
    batch, n_kv_head, head_dim = middle.shape
    for number in range(-(-length // middle.per_block)):
        count = min(middle.per_block, length - number * middle.per_block)
        shape = batch, n_kv_head, count, head_dim
        new = (state.pop(f"{kind}.{number}", None) for kind in "kv")
        middle.append(*(fitting(x, shape, middle.dtype) for x in new))
    if state:
        raise ValueError(f"this layer's middle has no {next(iter(state))}")

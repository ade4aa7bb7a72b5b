"""What passes through a model while it reads, shown from outside.

The core knows no hooks; PyTorch's own are put on the blocks here, and taken off again. Each
block is called with (x, attention): before the call the attention is exchanged for one that
first shows its q and k, and after it the block's output is shown. Nothing is changed, so the
reading is the same with and without.
"""

from __future__ import annotations

import contextlib
from functools import partial

from ..transformer import Transformer


@contextlib.contextmanager
def recording(model: Transformer, on_attention, on_hidden):
    """While it lasts, every layer of every reading calls both functions.

    on_attention: (layer, q, k), unplaced, (B, H, T, D) and (B, H_kv, T, D), before the layer
        uses them.
    on_hidden: (layer, x), (B, T, E), what the layer gives to the next.
    """

    def before(layer, block, arguments):
        x, attention = arguments

        def shown(q, k, v):
            on_attention(layer, q, k)
            return attention(q, k, v)

        return x, shown

    def after(layer, block, arguments, x):
        on_hidden(layer, x)

    hooks = []
    for layer, block in enumerate(model.blocks):
        hooks.append(block.register_forward_pre_hook(partial(before, layer)))
        hooks.append(block.register_forward_hook(partial(after, layer)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

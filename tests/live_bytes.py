"""How much memory tensors take at a time, counted one by one as they come and go."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """peak: the largest number of bytes of tensors, made inside, that exist at a time."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs)):
            self._meet(x, new=False)
        for x in tree_leaves(result):
            self._meet(x, new=True)
        self.peak = max(self.peak, self.live)
        return result

    def _meet(self, x, new: bool):
        if not isinstance(x, torch.Tensor) or x.untyped_storage()._cdata in self.known:
            return
        storage = x.untyped_storage()
        key, n_bytes = storage._cdata, storage.nbytes() if new else 0

        def gone(_):
            self.live -= n_bytes
            self.known.pop(key, None)

        self.live += n_bytes
        self.known[key] = weakref.ref(storage, gone)

"""What is kept between chunks: the keys and values that a later query can still see.

Per layer that is the last n_local keys, placed at their positions, in a ring that overwrites
the oldest; and the first n_global keys, as they are seen at the ceiling, since from there on
their own position no longer matters. So a decode step places one key, and memory stops growing
after n_global + n_local tokens. Where a setting asks a key for both kinds of distance, that key
is kept in both forms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .chunked import Keys
from .config import FULL_ATTENTION, LMInfinite, ModelConfig
from .sight import starting_is_placed, window_is_capped


class Cache:
    """The past of `batch` texts that a model reads under one LMInfinite setting.

    length: tokens read so far.
    nbytes: bytes of all buffers; constant from n_global + n_local tokens on, unless n_local is
        None.
    first_position: what the scheme takes the first token's position to be; no logit depends on
        it.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        lm: LMInfinite | None,
        dtype: torch.dtype,
        device,
        first_position: int = 0,
    ):
        self.lm = lm or FULL_ATTENTION
        self.batch = batch
        self.first_position = first_position
        self.length = 0
        shape = (batch, config.n_kv_head, config.head_dim)
        self.layers = [LayerCache(self.lm, shape, dtype, device) for _ in range(config.n_layer)]

    @property
    def nbytes(self) -> int:
        return sum(layer.window.nbytes + layer.starting.nbytes for layer in self.layers)

    def positions(self, n_new: int, by_slot: bool) -> tuple[range, range | Tensor, range]:
        """Positions of the next n_new tokens, of the window's keys as these find it, and of the
        starting keys, all as LayerCache.extend returns them.

        by_slot: whether the order of a ring that has turned matters. It does for a bias, and
        for a ceiling inside the window; other keys carry their positions, and which they are is
        enough.
        """
        by_slot = by_slot or self.layers[0].window.keeps_both
        end, limit = self.length + n_new, self.lm.n_local
        oldest = 0
        if limit is not None and end > limit:
            oldest = self.length - limit + (n_new == 1)
        window = range(max(0, oldest), end)
        if by_slot and n_new == 1 and oldest > 0:
            slots = torch.arange(limit, device="cpu")
            window = self.length - (self.length - slots) % limit
        return range(self.length, end), window, range(self.layers[0].n_starting(end))


class LayerCache:
    """One layer's window and starting keys. shape: (B, H_kv, D)."""

    def __init__(self, lm: LMInfinite, shape: tuple[int, int, int], dtype, device):
        self.lm = lm
        window = Keys(True, window_is_capped(lm), True)
        starting = Keys(starting_is_placed(lm), lm.distance_ceiling is not None, True)
        self.window = Rows(window, shape, lm.n_local, dtype, device)
        self.starting = Rows(starting, shape, lm.n_global, dtype, device)
        self.length = 0

    def n_starting(self, length: int) -> int:
        """How many starting keys are kept once `length` tokens were read."""
        return 0 if self.lm.n_local is None else min(length, self.lm.n_global)

    def extend(self, placed: Tensor, k: Tensor, v: Tensor, cap) -> tuple[Keys, Keys]:
        """Take in the keys of the next tokens, placed and not, and their values.

        Returns the window that these tokens see, in the order of Cache.positions, and the
        starting keys. cap: chunked.cap_for.
        """
        n_new = v.shape[2]
        end, limit = self.length + n_new, self.lm.n_local
        n_starting = self.n_starting(end)
        if self.length < n_starting:
            count = n_starting - self.length
            new = Keys(placed, cap(k[:, :, :count]) if cap else None, v)
            self.starting.write(self.length, new, 0, count)

        new = Keys(placed, cap(k) if self.window.keeps_both else None, v)

        if limit is None or end <= limit:
            self.window.write(self.length, new, 0, n_new)
            window = self.window.read(0, end)
        elif n_new == 1:
            self.window.write(self.length % limit, new, 0, 1)
            window = self.window.read(0, limit)
        else:
            window = self._window_in_order(new)
            kept = min(n_new, limit)
            slot = (end - kept) % limit  # of the oldest new key that is kept
            before_wrap = min(kept, limit - slot)
            self.window.write(slot, new, n_new - kept, before_wrap)
            self.window.write(0, new, n_new - kept + before_wrap, kept - before_wrap)
        self.length = end
        return window, self.starting.read(0, n_starting)

    def _window_in_order(self, new: Keys) -> Keys:
        """The kept window, oldest first, and the new keys behind it, in new tensors."""
        kept = min(self.length, self.lm.n_local)
        oldest = self.length % self.lm.n_local if self.length > kept else 0  # its slot
        old = (self.window.read(oldest, kept - oldest), self.window.read(0, oldest))
        return Keys(
            *(None if xs[0] is None else torch.cat(xs, 2) for xs in zip(*old, new))
        )  # (B, H_kv, kept + T, D)


class Rows:
    """Buffers for up to `limit` keys (None: any number), which grow by doubling until then.

    kinds: which of Keys' three tensors are kept at all.
    """

    def __init__(
        self, kinds: Keys, shape: tuple[int, int, int], limit: int | None, dtype, device
    ):
        batch, n_kv_head, head_dim = shape
        self.limit = limit
        empty = (batch, n_kv_head, 0, head_dim)
        self.buffers = Keys(
            *(
                torch.empty(empty, dtype=dtype, device=device) if kept else None
                for kept in kinds
            )
        )

    @property
    def keeps_both(self) -> bool:
        """Whether keys are kept placed and capped: they may stand below or at the ceiling."""
        return self.buffers.placed is not None and self.buffers.capped is not None

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers if buffer is not None)

    def write(self, slot: int, new: Keys, first: int, count: int):
        """Put `count` of the new keys, from their `first` on, into the slots from `slot` on."""
        if slot + count > self.buffers.values.shape[2]:
            self._grow(slot + count)
        for buffer, x in zip(self.buffers, new):
            if buffer is not None:
                x = x if count == x.shape[2] else x.narrow(2, first, count)
                buffer.narrow(2, slot, count).copy_(x.detach() if x.requires_grad else x)

    def read(self, first: int, count: int) -> Keys:
        """Views of `count` slots from `first` on."""
        if count == self.buffers.values.shape[2]:
            return self.buffers
        return Keys(*(x if x is None else x.narrow(2, first, count) for x in self.buffers))

    def _grow(self, needed: int):
        capacity = max(needed, 2 * self.buffers.values.shape[2])
        if self.limit is not None:
            capacity = min(capacity, self.limit)

        def grown(buffer):
            if buffer is None:
                return None
            larger = buffer.new_empty(*buffer.shape[:2], capacity, buffer.shape[3])
            larger[:, :, : buffer.shape[2]] = buffer
            return larger

        self.buffers = Keys(*(grown(buffer) for buffer in self.buffers))

"""One layer of a cache: a ring of window keys, the starting keys, and with top-k all that was.

What each of them holds, and in which form, is told in cache.py, which has one of these for
every layer and knows the positions; here are the buffers, and how new tokens enter them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import LMInfinite
from .keys import Keys, taken
from .middle import Middle
from .rows import Rows
from .sight import starting_is_placed, window_is_capped


def ring_and_starting(lm: LMInfinite) -> bool:
    """Whether a single query sees a full ring below the ceiling, and every starting key that
    has left it at the ceiling, or all of them below it: what one product can answer."""
    return lm.n_local is not None and lm.distance_ceiling in (None, lm.n_local)


class LayerCache:
    """One layer's window and starting keys. shape: (B, H_kv, D)."""

    def __init__(
        self, lm: LMInfinite, shape: tuple[int, int, int], dtype, device, middle: str = "ram"
    ):
        self.lm = lm
        self.middle = Middle.empty(middle, shape, dtype, device) if lm.top_k else None
        window = Keys(True, window_is_capped(lm), True)
        starting = Keys(starting_is_placed(lm), lm.distance_ceiling is not None, True)
        behind = lm.n_global if ring_and_starting(lm) else 0
        self.window = Rows(window, shape, lm.n_local, dtype, device, behind)
        self.starting = Rows(starting, shape, lm.n_global, dtype, device)
        self.length = 0
        self.padding: list[int] | None = None
        self.settled: Tensor | None = None  # the buffer behind whose ring they stand
        self.at_ceiling: Tensor | None = None  # they, as each query places them anew there

    def settle(self, whole: bool) -> bool:
        """Put what the starting keys have for good behind the ring: their values, and without a
        ceiling, or a place, they themselves. Done once for a buffer; whether it was now."""
        count = self.lm.n_global
        if whole:
            self.window.reserve(self.lm.n_local)
            self.starting.reserve(count)
        if self.settled is self.window.buffers.values or count == 0:
            return False
        starting, behind = self.starting.read(0, count), self.window.behind
        behind.values.copy_(starting.values)
        key = starting.capped if starting.placed is None else starting.placed
        behind.placed.copy_(key)
        self.at_ceiling = starting.capped
        self.settled = self.window.buffers.values
        return True

    def state(self) -> dict[str, Tensor]:
        """All that restore needs, by name; the buffers themselves."""
        return {
            f"{part}.{name}": x
            for part, owner in self._parts().items()
            for name, x in owner.state().items()
        }

    def restore(self, state: dict[str, Tensor], length: int):
        """Be, as a fresh one, what `state` was taken of after `length` tokens; what is not ours
        stays in it. Raises ValueError for a state of any other."""
        self.length = length
        limit = self.lm.n_local
        counts = {
            "window": length if limit is None else min(length, limit),
            "starting": self.n_starting(length),
            "middle": length,
        }
        for part, owner in self._parts().items():
            own = taken(state, part)
            owner.restore(own, counts[part])
            state |= own

    def _parts(self) -> dict:
        parts = {"window": self.window, "starting": self.starting, "middle": self.middle}
        return {name: part for name, part in parts.items() if part is not None}

    def n_starting(self, length: int) -> int:
        """How many starting keys the longest row keeps once `length` tokens were read."""
        if self.padding is not None:
            length = max(0, length - min(self.padding))
        return 0 if self.lm.n_local is None else min(length, self.lm.n_global)

    def keep(self, rows: list[int]):
        """Forget all rows but these."""
        self.padding = None if self.padding is None else [self.padding[row] for row in rows]
        self.window.keep(rows)
        self.starting.keep(rows)
        if self.middle:
            self.middle.keep(rows)

    def extend(
        self, placed: Tensor, k: Tensor, v: Tensor, cap, in_order: bool = False
    ) -> tuple[Keys, Keys]:
        """Take in the keys of the next tokens, placed and not, and their values.

        Returns the window that these tokens see, in the order of Cache.positions, and the
        starting keys. cap: chunked.cap_for. in_order: the oldest key first, also where a single
        token would find a ring as it stands.
        """
        n_new = v.shape[2]
        if self.middle:
            self.middle.append(k, v)
        end, limit = self.length + n_new, self.lm.n_local
        n_starting = self.n_starting(end)
        if self.padding is not None:
            self._extend_starting_by_row(placed, k, v, cap)
        elif self.length < n_starting:
            count = n_starting - self.length
            new = Keys(placed, cap(k[:, :, :count]) if cap else None, v)
            self.starting.write(self.length, new, 0, count)

        new = Keys(placed, cap(k) if self.window.keeps_both else None, v)

        if limit is None or end <= limit:
            self.window.write(self.length, new, 0, n_new)
            window = self.window.read(0, end)
        elif n_new == 1 and not in_order:
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

    def _extend_starting_by_row(self, placed: Tensor, k: Tensor, v: Tensor, cap):
        """Take in each row's own first n_global tokens, which stand behind its padding."""
        end = self.length + v.shape[2]
        for row, padding in enumerate(self.padding):
            first, last = max(self.length, padding), min(end, padding + self.lm.n_global)
            if self.lm.n_local is None or first >= last:
                continue
            here = slice(first - self.length, last - self.length)
            k_here = k[row : row + 1, :, here]
            new = Keys(placed[row, :, here], cap(k_here)[0] if cap else None, v[row, :, here])
            self.starting.write_row(row, first - padding, new)

    def _window_in_order(self, new: Keys) -> Keys:
        """The kept window, oldest first, and the new keys behind it, in new tensors."""
        kept = min(self.length, self.lm.n_local)
        oldest = self.length % self.lm.n_local if self.length > kept else 0  # its slot
        old = (self.window.read(oldest, kept - oldest), self.window.read(0, oldest))
        return Keys(
            *(None if xs[0] is None else torch.cat(xs, 2) for xs in zip(*old, new))
        )  # (B, H_kv, kept + T, D)

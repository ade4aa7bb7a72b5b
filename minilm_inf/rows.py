"""Buffers of keys and values that grow until they reach their limit, and no further."""

from __future__ import annotations

import torch

from .keys import Keys, fitting


class Rows:
    """Buffers for up to `limit` keys (None: any number), which grow by doubling until then.

    kinds: which of Keys' three tensors are kept at all. n_behind: how many more rows there are,
    once the limit is reached, behind it.
    """

    def __init__(
        self, kinds: Keys, shape: tuple[int, int, int], limit: int | None, dtype, device,
        n_behind: int = 0,
    ):  # fmt: skip
        batch, n_kv_head, head_dim = shape
        self.limit, self.n_behind = limit, n_behind
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

    def write_row(self, row: int, slot: int, new: Keys):
        """Put keys of one row, (H_kv, S, D), into its slots from `slot` on."""
        end = slot + new.values.shape[1]
        if end > self.buffers.values.shape[2]:
            self._grow(end)
        for buffer, x in zip(self.buffers, new):
            if buffer is not None:
                buffer[row, :, slot:end] = x.detach()

    def state(self) -> dict[str, torch.Tensor]:
        """The buffers by their names in Keys."""
        return {name: x for name, x in self.buffers._asdict().items() if x is not None}

    def restore(self, state: dict[str, torch.Tensor], count: int):
        """Go on with the buffers of other rows of the same kind that hold `count` keys, out of
        `state`. Raises ValueError where it holds no such buffers."""
        sizes = {x.shape[2] for x in state.values() if x.dim() == 4}
        most = max(sizes, default=0) if self.limit is None else self.limit + self.n_behind
        if len(sizes) != 1 or not count <= min(sizes) <= most:
            raise ValueError(f"buffers for {count} keys are needed, and others are there")
        found = {}
        for name, old in self.state().items():
            shape = *old.shape[:2], *sizes, old.shape[3]
            found[name] = fitting(state.pop(name, None), shape, old.dtype)
            # In memory of its own, as the run had it: a kernel's last bits may depend on how
            # its numbers lie there, and those of a file lie anywhere.
            found[name] = found[name].to(old.device, copy=True)
        self.buffers = self.buffers._replace(**found)

    def keep(self, rows: list[int]):
        """Forget all rows but these."""
        self.buffers = Keys(*(x if x is None else x[rows] for x in self.buffers))

    def read(self, first: int, count: int) -> Keys:
        """Views of `count` slots from `first` on."""
        if count == self.buffers.values.shape[2]:
            return self.buffers
        return Keys(*(x if x is None else x.narrow(2, first, count) for x in self.buffers))

    @property
    def behind(self) -> Keys:
        """Views of the rows behind the limit."""
        return self.read(self.limit, self.n_behind)

    def reserve(self, count: int):
        """Have room for `count` keys."""
        if count > self.buffers.values.shape[2]:
            self._grow(count)

    def _grow(self, needed: int):
        capacity = max(needed, 2 * self.buffers.values.shape[2])
        if self.limit is not None and capacity >= self.limit:
            capacity = self.limit + self.n_behind

        def grown(buffer):
            if buffer is None:
                return None
            larger = buffer.new_zeros(*buffer.shape[:2], capacity, buffer.shape[3])
            larger[:, :, : buffer.shape[2]] = buffer
            return larger

        self.buffers = Keys(*(grown(buffer) for buffer in self.buffers))

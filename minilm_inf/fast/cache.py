"""What is kept between chunks: the keys and values that a later query can still see.

Of each layer that is the last n_local keys, placed at their positions, in a ring whose newest
takes the slot of the oldest; and the first n_global keys, at home (see band.How), since from
the window on their own position no longer matters. What the definition lets no later query see
is overwritten, so nothing is lost, and memory stops growing after n_global + n_local tokens:

    before it                                    the ring, n_local = 6, after 8 tokens
    | 0 | 1 |    starting keys, for a step       | 6 | 7 | 2 | 3 | 4 | 5 |

Only with top_k all that was read is kept as well (see middle.py), and memory grows with it.

Rows of different lengths are padded on the left, so that they all end together, and token p of
every row stands in one slot; what is read of a row leaves its padding out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import FULL_ATTENTION, LMInfinite, ModelConfig
from ..terminal.checks import Guard
from .middle import Middle


class LayerCache:
    """One layer's columns, the ring and those before it, and its starting keys: keys and
    values, (2, B, H_kv, columns, D) each. shape: (B, H_kv, D)."""

    def __init__(self, lm: LMInfinite, shape, dtype, device, middle: str):
        self.lm = lm
        self.middle = Middle(middle, shape, dtype, device) if lm.top_k else None
        empty = torch.empty(2, *shape[:2], 0, shape[2], dtype=dtype, device=device)
        self.set(empty, empty)

    def set(self, columns: Tensor, starting: Tensor):
        """Have these buffers; a step finds the parts that it needs without cutting them out."""
        n_before = starting.shape[3]
        columns[:, :, :, :n_before] = starting
        self.columns, self.starting = columns, starting
        self.ring, self.parts = columns[:, :, :, n_before:], (*columns, starting[0])

    def n_starting(self, longest: int) -> int:
        """How many starting keys there are, after so many tokens of the longest text."""
        return 0 if self.lm.n_local is None else min(self.lm.n_global, max(0, longest))

    def n_slots(self, longest: int) -> int:
        """The size of the ring after so many tokens: it doubles until it holds n_local."""
        doubled = 1 << (longest - 1).bit_length() if longest else 0
        return min(doubled, self.lm.n_local or doubled)

    def extend(self, placed, home, v, length: int, padding: list[int], spare: int):
        """Take in the next tokens: keys where they stand and at home, and values, (B, H_kv, T,
        D) each.

        Returns the keys and values that these tokens have in their windows, (2, B, H_kv, S, D),
        oldest first, with `spare` columns before them.
        """
        limit, end = self.lm.n_local, length + v.shape[2]
        if limit is not None and length - max(padding) < self.lm.n_global:
            self._take_starting(torch.stack((home, v)), length, padding)
        self.make_room(end)
        limit, n_new = limit or end, v.shape[2]
        old = torch.arange(max(0, length - limit + 1), length, device=v.device) % limit
        slots = torch.arange(max(length, end - limit), end, device=v.device) % limit
        window = F.pad(self.ring.index_select(3, old), (0, 0, spare, n_new))
        window[0, :, :, -n_new:], window[1, :, :, -n_new:] = placed, v
        self.ring.index_copy_(3, slots, window[:, :, :, -len(slots) :])
        return window

    def make_room(self, longest: int):
        """Have the slots that are needed after so many tokens."""
        more = self.n_slots(longest) - self.ring.shape[3]
        if more > 0:
            self.set(F.pad(self.columns, (0, 0, 0, more)), self.starting)

    def _take_starting(self, new: Tensor, length: int, padding: list[int]):
        """Take in each row's own first n_global tokens, which follow its padding."""
        n_new, batch, had = new.shape[3], new.shape[1], self.starting.shape[3]
        count = self.n_starting(length + n_new - min(padding))
        # (B, count): which of the new tokens they are, if they are new.
        among = torch.tensor(padding)[:, None] + torch.arange(count) - length
        is_new = ((among >= 0) & (among < n_new)).view(batch, 1, count, 1).to(new.device)
        among = among.clamp(0, n_new - 1).view(1, batch, 1, count, 1).to(new.device)
        old = F.pad(self.starting, (0, 0, 0, count - had))
        columns = F.pad(self.columns, (0, 0, count - had, 0))
        self.set(columns, torch.where(is_new, new.take_along_dim(among, 3), old))


class Cache(Guard):
    """The past of `batch` texts that a model reads under one LMInfinite setting.

    length: tokens read so far, padding included.
    padding: tokens of padding before each row's text.
    nbytes: bytes of all buffers; constant from n_global + n_local tokens on, unless n_local is
        None, or lm has a top_k. middle_bytes: those of them that hold the whole past for top_k,
        in memory or in a file.
    first_position: what the scheme takes the first token's position to be; no logit depends on
        it.
    """

    def __init__(
        self, config: ModelConfig, batch: int, lm: LMInfinite | None, dtype: torch.dtype,
        device, first_position: int = 0, middle: str = "ram", padding: list[int] | None = None,
    ):  # fmt: skip
        self.config, self.lm = config, lm or FULL_ATTENTION
        self.length, self.first_position = 0, first_position
        self.padding = padding or [0] * batch
        shape = (batch, config.n_kv_head, config.head_dim)
        self.layers = [
            LayerCache(self.lm.for_layer(layer), shape, dtype, device, middle)
            for layer in range(config.n_layer)
        ]

    @property
    def batch(self) -> int:
        return len(self.padding)

    @property
    def shortest(self) -> int:
        """How many tokens of text the row with most padding has."""
        return self.length - max(self.padding)

    @property
    def nbytes(self) -> int:
        buffers = sum(layer.columns.nbytes + layer.starting.nbytes for layer in self.layers)
        return buffers + self.middle_bytes

    @property
    def middle_bytes(self) -> int:
        return sum(layer.middle.nbytes for layer in self.layers if layer.middle)

    def pad(self, padding: list[int]):
        """Say how many tokens of padding each row begins with. Raises ValueError where
        something was read."""
        if self.length:
            raise ValueError("the padding of rows must be given before anything is read")
        self.padding = padding

    def settle(self, longest: int | None = None):
        """Have room for texts of so many tokens; None, for all that a step will ever see."""
        for layer in self.layers:
            layer.make_room(longest or self.lm.n_local or 0)

"""What is kept between chunks: the keys and values that a later query can still see.

Of each layer that is the last n_local keys, placed at their positions, in a ring whose newest
takes the slot of the oldest; and the first n_global keys, kept at home (see chunk.Keys), since
from the window on their own position no longer matters. What the definition lets no later
query see is overwritten, so nothing is lost, and memory stops growing after n_global + n_local
tokens:

    the ring, n_local = 6, after 8 tokens        after it
    | 6 | 7 | 2 | 3 | 4 | 5 |                    | 0 | 1 |     starting keys, for one_token.py

Only with top_k all that was read is kept as well (see middle.py), and memory grows with it.

Rows of different lengths are padded on the left, so that they all end together. Then the window
is the same columns for every row, and only what is seen of it differs; the starting keys are
each row's own.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from ..checks import fitting, taken
from ..config import FULL_ATTENTION, LMInfinite, ModelConfig
from .chunk import at_ceiling
from .middle import Middle


class LayerCache:
    """One layer's ring and starting keys. shape: (B, H_kv, D)."""

    TENSORS = ("keys", "values", "starting_keys", "starting_values")

    def __init__(self, lm: LMInfinite, shape, dtype, device, middle: str):
        self.lm = lm
        self.middle = Middle.empty(middle, shape, dtype, device) if lm.top_k else None
        empty = torch.empty(shape[0], shape[1], 0, shape[2], dtype=dtype, device=device)
        self.keys = self.values = self.starting_keys = self.starting_values = empty

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.TENSORS}

    def set(self, tensors: dict[str, Tensor]):
        for name, x in tensors.items():
            setattr(self, name, x)

    def state(self) -> dict[str, Tensor]:
        """All that restore needs, by name; the buffers themselves."""
        middle = self.middle.state().items() if self.middle else ()
        return self.tensors() | {f"middle.{name}": x for name, x in middle}

    def restore(self, state: dict[str, Tensor], length: int, padding: list[int]):
        """Be, as a fresh one, what `state` was taken of after `length` tokens.

        Raises ValueError for a state of any other.
        """
        limit, n_global = self.lm.n_local, self.lm.n_global
        n_starting = 0 if limit is None else min(n_global, max(0, length - min(padding)))
        counts = dict.fromkeys(self.TENSORS, n_starting)
        keys = state.get("keys")
        room = keys.shape[2] if keys is not None and keys.dim() == 4 else -1
        least, most = (
            (length, room) if limit is None else (min(length, limit), limit + n_global)
        )
        if not least <= room <= most:
            raise ValueError(f"a ring for {length} tokens is needed, and another is there")
        counts |= {"keys": room, "values": room}
        for name, old in self.tensors().items():
            shape = *old.shape[:2], counts[name], old.shape[3]
            new = fitting(state.pop(name, None), shape, old.dtype)
            # In memory of its own, as the run had it: a kernel's last bits may depend on how
            # its numbers lie there, and those of a file lie anywhere.
            setattr(self, name, new.to(old.device, copy=True))
        middle = taken(state, "middle")
        if self.middle:
            self.middle.restore(middle, length)
        if state or middle:
            raise ValueError(f"this layer has no {next(iter({**state, **middle}))}")

    def extend(
        self, placed: Tensor, k: Tensor, v: Tensor, length: int, padding: list[int], scheme,
        spare: int = 0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Take in the next tokens, placed and not, and their values, (B, H_kv, T, D) each.

        Returns the keys and values that these tokens have in their windows, oldest first, with
        `spare` free columns before the keys.
        """
        limit, end = self.lm.n_local, length + v.shape[2]
        if self.middle:
            self.middle.append(k, v)
        if limit is not None:
            self._extend_starting(placed, k, v, length, padding, scheme)
        if limit is None or end <= limit:
            self._write(length, placed, v)
            keys, values = [self.keys[:, :, :end]], [self.values[:, :, :end]]
        else:
            old = self._runs(max(0, length - limit + 1), length)
            keys = [*(self.keys[:, :, run] for run in old), placed]
            values = [*(self.values[:, :, run] for run in old), v]
        if spare:
            keys.insert(0, placed.new_empty(*placed.shape[:2], spare, placed.shape[3]))
        window = tuple(x[0] if len(x) == 1 else torch.cat(x, 2) for x in (keys, values))
        if limit is not None and end > limit:
            kept = min(v.shape[2], limit)
            self._write(end - kept, placed[:, :, -kept:], v[:, :, -kept:])
        if limit is not None and end - max(padding) >= limit + self.lm.n_global:
            self.settle()
        return window

    def _runs(self, first: int, last: int) -> list[slice]:
        """The slots of the tokens first to last - 1, in their order: one slice, or two."""
        limit = self.lm.n_local
        if first == last:
            return []
        if limit is None:
            return [slice(first, last)]
        start, count = first % limit, last - first
        runs = slice(start, min(start + count, limit)), slice(0, start + count - limit)
        return [run for run in runs if run.stop > run.start]

    def _write(self, first: int, placed: Tensor, v: Tensor):
        """Put tokens from `first` on into their slots."""
        last, done = first + v.shape[2], 0
        self.reserve(last)
        for run in self._runs(first, last):
            count = run.stop - run.start
            self.keys[:, :, run] = placed[:, :, done : done + count].detach()
            self.values[:, :, run] = v[:, :, done : done + count].detach()
            done += count

    def reserve(self, count: int):
        """Have room for `count` tokens of a text, or for as many as the ring holds."""
        limit, room = self.lm.n_local, self.values.shape[2]
        needed = count if limit is None else min(count, limit)
        if needed > room:
            larger = max(needed, 2 * room)
            self._grow(larger if limit is None else min(larger, limit))

    def _grow(self, room: int):
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(*old.shape[:2], room, old.shape[3])
            new[:, :, : old.shape[2]] = old
            setattr(self, name, new)

    def _extend_starting(self, placed, k, v, length: int, padding: list[int], scheme):
        """Take in each row's own first n_global tokens, which follow its padding."""
        first_of_all, n_global = length - max(padding), self.lm.n_global
        if first_of_all >= n_global:
            return
        end, old = length + v.shape[2], (self.starting_keys, self.starting_values)
        count = max(old[0].shape[2], min(n_global, max(0, end - min(padding))))
        new = [x.new_zeros(*x.shape[:2], count, x.shape[3]) for x in old]
        for x, before in zip(new, old):
            x[:, :, : before.shape[2]] = before
        home = placed if self.lm.distance_ceiling is None else at_ceiling(k, scheme, self.lm)
        for row, pad in enumerate(padding):
            first, last = max(length, pad), min(end, pad + n_global)
            if first < last:
                here = slice(first - length, last - length)
                for x, own in zip(new, (home, v)):
                    x[row, :, first - pad : last - pad] = own[row, :, here].detach()
        self.starting_keys, self.starting_values = new

    def settle(self):
        """Make the starting keys stand after the ring, once they are all there."""
        limit, n_global = self.lm.n_local, self.lm.n_global
        if self.values.shape[2] == limit + n_global:
            return
        self._grow(limit + n_global)
        self.keys[:, :, limit:] = self.starting_keys
        self.values[:, :, limit:] = self.starting_values


class Guard:
    """What is changed in several steps: once an exception has interrupted them, its parts no
    longer agree, and every further use is refused."""

    interrupted = False

    @contextlib.contextmanager
    def changing(self):
        """Inside are the steps of one change. Raises ValueError after an interrupted one."""
        self.check_whole()
        self.interrupted = True
        yield
        self.interrupted = False

    def check_whole(self):
        """Raise ValueError after an interrupted change."""
        if self.interrupted:
            raise ValueError(
                f"this {type(self).__name__.lower()} was interrupted while it read, and is no "
                "longer whole: make a new one and read the text again"
            )


class Cache(Guard):
    """The past of `batch` texts that a model reads under one LMInfinite setting.

    length: tokens read so far, padding included.
    padding: (B,) tokens of padding before each row's text; None where no row has any.
    nbytes: bytes of all buffers; constant from n_global + n_local tokens on, unless n_local is
        None, or lm has a top_k. middle_bytes: those of them that hold the whole past for top_k,
        in memory or in a file.
    first_position: what the scheme takes the first token's position to be; no logit depends on
        it.
    """

    def __init__(
        self, config: ModelConfig, batch: int, lm: LMInfinite | None, dtype: torch.dtype,
        device, first_position: int = 0, middle: str = "ram",
    ):  # fmt: skip
        self.config, self.lm = config, lm or FULL_ATTENTION
        self.batch, self.length, self.first_position = batch, 0, first_position
        self.padding: Tensor | None = None
        shape = (batch, config.n_kv_head, config.head_dim)
        self.layers = [
            LayerCache(self.lm.for_layer(layer), shape, dtype, device, middle)
            for layer in range(config.n_layer)
        ]

    @property
    def nbytes(self) -> int:
        tensors = (x for layer in self.layers for x in layer.tensors().values())
        return sum(x.nbytes for x in tensors) + self.middle_bytes

    @property
    def middle_bytes(self) -> int:
        return sum(layer.middle.blocks.nbytes for layer in self.layers if layer.middle)

    @property
    def paddings(self) -> list[int]:
        """Each row's padding."""
        return [0] * self.batch if self.padding is None else self.padding.tolist()

    @property
    def shortest(self) -> int:
        """How many tokens of text the row with most padding has."""
        return self.length - max(self.paddings)

    def count(self, n_new: int):
        """Note that all layers have taken in n_new tokens."""
        self.length += n_new

    def settle(self):
        """Give the starting keys their room after the ring, as one_token.py finds them."""
        for layer in self.layers:
            layer.settle()

    def state(self) -> dict[str, Tensor]:
        """All that a fresh cache needs to go on from here, by name; the buffers themselves."""
        self.check_whole()
        tensors = {"length": torch.tensor(self.length, device="cpu")}
        if self.padding is not None:
            tensors["padding"] = self.padding
        for number, layer in enumerate(self.layers):
            tensors |= {f"{number}.{name}": x for name, x in layer.state().items()}
        return tensors

    def restore(self, state: dict[str, Tensor]):
        """Be, as a fresh cache of the same model, batch and lm, what `state` was taken of.
        Raises ValueError for a state of any other."""
        state = dict(state)
        length = int(fitting(state.pop("length", None), (), torch.int64))
        if length < 0:
            raise ValueError(f"a cache cannot hold {length} tokens")
        if "padding" in state:
            self.pad(fitting(state.pop("padding"), (self.batch,), torch.int64))
        for number, layer in enumerate(self.layers):
            layer.restore(taken(state, str(number)), length, self.paddings)
        if state:
            raise ValueError(f"this cache has no {next(iter(state))}")
        self.length = length

    def pad(self, padding: Tensor):
        """Say how many tokens of padding each row begins with, (B,), before anything is read.

        Raises ValueError where something was, and for numbers that do not fit.
        """
        if self.length or padding.shape != (self.batch,) or bool((padding < 0).any()):
            raise ValueError(
                f"the padding of {self.batch} rows must be given before anything is read, as "
                "many whole numbers from 0 on"
            )
        self.padding = padding if bool(padding.any()) else None

    def keep(self, rows: list[int]):
        """Forget all rows but these: a text that has ended costs nothing more."""
        with self.changing():
            self.batch = len(rows)
            self.padding = None if self.padding is None else self.padding[rows]
            for layer in self.layers:
                layer.set({name: x[rows] for name, x in layer.tensors().items()})
                if layer.middle:
                    layer.middle.keep(rows)

"""What is kept between chunks: the keys and values that a later query can still see.

Per layer that is the last n_local keys, placed at their positions, in a ring that overwrites
the oldest; and the first n_global keys, as they are seen at the ceiling, since from there on
their own position no longer matters. Memory stops growing after n_global + n_local tokens.
Where a setting asks a key for both kinds of distance, that key is kept in both forms. Only with
top_k, all that was read is kept as well (see middle.py), and memory grows with it. Behind
the ring there is room for the starting keys once more, which decoding.py places for each query.

Rows of different lengths are padded on the left, so that they all end together. Then the window
is the same columns for every row, and only what is seen of it differs; the starting keys are
each row's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import FULL_ATTENTION, LMInfinite, ModelConfig
from .keys import Keys
from .layer_cache import LayerCache
from .middle import Reach
from .sight import as_tensor


class Cache:
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
        self,
        config: ModelConfig,
        batch: int,
        lm: LMInfinite | None,
        dtype: torch.dtype,
        device,
        first_position: int = 0,
        middle: str = "ram",
    ):
        self.lm = lm or FULL_ATTENTION
        self.batch = batch
        self.first_position = first_position
        self.length = 0
        self.padding: Tensor | None = None
        self.slots_behind: Tensor | None = None  # those of the starting keys, once settled
        shape = (batch, config.n_kv_head, config.head_dim)
        self.layers = [
            LayerCache(self.lm.for_layer(layer), shape, dtype, device, middle)
            for layer in range(config.n_layer)
        ]

    @property
    def nbytes(self) -> int:
        rings = sum(layer.window.nbytes + layer.starting.nbytes for layer in self.layers)
        return rings + self.middle_bytes

    @property
    def middle_bytes(self) -> int:
        return sum(layer.middle.blocks.nbytes for layer in self.layers if layer.middle)

    @property
    def pages_read(self) -> int:
        """How many pages of the middle single queries read, in all layers; see middle.py."""
        return sum(layer.middle.pages_read for layer in self.layers if layer.middle)

    @property
    def pages_there(self) -> int:
        """How many pages there were for them to read."""
        return sum(layer.middle.pages_there for layer in self.layers if layer.middle)

    def count(self, n_new: int):
        """Note that all layers have taken in n_new tokens."""
        self.length += n_new
        for layer in self.layers:
            layer.length = self.length

    @property
    def shortest(self) -> int:
        """How many tokens of text the row with most padding has."""
        return self.length - (0 if self.padding is None else int(self.padding.max()))

    def state(self) -> dict[str, Tensor]:
        """All that a fresh cache needs to go on from here, by name; the buffers themselves."""
        tensors = {"length": torch.tensor(self.length, device="cpu")}
        if self.padding is not None:
            tensors["padding"] = self.padding
        for number, layer in enumerate(self.layers):
            for name, rows in (("window", layer.window), ("starting", layer.starting)):
                for kind, buffer in zip(Keys._fields, rows.buffers):
                    if buffer is not None:
                        tensors[f"{number}.{name}.{kind}"] = buffer
            if layer.middle:
                for name, x in layer.middle.state().items():
                    tensors[f"{number}.middle.{name}"] = x
        return tensors

    def restore(self, state: dict[str, Tensor]):
        """Be, as a fresh cache of the same model, batch and lm, what `state` was taken of."""
        self.length = int(state["length"])
        if "padding" in state:
            self.pad(state["padding"])
        for number, layer in enumerate(self.layers):
            layer.length = self.length
            for name, rows in (("window", layer.window), ("starting", layer.starting)):
                for kind, old in zip(Keys._fields, rows.buffers):
                    if old is not None:
                        new = state[f"{number}.{name}.{kind}"].to(old.device)
                        rows.buffers = rows.buffers._replace(**{kind: new})
            if layer.middle and self.length:
                layer.middle.append(*(state[f"{number}.middle.{name}"] for name in "kv"))

    def settle(self, whole: bool = False):
        """Make the starting keys stand behind the ring, as decoding.OneToken finds them.

        whole: make buffers of their final size, though the text may be short.
        """
        changed = [layer.settle(whole) for layer in self.layers]
        if any(changed):
            ends = self.lm.n_local, self.lm.n_local + self.lm.n_global
            self.slots_behind = torch.arange(*ends, device=self.layers[0].settled.device)

    def rings(self) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Of each settled layer, what a decode step reads and writes: keys and values (B, H_kv,
        n_local + n_global, D), and the keys (B, H_kv, n_global, D) to place anew, or None."""
        return [
            (layer.window.buffers.placed, layer.window.buffers.values, layer.at_ceiling)
            for layer in self.layers
        ]

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
        for layer in self.layers:
            layer.padding = None if self.padding is None else padding.tolist()

    def keep(self, rows: list[int]):
        """Forget all rows but these: a text that has ended costs nothing more."""
        self.batch = len(rows)
        self.padding = None if self.padding is None else self.padding[rows]
        for layer in self.layers:
            layer.keep(rows)

    def places(self, n_new: int) -> range:
        """Where the scheme puts the next n_new tokens, in every row."""
        start = self.first_position + self.length
        return range(start, start + n_new)

    def positions(self, n_new: int, by_slot: bool):
        """Positions of the next n_new tokens, of the window's keys as these find it, and of the
        starting keys, all as LayerCache.extend returns them: ranges, or a tensor of each row's
        own (B, .), while padding can still be told from text.

        by_slot: whether the order of a ring that has turned matters. It does for a bias, and
        for a ceiling inside the window; other keys carry their positions, and which they are is
        enough. A tensor of rows always has the window oldest first.
        """
        by_slot = by_slot or self.layers[0].window.keeps_both
        end, limit = self.length + n_new, self.lm.n_local
        oldest = 0
        if limit is not None and end > limit:
            oldest = self.length - limit + (n_new == 1)
        window = range(max(0, oldest), end)
        n_starting = self.layers[0].n_starting(end)
        if self.padding is not None and not self._rows_are_alike(by_slot):
            own = self.padding[:, None]
            window = range(max(0, self.length - (limit or end)), end)
            # What a shorter row has not read yet lies in its own future, and is not seen.
            starting = torch.arange(n_starting, device="cpu").expand(self.batch, -1)
            return as_tensor(range(self.length, end)) - own, as_tensor(window) - own, starting
        if by_slot and n_new == 1 and oldest > 0:
            slots = torch.arange(limit, device="cpu")
            window = self.length - (self.length - slots) % limit
        return range(self.length, end), window, range(n_starting)

    def reach(self, layer: int, scheme, n_new: int, n_reaching: int) -> Reach | None:
        """How the last n_reaching of n_new tokens, which the cache has taken in already but not
        counted, reach back in a layer; None where it keeps no middle."""
        kept = self.layers[layer]
        if kept.middle is None or not n_reaching:
            return None
        end = self.length + n_new
        padding = 0 if self.padding is None else self.padding[:, None]
        return Reach(
            kept.middle, kept.lm, scheme, as_tensor(range(end - n_reaching, end)) - padding,
            lambda columns: columns - padding, max(0, end - kept.lm.n_local),
        )  # fmt: skip

    def _rows_are_alike(self, by_slot: bool) -> bool:
        """Whether every row's starting keys all stand beyond the window, so that no padding is
        left in it, and at the ceiling; without a ceiling, a bias tells rows apart for ever."""
        lm = self.lm
        if lm.n_local is None or (by_slot and lm.distance_ceiling is None):
            return False
        nearest = self.length - int(self.padding.max()) - max(0, lm.n_global - 1)
        return nearest >= max(lm.n_local, lm.distance_ceiling or 0)

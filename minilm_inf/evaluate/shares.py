"""One text, many processes: each reads a share of it, and none waits for another.

What a token sees through N layers reaches back N (n_local - 1) tokens and to the starting
tokens, no further. So a process that first reads these, its warm-up, and scores none of them,
has what one that read everything would have:

    the text         | starting |  ................  | N (n_local - 1) |  share  | ....
    what it reads    | starting | N (n_local - 1) |  share  |       as one ordinary text

It is equal, since distances within a window are the same, and to every token whose window has
left the starting tokens they seem as far as the ceiling, however near they now stand. The first
n_local - 1 tokens of the warm-up still have them in sight and come out wrong, after each
further layer as many more, and the share begins where that ends.

torchrun starts the processes. All they exchange is what they counted, once, which is in the
CPU's memory even where a model is on a GPU: so gloo carries it.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from ..config import LMInfinite


class Share(NamedTuple):
    """Which of `count` processes this is, from 0."""

    rank: int = 0
    count: int = 1

    def of(self, total: int) -> range:
        """Which of `total` things are this process's."""
        return range(self.rank * total // self.count, (self.rank + 1) * total // self.count)

    def join(self, array: np.ndarray, how: str) -> np.ndarray:
        """The same array, now the SUM, MIN or MAX of those of all processes, for which it
        waits. Raises ValueError where one has ended."""
        try:
            if self.count > 1:
                dist.all_reduce(torch.from_numpy(array), getattr(dist.ReduceOp, how))
        except RuntimeError as error:
            raise ValueError("another process has ended: it says why") from error
        return array


ALONE = Share()


def joined() -> Share:
    """This process among torchrun's; alone where that did not start it."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return ALONE
    if torch.cuda.is_available():  # what "cuda" means to this process
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=timedelta(days=365))  # the first waits for the last
    return Share(dist.get_rank(), dist.get_world_size())


def before(first: int, lm: LMInfinite | None, n_layer: int) -> list[range]:
    """The stretches of a text to be read before a share from token `first` on; more where the
    ceiling is above the window. Raises ValueError where a token's past has no such end.

    >>> before(1000, LMInfinite(n_local=51, n_global=10, distance_ceiling=51), 4)
    [range(0, 10), range(800, 1000)]
    """
    has_end = lm is not None and lm.n_local is not None and not lm.top_k
    if not has_end or (lm.n_global and lm.distance_ceiling is None):
        raise ValueError(
            "a text cannot be divided among processes where a token sees more than its window "
            "and the starting tokens: run one, or leave out --attention full and "
            "--top-k-middle"
        )
    furthest = max(lm.n_local, lm.distance_ceiling if lm.n_global else 0) - 1
    begin = max(0, first - (n_layer - 1) * (lm.n_local - 1) - furthest)
    return list(filter(len, (range(min(lm.n_global, begin)), range(begin, first))))

"""One text, many processes: each reads a share of it, and none waits for another.

What a token sees through N layers reaches back N (n_local - 1) tokens and to the starting
tokens, no further. So a process that reads these first, in vain, is then where one that read
everything would be:

    the text        | starting |  ................  | N (n_local - 1) |  share  | ....
    what it reads   | starting | N (n_local - 1) |  share  |       as one ordinary text

It is equal, since the scheme knows distances alone: within a window they are the same, and the
starting tokens, which now stand nearer, seem as far as the ceiling to every token whose window
has left them. Those read in vain are wrong where they saw starting tokens in their windows, in
the first layer n_local - 1 of them, in each further one as many more, and the share comes after
the last of these. With top-k or full attention a token's past has no such end.

The processes are torchrun's, which sets the environment that tells each who it is:

    torchrun --nproc-per-node 2 -m minilm_inf.evaluate perplexity --stream ...

All they exchange is what they counted, in the end. That is in the memory of the CPU also where
a model is on a GPU, so it is gloo that carries it.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist

from ..config import LMInfinite

FOREVER = datetime.timedelta(days=365)  # a share may take its time


class Share:
    """Which process this is, of how many. is_again: torchrun started it again after a failure.

    store: what all processes can count in, None where there is one.
    """

    def __init__(self, rank: int = 0, count: int = 1, store=None):
        self.rank, self.count, self.store = rank, count, store
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        self.is_again = store is not None and again
        self.words = f"of share {rank + 1} of {count}" if count > 1 else ""

    def of(self, total: int) -> tuple[int, int]:
        """The first of `total` things that are this process's, and where they end."""
        return self.rank * total // self.count, (self.rank + 1) * total // self.count

    def all(self, holds: bool) -> bool:
        """Whether something holds for every process; it waits for all. Raises ValueError where
        one has ended."""
        found = np.array([int(holds)])
        self.join(found, "MIN")
        return bool(found[0])

    def join(self, array: np.ndarray, how: str):
        """Make an array, in place, the SUM, or MAX, of those of all processes. Raises
        ValueError where one has ended."""
        if self.count == 1:
            return
        try:
            dist.all_reduce(torch.from_numpy(array), getattr(dist.ReduceOp, how))
        except RuntimeError as error:
            raise ValueError("another process has ended: see above what it said") from error

    def meet(self, came: list) -> bool:
        """Wait until all processes are here; False once `came`, which signals fill, holds
        one. It sleeps between looks, so that a signal is heard."""
        if self.count > 1:
            self.store.add("arrived", 1)
            while not came and self.store.add("arrived", 0) < self.count:
                time.sleep(0.05)
        return not came


ALONE = Share()


@contextlib.contextmanager
def joined() -> Iterator[Share]:
    """This process among torchrun's; one alone where that did not start it."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield ALONE
        return
    if torch.cuda.is_available():  # what "cuda" means to this process
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store, rank, count = next(dist.rendezvous("env://", timeout=FOREVER))
    apart = dist.PrefixStore("minilm_inf", store)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=FOREVER)
    try:
        yield Share(rank, count, apart)
    finally:
        dist.destroy_process_group()


def reach(lm: LMInfinite | None, n_layer: int) -> int:
    """How many tokens right before a share must be read: N (n_local - 1), and more where the
    ceiling is above the window. Raises ValueError for a setting in which a token's past has no
    end."""
    has_end = lm is not None and lm.n_local is not None and not lm.top_k
    if not has_end or (lm.n_global and lm.distance_ceiling is None):
        raise ValueError(
            "a text cannot be divided among processes where a token sees more than its window "
            "and the starting tokens: run one, or leave out --attention full and "
            "--top-k-middle"
        )
    furthest = max(lm.n_local, lm.distance_ceiling if lm.n_global else 0)
    return (n_layer - 1) * (lm.n_local - 1) + furthest - 1


def before(first: int, lm: LMInfinite, n_layer: int) -> list[tuple[int, int]]:
    """The stretches of a text that a share from token `first` on needs: starts and ends. Raises
    reach's ValueError.

    >>> before(1000, LMInfinite(n_local=51, n_global=10, distance_ceiling=51), 4)
    [(0, 10), (800, 1000)]
    """
    begin = first - reach(lm, n_layer)
    apart = [(0, lm.n_global), (begin, first)]
    stretches = apart if begin > lm.n_global else [(0, first)]
    return [(start, end) for start, end in stretches if start < end]

"""How large everything is that is measured: the full run, and the quick one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """lengths, heads, head_dim, n_local, n_global: of attention alone, where n_local is the
    distance ceiling too.
    tokens: of a text that a model reads; contexts: tokens read before decoding is timed;
    positions: where else it is; steps: tokens of one round of decoding.
    endurance: tokens of one long run of decoding; 0 leaves it out.
    rounds, decoding_rounds: how often each is timed, after a round that is not.
    all_memory: whether memory is measured at every length, or at each way's longest.
    reference_to: the longest text that the definition is timed at, memory permitting.
    compiled: whether compiled decoding takes part, which needs a minute to compile.
    read_on: whether a position is reached by reading up to it, or only told.
    """

    lengths: tuple[int, ...] = (4096, 16_384, 65_536)
    heads: int = 8
    head_dim: int = 128
    n_local: int = 2048
    n_global: int = 16
    tokens: tuple[int, ...] = (16_384, 262_144)
    contexts: tuple[int, ...] = (256, 16_384)
    positions: tuple[int, ...] = (1000, 1_000_000)
    steps: int = 60
    endurance: int = 20_000
    rounds: int = 5
    decoding_rounds: int = 7
    all_memory: bool = True
    reference_to: int = 1 << 62
    compiled: bool = True
    read_on: bool = True


FULL = Sizes()
QUICK = Sizes(
    lengths=(1024, 4096, 16_384),
    heads=1,
    tokens=(2048, 8192),
    contexts=(256, 4096),
    steps=20,
    endurance=2000,
    all_memory=False,
    reference_to=4096,
    compiled=False,
    read_on=False,
)

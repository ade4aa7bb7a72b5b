"""How large everything is that is measured: the full run, and the quick one."""

from __future__ import annotations

from dataclasses import dataclass, field


def flag(value, words: str, least: int = 1, most: int = 2**28):
    """A size with a flag of its name; 2**28 tokens alone take two gigabytes as ids."""
    return field(default=value, metadata={"words": words, "least": least, "most": most})


QUICK_REFERENCE = 4096


@dataclass(frozen=True)
class Sizes:
    """Sizes that have flags.

    decoding_rounds: as rounds, of decoding. quick: whether what would take minutes is left out:
    memory at all but each way's longest text, the definition beyond QUICK_REFERENCE tokens,
    compiled decoding, and reading up to a far position, which is only told.
    """

    lengths: tuple[int, ...] = flag((4096, 16_384, 65_536), "tokens of attention alone")
    heads: int = flag(8, "heads of attention alone", most=4096)
    head_dim: int = flag(128, "their dimension", most=4096)
    n_local: int = flag(2048, "its window and ceiling; a model's is its context length")
    n_global: int = flag(16, "its starting tokens", least=0)
    tokens: tuple[int, ...] = flag((16_384, 262_144), "tokens that a model reads")
    contexts: tuple[int, ...] = flag((256, 16_384), "tokens read before decoding")
    positions: tuple[int, ...] = flag((1000, 1_000_000), "where decoding is timed")
    steps: int = flag(60, "tokens of a round of decoding")
    endurance: int = flag(20_000, "tokens of one long run of decoding; 0 for none", least=0)
    rounds: int = flag(5, "times that each is timed; of decoding 7", least=5)
    prefill_chunk: int = flag(1024, "tokens that a model reads at a time")
    decoding_rounds: int = 7
    quick: bool = False


FULL = Sizes()
QUICK = Sizes(
    lengths=(1024, 4096, 16_384), heads=1, tokens=(2048, 8192), contexts=(256, 4096), steps=20,
    endurance=2000, quick=True,
)  # fmt: skip

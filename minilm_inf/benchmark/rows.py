"""One measurement, and what it comes to beside others of the same run: ratios of medians."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from .timing import Result


@dataclass
class Row:
    """What was measured of one contestant in one setting.

    group, name, n: unique together; n is a length, a context or a position, in tokens.
    seconds: of each round. flops, tokens: what one round does of either; 0 where it is not what
    is told. extra_bytes: of memory, None where it is not known.
    base, rival: (group, name, n) of the row that this one is compared with, and of a second.
    notes: why something is missing, and what must be known to read the row.
    """

    group: str
    name: str
    n: int
    seconds: list[float] = field(default_factory=list)
    flops: int = 0
    tokens: int = 0
    extra_bytes: int | None = None
    base: tuple[str, str, int] | None = None
    rival: tuple[str, str, int] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, int]:
        return self.group, self.name, self.n

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def per_second(self) -> float | None:
        """Useful floating-point operations, or tokens, per second of the median round."""
        return (self.flops or self.tokens) / self.median if self.seconds else None

    def take(self, result: Result) -> Row:
        """This row with a race's result in it."""
        self.seconds = result.seconds
        self.notes += result.notes
        return self


def as_dicts(rows: list[Row]) -> list[dict]:
    """The rows with their ratios, for JSON; the same keys in each, null for what there is not.

    time_ratio, rate_ratio: to the row `base`; rate_to_rival: to the row `rival`.
    """
    by_key = {row.key: row for row in rows}

    def ratio(of: str, row: Row, to: tuple | None) -> float | None:
        other = by_key.get(to)
        if row.median is None or other is None or other.median is None:
            return None
        return getattr(row, of) / getattr(other, of)

    def found(row: Row) -> dict:
        rate = row.per_second
        return {
            "group": row.group,
            "name": row.name,
            "n": row.n,
            "seconds": row.median,
            "least": min(row.seconds, default=None),
            "most": max(row.seconds, default=None),
            "rounds": row.seconds,
            "useful_flops": row.flops or None,
            "useful_gflops_per_s": rate / 1e9 if rate and row.flops else None,
            "tokens": row.tokens or None,
            "tokens_per_s": rate if rate and row.tokens else None,
            "base": row.base,
            "time_ratio": ratio("median", row, row.base),
            "rate_ratio": ratio("per_second", row, row.base),
            "rival": row.rival,
            "rate_to_rival": ratio("per_second", row, row.rival),
            "extra_bytes": row.extra_bytes,
            "notes": row.notes,
        }

    return [found(row) for row in rows]

"""LM-Infinite's two numbers, one at a time: n_global with the window as it is, and n_local with
the starting tokens as they are. The ceiling is the window's size throughout.

Unlike the methods, these settings do not share a budget: how much more a larger one sees is
what is asked.
"""

from __future__ import annotations

from .measure import beyond, mean_of
from .methods import Budget, Stream

N_GLOBAL = (0, 1, 2, 4, 10, 32, 100)
QUARTERS = (1, 2, 3, 4)  # of the trained length


def settings(budget: Budget, context_length: int) -> dict[str, list[tuple[int, Stream]]]:
    """The values of each row and the readings that they ask for; "base" is the budget's own."""
    windows = sorted({max(1, q * context_length // 4) for q in QUARTERS})

    def reading(n_local: int, n_global: int) -> Stream:
        lm = Budget(n_local, n_global, budget.distance_ceiling).settings(n_local)
        return Stream(f"n_local {n_local:,}, n_global {n_global:,}", lm)

    return {
        "base": [(0, reading(budget.n_local, budget.n_global))],
        "n_global": [(g, reading(budget.n_local, g)) for g in N_GLOBAL],
        "n_local": [(w, reading(w, budget.n_global)) for w in windows],
    }


def readings(rows: dict[str, list[tuple[int, Stream]]]) -> dict:
    """All readings that rows ask for, each once, as measure.measure takes them."""
    return {stream.lm: stream for row in rows.values() for _, stream in row}


def result_of(rows: dict, measured: dict, context_length: int) -> dict:
    """Mean nll beyond the trained length of each value, and less that of the budget's own
    setting, document by document; measured: by the readings' lm."""
    (_, base), *_ = rows["base"]
    found = {"base": {"n_local": base.lm.n_local, "n_global": base.lm.n_global}}
    for name in ("n_global", "n_local"):
        found[name] = []
        for value, stream in rows[name]:
            nll = measured[stream.lm].nll
            less = mean_of(nll - measured[base.lm].nll, context_length, nll.shape[1], 0)
            found[name].append({
                "value": value, **beyond(nll, context_length),
                "less_base": {"nll": less["nll"], "interval": less["interval"]},
            })  # fmt: skip
    return found

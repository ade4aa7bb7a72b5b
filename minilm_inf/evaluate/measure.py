"""Methods on the same documents: nll by position with intervals, time, and what each keeps.

Means are over documents, each of which weighs the same, and so are the intervals: intervals.py
says what these mean. All methods read the same documents, so two of them can be compared
document by document, which is far sharper than their two intervals: a hard text is hard for
both. That is what the differences to LM-Infinite are.

Time is of reading and scoring, the median over the pieces of the second half of each text.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..config import LMInfinite, ModelConfig
from ..terminal.progress import Progress
from ..writing.sampling import require_numbers
from .compare import bins
from .intervals import interval
from .methods import Method, Truncated, with_window

REFERENCE = "lambda"  # what differences are to
N_GLOBAL = (0, 1, 2, 4, 10, 32, 100)  # of a sweep
QUARTERS = (1, 2, 3, 4)  # of the trained length: a sweep's n_local


class Measured(NamedTuple):
    """nll: (documents, n) in float64. seconds: of each timed piece, per token."""

    nll: np.ndarray
    seconds: list[float]


def measure(model, methods: dict, documents: dict[str, list[int]], chunk: int) -> dict:
    """Measured of each method, over documents of ids of one length; progress goes to stderr.

    The methods take turns, document by document. Raises ValueError for logits that are not
    numbers.
    """
    found = {name: Measured([], []) for name in methods}
    scored = sum(len(ids) - 1 for ids in documents.values())
    progress, done = Progress(len(methods) * scored), 0
    try:
        for ids in documents.values():
            for name, method in methods.items():
                pieces, seconds, began = [], [], time.perf_counter()
                for piece in method.pieces(model, ids, chunk):
                    now = time.perf_counter()
                    require_numbers(piece)
                    pieces.append(piece.numpy())
                    seconds.append((now - began) / len(piece))
                    done += len(piece)
                    progress.show(done, method.label, now=done == progress.total)
                    began = time.perf_counter()
                found[name].nll.append(np.concatenate(pieces))
                found[name].seconds.extend(seconds[len(seconds) // 2 :])
    finally:
        progress.end()
    return {name: Measured(np.stack(nll), seconds) for name, (nll, seconds) in found.items()}


def mean_of(nll: np.ndarray, first: int, last: int, number: int = 0) -> dict | None:
    """The mean over positions first to last (exclusive) and documents, and its interval, which
    depends on nothing but the numbers: nll (documents, n). None where there are none."""
    if first >= last:
        return None
    means = nll[:, first:last].mean(1)
    found = interval(means, np.ones(len(means)), [0, number])
    return {"first": first, "last": last, "nll": float(means.mean()), "interval": found}


def curve_edges(context_length: int, n: int) -> list[int]:
    """Edges of the figure's bins, three to a doubling from an eighth of the trained length on.

    >>> curve_edges(256, 100)
    [0, 32, 40, 51, 64, 81, 100]
    """
    first = max(1, context_length // 8)
    edges = {round(first * 2 ** (k / 3)) for k in range(200)}
    return [0, *sorted(edge for edge in edges if edge < n), n]


def cache_bytes(method: Method, n: int, config: ModelConfig, width: int) -> int:
    """Bytes of the keys and values that must be kept of n tokens; width: of a number."""
    keys = sum(method.kept(n, layer) for layer in range(config.n_layer))
    return 2 * keys * config.n_kv_head * config.head_dim * width


def result_of(methods: dict, measured: dict, config: ModelConfig, width: int) -> list[dict]:
    """What was measured of each method, as JSON takes it; width: bytes of a number kept."""
    found, context = [], config.context_length
    for name, method in methods.items():
        nll, seconds = measured[name]
        n = nll.shape[1]
        edges = curve_edges(context, n)
        curve = list(zip(edges, edges[1:]))
        entry = {
            "name": name, "label": method.label, "sees": method.sees,
            "cache_bytes": cache_bytes(method, n, config, width),
            "seconds_per_token": float(np.median(seconds)), "timed_chunks": len(seconds),
            "nll": [mean_of(nll, *pair, k) for k, pair in enumerate(bins(context, n))],
            "beyond": mean_of(nll, context, n),
            "beyond_less_lm_infinite": None,
            "curve": [mean_of(nll, *pair, k) for k, pair in enumerate(curve)],
        }  # fmt: skip
        if REFERENCE in measured:
            less = nll - measured[REFERENCE].nll
            if name != REFERENCE:
                entry["beyond_less_lm_infinite"] = mean_of(less, context, n)
            entry["curve_less_lm_infinite"] = [
                mean_of(less, *pair, k) for k, pair in enumerate(curve)
            ]
        found.append(entry)
    return found


def sweep(model, base: LMInfinite, documents: dict[str, list[int]], chunk: int) -> dict:
    """LM-Infinite's two numbers, one at a time: mean nll beyond the trained length of each
    value, and less that of the base, document by document. A ceiling that is the window's size
    stays so.

    Unlike the methods, these settings do not see as many keys: how much more a larger one sees
    is what is asked.
    """
    context = model.config.context_length
    windows = sorted({max(1, quarter * context // 4) for quarter in QUARTERS})
    lms = {
        "n_global": {n: replace(base, n_global=n) for n in N_GLOBAL},
        "n_local": {n: with_window(base, n) for n in windows},
    }
    each = {base, *lms["n_global"].values(), *lms["n_local"].values()}
    label = "n_local {}, n_global {}"
    chosen = {lm: Method(label.format(lm.n_local, lm.n_global), lm) for lm in each}
    measured = measure(model, chosen, documents, chunk)
    found = {"base": {"n_local": base.n_local, "n_global": base.n_global}}
    for name, row in lms.items():
        found[name] = []
        for value, lm in row.items():
            nll = measured[lm].nll
            less = mean_of(nll - measured[base].nll, context, nll.shape[1])
            found[name].append({
                "value": value, **mean_of(nll, context, nll.shape[1]),
                "less_base": {"nll": less["nll"], "interval": less["interval"]},
            })  # fmt: skip
    return found


def by_position(
    model, documents: dict[str, list[int]], lm: LMInfinite, chunk: int = 512, n_bos: int = 1
) -> list[dict]:
    """What a model's card shows: mean nll per bin over documents of one length, each of which
    begins with n_bos of BOS.

    Returns a row per bin: first, last (exclusive), vanilla, lm_infinite, reencoded.
    """
    context = model.config.context_length
    methods = {
        "vanilla": Method("vanilla", None), "lm_infinite": Method("LM-Infinite", lm),
        "reencoded": Truncated("re-encoding", None, context, n_bos),
    }  # fmt: skip
    measured, rows = measure(model, methods, documents, chunk), []
    for first, last in bins(context, measured["vanilla"].nll.shape[1]):
        means = {name: float(x.nll[:, first:last].mean()) for name, x in measured.items()}
        rows.append({"first": first, "last": last, **means})
    return rows

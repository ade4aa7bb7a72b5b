"""Methods on the same documents: nll by position with intervals, time, and what each keeps.

Means are over documents, each of which weighs the same, and so are the intervals: tally.py says
what these mean. All methods read the same documents, so two of them can be compared document by
document, which is far sharper than their two intervals: a hard text is hard for both. That is
what the differences to LM-Infinite are.

Time is of reading and scoring, at the end of a text: of each document the last whole chunks, so
many that there are at least five in all, and their median.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from ...config import ModelConfig
from ...writing.sampling import require_numbers
from ..compare import bins
from ..tally import interval

TIMED = 5  # chunks, at least
REFERENCE = "lambda"  # what differences are to


class Measured(NamedTuple):
    """nll: (documents, n) in float64. seconds: of each timed chunk, per token."""

    nll: np.ndarray
    seconds: list[float]


def timed_per_document(n_documents: int) -> int:
    """How many chunks of each document are timed."""
    return -(-TIMED // n_documents)


def chunk_for(chunk: int, length: int, n_documents: int) -> int:
    """The chunk that is read at once: no larger than leaves enough of them to be timed."""
    return max(1, min(chunk, length // (timed_per_document(n_documents) + 1)))


def measure(model, methods: dict, documents: dict[str, list[int]], chunk: int, report) -> dict:
    """Measured of each method, over documents of ids of one length.

    The methods take turns, document by document. report(tokens, label) is told after every
    chunk how many tokens were scored, of documents x methods x n. Raises ValueError for logits
    that are not numbers.
    """
    nll = {name: [] for name in methods}
    seconds = {name: [] for name in methods}
    done, last = 0, timed_per_document(len(documents))
    for ids in documents.values():
        for name, method in methods.items():
            found, times, began = [], [], time.perf_counter()
            for piece in method.pieces(model, ids, chunk):
                now = time.perf_counter()
                require_numbers(piece)
                found.append(piece.numpy())
                times.append((len(piece), now - began))
                done += len(piece)
                report(done, method.label)
                began = time.perf_counter()
            nll[name].append(np.concatenate(found))
            seconds[name] += per_token(times, last)
    return {name: Measured(np.stack(nll[name]), seconds[name]) for name in methods}


def per_token(times: list[tuple[int, float]], count: int) -> list[float]:
    """Seconds per token of the last `count` whole pieces of a text; times: the tokens and the
    seconds of each. The first piece is not one of them, if there is another."""
    times = times[1:] or times
    whole = max(tokens for tokens, _ in times)
    return [seconds / tokens for tokens, seconds in times if tokens == whole][-count:]


def mean_of(nll: np.ndarray, first: int, last: int, number: int) -> dict:
    """The mean over positions first to last (exclusive) and documents, and its interval, which
    depends on nothing but the numbers: nll (documents, n)."""
    means = nll[:, first:last].mean(1)
    found = interval(means, np.ones(len(means)), [0, number])
    return {"first": first, "last": last, "nll": float(means.mean()), "interval": found}


def beyond(nll: np.ndarray, context_length: int) -> dict | None:
    """mean_of all that lies beyond the trained length; None where nothing does."""
    n = nll.shape[1]
    return mean_of(nll, context_length, n, 0) if n > context_length else None


def difference(measured: dict, name: str, first: int, last: int) -> dict | None:
    """mean_of a method's nll less LM-Infinite's on the same documents."""
    if REFERENCE not in measured or name == REFERENCE:
        return None
    return mean_of(measured[name].nll - measured[REFERENCE].nll, first, last, 0)


def curve_edges(context_length: int, n: int) -> list[int]:
    """Edges of the figure's bins, three to a doubling from an eighth of the trained length on.

    >>> curve_edges(256, 100)
    [0, 32, 40, 51, 64, 81, 100]
    """
    first = max(1, context_length // 8)
    edges = {round(first * 2 ** (k / 3)) for k in range(200)}
    return [0, *sorted(edge for edge in edges if edge < n), n]


def cache_bytes(method, n: int, config: ModelConfig, width: int) -> int:
    """Bytes of the keys and values that must be kept of n tokens; width: of a number."""
    keys = sum(method.kept(n, layer) for layer in range(config.n_layer))
    return 2 * keys * config.n_kv_head * config.head_dim * width


def result_of(methods: dict, measured: dict, config: ModelConfig, width: int) -> list[dict]:
    """What was measured of each method, as JSON takes it; width: bytes of a number kept."""
    found = []
    for name, method in methods.items():
        nll, seconds = measured[name]
        n, context = nll.shape[1], config.context_length
        edges = curve_edges(context, n)
        pairs = list(zip(edges, edges[1:]))
        entry = {
            "name": name, "label": method.label, "sees": method.sees,
            "visible_keys": method.visible(n),
            "cache_bytes": cache_bytes(method, n, config, width),
            "seconds_per_token": float(np.median(seconds)), "timed_chunks": len(seconds),
            "nll": [mean_of(nll, *pair, k) for k, pair in enumerate(bins(context, n))],
            "beyond": beyond(nll, context),
            "beyond_less_lm_infinite": None,
            "curve": [mean_of(nll, *pair, k) for k, pair in enumerate(pairs)],
        }  # fmt: skip
        if n > context:
            entry["beyond_less_lm_infinite"] = difference(measured, name, context, n)
        if REFERENCE in measured:
            less = nll - measured[REFERENCE].nll
            entry["curve_less_lm_infinite"] = [
                mean_of(less, *pair, k) for k, pair in enumerate(pairs)
            ]
        found.append(entry)
    return found

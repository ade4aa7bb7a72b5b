"""The task `evaluate compare`: ways to read past the trained length, on the same documents and
with the same number of visible keys.

    python -m minilm_inf.evaluate compare --corpus corpus/ --figure methods.png
    python -m minilm_inf.evaluate compare --methods lambda,streaming --sweep
    python -m minilm_inf.evaluate compare --methods full,lambda,truncate --n-local 256

    full        vanilla: full causal attention, true distances
    truncate    re-encoding: vanilla on BOS (if any) and the last tokens alone, again and again
    window      a sliding window, without the starting tokens
    no-ceiling  window and starting tokens at their true distances
    no-lambda   all keys, none further away than the ceiling
    streaming   StreamingLLM: window and starting tokens, distances as they are in the cache
    lambda      LM-Infinite: window and starting tokens, these at the ceiling
    topk        LM-Infinite, and for every token the top-k middle tokens

One table: nll by position with 95% intervals over documents, the difference from LM-Infinite on
the same documents, the bytes of the cache, and how many pass keys are found in the middle of a
text that is four times as long as what a token sees. A difference is taken document by
document, so it is far sharper than two intervals: a hard text is hard for both.

Unless --n-local says otherwise, a token sees as many keys as a training text had tokens.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..config import LMInfinite
from ..terminal import options as flags
from ..text.tokenizer import opening
from ..train.practice import Practice
from . import figure, resume
from .compare import edges
from .documents import encoded
from .intervals import interval
from .methods import LABELS, Method, methods, with_window
from .retrieval import Asked, Cell, pooled
from .table import methods_table, notes, sweep_table
from .trials import PassKey, Trial

TIMES_CONTEXT = 16  # tokens of a document, unless --length says otherwise
TIMES_VISIBLE = 4  # tokens of a text with a pass key, in visible keys or trained lengths
DEPTHS = (0.3, 0.4, 0.5, 0.6)  # shares of its filler before the key
REFERENCE = "lambda"  # what differences are to
N_GLOBAL = (0, 1, 2, 4, 10, 32, 100)  # of a sweep
QUARTERS = (1, 2, 3, 4)  # of the trained length: a sweep's n_local


class Run(resume.Run):
    """All methods on documents of one length; then the pass keys that they are asked for.

    methods: by name. nll: (methods, documents, n), nan where nothing has been read yet.
    """

    def __init__(self, model, methods: dict[str, Method], documents: dict[str, list[int]],
                 chunk=512, asked: Asked | None = None):  # fmt: skip
        self.model, self.methods, self.chunk, self.asked = model, methods, chunk, asked
        self.documents = list(documents.values())
        shape = len(methods), len(documents), len(self.documents[0]) - 1
        self.nll = np.full(shape, np.nan)
        self.arrays = {"nll": self.nll} | (asked.arrays if asked else {})
        self.divided = [(self.nll, -np.inf), *(asked.divided if asked else ())]
        self.total = self.nll.size + (asked.total if asked else 0)

    @property
    def done(self) -> int:
        return int((~np.isnan(self.nll)).sum()) + (self.asked.done if self.asked else 0)

    def step(self):
        """Read one document by one method, or ask one of them."""
        left = np.argwhere(np.isnan(self.nll[:, :, 0]))
        if not len(left):
            return self.asked.step()
        which, document = left[0]
        method, ids = list(self.methods.values())[which], self.documents[document]
        self.nll[which, document] = method.nll(self.model, ids, self.chunk)

    def of(self, name: str) -> np.ndarray:
        """The nll of a method by name, (documents, n)."""
        return self.nll[list(self.methods).index(name)]


# ---- what the flags ask for


def prepared(options, texts, model, tokenizer) -> Run:
    """The run that the flags ask for."""
    context, n_bos = model.config.context_length, len(opening(tokenizer))
    if options.n_local is None:
        options.n_local = context - (10 if options.n_global is None else options.n_global)
        if options.n_local < 1:
            raise ValueError("--n-global leaves no window: give --n-local too")
    lm = flags.attention(options, model.config)
    chosen = methods(options.methods, lm, model.config, n_bos, options.middle)
    if options.sweep:
        chosen |= sweep_of(replace(lm, top_k=0), context)
    length, asked = options.length or TIMES_CONTEXT * context, None
    documents = encoded(texts, tokenizer, length)
    if options.trials:
        filler = np.array([id for ids in documents.values() for id in ids[n_bos:]])
        maker = PassKey(Practice(tokenizer, filler), tokenizer)
        asked = pass_keys(model, maker, chosen, lm, options)
    run = Run(model, chosen, documents, options.chunk, asked)
    run.settings = {
        "documents": sorted(documents), "length": length, "lm_infinite": dict(vars(lm)),
        "budget": lm.n_local + lm.n_global,
    }  # fmt: skip
    return run


def sweep_of(base: LMInfinite, context_length: int) -> dict[str, Method]:
    """LM-Infinite, and with other n_global and n_local, one at a time. Unlike the methods,
    these do not see as many keys: how much more a larger one sees is what is asked."""
    windows = sorted({max(1, quarter * context_length // 4) for quarter in QUARTERS})
    lms = {REFERENCE: base} | {f"n_global={n}": replace(base, n_global=n) for n in N_GLOBAL}
    lms |= {f"n_local={n}": with_window(base, n) for n in windows}
    return {name: Method(LABELS[REFERENCE], lm) for name, lm in lms.items()}


def pass_keys(model, maker: PassKey, methods, lm: LMInfinite, options) -> Asked:
    """Each method asked for --trials pass keys in the middle of a text, which neither the
    starting tokens nor the window hold."""
    length = TIMES_VISIBLE * max(model.config.context_length, lm.n_local + lm.n_global)
    cells = [Cell(name, length, None) for name in options.methods]

    def trial(cell: Cell, number: int) -> Trial:
        depth = DEPTHS[number % len(DEPTHS)]
        return maker.trial(cell.length, depth, [cell.length, number])

    trial(cells[0], 0)  # or it says now that the text is too short
    return Asked(model, methods, cells, trial, lm, options.trials, options.chunk)


# ---- what was found


def result(run: Run) -> dict:
    """What was measured of each method, and of what was swept."""
    return {"results": {"methods": [entry(run, name) for name in run.methods]}}


def entry(run: Run, name: str) -> dict:
    """What was measured of a method."""
    nll, method, config = run.of(name), run.methods[name], run.model.config
    n, context = nll.shape[1], config.context_length
    keys = sum(method.kept(n, layer) for layer in range(config.n_layer))
    width = 2 * config.n_kv_head * config.head_dim * run.model.embed.weight.element_size()
    asked = pooled(run.asked.rows() if run.asked else [], "method", "length")
    is_compared = name != REFERENCE and REFERENCE in run.methods
    return {
        "name": name, "label": method.label, "cache_bytes": keys * width,
        "nll": means_of(nll, edges(context, n)), "beyond": beyond(nll, context),
        "beyond_less_lm_infinite":
            beyond(nll - run.of(REFERENCE), context) if is_compared else None,
        "curve": means_of(nll, edges(max(1, context // 8), n, 3)),
        "passkey": next((row for row in asked if row["method"] == name), None),
    }  # fmt: skip


def beyond(nll: np.ndarray, context: int) -> dict | None:
    """The mean beyond the trained length; None where there is nothing."""
    n = nll.shape[1]
    return means_of(nll, [context, n])[0] if n > context else None


def means_of(nll: np.ndarray, edges: list[int]) -> list[dict]:
    """The means between edges, over positions and documents, which weigh the same, and their
    intervals: nll (documents, n)."""
    rows = []
    for number, (first, last) in enumerate(zip(edges, edges[1:])):
        means = nll[:, first:last].mean(1)
        found = interval(means, np.ones(len(means)), [0, number])
        mean = float(means.mean())
        rows.append({"first": first, "last": last, "nll": mean, "interval": found})
    return rows


def words(result: dict) -> str:
    """The same for a reader."""
    parts = [methods_table(result), notes(result)]
    return "\n\n".join(parts + [sweep_table(result)] * result["settings"]["sweep"])


def picture(result: dict) -> bytes:
    """nll by position, a line for each method."""
    told = result["settings"]
    found = [x for x in result["results"]["methods"] if "=" not in x["name"]]
    beyond = {x["label"]: x["beyond"]["nll"] for x in found if x["beyond"]}
    name, context = Path(told["model"]).name, told["context_length"]
    title = f"{name}, trained on texts of {context:,} tokens"
    if beyond:
        worst, own = max(beyond, key=beyond.get), LABELS["lambda"]
        own = own if own in beyond else min(beyond, key=beyond.get)
        told = [f"{label} {beyond[label]:.2f}" for label in dict.fromkeys((worst, own))]
        title += f"; beyond them, in nats: {', '.join(told)}"
    return figure.curves(title, found, context)

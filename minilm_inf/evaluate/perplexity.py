"""The task `evaluate perplexity`: any number of tokens through model and cache, in constant
memory, and the nll of every one but the first.

    python -m minilm_inf.evaluate perplexity --text FILE... --out run.json
    python -m minilm_inf.evaluate perplexity --corpus corpus/ --stream --length 200000000
    python -m minilm_inf.evaluate perplexity --resume run.json

Documents are joined into one text: BOS, then all of them with EOS between them, in the order
given. With --stream they are repeated until --length, from the second pass on in a random but
fixed order. (`compare` reads each document on its own.)

The result gives nll by position, with intervals (for what they cover, see
minilm_inf/evaluate/intervals.py), bits per byte, and, of a stream, the nll of the same tokens
early and late.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from ..config import LMInfinite
from ..terminal import options as flags
from ..terminal.checks import taken
from ..terminal.progress import bytes_in
from ..terminal.tables import markdown
from ..writing import saved_cache
from . import resume
from .compare import edges, nll_by_piece
from .documents import Stream
from .intervals import Bins, Pairs, add_between
from .shares import ALONE, Share, before

BINS = 200  # of equal size


class Run(resume.Run):
    """The scoring of a stream, as far as it has come. A run that goes on from a state, between
    any two chunks, ends with the same numbers to the last bit, but for those of the machine.

    first, before: where its share begins, and the stretches of its warm-up before it.
    bins: by kind: "log", which double, "linear", of equal size, and "all", which is one.
    seconds, resident: of each linear bin: what it took, and bytes of memory at its end.
    """

    how = "SUM"

    def __init__(self, model, lm: LMInfinite | None, stream: Stream, chunk=2048, middle="ram"):
        self.model, self.lm, self.stream, self.chunk = model, lm, stream, chunk
        n = stream.length
        self.cache = model.new_cache(1, lm, middle=middle)
        linear = np.unique(1 + np.arange(BINS + 1) * (n - 1) // BINS)
        kinds = {"log": edges(1, n)[1:], "linear": linear, "all": [1, n]}
        self.bins = {kind: Bins(cuts, k) for k, (kind, cuts) in enumerate(kinds.items())}
        self.counts = np.zeros(2, np.int64)  # tokens that were scored, and their bytes
        self.pairs = Pairs(n, len(stream.ids))
        self.seconds, self.resident = np.zeros((2, len(linear) - 1))
        self.arrays = {name: vars(self)[name] for name in ("counts", "seconds", "resident")}
        self.arrays |= {f"bins.{kind}": bins.sums for kind, bins in self.bins.items()}
        self.arrays["pairs"] = self.pairs.found
        self.take(ALONE)

    def take(self, share: Share):
        """Score a share of the stream. Raises shares.before's ValueError."""
        own, lm, n_layer = share.of(self.stream.length - 1), self.lm, self.model.config.n_layer
        self.first, self.total, self.n_shares = own.start, len(own), share.count
        self.before = before(self.first, lm, n_layer) if share.count > 1 else []
        self.last = time.monotonic()

    @property
    def done(self) -> int:
        return int(self.counts[0])

    @torch.inference_mode()
    def step(self):
        """Read the next chunk, and score what follows each of its tokens."""
        start, device = self.first + self.done, self.model.embed.weight.device
        stop = min(start + self.chunk, self.first + self.total)
        if self.before and not self.done:
            ids = [self.stream.read(some.start, some.stop)[0] for some in self.before]
            tokens = torch.from_numpy(np.concatenate(ids)[None]).to(device)
            self.model.prefill(tokens, self.lm, self.cache, self.chunk)
        ids, places = self.stream.read(start, stop + 1)
        tokens = torch.from_numpy(ids).to(device)
        hidden = self.model.read(tokens[None, :-1], self.lm, self.cache)
        nll = nll_by_piece(self.model, hidden[0], tokens[1:]).numpy()
        first, places, known = start + 1, places[1:], self.stream.bytes
        for bins in self.bins.values():
            bins.add(first, nll)
        self.pairs.add(first, nll, places)
        self.counts += len(nll), 0 if known is None else known[places].sum()
        now, cuts = time.monotonic(), self.bins["linear"].edges
        each = np.full(len(nll), (now - self.last) / len(nll))
        add_between(cuts, self.seconds, first, each)
        resident = bytes_in("/proc/self/status").get("VmRSS", 0)
        self.resident[(first < cuts[1:]) & (cuts[1:] <= first + len(nll))] = resident
        self.last = now

    def state(self) -> dict[str, Tensor]:
        cache = saved_cache.state_of(self.cache).items()
        return super().state() | {f"cache.{name}": tensor for name, tensor in cache}

    @torch.inference_mode()
    def restore(self, tensors: dict[str, Tensor]):
        saved_cache.restore(self.cache, taken(tensors, "cache"))
        super().restore(tensors)
        vain = sum(map(len, self.before)) if self.done else 0
        if not self.cache.length - vain == self.done <= self.total:
            raise ValueError("the cache is of another place in the text")
        self.last = time.monotonic()


def prepared(options, texts, model, tokenizer) -> Run:
    """The run that the flags ask for."""
    lm = flags.attention(options, model.config)
    stream = Stream(texts, tokenizer, options.stream, options.length)
    run = Run(model, lm, stream, options.chunk, options.middle)
    run.settings = {"length": stream.length, **(vars(lm) if lm else {})}
    return run


def result(run: Run) -> dict:
    """What was measured of the model, and of the machine (0 where it does not tell)."""
    linear, stream = run.bins["linear"], run.stream
    (whole,) = run.bins["all"].rows()
    n_bytes = None if stream.bytes is None else int(run.counts[1])
    results = {
        "tokens": stream.length, "scored": run.done, "documents": len(stream.documents),
        "tokens_of_all_documents": len(stream.ids), "nll": whole["nll"],
        "interval": whole["interval"], "perplexity": float(np.exp(whole["nll"])),
        "bytes": n_bytes,
        "bits_per_byte": n_bytes and whole["nll"] * run.done / math.log(2) / n_bytes,
        "log": run.bins["log"].rows(), "linear": linear.rows(),
        "early_and_late": run.pairs.result(),
    }  # fmt: skip
    speeds = np.diff(linear.edges) / np.maximum(run.seconds, 1e-9)
    columns = linear.edges.tolist(), speeds.tolist(), run.resident.astype(int).tolist()
    names = "first", "tokens_per_second", "resident_bytes"
    rows = [dict(zip(names, row)) for row in zip(*columns)]
    seconds = max(part.sum() for part in np.array_split(run.seconds, run.n_shares))
    return {"results": results, "timing": {"seconds": seconds, "linear": rows}}


def words(result: dict) -> str:
    """The same for a reader: the bins that double, and a few sentences."""
    found, timing = result["results"], result["timing"]
    rows = [
        [f"{row['first']:,} to {row['last']:,}", f"{row['tokens']:,}", f"{row['nll']:.4f}",
         between(row["interval"])]
        for row in found["log"]
    ]  # fmt: skip
    lines = [
        markdown(["positions", "tokens", "nll", "95% interval"], rows),
        f"\nnll {found['nll']:.4f} nats per token ({between(found['interval'])}), perplexity "
        f"{found['perplexity']:.2f}, over {found['scored']:,} tokens of "
        + ("1 document." if found["documents"] == 1 else f"{found['documents']:,} documents."),
    ]
    if n_bytes := found["bytes"]:
        lines.append(f"{found['bits_per_byte']:.4f} bits per byte, over {n_bytes:,} bytes.")
    if windows := found["early_and_late"]:
        lines.append(
            f"The last {windows['tokens']:,} tokens against {windows['tokens']:,} from "
            f"{windows['early_first']:,} on: {windows['late_nll']:.4f} and "
            f"{windows['early_nll']:.4f}; on the {windows['pairs']:,} tokens that are in both, "
            f"{windows['difference']:+.4f} ({between(windows['interval'])})."
        )
    speed = found["scored"] / max(timing["seconds"], 1e-9)
    lines.append(f"{timing['seconds']:,.1f} s, {speed:,.0f} tokens/s.")
    return "\n".join(lines)


def between(interval: list[float] | None) -> str:
    return "none" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"

"""A text of any length, scored token by token through model and cache in constant memory.

A Run reads a chunk at a time and can be taken apart between any two of them: its state is the
model's cache, the sums, and how many tokens were scored. One that is put together again from
that reads the same chunks from the same cache, and ends with the same numbers to the last bit.
Only what it measures of the machine (Timing) differs.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from ..checks import taken
from ..config import LMInfinite
from ..terminal.progress import memory
from ..transformer import Transformer
from ..writing import saved_cache
from ..writing.sampling import require_numbers
from .byte_counts import ByteCounts
from .compare import nll_of
from .documents import Reading
from .pairs import Pairs
from .resume import put_back
from .tally import Tally


class Run:
    """The scoring of all texts of a reading, as far as it has come.

    done: tokens that were scored; total: how many there will be.
    """

    def __init__(
        self,
        model: Transformer,
        lm: LMInfinite | None,
        reading: Reading,
        byte_counts: ByteCounts,
        chunk: int = 2048,
        bins: int = 200,
        middle: str = "ram",
    ):
        self.model, self.lm, self.reading, self.chunk = model, lm, reading, chunk
        self.byte_counts, self.middle = byte_counts, middle
        self.counts = np.zeros(3, np.int64)  # scored tokens, their bytes, unknown ones
        self.ends = np.cumsum(reading.lengths - 1)  # tokens that are scored by a text's end
        self.total = int(self.ends[-1])
        self.tally = Tally(reading.lengths, bins)
        self.pairs = Pairs(int(reading.lengths.max())) if reading.is_stream else None
        self.cache = None
        self.timing = Timing(self.tally.edges["linear"], model.embed.weight.device)

    @property
    def done(self) -> int:
        return int(self.counts[0])

    @property
    def is_done(self) -> bool:
        return self.done == self.total

    @property
    def place(self) -> tuple[int, int]:
        """The text, and the token of it, that are read next."""
        text = int(np.searchsorted(self.ends, self.done, side="right"))
        return text, self.done - (int(self.ends[text - 1]) if text else 0)

    def fact(self) -> str:
        """What is known so far, in words."""
        return f"nll {self.tally.total / self.done:.4f}"

    @torch.inference_mode()
    def step(self):
        """Read the next chunk, and score what follows each of its tokens."""
        if self.cache is None:
            self.cache = self._new_cache()
        text, start = self.place
        length = int(self.reading.lengths[text])
        stop = min(start + self.chunk, length - 1)
        ids, places = self.reading.read(text, start, stop + 1)
        tokens = torch.from_numpy(ids).to(self.model.embed.weight.device)
        hidden = self.model.read(tokens[None, :-1], self.lm, self.cache)
        nll = nll_of(self.model, hidden[0], tokens[1:])
        require_numbers(nll)
        nll, first = nll.numpy(), start + 1  # the position of the first one that is scored
        self.tally.add(first, nll)
        if self.pairs is not None:
            self.pairs.add(first, nll, places[1:])
        self.counts += (len(nll), *self.byte_counts.count(ids[1:], places[1:]))
        if stop == length - 1:
            self.tally.end(text)
            self.cache = None
        self.timing.add(first, stop + 1)

    def _new_cache(self):
        return self.model.new_cache(1, self.lm, middle=self.middle)

    def results(self, seed: int) -> dict:
        """What was measured of the model, when all is scored."""
        whole = self.tally.rows("all", seed)[0]
        scored, n_bytes, n_unknown = self.counts.tolist()
        known = n_unknown == 0 and n_bytes > 0
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(whole["nll"]))
        return {
            "tokens": int(self.reading.lengths.sum()), "scored": scored,
            "documents": len(self.reading.source.lengths),
            "tokens_of_all_documents": self.reading.n_places, "nll": whole["nll"],
            "interval": whole["interval"], "perplexity": perplexity,
            "bytes": n_bytes if known else None,
            "bits_per_byte": self.tally.total / math.log(2) / n_bytes if known else None,
            "tokens_of_unknown_bytes": n_unknown,
            "log": self.tally.rows("log", seed), "linear": self.tally.rows("linear", seed),
            "early_and_late": None if self.pairs is None else self.pairs.result(seed),
        }  # fmt: skip

    def _arrays(self) -> dict[str, np.ndarray]:
        parts = {"tally": self.tally, "timing": self.timing, "pairs": self.pairs}
        return {"counts": self.counts} | {
            f"{part}.{name}": array
            for part, owner in parts.items()
            if owner is not None
            for name, array in owner.arrays().items()
        }

    def state(self) -> dict[str, Tensor]:
        """All that restore needs."""
        tensors = {name: torch.from_numpy(array) for name, array in self._arrays().items()}
        cache = {} if self.cache is None else saved_cache.state_of(self.cache)
        return tensors | {f"cache.{name}": tensor for name, tensor in cache.items()}

    @torch.inference_mode()
    def restore(self, tensors: dict[str, Tensor]):
        """Go on where another run of the same settings was. Raises ValueError for what is no
        state of such a run."""
        put_back(self._arrays(), tensors)
        cache = taken(tensors, "cache")
        if tensors or not 0 <= self.done <= self.total or bool(cache) != (self.place[1] > 0):
            raise ValueError("these tensors are not of this place in the text")
        if cache:
            self.cache = self._new_cache()
            saved_cache.restore(self.cache, cache)
            if self.cache.length != self.place[1]:
                raise ValueError("the cache is of another place in the text")
        self.timing.last = time.monotonic()


class Timing:
    """Seconds, tokens and memory for each of some bins of positions: resident memory, and on a
    GPU what PyTorch has there.

    What a bin took includes everything since the chunk before: also saving, also the line on
    stderr, but not the time between an interruption and going on.
    """

    def __init__(self, edges: np.ndarray, device: torch.device):
        self.edges, self.device = edges, device
        self.bins = np.zeros((4, len(edges) - 1))
        self.seconds, self.tokens, self.resident, self.on_device = self.bins
        self.whole = np.array([memory()[0] or 0.0, 0.0])  # resident memory: begun, at its peak
        self.last = time.monotonic()

    def add(self, first: int, end: int):
        """A chunk was read that scored the positions first to end (exclusive)."""
        now = time.monotonic()
        low, high = self.edges[:-1], self.edges[1:]
        tokens = np.maximum(np.minimum(high, end) - np.maximum(low, first), 0)
        self.tokens += tokens
        self.seconds += (now - self.last) * tokens / (end - first)
        left = (first < high) & (high <= end)
        if left.any():
            resident, peak = memory()
            self.resident[left] = resident or 0
            if self.device.type == "cuda":
                self.on_device[left] = torch.cuda.memory_allocated(self.device)
            self.whole[1] = max(self.whole[1], peak or 0)
        self.last = now

    def result(self) -> dict:
        """What was measured of the machine; bytes are None where the system does not tell."""
        linear = [
            {
                "first": int(first), "seconds": float(s),
                "tokens_per_second": float(t / s) if s else None,
                "resident_bytes": int(r) or None, "device_bytes": int(d) or None,
            }
            for first, (s, t, r, d) in zip(self.edges, self.bins.T)
        ]  # fmt: skip
        found = {
            "seconds": float(self.seconds.sum()),
            "tokens_per_second": float(self.tokens.sum() / max(self.seconds.sum(), 1e-9)),
            "resident_bytes_when_begun": int(self.whole[0]) or None,
            "resident_bytes_at_peak": int(self.whole[1]) or None,
        }
        for name in ("tokens_per_second", "resident_bytes", "device_bytes"):
            found |= {f"{name}_at_start": linear[0][name], f"{name}_at_end": linear[-1][name]}
        return found | {"linear": linear}

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that hold all that was measured; to be written to, to restore it."""
        return {"bins": self.bins, "whole": self.whole}

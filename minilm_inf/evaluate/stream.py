"""A text of any length, scored token by token through model and cache in constant memory.

A Run reads a chunk at a time and can be taken apart between any two of them: its state is the
model's cache, the sums, and where it was. One that is put together again from that reads the
same chunks from the same cache, and ends with the same numbers to the last bit. Only what it
measures of the machine (Timing) differs.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from ..checks import fitting, taken
from ..config import LMInfinite
from ..terminal.progress import memory
from ..transformer import Transformer
from ..writing.sampling import require_numbers
from ..writing.saved_cache import restore, state_of
from .byte_counts import ByteCounts
from .documents import Reading
from .pairs import Pairs
from .tally import DocumentsTally, StreamTally


def scores(model: Transformer, ids: Tensor, lm: LMInfinite | None, cache) -> Tensor:
    """-log p, in nats, of each of ids (T + 1,) but the first, after what the cache holds: (T,),
    float64 on the CPU. The softmax is in float32 or better. Raises ValueError where the logits
    are not numbers."""
    logits = model.head(model.read(ids[None, :-1], lm, cache))[0]  # (T, V)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    nll = logits.logsumexp(-1) - logits.gather(-1, ids[1:, None])[:, 0]
    require_numbers(nll)
    return nll.double().cpu()


class Run:
    """The scoring of all texts of a reading, as far as it has come.

    text, start: the text, and the token of it, that are read next.
    scored: tokens that were scored; total: how many there will be.
    nll: the sum over those that were.
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
        self.middle = middle
        self.model, self.lm, self.reading, self.chunk = model, lm, reading, chunk
        self.byte_counts = byte_counts
        self.text = self.start = self.scored = self.n_bytes = self.n_unknown = 0
        self.nll = 0.0
        self.total = int((reading.lengths - 1).sum())
        longest = int(reading.lengths.max())
        one = len(reading.lengths) == 1
        self.tally = (
            StreamTally(longest, bins) if one else DocumentsTally(reading.lengths, bins)
        )
        self.pairs = Pairs(longest) if reading.is_stream else None
        self.timing = Timing(self.tally.edges["linear"], model.embed.weight.device)
        self.cache = None

    @property
    def is_done(self) -> bool:
        return self.scored == self.total

    @torch.inference_mode()
    def step(self):
        """Read the next chunk, and score what follows each of its tokens."""
        if self.cache is None:
            self.cache = self._new_cache()
        length = int(self.reading.lengths[self.text])
        stop = min(self.start + self.chunk, length - 1)
        ids, places = self.reading.read(self.text, self.start, stop + 1)
        tokens = torch.from_numpy(ids).to(self.model.embed.weight.device)
        nll = scores(self.model, tokens, self.lm, self.cache).numpy()
        first = self.start + 1  # the position of the first one that is scored
        self.tally.add(first, nll)
        if self.pairs is not None:
            self.pairs.add(first, nll, places[1:])
        n_bytes, n_unknown = self.byte_counts.count(ids[1:], places[1:])
        self.n_bytes += n_bytes
        self.n_unknown += n_unknown
        self.scored += len(nll)
        self.nll += float(nll.sum())
        self.start = stop
        if stop == length - 1:
            self.tally.end(self.text)
            self.text, self.start, self.cache = self.text + 1, 0, None
        self.timing.add(first, stop + 1)

    def _new_cache(self):
        return self.model.new_cache(1, self.lm, middle=self.middle)

    def results(self, seed: int) -> dict:
        """What was measured of the model, when all is scored."""
        whole = self.tally.rows("all", seed)[0]
        known = self.n_unknown == 0 and self.n_bytes > 0
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(whole["nll"]))
        return {
            "tokens": int(self.reading.lengths.sum()), "scored": self.scored,
            "documents": len(self.reading.source.lengths),
            "tokens_of_all_documents": self.reading.n_places, "nll": whole["nll"],
            "interval": whole["interval"], "perplexity": perplexity,
            "bytes": self.n_bytes if known else None,
            "bits_per_byte": self.nll / math.log(2) / self.n_bytes if known else None,
            "tokens_of_unknown_bytes": self.n_unknown,
            "log": self.tally.rows("log", seed), "linear": self.tally.rows("linear", seed),
            "early_and_late": None if self.pairs is None else self.pairs.result(seed),
        }  # fmt: skip

    def _arrays(self) -> dict[str, np.ndarray]:
        parts = {"tally": self.tally, "timing": self.timing, "pairs": self.pairs}
        return {
            f"{part}.{name}": array
            for part, owner in parts.items()
            if owner is not None
            for name, array in owner.state().items()
        }

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """All that restore needs: tensors by name, and facts that JSON can hold."""
        tensors = {name: torch.from_numpy(array) for name, array in self._arrays().items()}
        if self.cache is not None:
            cache = state_of(self.cache)
            tensors |= {f"cache.{name}": tensor for name, tensor in cache.items()}
        return tensors, {name: getattr(self, name) for name in FACTS}

    @torch.inference_mode()
    def restore(self, tensors: dict[str, Tensor], facts: dict):
        """Go on where another run of the same settings was. Raises ValueError for what is no
        state of such a run."""
        tensors = dict(tensors)
        for name, array in self._arrays().items():
            place = torch.from_numpy(array)
            new = fitting(tensors.pop(name, None), place.shape, place.dtype)
            if not new.isfinite().all():
                raise ValueError(f"{name} holds what is no number")
            place.copy_(new)
        if self.pairs is not None:
            self.pairs.check()
        self._restore_facts(facts)
        cache = taken(tensors, "cache")
        if tensors or bool(cache) != (self.start > 0):
            raise ValueError("these tensors are not of this place in the text")
        if cache:
            self.cache = self._new_cache()
            restore(self.cache, cache)
            if self.cache.length != self.start:
                raise ValueError("the cache is of another place in the text")

    def _restore_facts(self, facts: dict):
        kinds = {name: float if name == "nll" else int for name in FACTS}
        if any(type(facts.get(name)) is not kind for name, kind in kinds.items()):
            raise ValueError(f"{', '.join(FACTS)} must be numbers")
        for name in FACTS:
            setattr(self, name, facts[name])
        lengths = self.reading.lengths
        is_there = 0 <= self.text < len(lengths) and 0 <= self.start < lengths[self.text] - 1
        if not (is_there or (self.text == len(lengths) and self.start == 0)):
            raise ValueError("there is no such place in the text")
        known = 0 <= self.n_unknown <= self.scored and 0 <= self.n_bytes < 2**62
        known = known and math.isfinite(self.nll)
        if self.scored != int((lengths[: self.text] - 1).sum()) + self.start or not known:
            raise ValueError("the sums are not of this place in the text")


FACTS = ("text", "start", "scored", "n_bytes", "n_unknown", "nll")


class Timing:
    """Seconds, tokens and memory for each of some bins of positions: resident memory, and on a
    GPU what PyTorch has there.

    What a bin took includes everything since the chunk before: also saving, also the line on
    stderr, but not the time between an interruption and going on.
    """

    def __init__(self, edges: np.ndarray, device: torch.device):
        self.edges, self.device = edges, device
        self.seconds, self.tokens = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
        self.resident, self.on_device = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
        self.whole = np.array([0.0, 0.0])  # resident memory when it began, and at its peak
        self.last = time.monotonic()

    def begin(self):
        """Count from now on."""
        self.last = time.monotonic()
        if self.whole[0] == 0:
            self.whole[0] = memory()[0] or 0

    def add(self, first: int, end: int):
        """A chunk was read that scored the positions first to end (exclusive)."""
        now = time.monotonic()
        low, high = self.edges[:-1], self.edges[1:]
        tokens = np.maximum(np.minimum(high, end) - np.maximum(low, first), 0)
        self.tokens += tokens
        self.seconds += (now - self.last) * tokens / (end - first)
        left = (first < high) & (high <= end)
        if left.any():
            now_resident, peak = memory()
            self.resident[left] = now_resident or 0
            if self.device.type == "cuda":
                self.on_device[left] = torch.cuda.memory_allocated(self.device)
            self.whole[1] = max(self.whole[1], peak or 0)
        self.last = now

    def result(self) -> dict:
        """What was measured of the machine; bytes are None where the system does not tell."""
        speed = [t / s if s else None for t, s in zip(self.tokens, self.seconds)]
        resident, on_device = (
            [int(bytes) or None for bytes in found] for found in (self.resident, self.on_device)
        )
        return {
            "seconds": float(self.seconds.sum()),
            "tokens_per_second": float(self.tokens.sum() / max(self.seconds.sum(), 1e-9)),
            "tokens_per_second_at_start": speed[0], "tokens_per_second_at_end": speed[-1],
            "resident_bytes_when_begun": int(self.whole[0]) or None,
            "resident_bytes_at_start": resident[0], "resident_bytes_at_end": resident[-1],
            "resident_bytes_at_peak": int(self.whole[1]) or None,
            "device_bytes_at_start": on_device[0], "device_bytes_at_end": on_device[-1],
            "linear": [
                {
                    "first": int(first), "seconds": float(s), "tokens_per_second": v,
                    "resident_bytes": r, "device_bytes": d,
                }
                for first, s, v, r, d in zip(
                    self.edges, self.seconds, speed, resident, on_device
                )
            ],
        }  # fmt: skip

    def state(self) -> dict[str, np.ndarray]:
        """The arrays that hold all that was measured; to be written to, to restore it."""
        return {
            "seconds": self.seconds, "tokens": self.tokens, "resident": self.resident,
            "on_device": self.on_device, "whole": self.whole,
        }  # fmt: skip

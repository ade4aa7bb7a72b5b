"""Eight ways to read past the trained length, and what each of them reads and keeps.

All have the same number of visible keys, except the two without a Λ, which see the whole past.
These n_local + n_global keys are a window and the starting tokens, or a window of that size, or
a text of that length that is read again; middle tokens that come back count too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ..config import LMInfinite, ModelConfig
from ..transformer import Transformer
from ..writing.sampling import require_numbers
from .compare import reencoded_nll, stream_nll
from .streaming_llm import StreamingLLM

LABELS = {
    "full": "vanilla",
    "truncate": "re-encoding",
    "window": "sliding window",
    "no-ceiling": "Λ without ceiling",
    "no-lambda": "ceiling without Λ",
    "streaming": "StreamingLLM",
    "lambda": "LM-Infinite",
    "topk": "LM-Infinite + top-k",
}


@dataclass(frozen=True)
class Method:
    """One pass over a text, with a cache. lm: how to look back; None is the vanilla model.
    middle: where the whole past is kept, if lm has a top_k."""

    label: str
    lm: LMInfinite | None
    middle: str = field(default="ram", kw_only=True)

    def reader(self, model: Transformer, batch: int = 1) -> Callable:
        """A reader of `batch` texts: it maps their next tokens (B, T) to hidden states
        (B, T, E). n_reaching: as Transformer.read takes it."""
        cache = model.new_cache(batch, self.lm, middle=self.middle)
        return partial(model.read, lm=self.lm, cache=cache)

    def nll(self, model: Transformer, ids: list[int], chunk: int) -> Tensor:
        """The nll of every id but the first, (n - 1,)."""
        return stream_nll(model, ids, self.lm, chunk, self.reader(model))

    def rows(self, rows: Tensor) -> Tensor:
        """What is read of rows of ids (B, T) that end with their answers."""
        return rows

    def kept(self, n: int, layer: int) -> int:
        """How many keys a layer must keep once n tokens have been read."""
        lm = None if self.lm is None else self.lm.for_layer(layer)
        return n if lm is None or lm.top_k else lm.visible(n)


class InCache(Method):
    """StreamingLLM: LM-Infinite's keys at other distances; see streaming_llm.py."""

    def reader(self, model: Transformer, batch: int = 1) -> Callable:
        past = StreamingLLM(model, self.lm.n_local, self.lm.n_global)
        return lambda tokens, n_reaching=None: past.read(tokens)


@dataclass(frozen=True)
class Truncated(Method):
    """Re-encoding: the vanilla model on the first n_bos tokens (BOS, or none) and the last
    ones, `length` in all, read again and again."""

    length: int
    n_bos: int = 1

    def nll(self, model: Transformer, ids: list[int], chunk: int) -> Tensor:
        return reencoded_nll(model, ids, self.n_bos, self.length)

    def rows(self, rows: Tensor) -> Tensor:
        """As Method.rows; the answer is among the last ones."""
        if rows.shape[1] <= self.length:
            return rows
        end = rows[:, rows.shape[1] - self.length + self.n_bos :]
        return torch.cat((rows[:, : self.n_bos], end), 1)

    def kept(self, n: int, layer: int) -> int:
        return 0


@torch.inference_mode()
def answers(model: Transformer, method: Method, rows: Tensor, width: int, chunk=512) -> list:
    """Of rows (B, T) that end with their answers, of `width` ids each: how many ids of its
    answer greedy decoding would write before a wrong one.

    What is written is fed only where it is right, and then it stands in the row already: the
    answers are read with the rows. Middle tokens come back to a prompt's last token and to
    those of the answer, as `generate` has it. Raises ValueError for logits that are not
    numbers.
    """
    rows = method.rows(rows)
    read = method.reader(model, len(rows))
    prompt, last = rows[:, : -width - 1], rows[:, -width - 1 : -1]
    for piece in prompt.split(chunk, 1) if prompt.shape[1] else ():
        read(piece, n_reaching=0)
    logits = model.head(read(last, n_reaching=last.shape[1]))  # (B, width, V)
    require_numbers(logits)
    hits = logits.float().argmax(-1) == rows[:, -width:]
    return hits.long().cumprod(1).sum(1).tolist()


def methods(names: list[str], lm: LMInfinite, config: ModelConfig, n_bos=1, middle="ram"):
    """The methods of these names (all of LABELS are known), in that order: Method by name.

    lm: the setting of "topk", except that its window gives up top_k keys for the middle ones;
    the others have no middle tokens, and as many visible keys. n_bos: ids that every text
    begins with, which re-encoding keeps: BOS, or none. Raises ValueError where there are too
    few keys for one of them.
    """
    plain, keys = replace(lm, top_k=0), lm.n_local + lm.n_global
    length = min(keys, config.context_length)
    if "truncate" in names and length < 2:
        raise ValueError("truncate needs room for two keys: take a larger --n-local")
    settings = {
        "full": None,
        "window": LMInfinite(keys, 0),
        "no-ceiling": replace(plain, distance_ceiling=None),
        "no-lambda": replace(plain, n_local=None, n_global=0),
        "lambda": plain,
        "topk": with_window(lm, lm.n_local - lm.top_k) if "topk" in names else None,
    }
    found = {name: Method(LABELS[name], lm, middle=middle) for name, lm in settings.items()}
    found["truncate"] = Truncated(LABELS["truncate"], None, length, n_bos)
    found["streaming"] = InCache(LABELS["streaming"], settings["no-ceiling"])
    return {name: found[name] for name in names}


def with_window(lm: LMInfinite, n_local: int) -> LMInfinite:
    """The same with another window; a ceiling that is the window's size stays so."""
    follows = lm.distance_ceiling == lm.n_local
    ceiling = n_local if follows else lm.distance_ceiling
    return replace(lm, n_local=n_local, distance_ceiling=ceiling)

"""Eight ways to read past the trained length, and what each of them sees and keeps.

All of them have the same number of visible keys, the budget, but for the two without a Λ,
which see the whole past. n_local + n_global keys are a window and the starting tokens, or a
window of as many, or a text of as many that is read anew; where middle tokens come back, the
window is that much smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...config import LMInfinite, ModelConfig
from ...transformer import Transformer
from ...writing.sampling import require_numbers
from ...writing.session import generate
from ..compare import reencoded_pieces, stream_pieces
from .streaming_llm import StreamingLLM

LABELS = {
    "full": "full attention",
    "truncate": "truncation",
    "window": "sliding window",
    "no-ceiling": "Λ without ceiling",
    "no-lambda": "ceiling without Λ",
    "streaming": "StreamingLLM",
    "lambda": "LM-Infinite",
    "topk": "LM-Infinite + top-k",
}


@dataclass(frozen=True)
class Stream:
    """One pass over the text, with a cache. lm: how to look back; None is the vanilla model."""

    label: str
    lm: LMInfinite | None

    def pieces(self, model: Transformer, ids: list[int], chunk: int) -> Iterator[Tensor]:
        """The nll of every id but the first, (n - 1,) in all, in pieces as they are read."""
        cache = model.new_cache(1, self.lm)
        return stream_pieces(model, ids, lambda x: model.read(x, self.lm, cache), chunk)

    def write(self, model: Transformer, ids: list[int], count: int, chunk: int) -> list[int]:
        """The `count` ids that follow, the likeliest each time."""
        lm = self.lm
        if lm is not None and lm.top_k:  # a prompt is read as generate reads it
            lm = replace(lm, top_k_queries="last")
        return list(
            generate(model, ids, lm, count, temperature=0.0, stop_ids=(), prefill_chunk=chunk)
        )

    def visible(self, n: int) -> int:
        """How many keys the last of n tokens sees in one head."""
        return n if self.lm is None else self.lm.visible(n)

    def kept(self, n: int, layer: int) -> int:
        """How many keys a layer must keep once n tokens were read."""
        lm = None if self.lm is None else self.lm.for_layer(layer)
        return n if lm is None or lm.top_k else lm.visible(n)

    @property
    def sees(self) -> str:
        """What a query far from the beginning sees, in words."""
        if self.lm is None or self.lm.n_local is None:
            return "all"
        words = [f"last {self.lm.n_local:,}"]
        words += [f"first {self.lm.n_global:,}"] if self.lm.n_global else []
        words += [f"{self.lm.top_k:,} of the middle"] if self.lm.top_k else []
        return ", ".join(words)


@dataclass(frozen=True)
class InCache:
    """StreamingLLM: LM-Infinite's keys at other distances; see streaming_llm.py."""

    label: str
    n_local: int
    n_global: int

    def pieces(self, model: Transformer, ids: list[int], chunk: int) -> Iterator[Tensor]:
        """As Stream.pieces."""
        past = StreamingLLM(model, self.n_local, self.n_global)
        return stream_pieces(model, ids, past.read, chunk)

    def write(self, model: Transformer, ids: list[int], count: int, chunk: int) -> list[int]:
        """As Stream.write."""
        past, unread = StreamingLLM(model, self.n_local, self.n_global), list(ids)

        def following(ids: list[int]) -> Tensor:
            new = torch.tensor([ids[past.length :]], device=model.embed.weight.device)
            for some in new.split(chunk, 1):
                hidden = past.read(some)
            return model.head(hidden[:, -1])[0]

        return likeliest(following, unread, count)

    def visible(self, n: int) -> int:
        """As Stream.visible."""
        return min(n, self.n_local + self.n_global)

    def kept(self, n: int, layer: int) -> int:
        """As Stream.kept."""
        return self.visible(n)

    @property
    def sees(self) -> str:
        """As Stream.sees."""
        return Stream("", LMInfinite(self.n_local, self.n_global)).sees


@dataclass(frozen=True)
class Reencoded:
    """Truncation: the vanilla model on the first n_bos tokens (BOS, or none) and the last ones,
    `length` in all, read anew."""

    label: str
    length: int
    n_bos: int = 1

    def pieces(self, model: Transformer, ids: list[int], chunk: int) -> Iterator[Tensor]:
        """As Stream.pieces; every length / 2 tokens the context moves on, and each piece is of
        about a chunk's tokens."""
        batch = max(1, chunk // max(1, self.length // 2))
        return reencoded_pieces(model, ids, self.length, batch, self.n_bos)

    def write(self, model: Transformer, ids: list[int], count: int, chunk: int) -> list[int]:
        """As Stream.write; the context moves on with every token."""

        def following(ids: list[int]) -> Tensor:
            if len(ids) > self.length:
                ids = ids[: self.n_bos] + ids[len(ids) - self.length + self.n_bos :]
            tokens = torch.tensor([ids], device=model.embed.weight.device)
            return model.head(model.read(tokens)[:, -1])[0]

        return likeliest(following, list(ids), count)

    def visible(self, n: int) -> int:
        """As Stream.visible."""
        if n <= self.length:
            return n
        stride = self.length // 2
        return self.length - stride + (n - 1 - self.length) % stride + 1

    def kept(self, n: int, layer: int) -> int:
        """None: the text alone is kept."""
        return 0

    @property
    def sees(self) -> str:
        """As Stream.sees."""
        return f"last {self.length - self.length // 2 + 1:,} to {self.length:,}, read anew"


@torch.inference_mode()
def likeliest(following: Callable, ids: list[int], count: int) -> list[int]:
    """The `count` ids that follow, the likeliest each time; following(ids) -> logits (V,)."""
    ids, n = list(ids), len(ids)
    for _ in range(count):
        logits = following(ids)
        require_numbers(logits)
        ids.append(int(logits.argmax()))
    return ids[n:]


@dataclass(frozen=True)
class Budget:
    """What the flags say. The window and the starting tokens make the budget; of n_local, the
    top_k middle tokens of the last method are taken."""

    n_local: int
    n_global: int
    distance_ceiling: int | None = None  # None: each method's own window
    top_k: int = 5
    top_k_distance: int | None = None
    top_k_from_layer: int | None = None  # None: an eighth of the layers, the paper's 4 of 32

    @property
    def keys(self) -> int:
        """How many keys each query sees, far from the beginning."""
        return self.n_local + self.n_global

    def settings(self, n_local: int, **others) -> LMInfinite:
        """LM-Infinite with a window of n_local."""
        ceiling = n_local if self.distance_ceiling is None else self.distance_ceiling
        return LMInfinite(n_local, self.n_global, ceiling, **others)


def methods(names: list[str], budget: Budget, config: ModelConfig, n_bos: int = 1) -> dict:
    """The methods of these names (all of LABELS are known), in that order.

    n_bos: ids that every text begins with, which truncation keeps: BOS, or none. Raises
    ValueError where the budget is too small for one of them, and for layers that the model
    does not have.
    """
    lm, found = budget.settings(budget.n_local), {}
    for name in names:
        label = LABELS[name]
        if name == "truncate":
            if min(budget.keys, config.context_length) < 2:
                raise ValueError("truncate needs room for two keys: take a larger --n-local")
            length = min(budget.keys, config.context_length)
            found[name] = Reencoded(label, length, n_bos)
        elif name == "streaming":
            found[name] = InCache(label, budget.n_local, budget.n_global)
        elif name == "topk":
            found[name] = Stream(label, with_top_k(budget, config))
        else:
            settings = {
                "full": None,
                "window": LMInfinite(budget.keys, 0),
                "no-ceiling": replace(lm, distance_ceiling=None),
                "no-lambda": replace(lm, n_local=None, n_global=0),
                "lambda": lm,
            }
            found[name] = Stream(label, settings[name])
    return found


def with_top_k(budget: Budget, config: ModelConfig) -> LMInfinite:
    """LM-Infinite with top-k for every query, whose middle tokens are part of the budget."""
    if budget.n_local <= budget.top_k:
        raise ValueError(
            f"topk takes its {budget.top_k} middle tokens from a window of {budget.n_local}: "
            "take a larger --n-local, or a smaller --top-k-middle"
        )
    first = budget.top_k_from_layer
    first = config.n_layer // 8 if first is None else first
    if first >= config.n_layer:
        raise ValueError(
            f"--top-k-from-layer {first}: the model has the layers 0 to {config.n_layer - 1}"
        )
    return budget.settings(
        budget.n_local - budget.top_k, top_k=budget.top_k,
        top_k_distance=budget.top_k_distance, top_k_from_layer=first, top_k_queries="all",
    )  # fmt: skip

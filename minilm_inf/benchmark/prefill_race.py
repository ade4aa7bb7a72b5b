"""Reading a text with a whole model: tokens per second, and whether they last as it grows.

It is read as Session and evaluate read: chunk by chunk through the cache, and only the last
token is asked what follows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..config import LMInfinite
from ..transformer import Transformer
from .attention_race import told
from .rows import Row
from .timing import Contestant, race, synchroniser

GROUP = "prefill"
OURS, VANILLA = "LM-Infinite", "vanilla"


def random_ids(model: Transformer, count: int) -> torch.Tensor:
    """Some ids of the model's vocabulary, (1, count), always the same ones."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, count), generator=generator)
    return ids.to(model.embed.weight.device)


@torch.inference_mode()
def read(model: Transformer, tokens: torch.Tensor, lm: LMInfinite | None, chunk: int):
    """Read tokens (1, T): the logits (1, V) of what follows, and the cache."""
    cache = model.new_cache(1, lm)
    for piece in tokens.split(chunk, 1):
        hidden = model.read(piece, lm, cache)
    return model.head(hidden[:, -1]), cache


def prefill_rows(
    model: Transformer,
    lengths: tuple[int, ...],
    chunk: int,
    rounds: int,
    report: Callable[[str], None],
) -> list[Row]:
    """A row for each length, and one for the vanilla model at the shortest, beyond which its
    O(n^2) would take all the time. The extra memory is the cache."""
    lm = LMInfinite.for_model(model.config)
    shortest = min(lengths)
    runs = {(OURS, n): lm for n in lengths} | {(VANILLA, shortest): None}
    tokens, caches = random_ids(model, max(lengths)), {}

    def maker(key, setting):
        def run():
            logits, cache = read(model, tokens[:, : key[1]], setting, chunk)
            caches[key] = cache.nbytes
            return logits

        return lambda: Contestant(key, run)

    results = race(
        {key: maker(key, setting) for key, setting in runs.items()},
        rounds,
        lambda number: report(f"{GROUP}: {told(number, rounds)}"),
        synchroniser(tokens.device),
    )
    return [
        Row(
            GROUP,
            name,
            n,
            tokens=n,
            base=(GROUP, OURS, shortest),
            extra_bytes=caches.get((name, n)),
        ).take(results[name, n])
        for name, n in runs
    ]

"""The readings of a diagnosis: which there are, and what is taken from each.

Every text is read three times, each time as a whole, layer by layer:

    vanilla     rows of attention as they are; the same rows with no distance beyond the
                trained length, which separates new distances from too many keys; hidden states
                within the trained length; nll
    lambda      rows of attention; nll
    dropped     nll, of the same window without any starting token

Rows are taken of some queries only, so that memory grows with the length of a text and never
with its square. What a layer gives to the next is gone once that has read it, so memory is that
of one layer.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import Tensor

from ..config import FULL_ATTENTION, LMInfinite
from ..evaluate.compare import edges, nll_by_piece
from .recorder import Rows, recording

QUERIES_PER_OCTAVE = 16
FIRST = 25  # starting positions whose states the paper sees apart from the rest (figure 1c)
OTHERS = 500  # positions, at most, that they are compared with
SIDES = ("vanilla", "capped", "lambda")  # whose rows are taken


class Diagnosis:
    """All readings of some texts, each of n tokens, under one setting.

    lm: the setting of the lambda side.

    rows: side -> the Rows of each text. states: of each layer, those of each text's first
    n_first positions and of some others within the trained length, (n_first + OTHERS, E).
    nll: reading -> (n,) of each text; entry i is what follows position i. All are complete
    after read_all.
    """

    def __init__(self, model, n: int, lm: LMInfinite):
        self.model, self.n, self.lm = model, n, lm
        self.trained = model.config.context_length
        self.octaves = edges(self.trained, n, below=True)
        self.edges = edges(self.trained, n, 2, below=True)
        capped = replace(FULL_ATTENTION, distance_ceiling=self.trained)
        self.settings = {"vanilla": FULL_ATTENTION, "capped": capped, "lambda": lm}
        self.readings = {"vanilla": None, "lambda": lm, "dropped": replace(lm, n_global=0)}
        self.rows = {side: [] for side in SIDES}
        self.nll = {name: [] for name in self.readings}
        self.states = [[] for _ in model.blocks]
        self.n_first = max(2, min(FIRST, self.trained // 4))

    @torch.inference_mode()
    def read_all(self, documents: dict[str, list[int]]):
        """Read texts of n + 1 ids, and say so on stderr. Raises ValueError for logits that are
        not numbers."""
        generator = torch.Generator().manual_seed(0)
        for number, (name, ids) in enumerate(documents.items(), 1):
            queries = some_queries(self.octaves, generator)
            places = some_places(self.trained, self.n_first, generator)
            for reading in self.readings:
                print(f"{number}/{len(documents)} {name}, {reading}", file=sys.stderr)
                self.nll[reading].append(self._read(reading, ids, queries, places))

    def _read(self, reading: str, ids: list[int], queries: Tensor, places: Tensor) -> Tensor:
        """One reading of one text; returns its nll."""
        sides = {"vanilla": ("vanilla", "capped"), "lambda": ("lambda",)}.get(reading, ())
        for side in sides:
            rows = Rows(self.model, queries, self.edges, self.lm.n_global, self.settings[side])
            self.rows[side].append(rows)

        def on_attention(layer, q, k):
            for side in sides:
                self.rows[side][-1].take(layer, q, k)

        def on_hidden(layer, x):
            if reading == "vanilla":
                self.states[layer].append(x[0, places.to(x.device)].cpu())

        tokens = torch.tensor(ids, device=self.model.embed.weight.device)
        with recording(self.model, on_attention, on_hidden):
            hidden = self.model.read(tokens[None, :-1], self.readings[reading])[0]
        return nll_by_piece(self.model, hidden, tokens[1:])


def some_queries(edges: list[int], generator: torch.Generator) -> Tensor:
    """Positions of queries, ascending: of each bin as many, so that few visible keys and many
    are seen alike, and the last position. A bin of few gives them all."""
    found = [torch.tensor([edges[-1] - 1])]
    for first, last in zip(edges, edges[1:]):
        drawn = torch.randperm(last - first, generator=generator)[:QUERIES_PER_OCTAVE]
        found.append(first + drawn)
    return torch.cat(found).unique()


def some_places(n: int, n_first: int, generator: torch.Generator) -> Tensor:
    """The first positions of a text of n, and some of the others, ascending."""
    others = torch.randperm(n - n_first, generator=generator)[:OTHERS].sort().values
    return torch.cat((torch.arange(n_first), n_first + others))

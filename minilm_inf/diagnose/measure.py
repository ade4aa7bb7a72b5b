"""The readings of a diagnosis: which there are, and what is taken from each.

Every text is read three times, each time as a whole, layer by layer:

    vanilla     rows of attention as they are; the same rows with every distance felt at most at
                the trained length, which tells unseen distances from unseen keys; pairs of
                queries and keys for Theorem 1; hidden states within the trained length; nll
    lambda      rows of attention; nll
    dropped     nll, of the same window without any starting token (where the setting is that
                one already, a further reading, `with`, has the usual 10)

What a layer gives to the next is gone once that has read it, so memory is that of one layer.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import FULL_ATTENTION, LMInfinite
from ..writing.sampling import require_numbers
from . import theorem
from .logits import Rows, scale_of
from .places import log_edges, some_queries, stretches
from .recorder import recording
from .states import separation

BINS_PER_OCTAVE = 2  # of distances
LOGITS_PER_PIECE = 512  # positions whose next token is scored at a time
SIDES = ("vanilla", "capped", "lambda")


class Diagnosis:
    """All readings of some texts, each of n tokens, under one setting.

    lm: the setting of the lambda side. seed: of queries, stretches and pairs.

    rows: side -> the Rows of each text. nll: reading -> (n,) of each text, float64; entry i is
    what follows position i. Both are complete after read_all.
    """

    def __init__(self, model, n: int, lm: LMInfinite, seed: int = 0):
        self.model, self.n, self.lm, self.seed = model, n, lm, seed
        self.trained = model.config.context_length
        self.n_starting = lm.n_global or 10
        self.octaves = log_edges(self.trained, n, 1)
        self.edges = log_edges(self.trained, n, BINS_PER_OCTAVE)
        capped = replace(FULL_ATTENTION, distance_ceiling=self.trained)
        self.settings = {"vanilla": FULL_ATTENTION, "capped": capped, "lambda": lm}
        self.readings = {"vanilla": None, "lambda": lm}
        if n > lm.n_local:  # or no starting token leaves the window
            self.readings["with"] = replace(lm, n_global=self.n_starting)
            self.readings["dropped"] = replace(lm, n_global=0)
        self.rows = {side: [] for side in SIDES}
        self.nll = {name: [] for name in self.readings}
        self.distances = theorem.tried(n)
        self.states = [[] for _ in model.blocks]  # of each layer, by text
        self.pairs = [[] for _ in model.blocks]

    @torch.inference_mode()
    def read_all(self, documents: dict[str, list[int]], report):
        """Read texts of n + 1 ids; report is told of each reading. Raises ValueError for logits
        that are not numbers."""
        generator, n = torch.Generator().manual_seed(self.seed), min(self.n, self.trained)
        count = -(-theorem.N_PAIRS // len(documents))
        for number, (name, ids) in enumerate(documents.items(), 1):
            queries = some_queries(self.octaves, generator)
            places, pairs = stretches(n, generator), theorem.some_pairs(n, count, generator)
            done = {}
            for reading, lm in self.readings.items():
                if lm not in done:  # "with" or "dropped" is "lambda", as the setting is
                    report(f"{number}/{len(documents)} {name}, {reading}")
                    done[lm] = self._read(reading, ids, lm, queries, places, pairs)
                self.nll[reading].append(done[lm])

    def _read(self, reading: str, ids: list[int], lm, queries, places, pairs) -> Tensor:
        """One reading of one text; returns its nll."""
        sides = {"vanilla": ("vanilla", "capped"), "lambda": ("lambda",)}.get(reading, ())
        for side in sides:
            rows = Rows(self.model, queries, self.edges, self.n_starting, self.settings[side])
            self.rows[side].append(rows)

        def on_attention(layer, q, k):
            for side in sides:
                self.rows[side][-1].take(layer, q, k)
            if reading == "vanilla":
                shared = q.shape[1] // k.shape[1]
                at_q, at_k = (x.to(q.device) for x in pairs)
                both = q[0][:, at_q], k[0][:, at_k].repeat_interleave(shared, 0)
                self.pairs[layer].append(both)

        def on_hidden(layer, x):
            if reading == "vanilla":
                self.states[layer].append(x[0, places.to(x.device)].cpu())

        tokens = torch.tensor([ids], device=self.model.embed.weight.device)
        with recording(self.model, on_attention, on_hidden):
            hidden = self.model.read(tokens[:, :-1], lm)[0]
        return nll_of(self.model, hidden, tokens[0, 1:])

    def separations(self) -> list[dict[str, float]]:
        """How far the first positions' hidden states stand apart, of each layer."""
        return [separation(torch.stack(states)) for states in self.states]

    @torch.inference_mode()
    def theorems(self, lengths: list[int]) -> list[Tensor]:
        """Theorem 1 for lengths that ascend: alpha, bound and sup, (n_layer, H, lengths)."""
        generator = torch.Generator().manual_seed(self.seed)
        scheme, found = self.model.scheme, []
        for pairs in self.pairs:
            q, k = (torch.cat(x, 1) for x in zip(*pairs))
            exact = torch.float64 if q.dtype == torch.float64 else torch.float32
            w = theorem.logits_by_distance(
                q.to(exact), k.to(exact), self.distances, scheme, scale_of(self.model.config)
            )
            few = w, self.distances, self.trained, lengths, scheme, generator
            found.append(theorem.theorem(*few))
        return [torch.stack(x).double().cpu() for x in zip(*found)]


def nll_of(model, hidden: Tensor, following: Tensor) -> Tensor:
    """The nll of each id that follows: (n, E), (n,) -> (n,) in float64 on the CPU. Raises
    ValueError for logits that are not numbers."""
    pieces = []
    for x, ids in zip(hidden.split(LOGITS_PER_PIECE), following.split(LOGITS_PER_PIECE)):
        pieces.append(F.cross_entropy(model.head(x).float(), ids, reduction="none"))
    nll = torch.cat(pieces).double().cpu()
    require_numbers(nll)
    return nll

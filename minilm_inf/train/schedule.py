"""What is learned when: a training run's phases, its learning rate, and each step's windows.

All of it follows from the settings and the number of the step, so a run can stop and go on.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from .practice import Practice


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training."""

    until: float  # which share of all tokens
    window: int  # tokens
    repeats: float  # a share of the windows, as the next; the others are ordinary text
    retrieval: float
    followed: float = 0.0  # the share of the latter whose answers are followed by text


PHASES = (
    Phase(until=0.115, window=128, repeats=1.0, retrieval=0.0),
    Phase(until=0.35, window=256, repeats=0.15, retrieval=0.45),
    Phase(until=0.80, window=256, repeats=0.03, retrieval=0.22, followed=0.7),
    Phase(until=1.0, window=256, repeats=0.0, retrieval=0.15, followed=0.7),
)
"""What did not work, at this size: pass keys in text from the start (no copying in 6 million
tokens); and answers that nothing follows, as in the second phase, to the end (a model that
writes on asks again for ever)."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on; a resumed run must have the same."""

    tokens: int
    seed: int
    tokens_per_step: int
    learning_rate: float
    vocab_size: int
    repeats: float = PHASES[0].until  # where the first phase, of repeats alone, ends

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (dataclasses.replace(PHASES[0], until=self.repeats), *PHASES[1:])

    @property
    def steps(self) -> int:
        return math.ceil(self.tokens / self.tokens_per_step)

    def phase(self, step: int) -> Phase:
        return next(p for p in self.phases if step < p.until * self.steps or p.until == 1.0)

    def rate(self, step: int) -> float:
        """Learning rate: a warm-up of 100 steps, then a cosine down to a tenth."""
        warm_up = min(1.0, (step + 1) / 100)
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * warm_up * (0.1 + 0.9 * cosine)


def windows(settings: Settings, practice: Practice, step: int) -> torch.Tensor:
    """The windows of a step, one id longer than the model reads: (B, window + 1)."""
    rng = np.random.default_rng([settings.seed, step])
    phase, rows = settings.phase(step), []
    for _ in range(settings.tokens_per_step // phase.window):
        draw, length = rng.random(), phase.window + 1
        if draw < phase.repeats:
            rows.append(practice.repeats(rng, length))
        elif draw < phase.repeats + phase.retrieval:
            rows.append(practice.retrieval(rng, length, phase.followed))
        else:
            rows.append(practice.ordinary(rng, length))
    return torch.tensor(rows)

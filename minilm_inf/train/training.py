"""A model in training: its optimizer, its step, its log, and its state on disk."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..checkpoint.run_state import not_whole, read_state, write_state
from ..checks import fitting
from .practice import Practice, pass_key_accuracy
from .recipes import initialise
from .schedule import Settings
from .trained_folder import STATE_FILE


def token_nll(model, rows: torch.Tensor) -> torch.Tensor:
    """Mean nll, in nats, of every id but the first: rows (B, T + 1) -> ()."""
    logits = model(rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def held_out_nll(model, practice: Practice, window: int, count: int = 64) -> float:
    """Mean nll per token over `count` windows of held-out text."""
    rng = np.random.default_rng(0)
    rows = torch.tensor([practice.ordinary(rng, window + 1) for _ in range(count)])
    return float(token_nll(model, rows))


class Run:
    """A model in training: its optimizer, its step, its log, and how these are kept on disk."""

    def __init__(self, model, settings: Settings, folder: Path, text: str):
        """text: a hash of what is learned from, which a resumed run must share."""
        self.settings, self.folder, self.text = settings, folder, text
        self.model = model
        initialise(self.model, settings.seed)
        self.names = [name for name, _ in self.model.named_parameters()]
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.05
        )
        self.step = 0
        self.log: list[dict] = []
        self.losses: list[float] = []  # since the log's last entry

    def learn(self, rows: torch.Tensor):
        """One step on windows (B, T + 1); `losses` gains the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(self.step)
        loss = token_nll(self.model, rows)
        self.optimizer.zero_grad()
        loss.backward()
        self.losses.append(float(loss.detach()))
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not (math.isfinite(self.losses[-1]) and norm.isfinite()):
            raise ValueError(
                f"the loss of step {self.step + 1} is not a number: take a smaller "
                f"--learning-rate; {self.folder} has the state before it, if any was saved"
            )
        self.optimizer.step()
        self.step += 1

    def enter(self, held_out: Practice):
        """Measure the model, and make an entry of the log."""
        window = self.model.config.context_length
        entry = {
            "step": self.step,
            "tokens": self.step * self.settings.tokens_per_step,
            "train_loss": round(float(np.mean(self.losses)), 4),
            "held_out_nll": round(held_out_nll(self.model, held_out, window), 4),
            "pass_key_accuracy": pass_key_accuracy(self.model, held_out, window),
        }
        self.log.append(entry)
        self.losses = []
        print(json.dumps(entry), file=sys.stderr, flush=True)

    def identity(self) -> dict:
        """What a state must share with the run that goes on from it, as JSON gives it back."""
        facts = {
            "settings": dataclasses.asdict(self.settings),
            "model": dataclasses.asdict(self.model.config),
            "phases": [dataclasses.asdict(phase) for phase in self.settings.phases],
            "text": self.text,
        }
        return json.loads(json.dumps(facts))

    def save_state(self):
        """Weights, both moments of the optimizer and the step, in one safetensors file."""
        tensors = {}
        for name, weight in self.model.named_parameters():
            moments = self.optimizer.state[weight]
            tensors[f"weight.{name}"] = weight.detach()
            tensors[f"first.{name}"] = moments["exp_avg"]
            tensors[f"second.{name}"] = moments["exp_avg_sq"]
        facts = {**self.identity(), "step": self.step, "log": self.log, "losses": self.losses}
        write_state(self.folder / STATE_FILE, tensors, facts)

    def load_state(self):
        """Go on where save_state stopped. Raises ValueError for another run's state."""
        path = self.folder / STATE_FILE
        facts, tensors = read_state(path)
        if {name: facts.get(name) for name in self.identity()} != self.identity():
            raise ValueError(
                f"{self.folder} holds a run with other settings or text: give the same to "
                "--resume it, or another --out"
            )
        try:
            self._restore(tensors, facts)
        except (LookupError, TypeError, ValueError) as error:
            raise not_whole(path) from error

    @torch.no_grad()
    def _restore(self, tensors: dict[str, torch.Tensor], facts: dict):
        self.step, self.log = facts["step"], [dict(entry) for entry in facts["log"]]
        self.losses = [float(loss) for loss in facts["losses"]]
        if not 0 < self.step <= self.settings.steps:
            raise ValueError("there is no such step")
        for name, weight in self.model.named_parameters():
            found = [
                fitting(tensors.pop(f"{part}.{name}"), weight.shape, weight.dtype).clone()
                for part in ("weight", "first", "second")
            ]
            weight.copy_(found[0])
            self.optimizer.state[weight] = {
                "step": torch.tensor(float(self.step)),
                "exp_avg": found[1], "exp_avg_sq": found[2],
            }  # fmt: skip
        if tensors:
            raise ValueError(f"this model has no {next(iter(tensors))}")

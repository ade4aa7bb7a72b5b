"""A model in training: its optimizer, its step, its log, its state on disk; and the folder that
it becomes.

What somebody else put into a folder stays. One that an earlier run wrote is known by its
record, training.json, and is written again; any other that is not empty is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..checkpoint.checkpoint import save
from ..checkpoint.run_state import read_state, write_state
from ..terminal.files import check_output, sweep, write_beside
from .practice import Practice, pass_key_accuracy
from .recipes import TOKENIZER_FILES, initialise
from .schedule import Settings

STATE_FILE, LOG_FILE = "state.safetensors", "training.json"
LOG_BEGINS = b'{\n "command": "python -m minilm_inf.train '
N_HELD_OUT = 64  # windows of held-out text that an entry of the log is measured on


def token_nll(model, rows: torch.Tensor) -> torch.Tensor:
    """Mean nll, in nats, of every id but the first: rows (B, T + 1) -> ()."""
    logits = model(rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


class Run:
    """A model in training: its optimizer, its step, its log, and how these are kept on disk."""

    def __init__(self, model, settings: Settings, folder: Path, text: str):
        """text: a hash of what is learned from, which a resumed run must share."""
        self.model, self.settings, self.text = model, settings, text
        self.folder, self.path = folder, folder / STATE_FILE
        initialise(self.model, settings.seed)
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
        rng, window = np.random.default_rng(0), self.model.config.context_length
        rows = torch.tensor([held_out.ordinary(rng, window + 1) for _ in range(N_HELD_OUT)])
        with torch.no_grad():
            nll = float(token_nll(self.model, rows))
        entry = {
            "step": self.step,
            "tokens": self.step * self.settings.tokens_per_step,
            "train_loss": round(float(np.mean(self.losses)), 4),
            "held_out_nll": round(nll, 4),
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
        write_state(self.path, tensors, facts)

    @torch.no_grad()
    def load_state(self):
        """Go on where save_state stopped. Raises ValueError for another run's state."""
        facts, tensors = read_state(self.path)
        if {name: facts.get(name) for name in self.identity()} != self.identity():
            raise ValueError(
                f"{self.folder} holds a run with other settings or text: give the same to "
                "--resume it, or another --out"
            )
        self.step, self.log, self.losses = facts["step"], facts["log"], facts["losses"]
        for name, weight in self.model.named_parameters():
            weight.copy_(tensors[f"weight.{name}"])
            self.optimizer.state[weight] = {
                "step": torch.tensor(float(self.step)),
                "exp_avg": tensors[f"first.{name}"].clone(),
                "exp_avg_sq": tensors[f"second.{name}"].clone(),
            }


@contextlib.contextmanager
def working_in(folder: Path, resume: bool) -> Iterator[None]:
    """The folder of a run's state and tokenizer, which stays where there is a state to go on
    from. Raises ValueError where it holds what no run writes there, or where there is none to
    resume, or one that nobody asked to resume."""
    sweep(folder)
    for path in folder.glob("*"):
        if path.name not in (STATE_FILE, *TOKENIZER_FILES):
            raise ValueError(f"{path} was not written by this program: give another --out")
    state = folder / STATE_FILE
    if resume and not state.is_file():
        raise ValueError(f"there is no run to resume in {folder}: start one without --resume")
    if state.exists() and not resume:
        raise ValueError(f"{folder} holds a run that was stopped: --resume it, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if not state.exists():
            for name in TOKENIZER_FILES:
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()


def check_folder(out: Path):
    """Raise ValueError where no model must be written to a folder."""
    if out.name in ("", ".."):
        raise ValueError(f"--out {out} has no name of its own: give a folder to write")
    check_output(out / LOG_FILE, LOG_BEGINS)
    if out.is_dir() and any(out.iterdir()) and not (out / LOG_FILE).exists():
        raise ValueError(f"--out {out} was not written by this program: give another folder")


def publish(model, out: Path, folder: Path, record: dict):
    """Write the finished folder, from the model and the files of the one that the run worked
    in, whose state is then removed. The record comes first: it says that the rest is ours."""
    write_beside(out / LOG_FILE, (json.dumps(record, indent=1) + "\n").encode())
    save(model, out)
    for name in TOKENIZER_FILES:
        if (folder / name).exists():
            write_beside(out / name, (folder / name).read_bytes())
        else:
            (out / name).unlink(missing_ok=True)
    (folder / STATE_FILE).unlink()

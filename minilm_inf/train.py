"""How weights/ came to be: a trainer that stops and resumes at any step.

    python -m minilm_inf.corpus corpus/
    python -m minilm_inf.train --corpus corpus/ --out weights/tiny-llama

First a tokenizer is trained on the text, then the model, in phases: repeats only,
where a model learns to look back and copy; text with much retrieval practice; text with some,
then little. Every window begins with BOS, so that a starting token can become special. Each
step draws its windows from a generator seeded with (seed, step): a resumed run sees what the
unbroken one saw.

Ctrl-C (or SIGTERM) writes a checkpoint to OUT.part; --resume goes on from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shlex
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from . import corpus
from .checkpoint import save
from .files import read_text, write_beside
from .options import at_least, guarded
from .practice import Practice, pass_key_accuracy
from .recipes import SHAPES, initialise, network, train_tokenizer
from .schedule import PHASES, Settings, windows
from .tokenizer import load as load_tokenizer

STATE_FILE, LOG_FILE = "state.safetensors", "training.json"


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
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1

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
        part = self.folder / (STATE_FILE + ".part")
        save_file(tensors, part, metadata={"run": json.dumps(facts)})
        part.rename(self.folder / STATE_FILE)

    def load_state(self):
        """Go on where save_state stopped. Raises ValueError for another run's state."""
        with _opened(self.folder / STATE_FILE) as state:
            facts = json.loads(state.metadata()["run"])
            theirs = {name: facts.get(name, own) for name, own in self.identity().items()}
            if theirs != self.identity():
                raise ValueError(
                    f"{self.folder} holds a run with other settings or text: give the same "
                    "to --resume it, or another --out"
                )
            self.step, self.log = facts["step"], facts["log"]
            self.losses = facts.get("losses", [])
            with torch.no_grad():
                for name, weight in self.model.named_parameters():
                    weight.copy_(state.get_tensor(f"weight.{name}"))
                    self.optimizer.state[weight] = {
                        "step": torch.tensor(float(self.step)),
                        "exp_avg": state.get_tensor(f"first.{name}"),
                        "exp_avg_sq": state.get_tensor(f"second.{name}"),
                    }


def _opened(path: Path):
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable state: start without --resume") from error


def is_unfinished(folder: Path) -> bool:
    """Whether a folder holds the state of a run that did not come to its end."""
    if not (folder / STATE_FILE).exists():
        return False
    try:
        with _opened(folder / STATE_FILE) as state:
            facts = json.loads(state.metadata()["run"])
    except ValueError:
        return False  # what nobody can read, nobody can resume
    return facts["step"] * facts["settings"]["tokens_per_step"] < facts["settings"]["tokens"]


def load_text(options) -> tuple[dict[str, str], dict[str, str]]:
    """The documents to learn from and those held out (of --text files, the last twentieth)."""
    if not options.text:
        folder = options.corpus
        return corpus.documents(folder, held_out=False), corpus.documents(folder, held_out=True)
    kept, held_out = {}, {}
    for path in options.text:
        text = read_text(path)
        cut = len(text) * 19 // 20
        kept[str(path)], held_out[str(path)] = text[:cut], text[cut:]
    return kept, held_out


def encode_all(tokenizer, documents: dict[str, str]) -> np.ndarray:
    """The ids of all documents in a row, EOS behind each: (N,)."""
    rows = [
        [*tokenizer.encode(text, bos=False), tokenizer.eos_id] for text in documents.values()
    ]
    return np.concatenate([np.array(row, dtype=np.int32) for row in rows])


def train(run: Run, practice: Practice, held_out: Practice, every: int, stopped) -> bool:
    """Steps until the settings' tokens are seen; False where `stopped()` ended it earlier."""
    settings, model = run.settings, run.model
    window = model.config.context_length
    began, first_step = time.monotonic(), run.step
    while run.step < settings.steps:
        run.learn(windows(settings, practice, run.step))
        done = run.step == settings.steps
        if run.step % 10 == 0 or done:
            speed = (run.step - first_step) * settings.tokens_per_step
            speed /= time.monotonic() - began
            left = (settings.steps - run.step) * settings.tokens_per_step / speed
            print(
                f"\rstep {run.step}/{settings.steps}  loss {np.mean(run.losses[-10:]):.3f}  "
                f"{speed:,.0f} tokens/s  {left / 60:.0f} min left  ",
                end="", file=sys.stderr, flush=True,
            )  # fmt: skip
        if run.step % every == 0 or done:
            entry = {
                "step": run.step,
                "tokens": run.step * settings.tokens_per_step,
                "train_loss": round(float(np.mean(run.losses)), 4),
                "held_out_nll": round(held_out_nll(model, held_out, window), 4),
                "pass_key_accuracy": pass_key_accuracy(model, held_out, window),
            }
            run.log.append(entry)
            run.losses = []
            print(f"\r{json.dumps(entry)}" + " " * 20, file=sys.stderr, flush=True)
            run.save_state()
        if stopped():
            run.save_state()
            return done
    return True


def share(text: str) -> float:
    """An argparse type: a number that ends the first phase before the second ends."""
    if not 0 <= float(text) < PHASES[1].until:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {PHASES[1].until}")
    return float(text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minilm_inf.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the folder to write, which load() then reads")
    add("--corpus", type=Path, default=Path("corpus"), help="folder of minilm_inf.corpus")
    add("--text", type=Path, nargs="+", help="your own UTF-8 files, instead of the corpus")
    add("--resume", action="store_true", help="go on with the run that OUT.part holds")
    add(
        "--tokens",
        type=at_least(1),
        default=30_200_000,
        help="tokens to learn from (%(default)s)",
    )
    add("--tokens-per-step", type=at_least(256), default=4096, help="(%(default)s)")
    add("--learning-rate", type=float, default=1.5e-3, help="its peak (%(default)s)")
    add("--repeats", type=share, default=PHASES[0].until, metavar="X",
        help="the first share of all tokens, repeats alone (%(default)s)")  # fmt: skip
    add("--seed", type=at_least(0), default=1, help="(%(default)s)")
    add(
        "--every", type=at_least(1), default=500, help="steps between checkpoints (%(default)s)"
    )
    add("--threads", type=at_least(1), help="CPU threads (PyTorch's default)")
    add("--vocab-size", type=at_least(1), default=2048, help="(%(default)s)")
    add("--family", choices=SHAPES, default="llama", help="(%(default)s)")
    names = list(dict.fromkeys(name for shape in SHAPES.values() for name in shape))
    for name in names:
        known = [f"{shape[name]} in {f}" for f, shape in SHAPES.items() if name in shape]
        flag = "--" + name.replace("_", "-")
        add(flag, type=at_least(1), metavar="N", help=f"({', '.join(known)})")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    options.sizes = SHAPES[options.family].copy()
    for name in names:
        size = getattr(options, name)
        if size is not None and name not in options.sizes:
            parser.error(f"--{name.replace('_', '-')} has no meaning for {options.family}")
        if size is not None:
            options.sizes[name] = size
    fresh = [argument for argument in arguments if argument != "--resume"]
    options.command = shlex.join(["python", "-m", "minilm_inf.train", *fresh])
    torch.set_flush_denormal(True)  # numbers near 0 are many times slower on some CPUs
    if options.threads:
        torch.set_num_threads(options.threads)
    return guarded(lambda: run_from(options))


def run_from(options) -> int:
    """A whole run, from text to the finished folder; 130 where it was interrupted."""
    folder = options.out.with_name(options.out.name + ".part")
    if options.resume and not (folder / STATE_FILE).exists():
        raise ValueError(f"there is no run to resume in {folder}: start one without --resume")
    if not options.resume and is_unfinished(folder):
        raise ValueError(f"{folder} holds a run that was stopped: --resume it, or delete it")
    texts, held_out_texts = load_text(options)
    folder.mkdir(parents=True, exist_ok=True)
    if not options.resume:
        for path in (folder / STATE_FILE, *folder.glob("tokenizer*")):  # of an earlier run
            path.unlink(missing_ok=True)
        train_tokenizer(options.family, list(texts.values()), options.vocab_size, folder)
    tokenizer = load_tokenizer(folder)
    practice = Practice(tokenizer, encode_all(tokenizer, texts))
    held_out = Practice(tokenizer, encode_all(tokenizer, held_out_texts))
    print(f"{len(practice.text):,} tokens to learn from, {len(held_out.text):,} held out",
          file=sys.stderr)  # fmt: skip

    settings = Settings(
        options.tokens, options.seed, options.tokens_per_step, options.learning_rate,
        options.vocab_size, options.repeats,
    )  # fmt: skip
    model = network(options.family, options.sizes, tokenizer)
    run = Run(model, settings, folder, hashlib.sha256(practice.text.tobytes()).hexdigest())
    if options.resume:
        run.load_state()

    interrupted = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: interrupted.append(True))
    if not train(run, practice, held_out, options.every, stopped=lambda: bool(interrupted)):
        print(f"\nstopped at step {run.step}; go on with --resume", file=sys.stderr)
        return 130

    save(run.model, options.out)
    for path in options.out.glob("tokenizer*"):
        path.unlink()
    for path in sorted(folder.glob("tokenizer*")):
        write_beside(options.out / path.name, path.read_bytes())
    record = {
        "command": options.command, "settings": dataclasses.asdict(settings),
        "phases": [dataclasses.asdict(phase) for phase in settings.phases],
        "documents": len(texts), "held_out": sorted(held_out_texts), "log": run.log,
    }  # fmt: skip
    write_beside(options.out / LOG_FILE, (json.dumps(record, indent=1) + "\n").encode())
    print(f"\nwrote {options.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How weights/ were made: a trainer that stops and resumes at any step.

    python -m minilm_inf.corpus corpus/
    python -m minilm_inf.train --corpus corpus/ --out weights/tiny-llama

First a tokenizer is trained on the text, then the model, in phases: repeats only,
where a model learns to look back and copy; text with much retrieval practice; text with some,
then little. Every window begins with BOS, so that a starting token can become special.

Ctrl-C (or SIGTERM) writes a checkpoint, OUT.state; --resume continues from it, and ends with
the numbers of an uninterrupted run. A folder OUT that an earlier run wrote, as its
training.json tells, is written again; any other that is not empty is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .. import corpus
from ..checkpoint.checkpoint import save
from ..checkpoint.run_state import read_state, write_state
from ..terminal import options as flags
from ..terminal.ending import guarded, signals_noted
from ..terminal.files import check_output, read_text, write_beside
from ..terminal.progress import Progress
from ..text.tokenizer import load as load_tokenizer
from ..writing.sampling import require_numbers
from . import recipes
from .practice import Practice, pass_key_accuracy
from .recipes import SHAPES, Settings

RECORD_BEGINS = b'{\n "command": "python -m minilm_inf.train '
N_HELD_OUT = 64  # windows of held-out text that an entry of the log is measured on


def load_text(options) -> tuple[dict[str, str], dict[str, str]]:
    """The documents to learn from and those held out (of --text files, the last twentieth)."""
    if not options.text:
        return tuple(corpus.documents(options.corpus, held_out) for held_out in (False, True))
    learned, held_out = {}, {}
    for path in options.text:
        text = read_text(path)
        cut = len(text) * 19 // 20
        learned[str(path)], held_out[str(path)] = text[:cut], text[cut:]
    return learned, held_out


def encode_all(tokenizer, documents: dict[str, str]) -> np.ndarray:
    """The ids of all documents in a row, EOS after each: (N,)."""
    rows = ([*tokenizer.encode(text, bos=False), tokenizer.eos_id]
            for text in documents.values())  # fmt: skip
    return np.concatenate([np.array(row, dtype=np.int32) for row in rows])


def token_nll(model, rows: torch.Tensor) -> torch.Tensor:
    """Mean nll, in nats, of every id but the first: rows (B, T + 1) -> ()."""
    logits = model(rows[:, :-1])
    require_numbers(logits)
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


class Run:
    """A model in training: its step, its log, and how these are kept on disk.

    tensors: the weights and both moments of their gradients, by name, where they are kept.
    path: the file of its state, which is of these settings, this config and this text only.
    Raises ValueError where the text to learn from, or the held-out one, is too short.
    """

    def __init__(self, model, settings: Settings, path: Path, practice, held_out: Practice):
        self.model, self.settings, self.path = model, settings, path
        self.practice, self.held_out = practice, held_out
        for part in (practice, held_out):  # or it would be told after an hour
            part.ordinary(np.random.default_rng(0), model.config.context_length + 1)
        text = hashlib.sha256(practice.text.tobytes()).hexdigest()
        self.identity = repr((settings, model.config, text))
        recipes.initialise(model, settings.seed)
        self.tensors = {}
        for name, x in model.named_parameters():
            self.tensors |= {f"weight.{name}": x.detach(), f"first.{name}": torch.zeros_like(x),
                             f"second.{name}": torch.zeros_like(x)}  # fmt: skip
        self.step = 0
        self.log: list[dict] = []
        self.losses: list[float] = []  # since the log's last entry

    def learn(self):
        """One step; `losses` gains the loss before it."""
        rows = recipes.windows(self.settings, self.practice, self.step)
        loss = token_nll(self.model, rows)
        self.model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.losses.append(float(loss.detach()))
        self.step += 1
        self.follow_gradients(self.settings.rate(self.step - 1))

    @torch.no_grad()
    def follow_gradients(self, rate: float, beta1=0.9, beta2=0.98, decay=0.05):
        """AdamW (Loshchilov and Hutter, arXiv 1711.05101): torch.optim's own would import the
        compiler as well, which takes seconds."""
        for name, x in self.model.named_parameters():
            first, second = (self.tensors[f"{kind}.{name}"] for kind in ("first", "second"))
            x.mul_(1 - rate * decay)
            first.lerp_(x.grad, 1 - beta1)
            second.mul_(beta2).addcmul_(x.grad, x.grad, value=1 - beta2)
            spread = (second.sqrt() / math.sqrt(1 - beta2**self.step)).add_(1e-8)
            x.addcdiv_(first, spread, value=-rate / (1 - beta1**self.step))

    def enter(self):
        """Measure the model, and make an entry of the log."""
        rng, window = np.random.default_rng(0), self.model.config.context_length
        rows = [self.held_out.ordinary(rng, window + 1) for _ in range(N_HELD_OUT)]
        with torch.no_grad():
            nll = float(token_nll(self.model, torch.tensor(rows)))
        entry = {
            "step": self.step, "tokens": self.step * self.settings.tokens_per_step,
            "train_loss": round(float(np.mean(self.losses)), 4), "held_out_nll": round(nll, 4),
            "pass_key_accuracy": pass_key_accuracy(self.model, self.held_out, window),
        }  # fmt: skip
        self.log.append(entry)
        self.losses = []
        print(json.dumps(entry), file=sys.stderr, flush=True)

    def save_state(self):
        """Write all that load_state needs, in one safetensors file."""
        facts = {"identity": self.identity, "step": self.step, "log": self.log,
                 "losses": self.losses}  # fmt: skip
        write_state(self.path, self.tensors, facts)

    def load_state(self):
        """Go on where save_state stopped. Raises ValueError for another run's state."""
        facts, tensors = read_state(self.path)
        if facts.get("identity") != self.identity:
            raise ValueError(f"{self.path} is of a run with other settings or text: give these")
        self.step, self.log, self.losses = facts["step"], facts["log"], facts["losses"]
        for name, x in self.tensors.items():
            x.copy_(tensors[name])


def train(run: Run, every: int, stopped) -> bool:
    """Steps until the settings' tokens are seen; False where `stopped()` ended it earlier."""
    settings, size = run.settings, run.settings.tokens_per_step
    progress = Progress(settings.steps * size, run.step * size)
    while run.step < settings.steps and not stopped():
        run.learn()
        done = run.step == settings.steps
        progress.show(run.step * size, f"loss {np.mean(run.losses[-10:]):.3f}", now=done)
        if done or run.step % every == 0:
            progress.end()
            run.enter()
            run.save_state()
    progress.end()
    if run.step < settings.steps:
        run.save_state()
    return run.step == settings.steps


def check_folder(out: Path, state: Path, resume: bool):
    """Raise ValueError where no model must be written to a folder, or where there is no state
    to resume, or one that nobody asked to resume."""
    check_output(out / "training.json", RECORD_BEGINS)
    if out.is_dir() and any(out.iterdir()) and not (out / "training.json").exists():
        raise ValueError(f"--out {out} was not written by this program: give another folder")
    if resume and not state.is_file():
        raise ValueError(f"there is no run to resume, no {state}: start one without --resume")
    if state.exists() and not resume:
        raise ValueError(f"{state} is of a run that was stopped: --resume it, or delete it")


def publish(run: Run, out: Path, folder: Path, record: dict):
    """Write the finished folder, from a run's model and the tokenizer in `folder`, and remove
    its state. The record comes first: it says that the rest is ours."""
    write_beside(out / "training.json", (json.dumps(record, indent=1) + "\n").encode())
    save(run.model, out)
    for name in recipes.TOKENIZER_FILES:
        if (folder / name).exists():
            write_beside(out / name, (folder / name).read_bytes())
        else:
            (out / name).unlink(missing_ok=True)  # an earlier run's, of another family
    run.path.unlink()


def run_from(options) -> int:
    """A whole run, from text to the finished folder; a signal's exit code where one came. The
    tokenizer waits in a temporary folder: a resumed run trains the same one again."""
    out, documents = options.out.resolve(), load_text(options)
    state = out.parent / (out.name + ".state")
    check_folder(out, state, options.resume)
    with tempfile.TemporaryDirectory() as folder:
        learned = list(documents[0].values())
        recipes.train_tokenizer(options.family, learned, options.vocab_size, Path(folder))
        tokenizer = load_tokenizer(folder)
        parts = [Practice(tokenizer, encode_all(tokenizer, part)) for part in documents]
        sizes = [f"{len(part.text):,} tokens" for part in parts]
        print(f"{sizes[0]} to learn from, {sizes[1]} held out", file=sys.stderr)
        facts = [field.name for field in dataclasses.fields(Settings)]
        settings = Settings(**{name: getattr(options, name) for name in facts})
        model = recipes.network(options.family, options.sizes, tokenizer)
        run = Run(model, settings, state, *parts)
        if options.resume:
            run.load_state()
        with signals_noted() as came:
            if not train(run, options.every, stopped=lambda: bool(came)):
                print(f"\nstopped at step {run.step}; go on with --resume", file=sys.stderr)
                return 128 + came[0]
        record = {
            "command": options.command, "settings": dataclasses.asdict(settings),
            "documents": len(learned), "held_out": sorted(documents[1]), "log": run.log,
        }  # fmt: skip
        publish(run, out, Path(folder), record)
    print(f"\nwrote {options.out}", file=sys.stderr)
    return 0


FLAGS = {name: "--" + name.replace("_", "-") for shape in SHAPES.values() for name in shape}


def parser() -> flags.Parser:
    parser = flags.Parser(prog="python -m minilm_inf.train", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the folder to write, which load() then reads")
    add("--corpus", type=Path, default=Path("corpus"), help="folder of minilm_inf.corpus")
    add("--text", type=Path, nargs="+", help="your own UTF-8 files, instead of the corpus")
    add("--resume", action="store_true", help="continue the run whose state is OUT.state")
    add("--family", choices=SHAPES, default="llama", help="(%(default)s)")
    add("--threads", type=flags.threads, help="CPU threads (PyTorch's default)")
    add("--learning-rate", type=flags.between(1e-9, 10), default=1.5e-3, metavar="X",
        help="its peak (%(default)s)")  # fmt: skip
    add("--repeats", type=flags.between(0, 0.34), default=Settings.repeats, metavar="X",
        help="the first share of all tokens, repeats alone (%(default)s)")  # fmt: skip
    flags.add_counts(
        parser,
        ("--tokens", 1, 30_200_000, "tokens to learn from (%(default)s)"),
        ("--tokens-per-step", 256, 4096, "(%(default)s)", 2**20),
        ("--seed", 0, 1, "(%(default)s)", 2**63 - 1),
        ("--every", 1, 500, "steps between checkpoints (%(default)s)"),
        ("--vocab-size", 1, 2048, "(%(default)s)", 2**20),
        *((flag, 1, None, "(the family's own)", 4096) for flag in FLAGS.values()),
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    arguments, line = sys.argv[1:] if arguments is None else arguments, parser()
    options = line.parse_args(arguments)
    given = {name: getattr(options, name) for name in FLAGS if getattr(options, name)}
    for name in given.keys() - SHAPES[options.family].keys():
        line.error(f"{FLAGS[name]} has no meaning for {options.family}")
    options.sizes = SHAPES[options.family] | given
    fresh = [argument for argument in arguments if argument != "--resume"]
    options.command = shlex.join(["python", "-m", "minilm_inf.train", *fresh])
    torch.set_flush_denormal(True)  # numbers near 0 are many times slower on some CPUs
    if options.threads:
        torch.set_num_threads(options.threads)
    return guarded(lambda: run_from(options), smaller="--tokens-per-step or model")


if __name__ == "__main__":
    sys.exit(main())

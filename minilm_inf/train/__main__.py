"""How weights/ came to be: a trainer that stops and resumes at any step.

    python -m minilm_inf.corpus corpus/
    python -m minilm_inf.train --corpus corpus/ --out weights/tiny-llama

First a tokenizer is trained on the text, then the model, in phases: repeats only,
where a model learns to look back and copy; text with much retrieval practice; text with some,
then little. Every window begins with BOS, so that a starting token can become special. Each
step draws its windows from a generator seeded with (seed, step): a resumed run sees what the
unbroken one saw.

Ctrl-C (or SIGTERM) writes a checkpoint to OUT.part; --resume goes on from it. A folder OUT that
an earlier run wrote is written again; any other that holds a model is refused.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import shlex
import sys
from pathlib import Path

import numpy as np
import torch

from .. import corpus
from ..terminal import options as flags
from ..terminal.ending import guarded, signals_noted
from ..terminal.files import read_text
from ..terminal.options import at_least
from ..terminal.progress import Progress, available_memory
from ..text.tokenizer import load as load_tokenizer
from .practice import Practice
from .recipes import SHAPES, network, train_tokenizer
from .schedule import PHASES, Settings, windows
from .trained_folder import STATE_FILE, check_folder, clear, part_of, publish, working_in
from .training import Run


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
    """The ids of all documents in a row, EOS after each: (N,)."""
    rows = [
        [*tokenizer.encode(text, bos=False), tokenizer.eos_id] for text in documents.values()
    ]
    return np.concatenate([np.array(row, dtype=np.int32) for row in rows])


def train(run: Run, practice: Practice, held_out: Practice, every: int, stopped) -> bool:
    """Steps until the settings' tokens are seen; False where `stopped()` ended it earlier."""
    settings, size = run.settings, run.settings.tokens_per_step
    progress = Progress(settings.steps * size, run.step * size)
    while run.step < settings.steps:
        run.learn(windows(settings, practice, run.step))
        done = run.step == settings.steps
        progress.show(run.step * size, f"loss {np.mean(run.losses[-10:]):.3f}", now=done)
        if run.step % every == 0 or done:
            progress.end()
            run.enter(held_out)
            run.save_state()
        if stopped() and not done:
            progress.end()
            run.save_state()
            return False
    return True


def share(text: str) -> float:
    """An argparse type: a number that ends the first phase before the second ends."""
    end = PHASES[1].until
    return flags.between(0, math.nextafter(end, 0))(text)


LARGEST = {"n_layer": 1000, "n_head": 1024, "n_kv_head": 1024, "head_dim": 4096}
SIZES = tuple(dict.fromkeys(name for shape in SHAPES.values() for name in shape))


def parser() -> flags.Parser:
    parser = flags.Parser(prog="python -m minilm_inf.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the folder to write, which load() then reads")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--corpus", type=Path, default=Path("corpus"),
                        help="folder of minilm_inf.corpus")  # fmt: skip
    source.add_argument("--text", type=Path, nargs="+",
                        help="your own UTF-8 files, instead of the corpus")  # fmt: skip
    add("--resume", action="store_true", help="go on with the run that OUT.part holds")
    for flag, kind, default, told in (
        ("--tokens", at_least(1), 30_200_000, "tokens to learn from"),
        ("--tokens-per-step", at_least(256, 2**20), 4096, ""),
        ("--learning-rate", flags.between(1e-9, 10), 1.5e-3, "its peak"),
        ("--repeats", share, PHASES[0].until, "the first share of all tokens, repeats alone"),
        ("--seed", flags.seed, 1, ""),
        ("--every", at_least(1), 500, "steps between checkpoints"),
        ("--vocab-size", at_least(1, 2**20), 2048, ""),
    ):
        add(flag, type=kind, default=default, metavar="X", help=f"{told} (%(default)s)".strip())
    add("--threads", type=flags.threads, help="CPU threads (PyTorch's default)")
    add("--family", choices=SHAPES, default="llama", help="(%(default)s)")
    for name in SIZES:
        known = [f"{shape[name]} in {f}" for f, shape in SHAPES.items() if name in shape]
        add("--" + name.replace("_", "-"), type=at_least(1, LARGEST.get(name, 2**16)),
            metavar="N", help=f"({', '.join(known)})")  # fmt: skip
    return parser


def main(arguments: list[str] | None = None) -> int:
    arguments, line = sys.argv[1:] if arguments is None else arguments, parser()
    options = line.parse_args(arguments)
    options.sizes = SHAPES[options.family].copy()
    for name in SIZES:
        size = getattr(options, name)
        if size is not None and name not in options.sizes:
            line.error(f"--{name.replace('_', '-')} has no meaning for {options.family}")
        if size is not None:
            options.sizes[name] = size
    fresh = [argument for argument in arguments if argument != "--resume"]
    options.command = shlex.join(["python", "-m", "minilm_inf.train", *fresh])
    torch.set_flush_denormal(True)  # numbers near 0 are many times slower on some CPUs
    if options.threads:
        torch.set_num_threads(options.threads)
    return guarded(lambda: run_from(options), smaller="--tokens-per-step or model")


def run_from(options) -> int:
    """A whole run, from text to the finished folder; a signal's exit code where one came."""
    folder = part_of(options.out)
    check_folder(options.out)
    with working_in(folder):
        if options.resume and not (folder / STATE_FILE).is_file():
            raise ValueError(
                f"there is no run to resume in {folder}: start one without --resume"
            )
        if not options.resume and (folder / STATE_FILE).exists():
            raise ValueError(
                f"{folder} holds a run that was stopped: --resume it, or delete it"
            )
        texts, held_out_texts = load_text(options)
        folder.mkdir(parents=True, exist_ok=True)
        if not options.resume:
            clear(folder)  # of a run that was killed before it had a state
            train_tokenizer(options.family, list(texts.values()), options.vocab_size, folder)
        run, practice, held_out = begun(options, folder, texts, held_out_texts)
        with signals_noted() as came:
            if not train(run, practice, held_out, options.every, stopped=lambda: bool(came)):
                print(f"\nstopped at step {run.step}; go on with --resume", file=sys.stderr)
                return 128 + came[0]
        record = {
            "command": options.command, "settings": dataclasses.asdict(run.settings),
            "phases": [dataclasses.asdict(phase) for phase in run.settings.phases],
            "documents": len(texts), "held_out": sorted(held_out_texts), "log": run.log,
        }  # fmt: skip
        publish(run.model, options.out, folder, record)
        print(f"\nwrote {options.out}", file=sys.stderr)
    return 0


def check_memory(model):
    """Raise ValueError where weights, gradients and both moments of a model, in float32, take
    more memory than there is: a system may give it out, and then end the program."""
    needed, there = 16 * sum(x.numel() for x in model.parameters()), available_memory()
    if there is not None and needed > there:
        raise ValueError(
            f"training this model takes {needed / 1e9:,.1f} GB, and {there / 1e9:,.1f} GB are "
            "free: take smaller sizes"
        )


def begun(options, folder: Path, texts: dict[str, str], held_out_texts: dict[str, str]):
    """The run, where it starts or where its state was saved, and what it learns from and is
    measured on. Raises ValueError for a text that is too short for either."""
    tokenizer = load_tokenizer(folder)
    practice = Practice(tokenizer, encode_all(tokenizer, texts))
    held_out = Practice(tokenizer, encode_all(tokenizer, held_out_texts))
    print(f"{len(practice.text):,} tokens to learn from, {len(held_out.text):,} held out",
          file=sys.stderr)  # fmt: skip
    settings = Settings(
        options.tokens, options.seed, options.tokens_per_step, options.learning_rate,
        options.vocab_size, options.repeats,
    )  # fmt: skip
    with torch.device("meta"):
        check_memory(network(options.family, options.sizes, tokenizer))
    model = network(options.family, options.sizes, tokenizer)
    for part in (practice, held_out):  # or it would be told after an hour
        part.excerpt(np.random.default_rng(0), model.config.context_length + 1)
    run = Run(model, settings, folder, hashlib.sha256(practice.text.tobytes()).hexdigest())
    if options.resume:
        run.load_state()
    return run, practice, held_out


if __name__ == "__main__":
    sys.exit(main())

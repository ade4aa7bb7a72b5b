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
from ..terminal.progress import Progress
from ..text.tokenizer import load as load_tokenizer
from .practice import Practice
from .recipes import SHAPES, network, train_tokenizer
from .schedule import PHASES, Settings, windows
from .training import STATE_FILE, Run, check_folder, publish, working_in  # noqa: F401

SIZES = tuple(dict.fromkeys(name for shape in SHAPES.values() for name in shape))


def load_text(options) -> tuple[dict[str, str], dict[str, str]]:
    """The documents to learn from and those held out (of --text files, the last twentieth)."""
    if not options.text:
        folder = options.corpus
        return corpus.documents(folder, held_out=False), corpus.documents(folder, held_out=True)
    texts = {str(path): read_text(path) for path in options.text}
    cuts = {name: len(text) * 19 // 20 for name, text in texts.items()}
    return ({name: text[: cuts[name]] for name, text in texts.items()},
            {name: text[cuts[name] :] for name, text in texts.items()})  # fmt: skip


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


def parser() -> flags.Parser:
    parser = flags.Parser(prog="python -m minilm_inf.train", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the folder to write, which load() then reads")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--corpus", type=Path, default=Path("corpus"),
                        help="folder of minilm_inf.corpus")  # fmt: skip
    source.add_argument("--text", type=Path, nargs="+",
                        help="your own UTF-8 files, instead of the corpus")  # fmt: skip
    add("--resume", action="store_true", help="go on with the run that OUT.part holds")
    share = flags.between(0, math.nextafter(PHASES[1].until, 0))
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
    add("--threads", type=flags.threads, help="CPU threads (default: PyTorch's own choice)")
    add("--family", choices=SHAPES, default="llama", help="(%(default)s)")
    for name in SIZES:
        known = [f"{shape[name]} in {f}" for f, shape in SHAPES.items() if name in shape]
        add("--" + name.replace("_", "-"), type=at_least(1, 4096), metavar="N",
            help=f"({', '.join(known)})")  # fmt: skip
    return parser


def main(arguments: list[str] | None = None) -> int:
    arguments, line = sys.argv[1:] if arguments is None else arguments, parser()
    options = line.parse_args(arguments)
    given = {name: getattr(options, name) for name in SIZES if getattr(options, name)}
    for name in given.keys() - SHAPES[options.family].keys():
        line.error(f"--{name.replace('_', '-')} has no meaning for {options.family}")
    options.sizes = SHAPES[options.family] | given
    fresh = [argument for argument in arguments if argument != "--resume"]
    options.command = shlex.join(["python", "-m", "minilm_inf.train", *fresh])
    torch.set_flush_denormal(True)  # numbers near 0 are many times slower on some CPUs
    if options.threads:
        torch.set_num_threads(options.threads)
    return guarded(lambda: run_from(options), smaller="--tokens-per-step or model")


def run_from(options) -> int:
    """A whole run, from text to the finished folder; a signal's exit code where one came."""
    check_folder(options.out)
    folder = options.out.with_name(options.out.name + ".part")
    with working_in(folder, options.resume):
        texts, held_out_texts = load_text(options)
        if not options.resume:
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
    model = network(options.family, options.sizes, tokenizer)
    for part in (practice, held_out):  # or it would be told after an hour
        part.excerpt(np.random.default_rng(0), model.config.context_length + 1)
    run = Run(model, settings, folder, hashlib.sha256(practice.text.tobytes()).hexdigest())
    if options.resume:
        run.load_state()
    return run, practice, held_out


if __name__ == "__main__":
    sys.exit(main())

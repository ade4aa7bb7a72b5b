"""The card of a trained model: what it learned from, and what it can do, all measured here.

    python -m minilm_inf.card weights/tiny-llama --corpus corpus/

reads the folder's training.json, measures the finished weights on the held-out documents, and
writes the folder's README.md. The test suite reads the hash, the size and the greedy sentence
from there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import textwrap
from pathlib import Path

import numpy as np

from . import corpus, load
from .config import LMInfinite
from .evaluate.compare import encoded
from .evaluate.measure import by_position
from .evaluate.table import card_table
from .terminal.ending import guarded
from .terminal.files import (
    check_output,
    claimed,
    read_bytes,
    read_json,
    read_text,
    write_beside,
)  # fmt: skip
from .terminal.options import Parser
from .text.sentence_pieces import SentencePieceTokenizer
from .train.practice import Practice, pass_key_accuracy
from .writing.session import generate

PROMPT = (
    "The number of Clara is 4071. Emma walked slowly to the window, and was silent. "
    "What is the number of Clara? The number of Clara is"
)
GREEDY_TOKENS = 24
TRIALS = 500

CARD = """\
# {name}

{a_family} of {parameters:,} parameters that was trained on texts of {context_length} tokens, to
show on any laptop what happens beyond that length, and what LM-Infinite does about it. It
writes the babble of its sources, not sense.

| | |
|---|---|
| shape | {shape} |
| tokenizer | {tokenizer} |
| tokens seen | {tokens:,} in {steps:,} steps of {tokens_per_step:,}, seed {seed} |
| final loss | {train_loss:.3f} on the training mix, {held_out_nll:.3f} on held-out text |
| pass keys | {pass_keys:.1%} of {trials} five-digit keys copied exactly, in context |
| parameters | {parameters} |
| SHA-256 | {sha256} |

## Data

{documents} documents, each public domain, fetched and made plain by `minilm_inf.corpus`:

{sources}

Held out, whole: {held_out}.

Every window begins with BOS. The first {repeats_share:.1%} of all tokens were random spans,
repeated, in windows of {first_window}; from then on, windows of {context_length}: {mixes}.

*Retrieval* practice states one to four facts in ordinary text (a pass key of five digits, a
person's number), and asks for each of them, and answers, later. Without it a model this small
learns no copying; with it, it says pass keys and numbers now and then unasked.

The command, from text to weights (AdamW, betas 0.9 and 0.98, weight decay 0.05, learning rate
{learning_rate} at its peak, cosine to a tenth, gradients clipped at 1):

```
python -m minilm_inf.corpus corpus
{command}
```

Rounding differs between machines and thread counts: the command gives a model like this one,
not the same bits.

## Reading past the trained length

On the held-out documents, the first {length:,} tokens of each of them, nats per token.
LM-Infinite has n_local and distance_ceiling {context_length} and n_global {n_global}.
Re-encoding is the vanilla model on BOS and the last {last_tokens} tokens, with a stride of
{stride}: the text's own easy and hard places, without any length beyond the trained one. The
same numbers, with intervals:

```
python -m minilm_inf.evaluate compare -m {folder} --corpus corpus \\
    --methods full,lambda,truncate --n-local {context_length} --length {length} --trials 0
```

{table}

{verdict}

The middle is forgotten: LM-Infinite reads on as if the text had begun {context_length} tokens
ago, but for the first {n_global}.

## One sentence

Greedy, with LM-Infinite, {greedy_tokens} tokens behind the prompt:

prompt: {prompt}
continuation: {continuation}

This card was written by `python -m minilm_inf.card {folder} --corpus corpus`.
"""


NAMES = {"llama": "A Llama", "mpt": "An MPT", "gptj": "A GPT-J"}


def shape(config) -> str:
    """A model's sizes in a line, and what its family adds to them."""
    heads = f"{config.n_head} heads of {config.head_dim}"
    if config.n_kv_head != config.n_head:
        heads = (
            f"{config.n_head} query heads on {config.n_kv_head} key heads of {config.head_dim}"
        )
    own = {"llama": "", "mpt": ", ALiBi",
           "gptj": f", rotary pairs on {getattr(config, 'rotary_dim', 0)} of them"}  # fmt: skip
    head = "tied head" if config.tied else "head of its own"
    sizes = f"{config.n_layer} layers, width {config.n_embd}, {heads}{own[config.family]}"
    return f"{sizes}, MLP {config.n_inner}, {head}"


def tokenizer_kind(tokenizer) -> str:
    """What the tokenizer of a folder is, in a line."""
    is_pieces = isinstance(tokenizer, SentencePieceTokenizer)
    kind, more = ("sentencepiece", ", byte fallback") if is_pieces else ("byte-level", "")
    return f"{kind} BPE, {tokenizer.vocab_size} pieces{more}, every digit a piece"


def verdict(rows: list[dict]) -> str:
    """What by_position's rows show of the vanilla model, in a sentence or two."""
    beyond = [row["vanilla"] - row["reencoded"] for row in rows[1:]]
    worst, last = max(beyond), round(beyond[-1], 2) + 0.0  # + 0.0: there is no -0.00
    if worst > 0.1:
        kind = "falls apart" if worst > 0.7 else "fails gently"
        text = (
            f"Beyond its trained length the vanilla model {kind}: up to {worst:.2f} nat worse "
            f"than re-encoding, {last:+.2f} in the last row."
        )
    else:
        text = (
            "Beyond its trained length the vanilla model does not fail: it is at most "
            f"{max(worst, 0):.2f} nat worse than re-encoding, {last:+.2f} in the last row. "
            "What LM-Infinite changes here is the cost, not the text. (Of MPT-7B the paper "
            "reports perplexities of 5.5 at 2K tokens and 2.5e2 at 4K without it: what holds "
            "at this size need not hold at that one.)"
        )
    if worst <= 0.7:
        text += " Linear biases hide what is far away by themselves."
    return textwrap.fill(text, 92, break_on_hyphens=False)


def mixes(phases: list[dict]) -> str:
    """What the windows of each phase were made of, in words."""
    parts = []
    for phase in phases:
        until, repeats, retrieval = phase["until"], phase["repeats"], phase["retrieval"]
        part = f"up to {until:.0%} of all tokens" if until < 1 else "to the end"
        part += f", {1 - repeats - retrieval:.0%} text, {repeats:.0%} repeats"
        part += f", {retrieval:.0%} retrieval"
        if phase["followed"]:
            part += f" ({phase['followed']:.0%} of these with other text after it)"
        parts.append(part)
    return "; ".join(parts)


def told(folder: Path, corpus_folder: Path) -> dict:
    """What the card says of the training. Raises ValueError where its records are missing, or
    are not as they were written."""
    records = folder / "training.json", corpus_folder / "corpus.json"
    for path, writer in zip(records, ("train", "corpus")):
        if not path.is_file():
            raise ValueError(f"{path.parent} has no {path.name}: minilm_inf.{writer} writes it")
    record, manifest = map(read_json, records)
    try:
        last, settings = record["log"][-1], record["settings"]
        first, *later = record["phases"]
        sources = [
            f"- {s['what']}: {s['package']}, {s['bytes']:,} bytes. {s['licence']}"
            for s in manifest.values()
        ]
        return dict(
            tokens=int(last["tokens"]), steps=int(last["step"]),
            train_loss=float(last["train_loss"]), held_out_nll=float(last["held_out_nll"]),
            tokens_per_step=int(settings["tokens_per_step"]), seed=settings["seed"],
            learning_rate=settings["learning_rate"], command=record["command"],
            documents=record["documents"], sources="\n".join(sources), mixes=mixes(later),
            repeats_share=float(first["until"]), first_window=first["window"],
        )  # fmt: skip
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{records[0]} or {records[1]} is not as minilm_inf.train and minilm_inf.corpus "
            "write it: run them again"
        ) from error


def write_card(folder: Path, corpus_folder: Path, report) -> str:
    """The card of the model in `folder`. Raises ValueError where a part is missing."""
    texts = corpus.documents(corpus_folder, held_out=True)
    training = told(folder, corpus_folder)
    model, tokenizer = load(folder)
    config, lm = model.config, LMInfinite.for_model(model.config)
    length = 64 * config.context_length

    documents = encoded(texts, tokenizer, length)
    held_out = [id for text in texts.values() for id in tokenizer.encode(text, bos=False)]
    practice = Practice(tokenizer, np.array(held_out))
    rows = by_position(model, documents, lm, n_bos=len(practice.bos))
    accuracy = pass_key_accuracy(model, practice, config.context_length, count=TRIALS, seed=1)
    report(f"pass keys {accuracy:.1%}")
    ids = practice.bos + tokenizer.encode(PROMPT, bos=False)
    new = list(generate(model, ids, lm, max_new_tokens=GREEDY_TOKENS, temperature=0.0))
    stream = tokenizer.stream(begun=True)
    continuation = "".join(stream.push(id) for id in new) + stream.flush()
    return CARD.format(
        **training, name=folder.name, folder=folder.as_posix(),
        sha256=hashlib.sha256(read_bytes(folder / "model.safetensors")).hexdigest(),
        context_length=config.context_length, a_family=NAMES[config.family],
        parameters=sum(p.numel() for p in model.parameters()), shape=shape(config),
        tokenizer=tokenizer_kind(tokenizer), verdict=verdict(rows), pass_keys=accuracy,
        trials=TRIALS, held_out=", ".join(sorted(texts)), length=length, n_global=lm.n_global,
        last_tokens=config.context_length - 1, stride=config.context_length // 2,
        table=card_table(rows), greedy_tokens=GREEDY_TOKENS, prompt=PROMPT,
        continuation=json.dumps(continuation),
    )  # fmt: skip


def run(folder: Path, corpus_folder: Path) -> int:
    path = folder / "README.md"
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one that minilm_inf.train wrote")
    check_output(path, flag="the card")
    if path.is_file() and "minilm_inf.card" not in read_text(path):
        raise ValueError(f"{path} is not a card of minilm_inf: move it away first")
    with claimed(path):
        card = write_card(folder, corpus_folder, lambda line: print(line, file=sys.stderr))
        write_beside(path, card.encode())
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m minilm_inf.card", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, help="a folder that minilm_inf.train wrote")
    parser.add_argument("--corpus", type=Path, default=Path("corpus"), help="(%(default)s)")
    options = parser.parse_args(arguments)
    return guarded(lambda: run(options.folder, options.corpus))


if __name__ == "__main__":
    sys.exit(main())

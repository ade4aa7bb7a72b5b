"""The card of a trained model: what it learned from, and what it can do, all measured here.

    python -m minilm_inf.card weights/tiny-llama --corpus corpus/

reads the folder's training.json, measures the finished weights on the held-out documents, and
writes the folder's README.md. The test suite reads the hash, the size and the greedy sentence
from there.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from . import corpus, load
from .config import LMInfinite
from .evaluate import comparison, resume
from .evaluate.__main__ import parsed
from .evaluate.table import number
from .terminal.ending import guarded
from .terminal.files import check_output, read_bytes, read_json, write_beside
from .terminal.options import Parser
from .terminal.tables import markdown
from .train.practice import Practice, pass_key_accuracy
from .writing.session import generate

PROMPT = (
    "The number of Clara is 4071. Emma walked slowly to the window, and was silent. "
    "What is the number of Clara? The number of Clara is"
)
GREEDY_TOKENS = 24
TRIALS = 500
TOLD = ("tokens", "step", "tokens_per_step", "seed", "train_loss", "held_out_nll",
        "learning_rate", "command", "documents")  # fmt: skip
NAMES = {"llama": "A Llama", "mpt": "An MPT", "gptj": "A GPT-J"}

CARD = """\
# {name}

{a_family} of {parameters:,} parameters, trained on texts of {context} tokens to show on any
laptop what happens beyond that length, and what LM-Infinite does about it. It babbles in the
style of its sources; do not expect sense.

| | |
|---|---|
| shape | {shape} |
| tokenizer | {vocab_size} pieces, every digit a piece |
| tokens seen | {tokens:,} in {step:,} steps of {tokens_per_step:,}, seed {seed} |
| final loss | {train_loss:.3f} on the training mix, {held_out_nll:.3f} on held-out text |
| pass keys | {pass_keys:.1%} of {trials} five-digit keys copied exactly, in context |
| parameters | {parameters} |
| SHA-256 | {sha256} |

## Data

{documents} documents, all in the public domain, fetched and made plain by `minilm_inf.corpus`:

{sources}

Held out, whole: {held_out}.

Every training text begins with BOS. Some repeat random spans; others practise *retrieval*: they
state pass keys and people's numbers, ask for them later, and answer. Without this a model so
small does not learn to copy; with it, it sometimes writes a pass key unasked.

The command, from text to weights (AdamW, betas 0.9 and 0.98, weight decay 0.05, learning rate
{learning_rate} at its peak, cosine to a tenth, gradients clipped at 1):

```
python -m minilm_inf.corpus corpus
{command}
```

Rounding differs between machines and thread counts: the command gives a model like this one,
not the same bits.

## Reading past the trained length

On the held-out documents, the first {length:,} tokens of each, nats per token.
LM-Infinite has n_local and distance_ceiling {context} and n_global {n_global}.
Re-encoding is the vanilla model on BOS and the last {last_tokens} tokens, with a stride of
{stride}: it shows the text's own easy and hard places, and never exceeds the trained length.
The same numbers, with intervals:

```
python -m minilm_inf.evaluate compare -m {folder} --corpus corpus \\
    --methods full,lambda,truncate --n-local {context} --length {length} --trials 0
```

{table}

The middle is forgotten: LM-Infinite reads on as if the text had begun {context} tokens ago,
except that it still sees the first {n_global}.

## One sentence

Greedy, with LM-Infinite, {greedy_tokens} tokens after the prompt:

prompt: {prompt}
continuation: {continuation}

This card was written by `python -m minilm_inf.card {folder} --corpus corpus`.
"""


def told(folder: Path) -> dict:
    """What the card says of the training, as its record tells. Raises ValueError where it is
    missing, or is not as it was written."""
    training = read_json(folder / "training.json")
    try:
        facts = {**training["settings"], **training["log"][-1], **training}
        return {name: facts[name] for name in TOLD}
    except (LookupError, TypeError) as error:
        raise ValueError(f"{folder / 'training.json'} is not as it was written") from error


def sources(folder: Path) -> str:
    """A line for each source of a corpus, with the bytes of its documents."""
    sizes = {name: sum(path.stat().st_size for path in (folder / name).glob("*.txt"))
             for name in corpus.SOURCES}  # fmt: skip
    return "\n".join(
        f"- {source.what}: {source.package}, {sizes[name]:,} bytes. {source.licence}"
        for name, source in corpus.SOURCES.items() if sizes[name]
    )  # fmt: skip


def nll_table(model, tokenizer, texts: dict[str, str], length: int) -> str:
    """What `compare` measures, as the card's command asks it to, by position."""
    window = model.config.context_length
    asked = f"compare --methods full,lambda,truncate --n-local {window} --length {length}"
    run = comparison.prepared(parsed([*asked.split(), "--trials=0"]), texts, model, tokenizer)
    for _ in resume.steps(run):
        pass
    lines, entries = [], comparison.result(run)["results"]["methods"]
    for row in zip(*(entry["nll"] for entry in entries)):
        vanilla, infinite, reencoded = (part["nll"] for part in row)
        values = [f"{nll:.2f}" for nll in (vanilla, infinite, reencoded)]
        gap = number(infinite - reencoded, "{:+.2f}")
        lines.append([f"{row[0]['first']:,} to {row[0]['last']:,}", *values, gap])
    head = ["positions", "vanilla", "LM-Infinite", "re-encoding", "LM-Infinite - re-encoding"]
    return markdown(head, lines)


def write_card(folder: Path, corpus_folder: Path) -> int:
    """Measure the model in `folder`, and write its card. Raises ValueError where a part is
    missing."""
    path = folder / "README.md"
    check_output(path, begins=f"# {folder.name}\n".encode(), flag="the card")
    texts = corpus.documents(corpus_folder, held_out=True)
    training = told(folder)
    model, tokenizer = load(folder)
    c, lm = model.config, LMInfinite.for_model(model.config)
    length = 64 * c.context_length

    held_out = [id for text in texts.values() for id in tokenizer.encode(text, bos=False)]
    practice = Practice(tokenizer, np.array(held_out))
    ids = practice.bos + tokenizer.encode(PROMPT, bos=False)
    new = list(generate(model, ids, lm, max_new_tokens=GREEDY_TOKENS, temperature=0.0))
    stream = tokenizer.stream(begun=True)
    continuation = "".join(stream.push(id) for id in new) + stream.flush()
    card = CARD.format(
        **training, name=folder.name, folder=folder.as_posix(), a_family=NAMES[c.family],
        sha256=hashlib.sha256(read_bytes(folder / "model.safetensors")).hexdigest(),
        parameters=sum(p.numel() for p in model.parameters()), vocab_size=tokenizer.vocab_size,
        shape=f"{c.n_layer} layers, width {c.n_embd}, {c.n_head} query heads on {c.n_kv_head} "
        f"key heads of {c.head_dim}, MLP {c.n_inner}",
        context=c.context_length, last_tokens=c.context_length - 1,
        stride=c.context_length // 2, length=length, n_global=lm.n_global, trials=TRIALS,
        pass_keys=pass_key_accuracy(model, practice, c.context_length, count=TRIALS, seed=1),
        held_out=", ".join(sorted(texts)), sources=sources(corpus_folder),
        table=nll_table(model, tokenizer, texts, length),
        greedy_tokens=GREEDY_TOKENS, prompt=PROMPT, continuation=json.dumps(continuation),
    )  # fmt: skip
    write_beside(path, card.encode())
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m minilm_inf.card", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder that minilm_inf.train wrote")
    parser.add_argument("--corpus", type=Path, default=Path("corpus"), help="(%(default)s)")
    options = parser.parse_args(arguments)
    return guarded(lambda: write_card(options.folder, options.corpus))


if __name__ == "__main__":
    sys.exit(main())

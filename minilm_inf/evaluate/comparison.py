"""The task `evaluate compare`: ways to read past the trained length, on the same documents and
with the same number of visible keys.

    python -m minilm_inf.evaluate compare --corpus corpus/ --figure methods.png
    python -m minilm_inf.evaluate compare --methods lambda,streaming --sweep
    python -m minilm_inf.evaluate compare --methods full,lambda,truncate --n-local 256

    full        full attention: the vanilla model
    truncate    the vanilla model on BOS (if any) and the last tokens, read again and again
    window      a sliding window, without the starting tokens
    no-ceiling  window and starting tokens at their true distances
    no-lambda   all keys, none further away than the ceiling
    streaming   StreamingLLM: window and starting tokens, distances as they are in the cache
    lambda      LM-Infinite: window and starting tokens, these at the ceiling
    topk        LM-Infinite, and for every token the top-k middle tokens

One table: nll by position with 95% intervals over documents, the difference to LM-Infinite on
the same documents, time per token, the bytes of the cache, and how many pass keys are found in
the middle of a text that is four times as long as what a token sees.

Unless --n-local says otherwise, a token sees as many keys as a training text had tokens, so
that none of the methods is asked for distances that the model never saw, but for those whose
point that is.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import asdict, replace

import numpy as np
import torch

from ..config import LMInfinite, ModelConfig
from ..terminal import options as flags
from ..terminal.files import PICTURE, RESULT, check_outputs, write_beside
from ..terminal.progress import Progress
from ..terminal.tables import as_json, finite
from ..text.tokenizer import opening
from ..train.practice import Practice
from . import figure, table
from .cells import WHERE, rows_at_once, where_it_lies
from .compare import encoded
from .documents import texts_of
from .intervals import share
from .measure import measure, result_of, sweep
from .methods import Method, answers, methods
from .trials import PassKey

TIMES_CONTEXT = 16  # tokens of a document, unless --length says otherwise
TIMES_VISIBLE = 4  # tokens of a text with a pass key, in visible keys or trained lengths
DEPTHS = (0.3, 0.4, 0.5, 0.6)  # shares of its filler before the key


def evaluate(options) -> int:
    """The task, from its flags to the result."""
    flags.check_drawing(options, "figure")
    check_outputs(out=(options.out, RESULT), figure=(options.figure, PICTURE))
    return measured_and_published(options)


def measured_and_published(options) -> int:
    """Each part is written as soon as it is measured, and the table of those that were is
    printed whatever becomes of the others."""
    texts = compared(options)
    model, tokenizer = flags.load(options)
    config, context = model.config, model.config.context_length
    lm = sight(options, config)
    chosen = methods(options.methods, lm, config, len(opening(tokenizer)))
    length = options.length or TIMES_CONTEXT * context
    if options.sweep and length <= context:
        raise ValueError(
            f"--sweep is about what lies beyond {context} tokens: take a larger --length"
        )
    documents = encoded(texts, tokenizer, length)
    result = {
        "task": "compare", "model": options.model.as_posix(), "documents": sorted(documents),
        "length": length, "context_length": context, "settings": asdict(lm),
        "budget": lm.n_local + lm.n_global, "device": str(model.embed.weight.device),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    print(f"threads: {result['threads']}, device: {result['device']}", file=sys.stderr)
    measured = measure(model, chosen, documents, options.chunk)
    width = model.embed.weight.element_size()
    result["methods"] = result_of(chosen, measured, config, width)
    try:
        write(result, options)
        if options.trials:
            ask(model, tokenizer, chosen, documents, result, options)
            write(result, options)
        if options.sweep:
            result["sweep"] = sweep(model, replace(lm, top_k=0), documents, options.chunk)
            write(result, options)
    finally:
        show(finite(result), options)
    if options.figure:
        write_beside(options.figure, figure.png(finite(result)))
    return 0


def write(result: dict, options):
    """Write what was measured so far where --out says."""
    if options.out:
        write_beside(options.out, (as_json(result) + "\n").encode())


def show(result: dict, options):
    """Print what was measured."""
    if options.json:
        print(as_json(result), flush=True)
        return
    print(table.methods_table(result))
    print("\n" + table.notes(result))
    print(table.verdict(result), flush=True)
    if "sweep" in result:
        print("\n" + table.sweep_tables(result), flush=True)


# ---- pass keys in the middle, which neither the starting tokens nor the window hold


def ask(model, tokenizer, chosen: dict, documents, result: dict, options):
    """Add each method's pass keys to the result, or say on stderr why there are none."""
    lm = replace(sight(options, model.config), top_k=0)
    try:
        middle, inside = pass_keys(tokenizer, documents, lm, model.config, options.trials)
    except ValueError as error:
        print(f"no pass keys: {error}", file=sys.stderr)
        return
    progress = Progress(len(chosen), unit="methods")
    try:
        for done, entry in enumerate(result["methods"], 1):
            method = chosen[entry["name"]]
            entry["passkey"] = accuracy(model, method, middle, options.chunk)
            progress.show(done, f"pass keys: {method.label}", now=True)
    finally:
        progress.end()
    vanilla = Method("full attention", None)
    result["passkey_inside"] = accuracy(model, vanilla, inside, options.chunk)


def pass_keys(tokenizer, documents: dict[str, list[int]], lm: LMInfinite, config: ModelConfig,
              count: int) -> tuple[list, list]:  # fmt: skip
    """`count` trials whose keys lie in the middle, and as many inside the trained length.

    documents: as compare.encoded makes them, of whose text the filler is made. Raises
    ValueError where they are too short for that.
    """
    length = TIMES_VISIBLE * max(config.context_length, lm.most_visible)
    n_bos = len(opening(tokenizer))
    filler = np.array([id for ids in documents.values() for id in ids[n_bos:]])
    if len(filler) <= length:
        raise ValueError(f"they take {length:,} tokens of text, and there are {len(filler):,}")
    maker = PassKey(Practice(tokenizer, filler), tokenizer)
    middle, inside = (
        [maker.trial(n, DEPTHS[k % len(DEPTHS)], [n, k]) for k in range(count)]
        for n in (length, config.context_length)
    )
    assert all(WHERE[where_it_lies(trial, lm)] == "middle" for trial in middle)
    return middle, inside


def accuracy(model, method: Method, asked: list, chunk: int) -> dict:
    """How many of the trials a method answers."""
    if method.lm is not None:  # a prompt is read as generate reads it
        method = replace(method, lm=replace(method.lm, top_k_queries="last"))
    length, width = len(asked[0].ids), asked[0].width
    rows = torch.tensor([trial.ids for trial in asked], device=model.embed.weight.device)
    some = rows_at_once(model, method, length, chunk)
    found = [answers(model, method, x, width, chunk) for x in rows.split(some)]
    right = sum(n == width for part in found for n in part)
    known = share(right, len(asked))
    return {
        "right": right, "trials": len(asked), "tokens": length, "share": known["accuracy"],
        "interval": known["interval"],
    }  # fmt: skip


# ---- what the flags ask for


def compared(options) -> dict[str, str]:
    """The texts that are compared, by name, as many as --documents says."""
    return dict(list(texts_of(options).items())[: options.documents])


def sight(options, config: ModelConfig) -> LMInfinite:
    """LM-Infinite with top-k as the flags have it; the window and the starting tokens are what
    each method sees. Raises ValueError where the starting tokens leave no window."""
    n_local = options.n_local
    if n_local is None:
        n_local = config.context_length - options.n_global
    if n_local < 1:
        raise ValueError(
            f"--n-global {options.n_global} leaves no window of the {config.context_length} "
            "keys that a token sees: give --n-local too"
        )
    return flags.attention(Namespace(**{**vars(options), "n_local": n_local}), config)

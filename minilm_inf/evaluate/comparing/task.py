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

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ... import corpus
from ...config import ModelConfig
from ...terminal import options as flags
from ...terminal.files import PICTURE, RESULT, outputs, read_text, write_beside
from ...terminal.progress import Progress
from ...text.tokenizer import opening
from ...writing import plan
from ..compare import encoded
from ..perplexity import finite
from . import figure, pass_keys, sweep, table
from .measure import chunk_for, measure, result_of
from .methods import Budget, Reencoded, Stream, methods

TIMES_CONTEXT = 16  # tokens of a document, unless --length says otherwise


def evaluate(options) -> int:
    """The task, from its flags to the result."""
    if options.plan:
        return show_plan(options)
    flags.check_drawing(options, "figure")
    files = {"out": (options.out, RESULT), "figure": (options.figure, PICTURE)}
    with outputs(flags.inputs(options), **files):
        return measured_and_published(options)


def measured_and_published(options) -> int:
    """Each part is written as soon as it is measured, and the table of those that were is
    printed whatever becomes of the others."""
    texts = compared(options)
    model, tokenizer = flags.load(options)
    config, n_bos = model.config, len(opening(tokenizer))
    budget = budget_of(options, config)
    chosen = methods(options.methods, budget, config, n_bos)
    context = config.context_length
    length = options.length or TIMES_CONTEXT * context
    if options.sweep and length <= context:
        raise ValueError(
            f"--sweep is about what lies beyond {context} tokens: take a larger --length"
        )
    documents = encoded(texts, tokenizer, length)
    result = {
        "task": "compare", "model": options.model.as_posix(), "documents": sorted(documents),
        "length": length, "context_length": context, "budget": budget.keys,
        "settings": asdict(budget), "device": str(model.embed.weight.device),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    print(f"threads: {result['threads']}, device: {result['device']}", file=sys.stderr)
    chunk = chunk_for(options.chunk, length, len(documents))
    measured = run(model, chosen, documents, chunk, length)
    width = model.embed.weight.element_size()
    result["methods"] = result_of(chosen, measured, config, width)
    try:
        write(result, options)
        if options.trials:
            ask(model, tokenizer, chosen, documents, budget, result, options)
            write(result, options)
        if options.sweep:
            rows = sweep.settings(budget, context)
            measured = run(model, sweep.readings(rows), documents, chunk, length)
            result["sweep"] = sweep.result_of(rows, measured, context)
            write(result, options)
    finally:
        show(finite(result), options)
    if options.figure:
        write_beside(options.figure, figure.png(finite(result)))
    return 0


def run(model, chosen: dict, documents: dict[str, list[int]], chunk: int, length: int) -> dict:
    """measure, with a line on stderr."""
    progress = Progress(len(chosen) * len(documents) * length)

    def report(done: int, label: str):
        progress.show(done, label, now=done == progress.total)

    try:
        return measure(model, chosen, documents, chunk, report)
    finally:
        progress.end()


def ask(model, tokenizer, chosen: dict, documents, budget: Budget, result: dict, options):
    """Add each method's pass keys to the result, or say on stderr why there are none."""
    lm = budget.settings(budget.n_local)
    try:
        asked, inside = pass_keys.trials(tokenizer, documents, lm, model.config, options.trials)
    except ValueError as error:
        print(f"no pass keys: {error}", file=sys.stderr)
        return
    progress = Progress(len(chosen), unit="methods")
    vanilla = methods(["full"], budget, model.config)["full"]
    try:
        for done, entry in enumerate(result["methods"], 1):
            method = chosen[entry["name"]]
            entry["passkey"] = pass_keys.accuracy(
                lambda ids, count, method=method: method.write(
                    model, ids, count, options.chunk
                ),
                asked,
            )
            progress.show(done, f"pass keys: {method.label}", now=True)
    finally:
        progress.end()
    result["passkey_inside"] = pass_keys.accuracy(
        lambda ids, count: vanilla.write(model, ids, count, options.chunk), inside
    )


def write(result: dict, options):
    """Write what was measured so far where --out says."""
    if options.out:
        text = json.dumps(finite(result), indent=1)
        write_beside(options.out, (text + "\n").encode())


def show(result: dict, options):
    """Print what was measured."""
    if options.json:
        print(json.dumps(result, indent=1), flush=True)
        return
    print(table.methods_table(result))
    print("\n" + table.notes(result))
    print(table.verdict(result), flush=True)
    if "sweep" in result:
        print("\n" + table.sweep_tables(result), flush=True)


def compared(options) -> dict[str, str]:
    """The texts that are compared, by name, as many as --documents says."""
    if options.text:
        texts = {str(path): read_text(path) for path in options.text}
    else:
        texts = corpus.documents(options.corpus, held_out=True)
    return dict(list(texts.items())[: options.documents])


def budget_of(options, config: ModelConfig) -> Budget:
    """The flags as a Budget. Raises ValueError where the starting tokens leave no window."""
    n_local = options.n_local
    if n_local is None:
        n_local = config.context_length - options.n_global
    if n_local < 1:
        raise ValueError(
            f"--n-global {options.n_global} leaves no window of the {config.context_length} "
            "keys that a token sees: give --n-local too"
        )
    return Budget(
        n_local, options.n_global, options.distance_ceiling, options.top_k_middle,
        options.top_k_distance, options.top_k_from_layer,
    )  # fmt: skip


def show_plan(options) -> int:
    """What the run would take; every text is read to the same length, which is known."""
    net = plan.network(options)
    context, n_texts = net.config.context_length, len(compared(options))
    length = options.length or TIMES_CONTEXT * context
    chosen = methods(options.methods, budget_of(options, net.config), net.config)
    chunk = chunk_for(options.chunk, length, n_texts)
    width = net.dtype.itemsize
    copies = 2 * 4 + (width if width != 4 else 0)  # cross_entropy's, in float32
    plans, unknown = [], []
    for method in chosen.values():
        what = method.label
        if isinstance(method, Reencoded):
            config = replace(net.config, context_length=method.length)
            net_then = net._replace(config=config)
            plans.append(plan.rescoring(net_then, what, length + 1, n_texts, copies))
        elif isinstance(method, Stream):
            lengths = [length + 1] * n_texts
            plans.append(plan.scoring(net, what, method.lm, lengths, chunk, copies))
        else:
            unknown.append(what)
    if not plans:
        raise ValueError(f"--plan has no formula for {', '.join(unknown)}")
    notes = [f"not predicted: {', '.join(unknown)}"] if unknown else []
    if "truncate" in chosen:
        notes.append("truncation may take less: --chunk says how many windows are read at once")
    if options.sweep:
        notes.append("not predicted: the sweep, which takes no more memory than LM-Infinite "
                     "with n_global 100")  # fmt: skip
    return plan.show(net, plans, options.json, notes)


def picture(text: str) -> Path:
    """An argparse type: the path of a PNG."""
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png")
    return Path(text)

"""The tasks `evaluate passkey` and `evaluate recall`: whether something said early in a long
text is found when it is asked for at the end.

    python -m minilm_inf.evaluate passkey --lengths 1,2,4,8 --trials 50 --out run.json
    python -m minilm_inf.evaluate recall --task pairs
    python -m minilm_inf.evaluate passkey --methods topk --sweep k=1,3,5,10 from-layer=0,1,2
    python -m minilm_inf.evaluate passkey --resume run.json

Every text is exactly as long as asked for, filler that occurs nowhere twice in it, and each
method is asked the same questions: full attention, truncation (the vanilla model on BOS, if the
tokenizer has one, and the last tokens, answer included no more than context_length),
LM-Infinite, and it with the top-k middle tokens. An answer is right if greedy decoding writes
all of its tokens. In the same run, as controls: the model inside its trained length, the
question alone, and texts that do not state the answer.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

from .. import corpus
from ..terminal import options as flags
from ..terminal.files import read_text, write_beside
from ..terminal.progress import Progress
from ..train.practice import Practice
from .needles import axes, heatmap
from .needles.cells import Run
from .needles.recall import Pairs, Variables
from .needles.report import Results
from .needles.trials import REPEATED, Maker, PassKey, check_filler
from .perplexity import check_same, finite, weights_sha256
from .resume import begun, drive, kept_flags, not_whole, remove_state, state_path

TITLES = {
    "passkey": "pass key", "pairs": "key-value recall",
    "variables": "variable tracking in the style of RULER",
}  # fmt: skip


def evaluate(options) -> int:
    """A task, from its flags to the result; a signal's exit code where one ended it."""
    with begun(options) as start:
        return 0 if start is None else measure(*start)


def measure(facts: dict | None, options, out: Path | None) -> int:
    """The run, from the saved state if there are facts of one, to the result."""
    flags.check_drawing(options, "heatmap")
    run, settings, left_out = prepared(options)
    if facts is not None:
        check_same(settings, facts.get("settings"), options)
        restore(run, state_path(out), facts)
    progress = Progress(run.total, run.done)

    def report():
        cell = run.cell
        what = f"{cell.method}, {cell.length:,} tokens" if cell else "all cells"
        progress.show(run.done, what, now=run.is_done)

    try:
        kept = {"flags": kept_flags(options), "settings": settings}
        code = drive(run, out, kept, options.save_every, report)
    finally:
        progress.end()
    if code:
        onward = f"go on with --resume {out}" if out else "nothing was saved: there is no --out"
        print(f"stopped; {onward}", file=sys.stderr)
        return code
    publish(options, out, run, settings, left_out)
    return 0


def prepared(options):
    """The run that the flags ask for, what its numbers depend on, and what it leaves out."""
    model, tokenizer = flags.load(options)
    config = model.config
    cells, left_out = axes.cells(options, config)
    longest = max(cell.length for cell in cells)
    text = filler(options, tokenizer, longest)
    check_filler(text, longest)  # however little of it is the question
    practice = Practice(tokenizer, text)
    maker = maker_of(options, practice, tokenizer)
    methods = axes.settings(options, config, len(practice.bos))
    sight = axes.sight(options, config)
    run = Run(model, maker, methods, sight, cells, options.trials, options.seed,
              options.prefill_chunk, options.rows, options.middle or "ram")  # fmt: skip
    run.check()
    settings = {
        "task": options.kind, "model": str(options.model),
        "weights_sha256": weights_sha256(options.model),
        "ids_sha256": hashlib.sha256(text.astype("<i8").tobytes()).hexdigest(),
        "filler": options.filler, "seed": options.seed, "trials": options.trials,
        "lengths": axes.lengths(options, config), "depths": options.depths,
        "methods": {name: method_facts(methods[name]) for name in methods},
        "digits": maker.digits, "pairs": options.pairs, "chains": options.chains,
        "hops": options.hops, "full_up_to": options.full_up_to,
        "context_length": config.context_length, "prefill_chunk": options.prefill_chunk,
        "device": str(model.embed.weight.device),
        "dtype": str(model.embed.weight.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip
    return run, settings, left_out


def method_facts(method) -> dict:
    """A method as JSON gives it back."""
    lm = None if method.lm is None else dict(vars(method.lm))
    return {"lm_infinite": lm, "reads_last": method.last}


def filler(options, tokenizer, longest: int) -> np.ndarray:
    """The ids (N,) that texts are filled with."""
    if options.filler == "repeat":
        plain, spaced = (tokenizer.encode(text, bos=False) for text in ("a", " a"))
        space = "" if plain == spaced else " "  # not practice's: so its numbers were made
        once = tokenizer.encode(space + REPEATED, bos=False)
        return np.array(once * (longest // len(once) + 2))
    if options.text:
        texts = {str(path): read_text(path) for path in options.text}
    else:
        texts = corpus.documents(options.corpus, held_out=True)
    return np.array([id for text in texts.values() for id in tokenizer.encode(text, bos=False)])


def maker_of(options, practice: Practice, tokenizer) -> Maker:
    if options.kind == "pairs":
        return Pairs(practice, tokenizer, options.pairs, options.digits)
    if options.kind == "variables":
        return Variables(practice, tokenizer, options.chains, options.hops, options.digits)
    return PassKey(practice, tokenizer, options.digits)


def publish(options, out: Path | None, run: Run, settings: dict, left_out):
    """The result, written and printed, and only then drawn; the state goes last."""
    results = Results(
        run, settings["lengths"], options.depths, options.methods,
        settings["context_length"], options.sweep, left_out,
    )  # fmt: skip
    title = f"{TITLES[options.kind]}, {Path(options.model).name}"
    result = {"task": options.kind, "settings": settings, "results": results.as_json()}
    text = json.dumps(finite(result), indent=1)
    shown = text if options.json else (
        f"{title}, {options.trials} trials a cell\n\n{results.tables()}"
    )  # fmt: skip
    try:
        if out is not None:
            write_beside(out, (text + "\n").encode())
    finally:
        print(shown, flush=True)
    if options.heatmap:
        words = f"{title}: % of answers that are right"
        panels = {axes.METHODS[m]: accuracies(results, m) for m in options.methods}
        heatmap.write(options.heatmap, words, panels, results.lengths, results.depths)
    if out is not None:
        remove_state(out)


def accuracies(results: Results, method: str) -> dict:
    """A method's accuracy by (length, depth), where it was measured."""
    cells = [(length, depth) for length in results.lengths for depth in results.depths]
    found = {cell: results.cell(method, *cell) for cell in cells}
    return {cell: share["accuracy"] for cell, share in found.items() if share is not None}


def restore(run: Run, path: Path, facts: dict):
    """Put a run where its saved state was. Raises ValueError for a state that is not one."""
    at = facts.get("at")
    try:
        run.restore(at if isinstance(at, dict) else {})
    except ValueError as error:
        raise not_whole(path) from error

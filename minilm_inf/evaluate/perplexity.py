"""The task `evaluate perplexity`: any number of tokens through model and cache, in constant
memory, and the nll of every one but the first.

    python -m minilm_inf.evaluate perplexity --text FILE... --out run.json
    python -m minilm_inf.evaluate perplexity --tokens ids.npy --stream --length 200000000
    python -m minilm_inf.evaluate perplexity --resume run.json

Documents are read separately, each behind BOS, and means are over documents; or joined into one
stream (--stream): BOS, then all of them with EOS between them, in the order given, and from the
second pass on in an order drawn from --seed. A --tokens file is read as it stands: one
dimension is one document, two are a row for each, with the BOS and EOS that are in it. Texts
are encoded as a whole, in memory; for more text than that, write a --tokens file.

The result says nll by position, in bins that double and in equal ones; mean and interval (what
an interval covers is told in minilm_inf/evaluate/tally.py); bits per byte; of a stream, how the
same tokens fared early and late; and, under "timing", what differs from run to run.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path

import torch

from .. import corpus, load
from ..checkpoint.checkpoint import load_model
from ..checkpoint.shards import find_tensors
from ..terminal import options as flags
from ..terminal.files import read_text, shown, write_beside
from ..terminal.progress import Progress
from ..text.tokenizer import check_fits, opening
from ..text.tokenizer import load as load_tokenizer
from ..writing import plan
from .byte_counts import ByteCounts
from .documents import Encoded, Joined, Separate, TokensFile, digest
from .resume import (
    begun,
    drive,
    kept_flags,
    not_whole,
    read_tensors,
    remove_state,
    state_path,
)  # fmt: skip
from .stream import Run


def evaluate(options) -> int:
    """The task, from its flags to the result; a signal's exit code where one ended it."""
    if options.plan:
        return run_plan(options)
    with begun(options) as start:
        return 0 if start is None else scored(*start)


def scored(facts: dict | None, options, out: Path | None) -> int:
    """The run, from its beginning or from a saved state's facts, to its result."""
    model, reading, byte_counts = opened(options)
    lm = flags.attention(options, model.config)
    settings = settings_of(options, model, lm, reading)
    run = Run(model, lm, reading, byte_counts, options.chunk, options.bins,
              options.middle or "ram")  # fmt: skip
    if facts is not None:
        check_same(settings, facts.get("settings"), options)
        restore(run, state_path(out), facts)

    progress = Progress(run.total, run.scored)
    run.timing.begin()

    def report():
        progress.show(run.scored, f"nll {run.nll / run.scored:.4f}", now=run.is_done)

    facts = {"flags": kept_flags(options), "settings": settings}
    try:
        code = drive(run, out, facts, options.save_every, report)
    finally:
        progress.end()
    if code:
        onward = f"go on with --resume {out}" if out else "nothing was saved: there is no --out"
        print(
            f"stopped after {run.scored:,} of {run.total:,} tokens; {onward}", file=sys.stderr
        )
        return code
    result = {
        "task": "perplexity", "settings": settings, "results": run.results(options.seed),
        "timing": run.timing.result(),
    }  # fmt: skip
    text = json.dumps(finite(result), indent=1)
    if out is not None:
        write_beside(out, (text + "\n").encode())
        remove_state(out)
    print(text if options.json else report_of(result))
    return 0


def opened(options):
    """The model, the texts to read, and how many bytes their tokens are."""
    if options.threads:
        torch.set_num_threads(options.threads)
    where = flags.device(options.device), flags.DTYPES[options.dtype]
    if options.tokens is None:
        model, tokenizer = load(options.model, *where)
    else:
        model, tokenizer = load_model(options.model, *where), None
        try:
            found = load_tokenizer(options.model)
            check_fits(found, model.config.vocab_size, options.model)
            tokenizer = found
        except ValueError as error:
            print(f"no bits per byte: {' '.join(str(error).split())}", file=sys.stderr)
    reading = reading_of(options, tokenizer, model.config.vocab_size)
    return model, reading, ByteCounts(tokenizer, model.config.vocab_size, reading.source)


def reading_of(options, tokenizer, vocab_size: int):
    """The texts in the order in which they are read; tokenizer: of those that are not ids."""
    if options.tokens is not None:
        source, bos_id = TokensFile(options.tokens, vocab_size), None
    else:
        if options.text:
            texts = {str(path): read_text(path) for path in options.text}
        else:
            texts = corpus.documents(options.corpus, held_out=True)
        source = Encoded(texts, tokenizer, options.stream)
        bos_id = next(iter(opening(tokenizer)), None)
    if options.stream:
        return Joined(source, bos_id, options.length, options.seed)
    return Separate(source, bos_id, options.length)


def run_plan(options) -> int:
    """What the run would take: the texts are encoded, and nothing else is done."""
    net = plan.network(options)
    tokenizer = load_tokenizer(options.model) if options.tokens is None else None
    lengths = reading_of(options, tokenizer, net.config.vocab_size).lengths.tolist()
    lm = flags.attention(options, net.config)
    what = f"{len(lengths):,} text{'s' * (len(lengths) > 1)}, {sum(lengths):,} tokens"
    # Beside the logits, logsumexp takes a copy of them; in half precision both are in float32.
    exact = max(net.dtype.itemsize, torch.float32.itemsize)
    found = plan.scoring(net, what, lm, lengths, options.chunk, copies=2 * exact)
    if options.middle == "disk":
        found = plan.on_disk(found, net, lm, max(lengths) - 1)
    return plan.show(net, [found], options.json)


def settings_of(options, model, lm, reading) -> dict:
    """All that the numbers depend on, as JSON gives it back."""
    texts = {"tokens": options.tokens, "text": options.text, "corpus": options.corpus}
    kind, where = next((name, found) for name, found in texts.items() if found)
    return {
        "model": str(options.model), "weights_sha256": weights_sha256(options.model),
        "config_sha256": sha256_of(options.model / "config.json"),
        kind: [str(path) for path in where] if kind == "text" else str(where),
        "ids_sha256": digest(reading.source),
        "bos_id": reading.bos_id, "stream": options.stream,
        "length": int(reading.lengths.max()),
        "attention": options.attention, "n_local": lm and lm.n_local,
        "n_global": lm and lm.n_global, "distance_ceiling": lm and lm.distance_ceiling,
        "top_k_middle": lm.top_k if lm else 0,
        "top_k_distance": lm.middle_distance if lm and lm.top_k else None,
        "top_k_from_layer": lm.top_k_from_layer if lm and lm.top_k else None,
        "top_k_queries": lm.top_k_queries if lm and lm.top_k else None,
        "chunk": options.chunk, "bins": options.bins, "seed": options.seed,
        "device": str(model.embed.weight.device),
        "dtype": str(model.embed.weight.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip


def weights_sha256(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of weights in a checkpoint's folder."""
    paths = {stored.path for stored in find_tensors(Path(folder)).values()}
    return {path.name: sha256_of(path) for path in sorted(paths)}


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- going on


def check_same(settings: dict, before, options):
    """Raise ValueError where the run that is to go on would read, or be, another one."""
    before = before if isinstance(before, dict) else {}
    changed = {name for name in settings if settings[name] != before.get(name)}
    if "torch" in changed:
        print(
            f"the run began with PyTorch {shown(before.get('torch'))} and goes on with "
            f"{settings['torch']}: the last bits may differ",
            file=sys.stderr,
        )
    for name, what in {
        "weights_sha256": f"the weights in {options.model} are not those",
        "config_sha256": f"config.json in {options.model} is not the one",
        "ids_sha256": "the text is not that",
    }.items():
        if name in changed:
            raise ValueError(
                f"{what} that the run began with: put back what was there, or delete its state "
                "and start again"
            )
    if changed - {"torch"}:
        raise ValueError(
            f"the run began with another {', '.join(sorted(changed - {'torch'}))}: delete its "
            "state and start again"
        )


def restore(run: Run, path: Path, facts: dict):
    """Put a run where its saved state was. Raises ValueError for a state that is not one."""
    at = facts.get("at")
    try:
        run.restore(read_tensors(path), at if isinstance(at, dict) else {})
    except ValueError as error:
        raise not_whole(path) from error


# ---- the result


def finite(value):
    """The same, with null for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {name: finite(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def report_of(result: dict) -> str:
    """The result as a reader wants to see it: the bins that double, and a few sentences."""
    found, timing = result["results"], result["timing"]
    several = "documents" in found["log"][0]
    lines = [
        "| positions | tokens |" + " documents |" * several + " nll | 95% interval |",
        "|---|---|" + "---|" * several + "---|---|",
    ]
    for row in found["log"]:
        cells = [f"{row['first']:,} to {row['last']:,}", f"{row['tokens']:,}"]
        cells += [f"{row['documents']:,}"] if several else []
        cells += [f"{row['nll']:.4f}", between(row["interval"])]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(
        f"\nnll {found['nll']:.4f} nats per token ({between(found['interval'])}), perplexity "
        f"{found['perplexity']:.2f}, over {found['scored']:,} tokens of "
        f"{found['documents']:,} document{'s' * (found['documents'] > 1)}"
        + (", joined." if result["settings"]["stream"] else ".")
    )
    bits = found["bits_per_byte"]
    if bits is not None:
        lines.append(f"{bits:.4f} bits per byte, over {found['bytes']:,} bytes.")
    else:
        lines.append("No bits per byte: how long the text was is not known.")
    windows = found["early_and_late"]
    if windows and windows["pairs"]:
        lines.append(
            f"The last {windows['tokens']:,} tokens against {windows['tokens']:,} from "
            f"{windows['early_first']:,} on: {windows['late_nll']:.4f} and "
            f"{windows['early_nll']:.4f}; on the {windows['pairs']:,} tokens that are in both, "
            f"{windows['difference']:+.4f} ({between(windows['interval'])})."
        )
    lines.append(f"{timing['seconds']:,.1f} s, {timing['tokens_per_second']:,.0f} tokens/s.")
    return "\n".join(lines)


def between(interval: list[float] | None) -> str:
    return "none" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"

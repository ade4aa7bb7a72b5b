"""The task `evaluate perplexity`: any number of tokens through model and cache, in constant
memory, and the nll of every one but the first.

    python -m minilm_inf.evaluate perplexity --text FILE... --out run.json
    python -m minilm_inf.evaluate perplexity --tokens ids.npy --stream --length 200000000
    python -m minilm_inf.evaluate perplexity --resume run.json

Documents are read separately, each after BOS, and means are over documents; or joined into one
stream (--stream): BOS, then all of them with EOS between them, in the order given, and from the
second pass on in an order drawn from --seed. A --tokens file is read as it stands: one
dimension is one document, two are a row for each, with the BOS and EOS that are in it. Texts
are encoded as a whole, in memory; for more text than that, write a --tokens file.

The result says nll by position, in bins that double and in equal ones; mean and interval (what
an interval covers is told in minilm_inf/evaluate/intervals.py); bits per byte; of a stream, how
the same tokens fared early and late; and, under "timing", what differs from run to run.
"""

from __future__ import annotations

import sys

import torch

from ..checkpoint.checkpoint import load_model
from ..terminal import options as flags
from ..terminal.tables import markdown
from ..text.tokenizer import check_fits, opening
from ..text.tokenizer import load as load_tokenizer
from ..writing import plan
from .byte_counts import ByteCounts
from .documents import Encoded, Joined, Separate, TokensFile, digest, texts_of
from .resume import carry_out, model_facts
from .stream import Run


def evaluate(options) -> int:
    """The task, from its flags to the result; a signal's exit code where one ended it."""
    return run_plan(options) if options.plan else carry_out(options, prepared, result_of)


def prepared(options) -> tuple[Run, dict]:
    """The run that the flags ask for, and all that its numbers depend on."""
    model, tokenizer = loaded(options)
    reading = reading_of(options, tokenizer, model.config.vocab_size)
    lm = flags.attention(options, model.config)
    byte_counts = ByteCounts(tokenizer, model.config.vocab_size, reading.source)
    run = Run(model, lm, reading, byte_counts, options.chunk, options.bins,
              options.middle or "ram")  # fmt: skip
    return run, settings_of(options, model, lm, reading)


def loaded(options):
    """The model and its tokenizer, which --tokens may lack: it only counts their bytes."""
    if options.tokens is None:
        return flags.load(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    where = flags.device(options.device), flags.DTYPES[options.dtype]
    model, tokenizer = load_model(options.model, *where), None
    try:
        tokenizer = load_tokenizer(options.model)
        check_fits(tokenizer, model.config.vocab_size, options.model)
    except ValueError as error:
        print(f"no bits per byte: {' '.join(str(error).split())}", file=sys.stderr)
        tokenizer = None
    return model, tokenizer


def reading_of(options, tokenizer, vocab_size: int):
    """The texts in the order in which they are read; tokenizer: of those that are not ids."""
    if options.tokens is not None:
        source, bos_id = TokensFile(options.tokens, vocab_size), None
    else:
        source = Encoded(texts_of(options), tokenizer, options.stream)
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
    return plan.show(net, plan.scoring(net, lm, lengths, options), options.json)


def settings_of(options, model, lm, reading) -> dict:
    """All that the numbers depend on, as JSON gives it back."""
    texts = {"tokens": options.tokens, "text": options.text, "corpus": options.corpus}
    kind, where = next((name, found) for name, found in texts.items() if found)
    top_k = lm if lm and lm.top_k else None
    return model_facts(options, model) | {
        kind: [str(path) for path in where] if kind == "text" else str(where),
        "ids_sha256": digest(reading.source),
        "bos_id": reading.bos_id, "stream": options.stream,
        "length": int(reading.lengths.max()),
        "attention": options.attention, "n_local": lm and lm.n_local,
        "n_global": lm and lm.n_global, "distance_ceiling": lm and lm.distance_ceiling,
        "top_k_middle": lm.top_k if lm else 0,
        "top_k_distance": top_k and top_k.middle_distance,
        "top_k_from_layer": top_k and top_k.top_k_from_layer,
        "top_k_queries": top_k and top_k.top_k_queries,
        "chunk": options.chunk, "bins": options.bins, "seed": options.seed,
    }  # fmt: skip


def result_of(options, run: Run, settings: dict):
    """What was measured, for JSON and for readers; there is nothing to draw."""
    result = {
        "task": "perplexity", "settings": settings, "results": run.results(options.seed),
        "timing": run.timing.result(),
    }  # fmt: skip
    return result, report_of(result), lambda: None


def report_of(result: dict) -> str:
    """The result as a reader wants to see it: the bins that double, and a few sentences."""
    found, timing = result["results"], result["timing"]
    several = "documents" in found["log"][0]
    head = ["positions", "tokens", *["documents"] * several, "nll", "95% interval"]
    rows = []
    for row in found["log"]:
        cells = [f"{row['first']:,} to {row['last']:,}", f"{row['tokens']:,}"]
        cells += [f"{row['documents']:,}"] if several else []
        rows.append([*cells, f"{row['nll']:.4f}", between(row["interval"])])
    lines = [
        markdown(head, rows),
        f"\nnll {found['nll']:.4f} nats per token ({between(found['interval'])}), perplexity "
        f"{found['perplexity']:.2f}, over {found['scored']:,} tokens of "
        f"{found['documents']:,} document{'s' * (found['documents'] > 1)}"
        + (", joined." if result["settings"]["stream"] else "."),
    ]
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

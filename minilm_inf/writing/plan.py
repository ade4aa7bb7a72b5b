"""How much memory and arithmetic a run will take, told before it: what --plan prints.

Nothing is loaded: config.json and the headers of the weights say all that the formulas of
planning/ ask for. The peak of memory is the largest of three moments:

    loading   the weights, and the largest tensor of the files, mapped while it is copied
    reading   the weights, the cache as it is then, and the larger of two: what a layer needs
              for a chunk (working buffers), or the logits after it with their hidden states:
              when logits are made, no layer works any more
    writing   the weights, the cache at the end, and the same of a single token

Working buffers are an estimate, within 25%; weights, cache and logits are exact. It is the
memory of the device that the model is on, beyond the interpreter with PyTorch. Not counted are
the text and its ids, what --compile makes, and what kernels and matrix libraries use inside: on
the CPU some 25 MB, whatever the text. And glibc keeps memory that was freed, up to half as much
again: MALLOC_MMAP_THRESHOLD_=65536 in the environment has it handed back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from ..checkpoint.checkpoint import from_headers, own_dtype
from ..config import FULL_ATTENTION, LMInfinite, ModelConfig
from ..evaluate.compare import windows_at_once
from ..terminal import options as flags
from .planning.arithmetic import reading_flops, token_flops
from .planning.cached import cache_bytes, middle_bytes
from .planning.units import scaled
from .planning.working import Reading, reference_bytes, working_bytes


class Network(NamedTuple):
    """What a folder's config.json and headers tell.

    in_layers, in_head: weights that a token is multiplied with; largest: bytes of the largest
    stored tensor; has_bias: as in planning.working.Reading.
    """

    config: ModelConfig
    dtype: torch.dtype
    device: torch.device
    parameters: int
    in_layers: int
    in_head: int
    largest: int
    has_bias: bool


def network(options) -> Network:
    """The network that the model's flags name. Raises load_model's ValueError."""
    device = flags.device(options.device)
    model, stored = from_headers(options.model)
    linear = [x.weight.numel() for x in model.blocks.modules() if isinstance(x, nn.Linear)]
    return Network(
        config=model.config,
        dtype=flags.DTYPES[options.dtype] or own_dtype(model.config, stored, device),
        device=device,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        in_layers=sum(linear),
        in_head=model.head.weight.numel(),
        largest=max(tensor.nbytes for tensor in stored.values()),
        has_bias=model.scheme.has_bias,
    )


@dataclass(frozen=True)
class Plan:
    """Bytes at the peak, and floating-point operations of all texts together.

    cache: at the end; in_file: what of a text is kept on disk instead. reading_flops: of
    prompts, or of all that is scored; token_flops: of the last token that is written; None
    where nothing is.
    """

    what: str
    weights: int
    loading: int
    cache: int
    working: int
    logits: int
    total: int
    reading_flops: int
    token_flops: int | None = None
    in_file: int = 0

    def as_json(self) -> dict:
        """The same in one object of JSON."""
        return {
            "what": self.what, "weights_bytes": self.weights, "loading_bytes": self.loading,
            "cache_bytes": self.cache, "working_bytes": self.working,
            "logits_bytes": self.logits, "total_bytes": self.total,
            "reading_flops": self.reading_flops, "token_flops": self.token_flops,
            "in_file_bytes": self.in_file,
        }  # fmt: skip


def reading(net: Network, lm: LMInfinite | None, batch: int = 1, is_ragged=False) -> Reading:
    """planning.working.Reading of a network."""
    return Reading(net.config, lm or FULL_ATTENTION, net.dtype, net.has_bias, batch, is_ragged)


def read_bytes(r: Reading, n: int, chunk: int) -> int:
    """Working buffers at the peak of reading n tokens chunk by chunk."""
    last = (n - 1) // chunk * chunk
    starts = {0, max(0, last - chunk), last}
    return max(working_bytes(r, start, min(chunk, n - start)) for start in starts)


def scoring(
    net: Network,
    what: str,
    lm: LMInfinite | None,
    lengths: list[int],
    chunk: int,
    copies: int,
) -> Plan:
    """The plan of texts that are scored one after another, all tokens but each one's first.

    copies: bytes of a logit, with what the loss makes of it.
    """
    config, r, n = net.config, reading(net, lm), max(lengths) - 1
    rows, width = min(chunk, n), net.dtype.itemsize
    cache = cache_bytes(config, n, lm, net.dtype, chunk)
    flops = sum(
        reading_flops(config, net.in_layers, net.in_head, lm, length - 1, length - 1)
        for length in lengths
    )
    working, logits = read_bytes(r, n, chunk), rows * config.vocab_size * copies
    return joined(net, what, cache, working, logits, rows * config.n_embd * width, flops)


def rescoring(net: Network, what: str, length: int, n_texts: int, copies: int) -> Plan:
    """The plan of compare.reencoded_nll over texts of `length` ids: windows without a cache."""
    config, context = net.config, net.config.context_length
    stride = context // 2
    n_windows = len(range(stride, length - 1 - stride, max(1, stride)))
    batch = min(windows_at_once(context), max(1, n_windows))
    r = reading(net, None, batch)
    first = min(context, length - 1)
    facts = config, net.in_layers, net.in_head, None
    flops = reading_flops(*facts, first, first)
    flops += n_windows * reading_flops(*facts, context, stride)
    logits = max(1, stride) * config.vocab_size * copies
    hidden = batch * context * config.n_embd * net.dtype.itemsize
    working = working_bytes(r, 0, context)
    return joined(net, what, 0, working, logits, hidden, n_texts * flops)


def joined(net, what, cache, working, logits, hidden, flops, token=None, writing=0) -> Plan:
    """The plan whose peak is the largest of its moments; writing: of that one, less weights."""
    weights = net.parameters * net.dtype.itemsize
    loading = weights + net.largest
    total = max(loading, weights + max(cache + max(working, logits + hidden), writing))
    return Plan(what, weights, loading, cache, working, logits, total, flops, token)


def writing(
    net: Network, lm: LMInfinite | None, lengths: list[int], new: int, chunk: int, path: str
) -> Plan:
    """The plan of prompts of these lengths that are read side by side, and `new` tokens written
    after each."""
    config, batch, n = net.config, len(lengths), max(lengths)
    written = max(0, new - 1)  # the last one is never read
    r = reading(net, lm, batch, is_ragged=min(lengths) < n)
    one = batch * config.vocab_size * net.dtype.itemsize
    logits = one + 4 * config.vocab_size * torch.float32.itemsize  # sampling's, of one text
    facts = config, net.in_layers, net.in_head, lm
    flops = sum(reading_flops(*facts, length, 1) for length in lengths)
    what = f"{batch} text{'s' * (batch > 1)} of {n + new:,} tokens"
    if path == "reference":
        token = sum(reading_flops(*facts, length + written, 1) for length in lengths)
        working = reference_bytes(r, n + written)
        return joined(net, what, 0, working, logits, 0, flops, token if new > 1 else None)
    sizes, shortest = (config, n, lm, net.dtype, chunk), min(lengths)
    cache = cache_bytes(*sizes, written, batch, shortest)
    read = cache_bytes(*sizes, 0, batch, shortest)
    # While the buffers of a layer grow, the old ones stand beside them.
    old = cache // (2 * config.n_layer) if cache > read else 0
    step = working_bytes(replace(r, is_ragged=False), n + written - 1, 1)
    token = sum(token_flops(*facts, length + written) for length in lengths)
    plan = joined(
        net, what, read, read_bytes(r, n, chunk), logits, 0, flops, token if new > 1 else None,
        cache + max(old, step + logits),
    )  # fmt: skip
    return replace(plan, cache=cache)


def on_disk(plan: Plan, net: Network, lm: LMInfinite | None, length: int, batch=1) -> Plan:
    """The same with the middle of `batch` texts of `length` tokens in a file."""
    in_file = middle_bytes(net.config, length, lm, net.dtype, batch) if lm else 0
    least = max(plan.loading, plan.total - in_file)
    return replace(plan, cache=plan.cache - in_file, total=least, in_file=in_file)


def table(net: Network, plans: list[Plan], notes: list[str]) -> str:
    """Plans as aligned lines, a column for each."""
    rows: list[list[str]] = [["", *(plan.what for plan in plans)]]
    words = {
        "weights": "weights", "cache": "cache", "working": "working buffers",
        "logits": "logits", "loading": "while loading", "total": "at the peak",
    }  # fmt: skip
    for name, label in words.items():
        rows.append([label, *(scaled(getattr(plan, name)) for plan in plans)])
    if any(plan.in_file for plan in plans):
        rows.append(["in a file", *(scaled(plan.in_file) for plan in plans)])
    rows.append(["reading", *(scaled(plan.reading_flops, "FLOP") for plan in plans)])
    if any(plan.token_flops is not None for plan in plans):
        cells = (scaled(plan.token_flops or 0, "FLOP") for plan in plans)
        rows.append(["the last token", *cells])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    dtype = str(net.dtype).removeprefix("torch.")
    head = f"{net.parameters:,} parameters in {dtype} on {net.device}; nothing was run"
    return "\n".join([head, *lines, *notes])


def show(net: Network, plans: list[Plan], as_json: bool, notes: list[str] | None = None) -> int:
    """Print plans, as text or as one object of JSON; the exit code."""
    if as_json:
        facts = {
            "parameters": net.parameters, "device": str(net.device),
            "dtype": str(net.dtype).removeprefix("torch."),
            "total_bytes": max(plan.total for plan in plans),
            "plan": [plan.as_json() for plan in plans],
        }  # fmt: skip
        print(json.dumps(facts))
    else:
        print(table(net, plans, notes or []))
    return 0

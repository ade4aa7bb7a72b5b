"""How much memory and arithmetic a run will take, told before it: what --plan prints.

Nothing is loaded: config.json and the headers of the weights say all that the formulas of
costs.py ask for. The peak of memory is the larger of two moments:

    loading   the weights, and the largest tensor of the files, mapped while it is copied
    running   the weights, the cache at its end, and the larger of working buffers and logits:
              when logits are made, no layer works any more

Weights, cache and logits are exact, working buffers an estimate, so that the peak is within 25%
of a run's. It is the memory of the device that the model is on, beyond the interpreter with
PyTorch. Not counted are the text and its ids, what --compile makes, and what kernels and matrix
libraries use inside: on the CPU some 25 MB, whatever the text. And glibc keeps memory that was
freed, up to half as much again: MALLOC_MMAP_THRESHOLD_=65536 in the environment has it handed
back.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import torch
from torch import nn

from ..checkpoint.checkpoint import from_headers, own_dtype
from ..config import FULL_ATTENTION, LMInfinite, ModelConfig
from ..terminal import options as flags
from ..terminal.progress import scaled
from .costs import cache_bytes, flops, middle_bytes, working_bytes


class Network(NamedTuple):
    """What a folder's config.json and headers tell.

    in_layers, in_head: weights that a token is multiplied with; largest: bytes of the largest
    stored tensor; has_bias: whether distances are told by ALiBi.
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


def plan(net: Network, what: str, cache: int, working: int, logits: int, **operations) -> dict:
    """A plan: bytes at the peak, and operations of all texts together, named as in JSON.

    operations: reading_flops, of prompts or of all that is scored; token_flops, of the last
    token that is written, None where nothing is.
    """
    weights = net.parameters * net.dtype.itemsize
    loading = weights + net.largest
    return {
        "what": what, "weights_bytes": weights, "loading_bytes": loading, "cache_bytes": cache,
        "working_bytes": working, "logits_bytes": logits,
        "total_bytes": max(loading, weights + cache + max(working, logits)),
        "reading_flops": 0, "token_flops": None, **operations, "in_file_bytes": 0,
    }  # fmt: skip


def writing(
    net: Network, lm: LMInfinite | None, lengths: list[int], new: int, chunk: int, path: str
) -> dict:
    """The plan of prompts of these lengths that are read side by side, and `new` tokens written
    after each."""
    batch, n, written = len(lengths), max(lengths), max(0, new - 1)  # the last is never read
    is_whole, now = path == "reference", min(chunk, n)
    working = working_bytes(net, lm or FULL_ATTENTION, n - now, now, batch)
    shortest = min(lengths) + written
    cache = cache_bytes(net.config, n + written, lm, net.dtype, batch, shortest)
    if is_whole:
        working, cache = working_bytes(net, FULL_ATTENTION, 0, n + written, batch, True), 0
    ends = [length + written for length in lengths]
    firsts = [0 if is_whole else end - 1 for end in ends]
    token = sum(flops(net, lm, first, end, 1) for first, end in zip(firsts, ends))
    each = net.config.vocab_size * net.dtype.itemsize
    sampling = 4 * net.config.vocab_size * torch.float32.itemsize  # of one text at a time
    return plan(
        net, f"{batch} text{'s' * (batch > 1)} of {n + new:,} tokens", cache, working,
        logits=batch * each + sampling,
        reading_flops=sum(flops(net, lm, 0, length, 1) for length in lengths),
        token_flops=token if new > 1 else None,
    )  # fmt: skip


def on_disk(found: dict, net: Network, lm: LMInfinite | None, length: int, batch=1) -> dict:
    """The same with the middle of `batch` texts of `length` tokens in a file."""
    in_file = middle_bytes(net.config, length, lm, net.dtype, batch) if lm else 0
    return found | {
        "cache_bytes": found["cache_bytes"] - in_file, "in_file_bytes": in_file,
        "total_bytes": max(found["loading_bytes"], found["total_bytes"] - in_file),
    }  # fmt: skip


LABELS = {
    "weights_bytes": "weights", "cache_bytes": "cache", "working_bytes": "working buffers",
    "logits_bytes": "logits", "loading_bytes": "while loading", "total_bytes": "at the peak",
    "in_file_bytes": "in a file", "reading_flops": "reading", "token_flops": "the last token",
}  # fmt: skip


def table(net: Network, plans: list[dict], notes: list[str]) -> str:
    """Plans as aligned lines, a column for each."""
    lines = [["", *(plan["what"] for plan in plans)]]
    for name, label in LABELS.items():
        if name in ("in_file_bytes", "token_flops") and not any(plan[name] for plan in plans):
            continue
        unit = "B" if name.endswith("bytes") else "FLOP"
        lines.append([label, *(scaled(plan[name] or 0, unit) for plan in plans)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    dtype = str(net.dtype).removeprefix("torch.")
    head = f"{net.parameters:,} parameters in {dtype} on {net.device}; nothing was run"
    return "\n".join([head, *lines, *notes])


def show(net: Network, plans: list[dict], as_json: bool, notes: list[str] | None = None) -> int:
    """Print plans, as text or as one object of JSON; the exit code."""
    if as_json:
        facts = {
            "parameters": net.parameters, "device": str(net.device),
            "dtype": str(net.dtype).removeprefix("torch."),
            "total_bytes": max(plan["total_bytes"] for plan in plans), "plan": plans,
        }  # fmt: skip
        print(json.dumps(facts))
    else:
        print(table(net, plans, notes or []))
    return 0

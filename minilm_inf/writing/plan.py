"""How much memory and arithmetic a run will take, told before it: what --plan prints.

Nothing is loaded: config.json and the headers of the weights say all that the formulas of
costs.py ask for. The peak of memory is the larger of two moments:

    loading   the weights, and the largest tensor of the files, mapped while it is copied
    running   the weights, the cache at its end, and the larger of working buffers and logits:
              when logits are made, no layer works any more

Weights, cache and logits are exact, working buffers an estimate, so that the peak is within 25%
of a run's. It is the memory of the device that the model is on, beyond the interpreter with
PyTorch. Not counted are the text and its ids, what --compile makes, what kernels and matrix
libraries use inside (on the CPU some 25 MB), and what glibc keeps of freed memory.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from ..checkpoint.checkpoint import from_headers, own_dtype
from ..config import FULL_ATTENTION, LMInfinite, ModelConfig
from ..terminal import options as flags
from ..terminal.progress import scaled
from .costs import cache_bytes, flops, working_bytes


class Network(NamedTuple):
    """What a folder's config.json and headers tell.

    in_layers, in_head: weights that a token is multiplied with; largest: bytes of the largest
    stored tensor.
    """

    config: ModelConfig
    dtype: torch.dtype
    device: torch.device
    parameters: int
    in_layers: int
    in_head: int
    largest: int


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
    )


def plan(
    net: Network, lm: LMInfinite | None, lengths: list[int], new: int, chunk: int, middle: str
) -> dict:
    """The plan of prompts of these lengths that are read side by side, and `new` tokens that
    are written after each, or none, where each token is scored: bytes at the peak, and
    operations of all texts together, named as in JSON."""
    batch, n = len(lengths), max(lengths)
    written, now = max(0, new - 1), min(chunk, n)  # the last is never read
    end = net.dtype, batch, min(lengths) + written
    cache, on_disk = cache_bytes(net.config, n + written, lm, *end), 0
    if middle == "disk":
        on_disk = cache - cache_bytes(net.config, n + written, replace(lm, top_k=0), *end)
    working = working_bytes(net, lm or FULL_ATTENTION, n - now, now, batch)
    width, exact = net.dtype.itemsize, torch.float32.itemsize
    if new:  # of each text what the head gives, and of one at a time what sampling makes of it
        logits = (batch * width + 4 * exact) * net.config.vocab_size
    else:  # of a chunk what the head gives, and the same in float32
        logits = now * (width + exact * (width < exact)) * net.config.vocab_size
    weights = net.parameters * net.dtype.itemsize
    loading, running = weights + net.largest, weights + cache - on_disk + max(working, logits)
    ends = [length + written for length in lengths]
    return {
        "what": f"{batch:,} text{'s' * (batch > 1)} of {n + new:,} tokens",
        "weights_bytes": weights, "cache_bytes": cache - on_disk, "working_bytes": working,
        "logits_bytes": logits, "loading_bytes": loading, "total_bytes": max(loading, running),
        "in_file_bytes": on_disk,
        "reading_flops": sum(flops(net, lm, 0, at, 1 if new else at) for at in lengths),
        "token_flops": sum(flops(net, lm, at - 1, at, 1) for at in ends) if new > 1 else None,
    }  # fmt: skip


LABELS = {
    "weights_bytes": "weights", "cache_bytes": "cache", "working_bytes": "working buffers",
    "logits_bytes": "logits", "loading_bytes": "while loading", "total_bytes": "at the peak",
    "in_file_bytes": "in a file", "reading_flops": "reading", "token_flops": "the last token",
}  # fmt: skip


def show(net: Network, found: dict, as_json: bool) -> int:
    """Print a plan, as text or as one object of JSON; the exit code."""
    dtype = str(net.dtype).removeprefix("torch.")
    if as_json:
        facts = {"parameters": net.parameters, "device": str(net.device), "dtype": dtype}
        print(json.dumps(facts | found))
        return 0
    lines = [("", found["what"])]
    for name, label in LABELS.items():
        if found[name] or name not in ("in_file_bytes", "token_flops"):
            unit = "B" if name.endswith("bytes") else "FLOP"
            lines.append((label, scaled(found[name], unit)))
    width = max(len(words) for _, words in lines)
    print(f"{net.parameters:,} parameters in {dtype} on {net.device}; nothing was run")
    print("\n".join(f"{label:15}  {words.rjust(width)}" for label, words in lines))
    return 0

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
from types import SimpleNamespace

from torch import nn

from ..checkpoint.checkpoint import from_headers, own_dtype
from ..config import FULL_ATTENTION, LMInfinite
from ..terminal import options as flags
from ..terminal.progress import scaled
from .costs import cache_bytes, flops, working_bytes

ARITHMETIC = "reading", "the last token"  # all else that a plan tells is bytes


def network(options) -> SimpleNamespace:
    """What config.json and the headers tell of the network that the model's flags name.
    in_layers, in_head: weights that a token is multiplied with; largest: bytes of the largest
    stored tensor. Raises load_model's ValueError."""
    device = flags.device(options.device)
    model, stored = from_headers(options.model)
    linear = [x.weight.numel() for x in model.blocks.modules() if isinstance(x, nn.Linear)]
    return SimpleNamespace(
        config=model.config,
        dtype=flags.DTYPES[options.dtype] or own_dtype(model.config, stored, device),
        device=device,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        in_layers=sum(linear),
        in_head=model.head.weight.numel(),
        largest=max(tensor.nbytes for tensor in stored.values()),
    )


def plan(
    net, lm: LMInfinite | None, lengths: list[int], new: int, chunk: int, middle: str
) -> dict[str, int]:
    """The plan of prompts of these lengths that are read side by side, and `new` tokens that
    are written after each, or none, where each token is scored: bytes at the peak, and
    operations of all texts together, by what they are for. net: of `network`."""
    batch, n, width, exact = len(lengths), max(lengths), net.dtype.itemsize, 4
    written, now = max(0, new - 1), min(chunk, n)  # the last is never read
    end = net.dtype, batch, min(lengths) + written
    cache, on_disk = cache_bytes(net.config, n + written, lm, *end), 0
    if middle == "disk":
        on_disk = cache - cache_bytes(net.config, n + written, replace(lm, top_k=0), *end)
    working = working_bytes(net, lm or FULL_ATTENTION, n - now, now, batch)
    if new:  # of each text what the head gives, and of one at a time what sampling makes of it
        logits = (batch * width + 4 * exact) * net.config.vocab_size
    else:  # of a chunk what the head gives, and the same in float32
        logits = now * (width + exact * (width < exact)) * net.config.vocab_size
    weights = net.parameters * width
    loading, running = weights + net.largest, weights + cache - on_disk + max(working, logits)
    found = {
        "weights": weights, "cache": cache - on_disk, "working buffers": working,
        "logits": logits, "while loading": loading, "at the peak": max(loading, running),
    }  # fmt: skip
    if on_disk:
        found["in a file"] = on_disk
    found["reading"] = sum(flops(net, lm, 0, at, 1 if new else at) for at in lengths)
    if new > 1:
        ends = [length + written for length in lengths]
        found["the last token"] = sum(flops(net, lm, at - 1, at, 1) for at in ends)
    return found


def show(net, options, lm, lengths: list[int], new: int, chunk: int) -> int:
    """Print the plan that `plan` makes, as text or as one object of JSON; the exit code."""
    found = plan(net, lm, lengths, new, chunk, options.middle)
    dtype = str(net.dtype).removeprefix("torch.")
    if options.json:
        facts = {"parameters": net.parameters, "device": str(net.device), "dtype": dtype}
        print(json.dumps(facts | found))
        return 0
    texts = f"{len(lengths):,} text{'s' * (len(lengths) > 1)}"
    lines = {"": f"{texts} of {max(lengths) + new:,} tokens"}
    for name, number in found.items():
        lines[name] = scaled(number, "FLOP" if name in ARITHMETIC else "B")
    width = max(map(len, lines.values()))
    print(f"{net.parameters:,} parameters in {dtype} on {net.device}; nothing was run")
    print("\n".join(f"{name:15}  {words.rjust(width)}" for name, words in lines.items()))
    return 0

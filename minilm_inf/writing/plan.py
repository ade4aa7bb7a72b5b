"""How much memory and arithmetic a run will take, told before it: what --plan prints.

Nothing is loaded: config.json and the headers of the weights say all that the formulas here ask
for. The peak of memory is the larger of two moments:

    loading   the weights, and the largest tensor of the files, mapped while it is copied
    running   the weights, the cache at its end, and the larger of working buffers and logits:
              when logits are made, no layer works any more

Weights, cache and logits are exact. Working buffers are an estimate of what a layer makes on
its way, so that the peak is within 25% of a run's. It is the memory of the device that the
model is on, beyond the interpreter with PyTorch. Not counted are the text and its ids, what
--compile makes, what kernels and matrix libraries use inside (on the CPU some 25 MB), and what
glibc keeps of freed memory.

Arithmetic counts products and sums: two for each weight that a token is multiplied with, and
4 * D for each head and each key that it sees (2 * D for the logit, 2 * D for its share of the
values). Norms, angles and softmax are not in it, nor what fast/ computes in vain to work in
blocks, nor with top-k the search for middle keys.
"""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import nn

from ..checkpoint.checkpoint import from_headers, nbytes, own_dtype
from ..config import FULL_ATTENTION, LMInfinite, ModelConfig
from ..fast.band import BLOCK_LOGITS, ROWS
from ..fast.cache import LayerCache
from ..fast.chunk import LOGITS_AT_ONCE, QUERIES_AT_ONCE
from ..terminal import options as flags
from ..terminal.blocks import TOKENS_PER_BLOCK
from ..terminal.progress import scaled

ARITHMETIC = "reading", "the last token"  # all else that a plan tells is bytes


def cache_bytes(
    config: ModelConfig, length: int, lm: LMInfinite | None, dtype: torch.dtype, batch: int = 1,
    shortest: int | None = None,
) -> int:  # fmt: skip
    """Cache.nbytes after `batch` texts were read, the longest of `length` tokens, and the
    shortest of `shortest` (as many)."""
    lm, shortest = lm or FULL_ATTENTION, length if shortest is None else shortest
    layer = LayerCache(replace(lm, top_k=0), (batch, 1, 1), dtype, "meta", "ram")
    columns = 2 * layer.n_starting(length) + layer.n_slots(length)
    columns *= config.n_layer
    if lm.top_k:  # whole blocks of all that was read, in the layers that reach back
        tokens = -(-length // TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK
        columns += tokens * max(0, config.n_layer - lm.top_k_from_layer)
    return 2 * columns * batch * config.n_kv_head * config.head_dim * dtype.itemsize


def working_bytes(net, lm: LMInfinite, before: int, tokens: int, batch: int = 1) -> int:
    """What a layer makes at its peak of the next tokens of each text, which follow `before`
    others: the larger of two moments. net: of `network`.

    In the MLP those are vectors of every token; in attention the window's keys and values, in
    their order, and logits.
    """
    config, width = net.config, net.dtype.itemsize
    exact = max(width, torch.float32.itemsize)  # bytes of a number of the softmax
    queries, keys = (n * config.head_dim for n in (config.n_head, config.n_kv_head))
    seen = before + tokens if lm.n_local is None else min(before, lm.n_local) + tokens
    is_band = config.family == "mpt" or lm.distance_ceiling in (None, lm.n_local)
    if is_band and not (lm.top_k and lm.top_k_queries == "all"):  # of one key head's queries
        near = min(seen, (lm.n_local or seen) + QUERIES_AT_ONCE)
        logits = min(config.n_head // config.n_kv_head * tokens * near, BLOCK_LOGITS)
        logits += config.n_head * ROWS * near if config.family == "mpt" else 0  # their biases
    else:  # of all heads, in three copies
        at_once = batch * config.n_head * min(tokens, QUERIES_AT_ONCE) * seen
        logits = 3 * min(at_once, LOGITS_AT_ONCE)
    inner = 4 if config.family == "llama" else 2  # gate, up, silu, product; up and its gelu
    held = 2 * config.n_embd + queries + 2 * keys  # embedding, x; queries, keys, values
    mlp = batch * tokens * width * (queries + 2 * config.n_embd + inner * config.n_inner)
    attention = 2 * batch * (tokens * width * queries + seen * exact * keys) + logits * exact
    return batch * tokens * width * held + max(mlp, attention)


def visible_pairs(n: int, lm: LMInfinite) -> int:
    """How many pairs of a query and a key are seen in a text of n tokens, by the Λ alone: the
    sum of lm.visible(1) to lm.visible(n) without top-k.

    >>> visible_pairs(8, LMInfinite(n_local=3, n_global=2))
    30
    """
    full = n if lm.n_local is None else min(n, lm.n_local)  # the window's size, in the end
    after = n - full  # queries after the window is full
    few = min(after, lm.n_global)
    return full * (full + 1) // 2 + after * full + few * (few + 1) // 2 + (after - few) * few


def flops(net, lm: LMInfinite | None, first: int, last: int, n_logits: int) -> int:
    """Operations for the tokens first to last - 1 of a text; of n_logits the logits count."""
    lm, config = lm or FULL_ATTENTION, net.config
    per_key = 2 * config.head_dim * config.n_head  # in a layer
    seen = visible_pairs(last, lm) - visible_pairs(first, lm)
    weights = net.in_layers * (last - first) + net.in_head * n_logits
    return 2 * weights + 2 * per_key * config.n_layer * seen


def network(options) -> SimpleNamespace:
    """What config.json and the headers tell of the network that the model's flags name.
    dtype: of vectors; kind, weights: the dtype and bytes of weights; in_layers, in_head: those
    that a token is multiplied with; largest: bytes of the largest stored tensor. Raises
    load_model's ValueError."""
    device = flags.device(options.device)
    model, stored = from_headers(options.model)
    linear = [x.weight.numel() for x in model.blocks.modules() if isinstance(x, nn.Linear)]
    dtype = flags.DTYPES[options.dtype] or own_dtype(model.config, stored, device)
    return SimpleNamespace(
        config=model.config,
        dtype=torch.float32 if dtype == torch.int8 else dtype,
        kind=str(dtype).removeprefix("torch."),
        device=device,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights=nbytes(model, dtype),
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
    loading = net.weights + net.largest
    running = net.weights + cache - on_disk + max(working, logits)
    found = {
        "weights": net.weights, "cache": cache - on_disk, "working buffers": working,
        "logits": logits, "while loading": loading, "at the peak": max(loading, running),
    }  # fmt: skip
    if on_disk:
        found["in a file"] = on_disk
    found["reading"] = sum(flops(net, lm, 0, at, 1 if new else at) for at in lengths)
    if new > 1:
        ends = [length + written for length in lengths]
        found["the last token"] = sum(flops(net, lm, at - 1, at, 1) for at in ends)
    return found


def show(net, options, lm, lengths: list[int], new: int, chunk: int, **more) -> int:
    """Print the plan that `plan` makes, as text or as one object of JSON; the exit code. more:
    numbers that stand before it."""
    found = plan(net, lm, lengths, new, chunk, options.middle)
    if options.json:
        facts = {"parameters": net.parameters, "device": str(net.device), "dtype": net.kind}
        print(json.dumps(facts | more | found))
        return 0
    texts = f"{len(lengths):,} text{'s' * (len(lengths) > 1)}"
    lines = {"": f"{texts} of {max(lengths) + new:,} tokens"}
    lines |= {name: f"{number:,}" for name, number in more.items()}
    for name, number in found.items():
        lines[name] = scaled(number, "FLOP" if name in ARITHMETIC else "B")
    width = max(map(len, lines.values()))
    print(f"{net.parameters:,} parameters in {net.kind} on {net.device}; nothing was run")
    print("\n".join(f"{name:15}  {words.rjust(width)}" for name, words in lines.items()))
    return 0

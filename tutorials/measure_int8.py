"""What the paper's models take by dtype: make int8. Two layers of each are there, with the head
and numbers that mean nothing; their times are taken times the number of layers.

    python tutorials/measure_int8.py FOLDER    # a model of one's own: loading and reading
"""

import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import plot  # noqa: F401 - finds the package, and sets one thread, for lessons
import torch

from minilm_inf import LMInfinite, load_model
from minilm_inf.checkpoint.checkpoint import FAMILIES, fill, named_pieces, nbytes
from minilm_inf.convert.__main__ import main as convert
from minilm_inf.writing.session import Session

GPTJ = dict(n_embd=4096, n_head=16, n_layer=28, rotary_dim=64, vocab_size=50400,
            n_positions=2048, layer_norm_epsilon=1e-5)  # fmt: skip
LLAMA = dict(hidden_size=4096, intermediate_size=11008, num_attention_heads=32,
             num_hidden_layers=32, vocab_size=32000, max_position_embeddings=4096,
             rms_norm_eps=1e-5)  # fmt: skip
MPT = dict(d_model=4096, n_heads=32, n_layers=32, max_seq_len=2048, vocab_size=50432,
           no_bias=True, attn_config={"alibi": True})  # fmt: skip
MODELS = {"Llama-2-7B": ("llama", LLAMA), "MPT-7B": ("mpt", MPT), "GPT-J-6B": ("gptj", GPTJ)}
DTYPES = {torch.int8: 128, torch.float32: 128, torch.bfloat16: 8}  # and tokens to read


class Constant:
    """A stored tensor with one number throughout."""

    def read_into(self, target):
        target.copy_(torch.full(target.shape, 0.01))


def seconds(function, times=5) -> float:
    """The median of several calls."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        function()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


@torch.inference_mode()
def measure(name: str, dtype: torch.dtype):
    """Print one model's bytes, and tokens a second that are read, and written."""
    family, raw = MODELS[name]
    config = FAMILIES[family].config_from_hf(raw | {"model_type": family})
    with torch.device("meta"):
        whole, model = (
            FAMILIES[family].build(replace(config, n_layer=n)) for n in (config.n_layer, 2)
        )
    weights = nbytes(whole, dtype)
    fill(model, dict.fromkeys(named_pieces(model), Constant()), torch.device("cpu"), dtype)
    lm, n = LMInfinite.for_model(config), config.n_layer / 2
    tokens = torch.ones(1, DTYPES[dtype], dtype=torch.long)
    cache = model.new_cache(1, lm)
    hidden = model.read(tokens, lm, cache)[:, -1:]
    step = seconds(lambda: model.read(tokens[:, :1], lm, cache)) * n
    step += seconds(lambda: model.head(hidden))
    text = seconds(lambda: model.read(tokens, lm, model.new_cache(1, lm)), 3) * n
    in_layers = sum(x.nbytes for x in model.blocks.parameters()) * n
    moved = in_layers + sum(x.nbytes for x in model.head.parameters())
    print(
        f"| {name} | {str(dtype)[6:]} | {weights / 1e9:.1f} GB | {len(tokens[0]) / text:.1f} | "
        f"{1 / step:.2f} | {moved / step / 1e9:.1f} GB/s |", flush=True
    )  # fmt: skip


@torch.inference_mode()
def compare(folder: str):
    """Print how long a model takes to load, rounded before and meanwhile; and how many times
    as fast as float32 it reads and decodes: medians of rounds in turn, of which the first is
    not counted."""
    with tempfile.TemporaryDirectory() as scratch:
        kept = str(Path(scratch, "kept"))
        convert(["--int8", folder, "--out", kept])
        meanwhile, before = (
            seconds(partial(load_model, where, dtype=torch.int8)) for where in (folder, kept)
        )
    print(f"loading: {before:.2f} s where convert --int8 has rounded, else {meanwhile:.2f} s")
    models = [load_model(folder, dtype=dtype) for dtype in (torch.float32, torch.int8)]
    lm = LMInfinite(1024, 10, 1024)
    for n in (512, 1024, 2048):
        tokens = torch.ones(1, n, dtype=torch.long)
        plain, rounded = in_turn([partial(read, model, tokens, lm) for model in models], 5)
        print(f"reading {n:,} tokens: {plain / rounded:.2f} times as fast", flush=True)
    for how in ("eager", "compiled"):
        sessions = [Session(m, lm, compile=how == "compiled") for m in models]
        for session in sessions:
            session.read([1] * 600)
        plain, rounded = in_turn([partial(s.read, [2]) for s in sessions], 100)
        rates = f"{1 / rounded:.0f} tokens/s, float32 {1 / plain:.0f}"
        print(f"decoding, {how}: {plain / rounded:.2f} times as fast ({rates})", flush=True)


def read(model, tokens: torch.Tensor, lm: LMInfinite):
    model.read(tokens, lm, model.new_cache(1, lm))


def in_turn(functions: list, rounds: int) -> list[float]:
    """The median seconds of each of some functions, which take turns."""
    times = [[seconds(function, 1) for function in functions] for _ in range(1 + rounds)]
    return [statistics.median(found[1:]) for found in zip(*times)]


if __name__ == "__main__":
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if sys.argv[1:]:
        sys.exit(compare(sys.argv[1]))
    numbers = torch.ones(2**28)
    speed = numbers.nbytes / seconds(numbers.sum) / 1e9
    print(f"{torch.get_num_threads()} threads; memory is read at {speed:.1f} GB/s by a sum")
    del numbers
    for name in MODELS:
        for dtype in DTYPES:
            measure(name, dtype)

"""Measure decoding: `make measure`, or python tests/measure_decoding.py [FOLDER].

1. Speed against transformers' LlamaForCausalLM with its cache: same weights, same thread count,
   in turns within one run, at context 256 and 16,384. Both decode greedily; ratios of medians.
2. One run of 20,000 tokens: cache bytes, resident memory, time per token early and late.
"""

import os
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minilm_inf import LMInfinite, load_model  # noqa: E402
from minilm_inf.session import Session  # noqa: E402

STEPS, ROUNDS = 60, 7


def resident_bytes() -> int:
    """Resident memory of this process, in bytes."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Ours:
    """The model with LM-Infinite, context tokens already read."""

    def __init__(self, model, ids):
        self.session = Session(model, LMInfinite.for_model(model.config))
        self.next = int(self.session.read(ids).argmax())

    def step(self):
        self.session.accept(self.next)
        self.next = int(self.session.read([]).argmax())


class Theirs:
    """transformers with a DynamicCache, context tokens already read."""

    def __init__(self, model, ids):
        from transformers import DynamicCache

        self.model, self.cache = model, DynamicCache(config=model.config)
        with torch.inference_mode():
            for chunk in torch.tensor([ids]).split(512, 1):
                out = model(chunk, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.next = out.logits[:, -1].argmax(-1, keepdim=True)

    @torch.inference_mode()
    def step(self):
        out = self.model(self.next, past_key_values=self.cache, use_cache=True)
        self.next = out.logits[:, -1].argmax(-1, keepdim=True)


def seconds_per_step(decoder) -> float:
    began = time.perf_counter()
    for _ in range(STEPS):
        decoder.step()
    return (time.perf_counter() - began) / STEPS


def compare(folder: Path, context: int):
    """Print both models' decoding speed behind `context` tokens, and their ratio."""
    from transformers import LlamaForCausalLM

    ours = load_model(folder)
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, ours.config.vocab_size, (context,), generator=generator).tolist()
    decoders = [Ours(ours, ids), Theirs(theirs, ids)]
    for decoder in decoders:
        seconds_per_step(decoder)  # a round to warm up
    rounds = [[seconds_per_step(decoder) for decoder in decoders] for _ in range(ROUNDS)]
    mine, other = (statistics.median(column) for column in zip(*rounds))
    print(
        f"context {context:>6,}: {1 / mine:6.0f} tokens/s, transformers {1 / other:6.0f}, "
        f"ratio {other / mine:.2f}",
        flush=True,
    )


def endure(folder: Path, count: int = 20_000):
    """Print what 20,000 tokens in one run cost, early and late."""
    model = load_model(folder)
    config, lm = model.config, LMInfinite.for_model(model.config)
    rows = lm.n_local + lm.n_global
    predicted = config.n_layer * 2 * config.n_kv_head * config.head_dim * 4 * rows
    run = Ours(model, [config.bos_id])
    times, memory = [], []
    for done in range(count):
        began = time.perf_counter()
        run.step()
        times.append(time.perf_counter() - began)
        if done == 2000:
            memory.append(resident_bytes())
    memory.append(resident_bytes())
    early, late = statistics.median(times[1000:2000]), statistics.median(times[-1000:])
    print(f"{count:,} tokens: cache {run.session.cache_bytes:,} bytes, predicted {predicted:,}")
    print(
        f"resident memory after the first 2,000 tokens: {(memory[1] - memory[0]) / 1e6:+.1f} MB"
    )
    print(
        f"median time of a token: {early * 1e3:.3f} ms in the second thousand, "
        f"{late * 1e3:.3f} ms in the last, ratio {late / early:.3f}"
    )


def main():
    default = Path(__file__).resolve().parent.parent / "weights" / "tiny-llama"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, float32, CPU")
    for context in (256, 16_384):
        compare(folder, context)
    endure(folder)


if __name__ == "__main__":
    main()

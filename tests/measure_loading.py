"""Measure what loading takes: `make loading`, or python tests/measure_loading.py.

A checkpoint with the tensors of LLaMA-7B, at 2 layers, in bfloat16, all zeros that take no
space on the disk, is loaded by a process of its own for each dtype. The claim that is held:
beyond what the process had before, its memory grows by no more than the weights and one tensor
(and ALLOWANCE). Its peak is the growth of VmHWM, the kernel's own high-water mark of resident
memory, set back just before loading. That is severe: it counts the pages of the mapped file
too, which the kernel could drop at any time.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from conftest import write_sparse  # noqa: E402
from forks import Server  # noqa: E402
from resident import reset_peak, resident_peak  # noqa: E402

from minilm_inf.checkpoint import checkpoint, load_model, shards  # noqa: E402

ALLOWANCE = 2 << 20
"""Bytes for all else: modules and headers in Python, the pages around a mapped tensor, and the
kernel's counters, which are exact to some pages per CPU. Twelve runs on two CPUs needed none:
where the last tensor is the largest, as in LLaMA, the peak was 0.0 to 0.2 MB below the bound.
"""

SHAPE = {  # its config.json, but for the number of layers
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
    "num_attention_heads": 32, "num_hidden_layers": 2, "vocab_size": 32000,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
}  # fmt: skip
TINY = SHAPE | {  # loaded first, for all that is set up only once
    "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 64,
}  # fmt: skip


def write_checkpoint(folder: Path, raw: dict) -> int:
    """A folder of these shapes; the bytes of its largest tensor."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    config = checkpoint.read_config(folder)
    with torch.device("meta"):
        model = checkpoint.FAMILIES[config.family].build(config)
    pieces = checkpoint.named_pieces(model)
    shapes = {name: ([*piece.shape], "BF16") for name, piece in pieces.items()}
    write_sparse(folder / shards.WEIGHTS, shapes)
    return max(stored.nbytes for stored in shards.find_tensors(folder).values())


def load(scratch: Path, dtype: torch.dtype) -> list[int]:
    """Load a folder in this process: the growth of memory at its peak, and the weights, in
    bytes."""
    load_model(scratch / "warm", dtype=dtype)
    before = reset_peak()
    model = load_model(scratch / "whole", dtype=dtype)
    return [resident_peak() - before, sum(weight.nbytes for weight in model.parameters())]


def measure(raw: dict, dtype: str, run) -> tuple[int, int, int]:
    """Write one checkpoint and load it in a process of its own, by forks.Server.run: bytes at
    the peak, of the weights, and of the largest tensor in the file."""
    with tempfile.TemporaryDirectory() as scratch:
        write_checkpoint(Path(scratch, "warm"), TINY)
        largest = write_checkpoint(Path(scratch, "whole"), raw)
        peak, weights = json.loads(run([__file__, "--load", scratch, dtype]).stdout)
    return peak, weights, largest


def main() -> int:
    if sys.argv[1:2] == ["--load"]:
        print(json.dumps(load(Path(sys.argv[2]), getattr(torch, sys.argv[3]))))
        return 0
    holds = True
    with Server() as server:
        for dtype in ("bfloat16", "float32"):
            peak, weights, one = measure(SHAPE, dtype, server.run)
            print(f"LLaMA-7B, 2 layers, bfloat16 on the disk, {dtype} in memory: MB of weights "
                  f"{weights / 1e6:.2f}, of the largest tensor {one / 1e6:.2f}, at the peak "
                  f"{peak / 1e6:.2f}; beyond weights and one tensor "
                  f"{(peak - weights - one) / 1e6:.2f}", flush=True)  # fmt: skip
            holds = holds and peak <= weights + one + ALLOWANCE
    print("holds" if holds else "DOES NOT HOLD", f"with {ALLOWANCE / 1e6:.1f} MB allowed")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())

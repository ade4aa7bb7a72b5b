"""Measure what loading takes: `make loading`, or python tests/measure_loading.py.

Checkpoints with the tensors of LLaMA-7B and MPT-7B, at 2 layers, random, in bfloat16 and in
shards, are loaded by a process of its own each. The claim that is held: beyond what the process
had before, its memory grows by no more than the weights and one tensor (and ALLOWANCE). Its
peak is the growth of VmHWM, the kernel's own high-water mark of resident memory, set back just
before loading. That is severe: it counts the pages of the mapped file too, which the kernel
could drop at any time.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from resident import reset_peak, resident_peak  # noqa: E402

from minilm_inf.checkpoint import checkpoint, shards  # noqa: E402

ALLOWANCE = 2 << 20
"""Bytes for all else: modules and headers in Python, the pages around a mapped tensor, and the
kernel's counters, which are exact to some pages per CPU. Twelve runs on two CPUs needed none:
where the last tensor is the largest, as in LLaMA, the peak was 0.0 to 0.2 MB below the bound.
"""

SHAPES = {  # config.json of the real models, but for the number of layers
    "LLaMA-7B": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
        "num_attention_heads": 32, "num_hidden_layers": 2, "vocab_size": 32000,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    },
    "MPT-7B": {
        "model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 2, "vocab_size": 50432,
        "max_seq_len": 2048, "expansion_ratio": 4, "no_bias": True,
        "attn_config": {"alibi": True, "alibi_bias_max": 8},
    },
}  # fmt: skip
TINY = {  # loaded first, for all that is set up only once
    "LLaMA-7B": {
        "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 64,
    },
    "MPT-7B": {"d_model": 64, "n_heads": 2, "vocab_size": 64},
}  # fmt: skip


def write_checkpoint(folder: Path, raw: dict):
    """A folder of random weights, a shard per layer and one for the rest, one in memory."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    config = checkpoint.read_config(folder)
    with torch.device("meta"):
        model = checkpoint.FAMILIES[config.family].build(config)
    files: dict[str, dict[str, tuple]] = {}
    for name, piece in checkpoint.named_pieces(model).items():
        layer = [part for part in name.split(".") if part.isdigit()] or ["rest"]
        files.setdefault(f"model-{layer[0]}.safetensors", {})[name] = tuple(piece.shape)
    generator = torch.Generator().manual_seed(0)
    for file, wanted in files.items():
        tensors = {
            name: torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            for name, shape in wanted.items()
        }
        save_file(tensors, folder / file)
    weight_map = {name: file for file, wanted in files.items() for name in wanted}
    (folder / shards.INDEX).write_text(json.dumps({"weight_map": weight_map}))


def load(scratch: Path, dtype: torch.dtype) -> list[int]:
    """Load a folder in this process: the growth of memory at its peak, and the weights, in
    bytes."""
    checkpoint.load_model(scratch / "warm", dtype=dtype)
    before = reset_peak()
    model = checkpoint.load_model(scratch / "whole", dtype=dtype)
    return [resident_peak() - before, sum(weight.nbytes for weight in model.parameters())]


def measure(name: str, dtype: str) -> bool:
    """Write one checkpoint, load it in a fresh process, print; whether the claim holds."""
    with tempfile.TemporaryDirectory() as scratch:
        write_checkpoint(Path(scratch, "warm"), SHAPES[name] | TINY[name])
        write_checkpoint(Path(scratch, "whole"), SHAPES[name])
        tensors = shards.find_tensors(Path(scratch, "whole")).values()
        largest = max(tensors, key=lambda stored: stored.nbytes)
        output = subprocess.run(
            [sys.executable, __file__, "--load", scratch, dtype], check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        )  # fmt: skip
    peak, weights = json.loads(output.stdout)
    one = largest.nbytes
    holds = peak <= weights + one + ALLOWANCE
    print(f"{name}, 2 layers, bfloat16 on the disk, {dtype} in memory")
    for label, n_bytes in (
        ("weights", weights), (f"largest tensor, {largest.name}", one),
        ("peak (VmHWM)", peak), ("peak - weights - one tensor", peak - weights - one),
    ):  # fmt: skip
        print(f"  {label:<50}{n_bytes / 1e6:10.2f} MB")
    print(f"  {'holds' if holds else 'DOES NOT HOLD'}, with {ALLOWANCE / 1e6:.1f} MB allowed",
          flush=True)  # fmt: skip
    return holds


def main() -> int:
    if sys.argv[1:2] == ["--load"]:
        print(json.dumps(load(Path(sys.argv[2]), getattr(torch, sys.argv[3]))))
        return 0
    print(f"PyTorch {torch.__version__}, {sys.platform}")
    runs = (("LLaMA-7B", "bfloat16"), ("MPT-7B", "bfloat16"), ("LLaMA-7B", "float32"))
    return 0 if all([measure(name, dtype) for name, dtype in runs]) else 1


if __name__ == "__main__":
    sys.exit(main())

# %% [markdown]
# # Solutions to lesson A, bring your own checkpoint

# %% 1. What does not fit is refused, in one sentence that names it: rotary_dim, lm_head.weight
import json
import shutil
import tempfile
from pathlib import Path

import here
import torch
from safetensors.torch import load_file, save_file

from minilm_inf import LMInfinite, ModelConfig, load
from minilm_inf.writing.plan import cache_bytes

torch.set_num_threads(1)
original, folder = here.ROOT / "weights" / "tiny-gptj", Path(tempfile.mkdtemp())


def refusal(settings: dict, without: str | None = None) -> str:
    """What load says of the tiny GPT-J with other settings, or without one of its tensors."""
    shutil.copytree(original, folder, dirs_exist_ok=True)
    raw = json.loads((original / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = load_file(original / "model.safetensors")
    tensors.pop(without, None)
    save_file(tensors, folder / "model.safetensors")
    try:
        load(folder)
    except ValueError as error:
        return str(error).replace(str(folder), "FOLDER")
    raise AssertionError("it was read all the same")


for said, name in (
    (refusal({"rotary_dim": 23}), "rotary_dim"),
    (refusal({}, without="lm_head.weight"), "lm_head.weight"),
):
    print(said)
    assert name in said
shutil.rmtree(folder)

# %% 2. The largest window whose cache stays within 1 GB: 1,887
config = ModelConfig(
    family="llama", vocab_size=32000, n_layer=32, n_head=32, n_kv_head=32, n_embd=4096,
    head_dim=128, n_inner=11008, context_length=4096, norm_eps=1e-5, tied=False,
)  # fmt: skip


def size(n_local: int) -> int:
    return cache_bytes(config, 10**6, LMInfinite(n_local, 10, n_local), torch.float16)


low, high = 1, 4096
while high - low > 1:
    low, high = (low, mid) if size(mid := (low + high) // 2) > 10**9 else (mid, high)
print(f"n_local = {low}: {size(low) / 1e9:.3f} GB")
assert size(low) <= 10**9 < size(low + 1)

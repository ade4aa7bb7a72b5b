# %% [markdown]
# # Solutions to lesson B, train your own tiny model

# %% 1. Nothing known: ln 512 = 6.24; frequencies: 5.11; the first point, 5.3, is between them
import json
import math
import tempfile
from pathlib import Path

import here
import torch

from minilm_inf import load
from minilm_inf.text.tokenizer import load as load_tokenizer
from minilm_inf.train.recipes import train_tokenizer

torch.set_num_threads(1)
text = here.TEXT.read_text(encoding="utf-8")
with tempfile.TemporaryDirectory() as folder:
    train_tokenizer("llama", [text[: len(text) * 19 // 20]], 512, Path(folder))  # as the lesson
    ids = torch.tensor(load_tokenizer(folder).encode(text, bos=False))
shares = ids.bincount(minlength=512).double() / len(ids)
known = float(-(shares * shares.clamp_min(1e-12).log()).sum())
print(f"nothing: {math.log(512):.2f} nats, frequencies: {known:.2f}")
assert 5 < known < 5.25 < math.log(512)  # the lesson's first point: 5.3, after 100,000 tokens

# %% 2. Tokens per parameter: 5.6, and 18 for the tiny Llama
print(f"the lesson: {600_000 / 106_816:.1f} tokens for each of 106,816 parameters")
model, _ = load(here.ROOT / "weights" / "tiny-llama")
parameters = sum(p.numel() for p in model.parameters())
record = json.loads((here.ROOT / "weights" / "tiny-llama" / "training.json").read_text())
tokens = record["log"][-1]["tokens"]
print(f"the tiny Llama: {tokens / parameters:.0f} tokens for each of {parameters:,} parameters")
assert 15 < tokens / parameters < 20

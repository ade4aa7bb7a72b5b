# %% [markdown]
# # Solutions to lesson B, train your own tiny model

# %% 1. Nothing known: ln V; frequencies alone: their entropy
import json
import math

import here
import torch

from minilm_inf import load

torch.set_num_threads(1)
model, tokenizer = load(here.ROOT / "weights" / "tiny-llama")
ids = torch.tensor(tokenizer.encode(here.TEXT.read_text(encoding="utf-8"), bos=False))
shares = ids.bincount().double() / len(ids)
known = float(-(shares * shares.clamp_min(1e-12).log()).sum())
print(f"nothing: {math.log(2048):.2f} nats, frequencies: {known:.2f} (in the tiny Llama's ids)")
assert known < math.log(2048) - 1  # the lesson's own: ln 512 = 6.24, and its first point is 5.3

# %% 2. Tokens per parameter
parameters = sum(p.numel() for p in model.parameters())
record = json.loads((here.ROOT / "weights" / "tiny-llama" / "training.json").read_text())
tokens = record["log"][-1]["tokens"]
print(f"the tiny Llama: {tokens / parameters:.0f} tokens for each of {parameters:,} parameters")
assert 15 < tokens / parameters < 20

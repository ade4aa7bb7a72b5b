# %% [markdown]
# # Solutions to lesson 09, reaching back

# %% 1. Where the key's digits come back
from dataclasses import replace

import here
import numpy as np
import torch

from minilm_inf import LMInfinite, load
from minilm_inf.diagnosis.recorder import recording
from minilm_inf.needles.reading import answering
from minilm_inf.needles.trials import PassKey
from minilm_inf.practice import Practice
from minilm_inf.top_k import bring_back

torch.set_num_threads(1)
model, tokenizer = load(here.ROOT / "weights" / "tiny-llama")
ids = tokenizer.encode(here.TEXT.read_text(encoding="utf-8"), bos=False)
maker = PassKey(Practice(tokenizer, np.array(ids)), tokenizer)
lm = replace(LMInfinite.for_model(model.config), top_k=5)
trial = maker.trial(512, 0.2, [1])
tokens = torch.tensor([trial.ids[: -trial.width]])  # up to the question's end
at, counts = torch.arange(tokens.shape[1]), []


def look(layer, q, k):
    """Note in how many heads a digit of the key comes back to the last query."""
    chosen, _ = bring_back(q, k, at, at, model.scheme, lm, 32**-0.5, n_reaching=1)
    counts.append(int(chosen[0, :, -1, list(trial.stated)].any(-1).sum()))


with recording(model, look, lambda layer, x: None), torch.inference_mode():
    model.read(tokens, lm)
print(f"heads, of 6, that have a digit back, by layer: {counts}")
assert sum(counts) > 0 and len(counts) == 4

# %% 2. The middle's distance
share = {}
rows = torch.tensor([maker.trial(512, 0.2, [seed]).ids for seed in range(8)])
for distance in (16, 64, 128, 255):
    right = []
    setting = replace(lm, top_k_distance=distance)
    for _ in answering(model, rows, maker.width, setting, 512, right):
        pass
    share[distance] = sum(n == maker.width for n in right) / len(rows)
print(f"found, by distance: {share}")
assert share[128] > 0.5

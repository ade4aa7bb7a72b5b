# %% [markdown]
# # Solutions to lesson 09, reaching back

# %% 1. By layer, 0, 6, 0 and 4 of 6 heads have a digit back
from dataclasses import replace

import here
import numpy as np
import torch

from minilm_inf import LMInfinite, load
from minilm_inf.diagnose.recorder import recording
from minilm_inf.evaluate.retrieval import share_found
from minilm_inf.evaluate.trials import PassKey
from minilm_inf.top_k import bring_back
from minilm_inf.train.practice import Practice

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


with recording(model, look), torch.inference_mode():
    model.read(tokens, lm)
print(f"heads, of 6, that have a digit back, by layer: {counts}")
assert sum(counts) > 0 and len(counts) == 4


# %% 2. All are found at each distance; from layer 1 on as well, from layer 2 on none
def found(setting: LMInfinite) -> float:
    """The share of numbers that are found in 512 tokens, at a depth of 0.2."""
    return share_found(model, setting, maker, 512, 0.2, 8)


share = {d: found(replace(lm, top_k_distance=d)) for d in (16, 64, 128, 255)}
print(f"by distance: {share}")
assert share[128] > 0.5
layers = {layer: found(replace(lm, top_k_from_layer=layer)) for layer in range(4)}
print(f"by first layer: {layers}")
assert layers[1] > 0.5 > layers[2]

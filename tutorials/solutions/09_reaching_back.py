# %% [markdown]
# # Solutions to lesson 09, reaching back

# %% 1. By layer, 0, 6, 0 and 4 of 6 heads have a digit back
from dataclasses import replace

import here
import numpy as np
import torch

from minilm_inf import LMInfinite, load
from minilm_inf.diagnose.recorder import recording
from minilm_inf.evaluate.methods import Method, answers
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


with recording(model, look, lambda layer, x: None), torch.inference_mode():
    model.read(tokens, lm)
print(f"heads, of 6, that have a digit back, by layer: {counts}")
assert sum(counts) > 0 and len(counts) == 4


# %% 2. Six digits: k = 1 finds 75%, k = 5 42%. The distance: all found up to 128, 75% at 255
def found(maker: PassKey, setting: LMInfinite, count: int) -> float:
    """The share of numbers that are found in 512 tokens, at a depth of 0.2."""
    rows = torch.tensor([maker.trial(512, 0.2, [seed]).ids for seed in range(count)])
    right = answers(model, Method("", setting), rows, maker.width)
    return sum(n == maker.width for n in right) / count


longer = PassKey(Practice(tokenizer, np.array(ids)), tokenizer, digits=6)
six = {k: found(longer, replace(lm, top_k=k), 24) for k in (1, 5)}
print(f"six digits, by k: {six}")
assert six[1] > six[5]
share = {d: found(maker, replace(lm, top_k_distance=d), 8) for d in (16, 64, 128, 255)}
print(f"five digits, by distance: {share}")
assert share[128] > 0.5

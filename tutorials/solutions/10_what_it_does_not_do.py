# %% [markdown]
# # Solutions to lesson 10, what it does not do

# %% 1. What stands between has no influence, nor has its length: a difference of 4e-14
import here
import torch

from minilm_inf import LMInfinite, load

torch.set_num_threads(1)
model, tokenizer = load(here.ROOT / "weights" / "tiny-llama", dtype=torch.float64)
ids = tokenizer.encode(here.TEXT.read_text(encoding="utf-8"))
lm = LMInfinite(n_local=32, n_global=4, distance_ceiling=32)
first, last = ids[:4], ids[2000:2125]


def last_logits(row: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([row]), lm)[0, -1]


long, short = (last_logits(first + ids[300 : 300 + m] + last) for m in (1000, 10))
print(f"largest difference: {(long - short).abs().max():.0e}")
assert torch.allclose(long, short, atol=1e-9)
cut = last_logits(first + ids[300:310] + last[60:])  # too short: now the 10 are within reach
assert not torch.allclose(long, cut, atol=1e-3)

# %% 2. Influence fades long before the reach ends: 61 back it is below a thousandth
row = torch.tensor([ids[:160]])
with torch.inference_mode():
    whole, influence = model(row, lm)[0, -1], []
    for j in range(159, 34, -1):
        changed = row.clone()
        changed[0, j] = (changed[0, j] + 700) % 2048
        influence.append(float((model(changed, lm)[0, -1] - whole).abs().max()))
back = next(d for d, x in enumerate(influence) if x < max(influence) / 1000)
print(f"the nearest token below a thousandth stands {back} back, of 124")
assert 0 < back <= 124

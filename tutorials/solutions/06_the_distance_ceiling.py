# %% [markdown]
# # Solutions to lesson 06, the distance ceiling

# %% 1. C + 1 = 65, and 64: at row C key 0 is out of the window, but seen at its distance C
import here
import torch

from minilm_inf import LMInfinite, load
from minilm_inf.evaluate.compare import stream_nll

torch.set_num_threads(1)
model, tokenizer = load(here.ROOT / "weights" / "tiny-llama")
bos, *ids = tokenizer.encode(here.TEXT.read_text(encoding="utf-8"))
tokens, C = torch.tensor([[bos, *ids[:199]]]), 64


def first_difference(n_global: int) -> int:
    with torch.inference_mode():
        there = model(tokens, LMInfinite(C, n_global, C), path="reference")
        apart = (there - model(tokens, path="reference")).abs().amax((0, 2)) > 1e-3
    return int(apart.nonzero()[0])


print(f"first row that differs: {first_difference(4)} with starting tokens", end=", ")
print(f"{first_difference(0)} without")
assert first_difference(4) == C + 1 and first_difference(0) == C

# %% 2. The window's own far keys; 128 costs nothing, 32 costs 0.03 nat, 8 costs 0.15
texts = [[bos, *ids[k * 2048 : (k + 1) * 2048]] for k in range(2)]
nll = {}
for ceiling in (256, 128, 32, 8):
    lm = LMInfinite(n_local=256, n_global=10, distance_ceiling=ceiling)
    nll[ceiling] = float(torch.stack([stream_nll(model, text, lm) for text in texts]).mean())
    print(f"ceiling {ceiling:3}: {nll[ceiling]:.2f} nats per token")
assert abs(nll[128] - nll[256]) < 0.02  # half the window alike: hardly anything
assert nll[256] < nll[32] < nll[8]

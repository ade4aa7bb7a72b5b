# %% [markdown]
# # Solutions to lesson 03, too long
#
# **1.** Large positions alone do no harm: the logits are the same up to rounding, 1e-5. Only
# differences of positions matter, and those of 200 tokens are below 200 wherever they stand.

# %% 1. Large positions alone do no harm: only differences matter
import here
import torch

from minilm_inf import load
from minilm_inf.evaluate.compare import reencoded_nll, stream_nll

torch.set_num_threads(1)
model, tokenizer = load(here.ROOT / "weights" / "tiny-llama")
bos, *ids = tokenizer.encode(here.TEXT.read_text(encoding="utf-8"))
tokens = torch.tensor([[bos, *ids[:199]]])
with torch.inference_mode():
    near = model(tokens, cache=model.new_cache())
    far = model(tokens, cache=model.new_cache(first_position=100_000))
print(f"largest difference of a logit: {(near - far).abs().max():.0e}")
assert torch.allclose(near, far, atol=1e-3)

# %% [markdown]
# **2.** From position 320 on, two blocks of 32 beyond the trained length, and for good.

# %% 2. Where the plain Llama is a whole nat worse than it need be
texts = [[bos, *ids[k * 2048 : (k + 1) * 2048]] for k in range(6)]
loss = torch.stack([stream_nll(model, t, None) - reencoded_nll(model, t) for t in texts])
loss = loss.mean(0).view(-1, 32).mean(1)
first = 32 * int((loss > 1).nonzero()[0])
print(f"a nat is lost from position {first} on")
assert 256 < first < 512 and (loss[first // 32 :] > 1).all()

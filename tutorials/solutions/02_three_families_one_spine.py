# %% [markdown]
# # Solutions to lesson 02, three families, one spine

# %% 1. Shared keys
import here
import torch
import torch.nn.functional as F

from minilm_inf import LMInfinite, Rotary, attend, load

torch.set_num_threads(1)
q = torch.randn(1, 6, 20, 32)
k, v = torch.randn(2, 1, 2, 20, 32)
positions, scheme = torch.arange(20), Rotary(32)
shared = attend(q, k, v, positions, positions, scheme, None)
k3, v3 = (x.repeat_interleave(3, 1) for x in (k, v))  # heads 0, 1, 2 share a key; so do 3, 4, 5
assert torch.equal(shared, attend(q, k3, v3, positions, positions, scheme, None))

# %% 2. A model that sees only the token itself
model, tokenizer = load(here.ROOT / "weights" / "tiny-llama")
ids = tokenizer.encode(here.TEXT.read_text(encoding="utf-8"))[:257]
tokens, following = torch.tensor([ids[:-1]]), torch.tensor(ids[1:])
alone = LMInfinite(n_local=1, n_global=0)
with torch.inference_mode():
    whole, blind = (F.cross_entropy(model(tokens, lm)[0], following) for lm in (None, alone))
    x = model.embed(tokens)
    for block in model.blocks:
        x = block(x, lambda q, k, v: v.repeat_interleave(3, 1))  # all weight on oneself
    by_hand = model.head(model.norm(x))
print(f"nats per token: {whole:.2f} with all the past, {blind:.2f} with none")
assert torch.allclose(by_hand, model(tokens, alone), atol=1e-4)
assert blind > whole + 1

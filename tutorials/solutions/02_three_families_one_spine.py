# %% [markdown]
# # Solutions to lesson 02, three families, one spine
#
# **1.** Heads 0, 1 and 2 share the first key head; 3, 4 and 5 the second.

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
k3, v3 = (x.repeat_interleave(3, 1) for x in (k, v))
assert torch.equal(shared, attend(q, k3, v3, positions, positions, scheme, None))

# %% [markdown]
# **2.** 3.50 nats per token with all the past, 8.88 with none. All weight lies on the token
# itself, so what it gathers is its own value. The package's mask says the same with a window of
# one token.


# %% 2. A model that sees only the token itself
def spine(model, tokens, look_back):  # of the lesson
    positions = torch.arange(tokens.shape[1])

    def attention(q, k, v):
        return look_back(q, k, v, positions, positions, model.scheme, None)

    x = model.embed(tokens)
    for block in model.blocks:
        x = block(x, attention)
    return model.head(model.norm(x))


def itself(q, k, v, q_positions, k_positions, scheme, lm):
    return v.repeat_interleave(q.shape[1] // v.shape[1], 1)


model, tokenizer = load(here.ROOT / "weights" / "tiny-llama")
ids = tokenizer.encode(here.TEXT.read_text(encoding="utf-8"))[:257]
tokens, following = torch.tensor([ids[:-1]]), torch.tensor(ids[1:])
with torch.inference_mode():
    seeing, blind = spine(model, tokens, attend), spine(model, tokens, itself)
    assert torch.allclose(blind, model(tokens, LMInfinite(n_local=1, n_global=0)), atol=1e-4)
whole, none = (float(F.cross_entropy(logits[0], following)) for logits in (seeing, blind))
print(f"nats per token: {whole:.2f} with all the past, {none:.2f} with none")
assert none > whole + 1

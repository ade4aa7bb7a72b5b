# %% [markdown]
# # Solutions to lesson 00, one token
#
# **1.** 4.41 nats on average, and 9.46 in reverse order: the model knows an order, not only a
# set of words. The middle of a word, "ain" after "capt", costs 0.08.

# %% 1. How surprised the model is, forwards and backwards
import here
import torch
import torch.nn.functional as F

from minilm_inf import load

torch.set_num_threads(1)
model, tokenizer = load(here.ROOT / "weights" / "tiny-llama")
ids = tokenizer.encode("The captain had")


def nll(ids: list[int]) -> torch.Tensor:
    """-log p of each id but the first, under the row before it: (T - 1,)."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids[:-1]]))[0]  # (T - 1, V)
    return F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


forwards, backwards = nll(ids), nll(ids[:1] + ids[:0:-1])
for id, surprise in zip(ids[1:], forwards.tolist()):
    print(f"{tokenizer.decode([id])!r:10} {surprise:.2f} nats")
print(f"mean {forwards.mean():.2f}, in reverse order {backwards.mean():.2f}")
assert forwards.mean() < backwards.mean()

# %% [markdown]
# **2.** The likeliest token has 0.192; at 0.5 it has 0.823, at 2 only 0.023. Dividing by a
# positive number keeps the order of the logits, so it stays the likeliest.

# %% 2. Temperature
last = model(torch.tensor([ids]))[0, -1].detach()
cold, plain, hot = ((last / t).softmax(-1) for t in (0.5, 1.0, 2.0))
print(f"the likeliest: {cold.max():.3f} at 0.5, {plain.max():.3f} at 1, {hot.max():.3f} at 2")
assert cold.max() > plain.max() > hot.max()
assert cold.argmax() == plain.argmax() == hot.argmax()

# %% [markdown]
# # 04 · Three culprits
#
# **Question.** Lesson 03 showed that a model fails beyond its trained length. What, inside it,
# goes wrong?
#
# The paper names three factors:
#
# 1. **Distances that were never met.** Theorem 1, in words: to tell ever more distances apart,
#    functions of bounded complexity must take ever larger values; so at new distances logits
#    may grow beyond anything known.
# 2. **Too many keys.** Proposition 1, in words: as long as logits stay between -B and B,
#    attention over n keys has an entropy of at least ln n - 2B. It must spread as n grows.
# 3. **Starting tokens that are lost.** A model leans on its first tokens; a window that moves
#    on takes them away.
#
# **Predict.** The tiny Llama reads 4,096 tokens. Which grows with the position: the largest
# logit of a query, or the entropy of its attention?

# %%
import json

import plot
import torch

from minilm_inf import LMInfinite, load
from minilm_inf.config import FULL_ATTENTION
from minilm_inf.diagnosis.logits import Rows
from minilm_inf.diagnosis.recorder import recording

N, L = 4096, 256
model, tokenizer = load(plot.ROOT / "weights" / "tiny-llama")
tokens = torch.tensor([tokenizer.encode((plot.HERE / "text.txt").read_text())[:N]])
queries = torch.arange(31, N, 32)  # every 32nd position is looked at
settings = {
    "vanilla": FULL_ATTENTION,
    "Λ without ceiling": LMInfinite(n_local=L, n_global=10, distance_ceiling=None),
    "LM-Infinite": LMInfinite(n_local=L, n_global=10, distance_ceiling=L),
}

# %% [markdown]
# The package can show what passes through a model while it reads: `Rows` keeps, for some
# queries of all layers and heads, the largest |logit| (B in Proposition 1), the entropy of the
# softmax, and the weight on the first 10 tokens.

# %%
seen = {}
for name, lm in settings.items():
    rows = Rows(model, queries, [0, N], 10, lm)
    with recording(model, rows.take, lambda layer, x: None), torch.inference_mode():
        model.read(tokens, lm)
    seen[name] = rows
early, late = queries < L, queries >= N // 2

# %% [markdown]
# **Claim.** Too many keys, that is what grows here: the entropy climbs with ln n in the vanilla
# model and stays with LM-Infinite. Proposition 1 holds for every one of these rows.

# %%
for name, rows in seen.items():
    entropy, B = rows.entropy.mean((0, 1)), rows.bound
    assert (rows.entropy >= rows.visible.log() - 2 * B - 1e-6).all()  # Proposition 1
    a, b = float(entropy[early].mean()), float(entropy[late].mean())
    largest = [float(B[..., part].amax((0, 1)).mean()) for part in (early, late)]
    print(f"{name:18} entropy {a:.2f} -> {b:.2f}", end="   ")
    print("largest |logit| {:.0f} -> {:.0f}".format(*largest))
    assert b > a + 2 if name == "vanilla" else b < a + 1.2

# %% [markdown]
# **What a tiny model does not show.** Its largest logit does not explode, as Llama-2's does
# beyond 4,096 tokens in the paper (from about 1 to 8): it was as large within the trained
# length. But logits at distances that were never met are still *wrong*. Watch the weight on the
# starting tokens: with the ceiling it keeps to what it was, without it it swings as they move
# away.

# %%
mass = {name: rows.mass.mean((0, 1)) for name, rows in seen.items()}
far = queries >= 2 * L
swing = {name: float(mass[name][far].max()) for name in mass}
print({name: round(value, 3) for name, value in swing.items()})
assert swing["Λ without ceiling"] > 2 * swing["LM-Infinite"]
assert seen["vanilla"].bound[..., far].max() < 1.2 * seen["vanilla"].bound[..., early].max()

# %%
drawing, (logits, spread, weight) = plot.figure(3)
roles = {"vanilla": "vanilla", "Λ without ceiling": "start", "LM-Infinite": "window"}
for name, rows in seen.items():
    top = rows.bound.amax((0, 1)).view(-1, 4).amax(1)
    plot.line(logits, queries[1::4], top, roles[name], linewidth=1.5)
    entropy = rows.entropy.mean((0, 1)).view(-1, 4).mean(1)
    plot.line(spread, queries[1::4], entropy, roles[name], name)
    if name != "vanilla":
        plot.line(weight, queries, mass[name], roles[name], linewidth=1.5)
logits.set(title="1. largest |logit|", ylim=(0, 50))
spread.set(title="2. entropy, nats", ylim=(0, 8.5))
spread.legend(loc="upper left")
weight.set(title="weight on first 10 tokens", ylim=(-0.06, 0.6))
for axes in (logits, spread, weight):
    plot.trained(axes, L)
    axes.set(xlabel="position", xticks=[0, 2000, 4000])
plot.show(drawing, "Largest logit, entropy and weight on the starting tokens, by position")

# %% [markdown]
# Nor does it show the third factor: lesson 05 takes its starting tokens away, and it hardly
# minds. A real model leans on them. SmolLM2-135M, a Llama trained on texts of up to 8,192
# tokens, gives its first 4 tokens 30% of all attention, however far behind they lie;
# the tiny Llama gives them next to nothing. (These numbers were measured beforehand, see
# [smollm2.json](figures/smollm2.json); `make smollm2 smollm2-figures` makes them again.)
#
# ![the weight on the first 4 tokens by position, for both models](figures/04_smollm2.png)

# %%
real = json.loads((plot.HERE / "figures" / "smollm2.json").read_text())["weight"]
share = {name: sum(weights[5:]) / len(weights[5:]) for name, weights in real.items()}
print({name: f"{100 * value:.0f}%" for name, value in share.items()})
assert share["SmolLM2-135M"] > 0.25 and share["tiny Llama"] < 0.05

# %% [markdown]
# `python -m minilm_inf.diagnose` takes the same measurements, with
# intervals and Theorem 1's own bound, of any checkpoint.
#
# **Where this lives.** [logits.py](../minilm_inf/diagnosis/logits.py) and
# [theorem.py](../minilm_inf/diagnosis/theorem.py), of
# [diagnose.py](../minilm_inf/diagnose.py).
#
# ## Exercises
#
# 1. Prove Proposition 1: a softmax over n logits in [-B, B] has no probability above
#    e^(2B) / n. Check the step on random logits.
# 2. How does the entropy of the tiny MPT grow? ALiBi subtracts a slope times the distance: how
#    many keys can then be worth looking at?

# %% [markdown]
# # 10 · What it does not do
#
# **Question.** A model with LM-Infinite reads on fluently for ever. How much of the text does
# it still know?
#
# **Predict.** A model of 4 layers with a window of 32 and 4 starting tokens reads 160 tokens.
# You change one of them. For which of them does the last prediction change?

# %%
import json

import plot
import torch

from minilm_inf import LMInfinite, load
from minilm_inf.evaluate.methods import InCache, Method, Truncated

folder = plot.ROOT / "weights" / "tiny-llama"
model, tokenizer = load(folder, dtype=torch.float64)
bos, *ids = tokenizer.encode((plot.HERE / "text.txt").read_text(encoding="utf-8"))

# %% [markdown]
# Recall exercise 1 of lesson 05: N layers carry information over at most N(n_local - 1) tokens,
# here 4 · 31 = 124. There the mask showed it; here the model itself is asked, with one row for
# each changed token, in float64, so that very little can be told from nothing.

# %%
n, N, L, G = 160, model.config.n_layer, 32, 4
lm = LMInfinite(n_local=L, n_global=G, distance_ceiling=L)
rows = torch.tensor([bos, *ids[: n - 1]]).repeat(n + 1, 1)
for j in range(n):
    rows[j, j] = (rows[j, j] + 700) % 2048  # any other of the 2,048 ids
with torch.inference_mode():
    last = torch.cat([model.read(few, lm)[:, -1] for few in rows.split(23)])  # to save memory
    logits = model.head(last)
influence = (logits[:-1] - logits[-1]).abs().amax(1)  # the last row is the unchanged text

# %% [markdown]
# **Claim.** The starting tokens, the last 124 and the present one count. Everything between has
# no influence at all, beyond float64's rounding:

# %%
j, reach = torch.arange(n), N * (L - 1)
near, starting = n - 1 - j <= reach, j < G
print(f"tokens without any influence: {int((influence < 1e-12).sum())} of {n}")
assert (influence[~near & ~starting] < 1e-12).all()
assert (influence[near | starting] > 1e-12).all()

drawing, axes = plot.figure()
for role, part in (("starting", starting), ("window", ~starting)):
    name = "starting tokens" if role == "starting" else "within 124 tokens"
    colour = plot.COLOURS[role]
    axes.bar(j[part].tolist(), influence[part].tolist(), width=1, color=colour, label=name)
axes.axvspan(G - 0.5, n - 1 - reach - 0.5, color=plot.COLOURS["hidden"], label="no influence")
axes.set(yscale="log", ylim=(1e-15, 100), xlabel="token that is changed")
axes.set_ylabel("largest change of a logit of the last token")
plot.show(drawing, "What lies out of reach of all layers has no influence at all")

# %% [markdown]
# Fluency is another matter. Here are four ways to read on with about the same number of keys in
# sight: a sliding window of 266; a window of 256 and 10 starting tokens, with StreamingLLM's
# distances or LM-Infinite's; and re-encoding (lesson 03), with 129 to 256. StreamingLLM counts
# distances in its cache: from query i to a starting token j it is min(i, 265) - j, where
# LM-Infinite has min(i - j, 256).

# %%
model, _ = load(folder)
W, K = 256, 10
methods = {
    "LM-Infinite": Method("", LMInfinite(W, K, W)),
    "StreamingLLM": InCache("", LMInfinite(W, K)),
    "re-encoding": Truncated("", None, W),
    "sliding window": Method("", LMInfinite(W + K, n_global=0)),
}
texts = [[bos, *ids[k * 2048 : (k + 1) * 2048]] for k in range(6)]
tiny = {}  # beyond 512, 128 tokens at a time: 72 pieces
for name, method in methods.items():
    nll = torch.stack([method.nll(model, row, 512) for row in texts])
    tiny[name] = nll[:, 512:].reshape(-1, 128).mean(1)


def found(pieces: dict) -> dict:
    """The mean difference from LM-Infinite's on the same tokens, and its 95% interval."""
    more = {name: pieces[name] - pieces["LM-Infinite"] for name in methods}
    around = {name: 1.96 * float(x.std()) / len(x) ** 0.5 for name, x in more.items()}
    return {name: (float(x.mean()), around[name]) for name, x in more.items()}


# %% [markdown]
# All four are about equally fluent, within 0.02 nat, though they do not forget the same things:
# re-encoding reaches at most 255 tokens back, the others 255 or 265 in each layer. The nll of a
# novel does not show that. What LM-Infinite gains over re-encoding is cost: it reads each token
# once. A real model, SmolLM2-135M, with 260 keys in sight, loses much with the sliding window,
# and the other three stay close (measured beforehand, as in lesson 05):

# %%
real = json.loads((plot.HERE / "figures" / "smollm2.json").read_text())["nll"]
real = {name: torch.tensor(steps[4:]) for name, steps in real.items()}  # beyond 520
drawing, panels = plot.figure(2, sharey=True)
for axes, (name, pieces) in zip(
    panels, {"tiny Llama": tiny, "SmolLM2-135M, another scale": real}.items()
):
    for y, (method, (mean, around)) in enumerate(found(pieces).items()):
        print(
            f"{name:.12} {method:14} {pieces[method].mean():.3f}   {mean:+.3f} ± {around:.3f}"
        )
        style = {"fmt": "o", "color": plot.COLOURS[method], "capsize": 4}
        axes.errorbar(mean, y, xerr=around, **style)
        assert abs(mean) + around < 0.05 or (method, pieces is real) == ("sliding window", True)
    axes.axvline(0, color=plot.INK, linewidth=1, linestyle=":")
    axes.set(title=name, xlabel="nats per token, minus LM-Infinite's", ylim=(3.5, -0.5))
panels[0].set_yticks(range(4), methods)
assert found(real)["sliding window"][0] > 0.5
plot.show(drawing, "SmolLM2 needs its starting tokens; otherwise all four tie", "smollm2")

# %% [markdown]
# If the answer stands in the middle, reach back (lesson 09), or use another method (see
# [neighbours](neighbours.md)).
#
# **Where this lives.** [explain.py](../minilm_inf/writing/explain.py) shows what a token was
# made from; [compare.py](../minilm_inf/evaluate/compare.py) measures fluency,
# [retrieval.py](../minilm_inf/evaluate/retrieval.py) memory.
#
# ## Exercises
#
# 1. Two texts share their first 4 tokens and their last 125. In between, one has 1,000 tokens
#    of its own, the other 10. Show that their last logits are the same.
# 2. Is the whole reach used? Find the nearest token whose influence is below a thousandth of
#    the largest, and compare its distance with 124.
#
# Answers: [solutions/10_what_it_does_not_do.py](solutions/10_what_it_does_not_do.py).

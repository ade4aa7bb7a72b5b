# %% [markdown]
# # 04 · Three culprits
#
# **Question.** Lesson 03 showed that a model fails beyond its trained length. What, inside it,
# goes wrong?
#
# The paper names three factors:
#
# 1. **Distances never seen in training.** Theorem 1, in words: to tell ever more distances
#    apart, functions of bounded complexity must take ever larger values; so at new distances
#    logits may grow beyond anything the model has met.
# 2. **Too many keys.** Proposition 1, in words: as long as logits stay between -w_max and
#    w_max, attention over n keys has an entropy of at least ln n - 2 w_max. It must spread as n
#    grows.
# 3. **Lost starting tokens.** Little or nothing stands before the first tokens of a text, so
#    their keys and values occupy a region of feature space of their own: an implicit absolute
#    position, on which models rely. The plain model never loses them; the obvious cure, a
#    window that moves on, does.
#
# To tell them apart, remove them one by one, with the two parts of LM-Infinite. **Λ**: only the
# last 246 tokens and the first 10 are seen (lesson 05). **Ceiling**: no token seems further
# away than 256 (lesson 06).
#
# **Predict.** The tiny Llama, trained on 256 tokens, reads 4,096. Which repairs more on its
# own: the Λ, which takes away most keys, or the ceiling, which leaves them all?

# %%
import json

import plot
import torch

from minilm_inf import LMInfinite, load
from minilm_inf.diagnose.recorder import entropy_and_logits
from minilm_inf.evaluate.compare import stream_nll

N, L = 4096, 256
model, tokenizer = load(plot.ROOT / "weights" / "tiny-llama")
ids = tokenizer.encode((plot.HERE / "text.txt").read_text("utf-8"))[:N]
ceiling = LMInfinite(None, n_global=0, distance_ceiling=L)  # None: all keys are in the window
settings = {
    "vanilla": LMInfinite(None, n_global=0),
    "Λ without ceiling": LMInfinite(L - 10, n_global=10),
    "ceiling without Λ": ceiling,
    "sliding window": LMInfinite(L, n_global=0),
    "LM-Infinite": LMInfinite(L - 10, n_global=10, distance_ceiling=L),
}

# %% [markdown]
# **Claim.** Factor 1 does most of the harm, factor 2 some, factor 3 next to none here.
#
# **First, logits.** `entropy_and_logits` reads a text and keeps, for each row (one query of one
# head), the highest logit by distance, the largest |logit|, and the entropy of the softmax. The
# queries and keys of the vanilla model are used twice: once at their true distances, and once
# as if every key further away than 256 stood at 256.

# %%
queries, edges = torch.arange(31, N, 32), list(range(128, N, 128))
vanilla = entropy_and_logits(model, ids, queries, edges=edges)
capped = entropy_and_logits(model, ids, queries, as_if=ceiling, edges=edges)
# of each head the highest at 256 and further away, and their mean over layers and heads
far, near = (float(rows.highest[..., 2:].amax(-1).mean()) for rows in (vanilla, capped))
print(f"keys 256 and more away: highest logit {far:.1f}, and {near:.1f} as if at 256")
assert far > 2 * near

drawing, axes = plot.figure()
high, low = (rows.highest.mean((0, 1)).tolist() for rows in (vanilla, capped))
plot.steps(axes, [0, *edges, N], high, "vanilla", label="at their true distance")
plot.steps(axes, [0, *edges, N], low, "ceiling without Λ", label="as if at most 256 away")
plot.trained(axes, L)
axes.set(xlabel="true distance of the key", ylabel="highest logit, mean over heads", ylim=0)
plot.show(drawing, "Factor 1: keys at new distances get logits that are too high")

# %% [markdown]
# **Second, entropy**, and what each setting loses, in nats per token: its nll beyond 256, minus
# LM-Infinite's. "top" is the largest |logit| that a query has in any layer and head; arrows
# lead from the mean over the queries within 256 to that over the last 2,048.

# %%
seen = {name: entropy_and_logits(model, ids, queries, lm) for name, lm in settings.items()}
nll = {name: stream_nll(model, ids, lm) for name, lm in settings.items()}
early, late, lost = queries < L, queries >= N // 2, {}
for name, rows in seen.items():
    lost[name] = loss = float((nll[name] - nll["LM-Infinite"])[L:].mean())
    a, b = (float(rows.entropy[..., part].mean()) for part in (early, late))
    c, d = (float(rows.bound[..., part].amax((0, 1)).mean()) for part in (early, late))
    print(f"{name:18} lost {loss:.2f}  entropy {a:.2f} -> {b:.2f}  top {c:.1f} -> {d:.1f}")
    assert 1 < d / c < 1.2
    assert b > a + 2 if rows.visible[-1] == N else b < a + 1  # N: all keys are seen
assert lost["vanilla"] > lost["Λ without ceiling"] > 2 > 1 > lost["ceiling without Λ"] > 0.2
assert 0 < lost["sliding window"] < 0.1

drawing, axes = plot.figure()
plot.line(axes, queries, queries.log(), "third", "ln n, the entropy if all n keys were alike")
for name in list(seen)[::2]:  # the other two see few keys, as LM-Infinite does
    entropy = seen[name].entropy.mean((0, 1)).view(-1, 4).mean(1)
    plot.line(axes, queries[1::4], entropy, name)
plot.trained(axes, L)
axes.set(xlabel="position of the query", ylabel="entropy, nats, mean over heads", ylim=0)
plot.show(drawing, "Factor 2: as long as all keys are seen, attention spreads", "entropy")

# %%
drawing, axes = plot.figure()
colours = [plot.COLOURS[name] for name in lost]
bars = axes.barh(list(lost), list(lost.values()), color=colours, height=0.6)
axes.bar_label(bars, fmt=" %.2f")
axes.set(xlabel="nats per token lost beyond 256", ylim=(4.5, -0.5))
plot.show(
    drawing, "New distances cost most, too many keys some, lost starting tokens little", "loss"
)

# %% [markdown]
# So the answer for this model is: (1) The logits at distances never seen in training are too
# high, and ten far tokens are enough to do the harm: the Λ without ceiling loses 3.85 nats; the
# sliding window, which has none of those ten, loses 0.02. (2) The entropy grows like ln n as
# long as all keys are seen, and the ceiling does not stop it; that alone costs about half a
# nat. (3) The starting tokens hardly matter: they are all that the sliding window lacks. Eight
# other documents give the same order ([methods.md](../weights/methods.md)): vanilla loses 5.2
# nats, the Λ without ceiling 2.7, the ceiling without Λ 0.5, the sliding window 0.02.
#
# **What is not seen here.** In the paper Llama-2's largest |logit| explodes beyond its trained
# length. Here it grows by only a sixth ("top" above), since near keys reach such values too.
# And Proposition 1 holds, but says little: with logits this large, ln n - 2 w_max is mostly
# negative (exercise 1).
#
# **Third, starting tokens.** What these are worth depends on the model. SmolLM2-135M, a Llama
# trained on 8,192 tokens, keeps giving its first 4 tokens about 30% of its attention. The tiny
# Llama gives them 5.6% within 260 tokens, and 2.6% beyond, where it is broken. (This was
# measured beforehand, see lesson 05, which also asks whether a model *needs* what it looks at.)

# %%
real = json.loads((plot.HERE / "figures" / "smollm2.json").read_text())["weight"]
drawing, axes = plot.figure()
for (name, weights), role in zip(real.items(), ("third", "other")):
    weights = 100 * torch.tensor(weights).view(-1, 5).mean(1)  # of 5 queries, 52 apart
    a, b = float(weights[0]), float(weights[1:].mean())
    print(f"{name:12} {a:4.1f}% within 260 tokens, {b:4.1f}% beyond")
    assert max(a, b) < 6 if name == "tiny Llama" else min(a, b) > 25
    plot.steps(axes, range(0, 2081, 260), weights.tolist(), role, label=name)
axes.set(xlabel="position of the query", ylabel="weight on the first 4 tokens, %", ylim=0)
plot.show(drawing, "Factor 3: SmolLM2 keeps 30% of its attention on 4 tokens", "smollm2")

# %% [markdown]
# `python -m minilm_inf.diagnose` makes all these measurements for any checkpoint, with
# intervals: [diagnosis.md](../weights/diagnosis.md).
#
# **Where this lives.** [recorder.py](../minilm_inf/diagnose/recorder.py) and
# [factors.py](../minilm_inf/diagnose/factors.py), of
# [diagnose/](../minilm_inf/diagnose/__main__.py).
#
# ## Exercises
#
# 1. Prove Proposition 1: a softmax over n logits in [-w_max, w_max] has no probability above
#    e^(2 w_max) / n. Check the step on random logits. Then, in the rows of the vanilla model
#    (`bound` is w_max): how often is the bound positive, and how tight is it?
# 2. How does the entropy of the tiny MPT grow? ALiBi subtracts a slope times the distance: how
#    many keys are then worth looking at?
#
# Answers: [solutions/04_three_culprits.py](solutions/04_three_culprits.py).

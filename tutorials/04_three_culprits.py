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
# 2. **Too many keys.** Proposition 1, in words: as long as logits stay between -w_max and
#    w_max, attention over n keys has an entropy of at least ln n - 2 w_max. It must spread as n
#    grows.
# 3. **Starting tokens that are lost.** Nothing stands before the first tokens of a text, so
#    their keys and values occupy a region of feature space of their own: an implicit absolute
#    position, on which models rely. This concerns not the plain model, which never loses them,
#    but the obvious cure: a window that moves on.
#
# To tell them apart, take them away one by one, by the two parts of LM-Infinite. **Λ**: only
# the last 246 tokens and the first 10 are seen (lesson 05). **Ceiling**: no token seems further
# away than 256 (lesson 06).
#
# **Predict.** The tiny Llama, trained on 256 tokens, reads 4,096. Which repairs more when it is
# used alone: the Λ, which takes away most keys, or the ceiling, which leaves them all?

# %%
import json

import plot
import torch
import torch.nn.functional as F

from minilm_inf import LMInfinite, load
from minilm_inf.diagnose.recorder import Rows, recording

N, L, BINS = 4096, 256, list(range(0, 4097, 128))  # bins of distances
model, tokenizer = load(plot.ROOT / "weights" / "tiny-llama")
tokens = torch.tensor([tokenizer.encode((plot.HERE / "text.txt").read_text("utf-8"))[:N]])
queries = torch.arange(31, N, 32)  # every 32nd position is looked at
ceiling = LMInfinite(None, n_global=0, distance_ceiling=L)  # None: all keys are in the window
settings = {
    "vanilla": LMInfinite(None, n_global=0),
    "Λ without ceiling": LMInfinite(L - 10, n_global=10),
    "ceiling without Λ": ceiling,
    "window alone": LMInfinite(L, n_global=0),
    "LM-Infinite": LMInfinite(L - 10, n_global=10, distance_ceiling=L),
}

# %% [markdown]
# The package can show what passes through a model while it reads. `Rows` takes in the queries
# and keys of every layer and head, and keeps of each row, one query of one head: the highest
# logit by distance, the largest |logit|, and the entropy of the softmax.


# %%
def watched(lm: LMInfinite, felt: LMInfinite):
    # reads the text with lm: its rows, as they would be with felt, and its nll
    rows = Rows(model, queries, BINS, 10, felt)  # 10: whose weight it sums, unused here
    # the second function would be shown what each layer gives to the next: not needed here
    with recording(model, rows.take, lambda layer, x: None), torch.inference_mode():
        logits = model(tokens, lm)[0]
    return rows, F.cross_entropy(logits[:-1], tokens[0, 1:], reduction="none")


seen = {name: watched(lm, lm) for name, lm in settings.items()}
vanilla, capped = seen["vanilla"][0], watched(settings["vanilla"], ceiling)[0]

# %% [markdown]
# **Claim.** Factor 1 does most of the harm, factor 2 some, factor 3 next to none here.
#
# First, logits. The same queries and keys of the vanilla model, once at their true distance,
# once as if 256 away: further away than any trained distance, the highest logit of a head is
# more than twice what it would be at the ceiling.

# %%
# of each head the highest in the bins from 256 on, and their mean over layers and heads
true, felt = (float(rows.highest[..., 2:].amax(-1).mean()) for rows in (vanilla, capped))
print(f"keys 256 and more away: highest logit {true:.1f}, felt at 256 {felt:.1f}")
assert true > 2 * felt

# %% [markdown]
# Second, what each setting loses, in nats per token: its nll beyond 256, less LM-Infinite's.
# Beside it, from queries within 256 to the last 2,048: the mean entropy, and "top", the largest
# |logit| that a query has in any layer and head, on average.

# %%
early, late, lost = queries < L, queries >= N // 2, {}
for name, (rows, nll) in seen.items():
    lost[name] = loss = float((nll - seen["LM-Infinite"][1])[L:].mean())
    a, b = (float(rows.entropy[..., part].mean()) for part in (early, late))
    c, d = (float(rows.bound[..., part].amax((0, 1)).mean()) for part in (early, late))
    print(f"{name:18} lost {loss:.2f}  entropy {a:.2f} -> {b:.2f}  top {c:.1f} -> {d:.1f}")
    assert 1 < d / c < 1.2
    assert b > a + 2 if rows.visible[-1] == N else b < a + 1  # N: all keys are seen
assert lost["vanilla"] > lost["Λ without ceiling"] > 2 > 1 > lost["ceiling without Λ"] > 0.2
assert 0 < lost["window alone"] < 0.1

# %%
drawing, (logits, spread, cost) = plot.figure(3, width_ratios=(1, 1, 1.15))
for rows, role, name in ((vanilla, "vanilla", "vanilla"), (capped, "ceiling", "felt at 256")):
    plot.line(logits, BINS[1:], rows.highest.mean((0, 1)), role, name)
plot.line(spread, queries, queries.log(), "third", "ln n", linewidth=1, linestyle="-")
roles = ("vanilla", "other", "ceiling", "other", "window")  # one for each setting
for name, role in zip(list(lost)[::2], roles[::2]):  # the other two see few keys as well
    entropy = seen[name][0].entropy.mean((0, 1)).view(-1, 4).mean(1)
    plot.line(spread, queries[1::4], entropy, role, name)
logits.set(title="1. Highest logit", xlabel="distance", ylabel="mean over heads", ylim=(0, 17))
spread.set(title="2. Entropy", xlabel="position", ylabel="nats, mean over heads", ylim=(0, 9))
logits.legend(loc="upper right", fontsize=9)
spread.legend(loc="lower right", bbox_to_anchor=(1, 0.05), fontsize=9)
plot.trained(logits, L), plot.trained(spread, L)
colours = [plot.COLOURS[role] for role in roles]
cost.bar_label(cost.barh(lost.keys(), lost.values(), color=colours, height=0.6), fmt=" %.2f")
cost.set(title="3. What each cure leaves", xlim=(0, 6.2), ylim=(4.5, -0.5))
cost.set_xlabel("nats lost beyond 256")
plot.show(drawing, "Highest logit by distance, entropy by position, and what each cure leaves")

# %% [markdown]
# So the answer for this model. (1) The logits of distances that were never met are too high,
# and ten far tokens are enough to do the harm: the Λ without ceiling loses 3.85 nats, the
# window alone, which lacks just them, 0.02. (2) The entropy grows like ln n as long as all keys
# are seen, and the ceiling does not stop it; that alone costs about half a nat. (3) The
# starting tokens hardly matter: they are all that the window alone lacks. Eight other
# documents give the same order ([methods.md](../weights/methods.md)): full attention loses 5.2
# nats, the Λ without ceiling 2.7, the ceiling without Λ 0.5, the sliding window 0.02.
#
# **What is not seen here.** In the paper Llama-2's largest |logit| explodes beyond its trained
# length. Here it grows by a sixth ("top" above), since near keys reach such values too. And
# Proposition 1 holds, but says little: where logits are this large, ln n - 2 w_max is mostly
# negative (exercise 1).
#
# Factor 3 is a matter of the model. SmolLM2-135M, a Llama trained on 8,192 tokens, keeps giving
# its first 4 tokens about 30% of its attention. The tiny Llama gives them 5.0% within its 256
# tokens, and 2.3% beyond, where it is broken. (Measured beforehand, as lesson 05 tells. Whether
# a model *needs* what it looks at is that lesson's question.)
#
# ![weight on the first 4 tokens by position, for both models](figures/04_smollm2.png)

# %%
real = json.loads((plot.HERE / "figures" / "smollm2.json").read_text())["weight"]
for name, weights in real.items():  # a query every 50 positions: 5 of them within 256
    a, b = (100 * sum(part) / len(part) for part in (weights[:5], weights[5:]))
    print(f"{name:12} {a:4.1f}% within 256 tokens, {b:4.1f}% beyond")
    assert max(a, b) < 6 if name == "tiny Llama" else min(a, b) > 25 and min(weights) > 0.19

# %% [markdown]
# `python -m minilm_inf.diagnose` takes all these measurements of any checkpoint, with
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
#    many keys can then be worth looking at?
#
# Answers: [solutions/04_three_culprits.py](solutions/04_three_culprits.py).

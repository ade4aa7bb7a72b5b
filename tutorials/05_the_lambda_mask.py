# %% [markdown]
# # 05 · The Λ-mask
#
# **Question.** Which earlier tokens should a query see, when a text has no end?
#
# Not all of them: beyond the trained length there are more keys than the model ever had to
# choose from. LM-Infinite keeps two groups (paper, section 3.2):
#
# - the **window**: the last `n_local` tokens, the query's own included;
# - the **starting tokens**: the first `n_global` of the text.
#
# By default (`LMInfinite.for_model`) the window alone is as long as the training texts, so that
# n_global more keys are seen than in training. This does no harm (lesson 06). Where LM-Infinite
# is compared with a sliding window below, both get the same number of keys.
#
# **Predict.** With `n_local=8` and `n_global=3`, how many keys does the query at position 5
# see? At 8? At 9, at 23, at a million?

# %%
import json

import plot
import torch

from minilm_inf import LMInfinite, load
from minilm_inf.evaluate.compare import stream_nll
from minilm_inf.lambda_mask import lambda_mask


def sees(i: int, j: int, n_local: int, n_global: int) -> bool:
    """The specification: does the query at position i see the key at position j?"""
    if j > i:
        return False  # the future
    if i - j < n_local:
        return True  # one leg of the Λ, the window
    return j < n_global  # the other leg, the starting tokens


# %% [markdown]
# The package says the same for whole vectors of positions, as predicates that compose. Here
# they are; the loop, these lines and the package agree. (A plain `LMInfinite(n_local=8)` has
# n_global=10 and *no* ceiling, lesson 06; `for_model` sets all three.)

# %%
lm = LMInfinite(n_local=8, n_global=3, distance_ceiling=8)
positions = torch.arange(24)
d = positions[:, None] - positions[None, :]  # the distance i - j, (T, S)
is_past = d >= 0
is_local = d < lm.n_local
is_global = positions[None, :] < lm.n_global
mask = is_past & (is_local | is_global)

looped = [[sees(i, j, 8, 3) for j in range(24)] for i in range(24)]
assert torch.equal(mask, torch.tensor(looped))
assert torch.equal(mask, lambda_mask(positions, positions, lm))

# %% [markdown]
# **Claim.** A row sees min(i + 1, n_local) + min(n_global, max(0, i + 1 - n_local)) keys, never
# more than 11 here: a starting token that is still inside the window is counted once.

# %%
for i in range(24):
    assert mask[i].sum() == min(i + 1, 8) + min(3, max(0, i + 1 - 8)) == lm.visible(i + 1)
# visible(n) counts tokens: the query at position i is the last of i + 1
print({i: lm.visible(i + 1) for i in (5, 8, 9, 23, 1_000_000)})

# %%
drawing, panels = plot.figure(2, sharey=True)
both = {"Λ": lm, "sliding window": LMInfinite(n_local=11, n_global=0)}
for axes, (name, setting) in zip(panels, both.items()):
    seen = lambda_mask(positions, positions, setting)
    kinds = torch.where(d < setting.n_local, plot.WINDOW, plot.START) * seen
    plot.cells(axes, kinds + (is_past & ~seen) * plot.UNSEEN)
    axes.set(title=f"{name}: {setting.most_visible} keys at most", xlabel="key j")
panels[0].set_ylabel("query i")
plot.show(drawing, "The Λ keeps the first tokens in sight, a sliding window loses them")

# %% [markdown]
# **Are the starting tokens worth their keys?** A sliding window could spend the same number of
# keys on the last tokens alone. A real model shows what that costs: SmolLM2-135M, trained on
# 8,192 tokens, reads 2,080, well within its length, so vanilla shows what is possible with all
# keys in sight. With 260 keys in sight, the sliding window loses more than half a nat as soon
# as the first tokens leave it. LM-Infinite keeps 4 of them, and loses only 0.07.

# %%
real = json.loads((plot.HERE / "figures" / "smollm2.json").read_text())["nll"]
drawing, axes = plot.figure()
for name in ("sliding window", "vanilla", "LM-Infinite"):
    plot.steps(axes, range(0, 2081, 130), real[name], name)  # a mean per 130 positions
    lost = [a - b for a, b in zip(real[name], real["vanilla"])]
    print(f"{name:14} loses {sum(lost[2:]) / len(lost[2:]):.2f} nats beyond position 260")
    assert max(lost[:2]) < 0.001  # two steps within the window
    assert min(lost[2:]) > 0.5 if name == "sliding window" else max(lost) < 0.2
axes.axvline(260, color=plot.INK, linewidth=1, linestyle=":")
note = " 260 keys in sight from here on (LM-Infinite: 4 + 256)"
axes.annotate(note, (260, 3.02), va="bottom", fontsize=9)
axes.set(xlabel="position", ylabel="nll, nats per token", ylim=(3, 5))
plot.show(drawing, "Without its first tokens SmolLM2 loses more than half a nat", "smollm2")

# %% [markdown]
# (In this course, SmolLM2-135M is SmolLM2-135M-Instruct, converted from a file of 4-bit
# weights. `make smollm2` fetches its 93 MB. Its numbers were measured beforehand, see
# [smollm2.json](figures/smollm2.json); `make smollm2-figures` measures and draws them again.)
#
# Not every model needs them. The tiny Llama, trained on 256 tokens, reads 2,048 with 256 keys
# in sight: either the last 256, or the last 246 and the first 10 (which then need the ceiling
# of lesson 06). It reads on well with both; its starting tokens are worth little:

# %%
model, tokenizer = load(plot.ROOT / "weights" / "tiny-llama")
bos, *ids = tokenizer.encode((plot.HERE / "text.txt").read_text(encoding="utf-8"))
texts = [[bos, *ids[k * 2048 : (k + 1) * 2048]] for k in range(6)]


def late_nll(lm: LMInfinite) -> float:
    return float(torch.stack([stream_nll(model, text, lm)[256:] for text in texts]).mean())


late = {
    "sliding window": late_nll(LMInfinite(n_local=256, n_global=0)),
    "LM-Infinite": late_nll(LMInfinite(n_local=246, n_global=10, distance_ceiling=256)),
}
print("nll beyond 256:", {name: round(value, 3) for name, value in late.items()})
# hardly any difference in this model; vanilla is above 8 (lesson 03)
assert 0 < late["sliding window"] - late["LM-Infinite"] < 0.05 and max(late.values()) < 4

# %% [markdown]
# In larger models even more depends on them: in the paper, Llama-2-7B's nll at 16,000 tokens is
# 6.43 without starting tokens and 1.03 with a single one.
#
# **Where this lives.** [lambda_mask.py](../minilm_inf/lambda_mask.py). Its docstring draws an
# 8 x 8 mask, and a test parses that very drawing.
#
# ## Exercises
#
# 1. Information travels at most one window per layer. With `n_local=256` and 4 layers, from how
#    far back can a token in the middle still influence the present? Find the formula, then
#    print the composed mask of two layers for `n_local=8`, `n_global=0` (a matrix product), and
#    check.
# 2. How many keys are seen in all, summed over the queries of a text of n tokens, with vanilla
#    and with the Λ? From which n on does the Λ with 256 and 10 need less than a tenth?
#
# Answers: [solutions/05_the_lambda_mask.py](solutions/05_the_lambda_mask.py).

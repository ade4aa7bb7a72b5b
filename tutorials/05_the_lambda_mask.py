# %% [markdown]
# # 05 · The Λ-mask
#
# **Question.** Which earlier tokens should a query see, when a text has no end?
#
# Not all: beyond the trained length there are more keys than the model ever had to choose
# among. LM-Infinite keeps two groups (paper, section 3.2):
#
# - the **window**: the last `n_local` tokens, the query's own included;
# - the **starting tokens**: the first `n_global` of the text.
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
# The package says the same of whole vectors of positions, in five lines: predicates that
# compose, and no triangles shifted by offsets. Here they are, and both agree with the package:

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

# %% [markdown]
# **Window alone against LM-Infinite.** Are the starting tokens worth their keys? The tiny Llama
# reads 2,048 tokens with 256 keys in sight: the last 256, or the last 246 and the first 10
# (which then need the ceiling of lesson 06).

# %%
model, tokenizer = load(plot.ROOT / "weights" / "tiny-llama")
bos, *ids = tokenizer.encode((plot.HERE / "text.txt").read_text(encoding="utf-8"))
texts = [[bos, *ids[k * 2048 : (k + 1) * 2048]] for k in range(6)]


def read(lm: LMInfinite) -> torch.Tensor:
    return torch.stack([stream_nll(model, text, lm) for text in texts]).mean(0)


nll = {
    "window alone": read(LMInfinite(n_local=256, n_global=0)),
    "LM-Infinite": read(LMInfinite(n_local=246, n_global=10, distance_ceiling=256)),
}
late = {name: float(curve[256:].mean()) for name, curve in nll.items()}
print("nll beyond 256:", {name: round(value, 3) for name, value in late.items()})
# hardly any difference in this model; vanilla attention has over 8 (lesson 03)
assert 0 < late["window alone"] - late["LM-Infinite"] < 0.05 and max(late.values()) < 4

# %%
drawing, (left, right) = plot.figure(2, width_ratios=(1, 1.35))
kinds = mask * torch.where(is_local, plot.WINDOW, plot.START) + (is_past & ~mask) * plot.UNSEEN
plot.cells(left, kinds)
left.set(title="What each query sees", xlabel="key j", ylabel="query i", xticks=[0, 10, 20])
for y, text, role in ((5, "window", "window"), (8, "starting tokens", "start")):
    left.annotate(text, (23.5, y), ha="right", color=plot.COLOURS[role], weight="bold")
left.annotate("not seen", (23.5, 11), ha="right", color="#888888", weight="bold")
for (name, curve), role, width in zip(nll.items(), ("third", "window"), (6, 2)):
    curve = curve.view(-1, 64).mean(1)
    plot.line(right, range(32, 2048, 64), curve, role, name, linestyle="-", linewidth=width)
plot.trained(right, 256)
right.set(title="The tiny Llama reads as well with either", xlabel="position", ylim=(2.5, 4.5))
right.set(ylabel="nll, nats per token", xticks=[0, 500, 1000, 1500, 2000])
right.legend(loc="upper right")
plot.show(drawing, "Left, the Λ-mask. Right, the nll with and without starting tokens")

# %% [markdown]
# Either keeps this model going, and its starting tokens are worth little. A real model needs
# them. SmolLM2-135M, trained on 8,192 tokens, is within its length here: vanilla attention
# shows what 2,000 tokens can tell. With 260 keys in sight, the window alone loses more
# than half a nat as soon as the first tokens leave it. LM-Infinite keeps 4 of them, and loses
# 0.06 to a model that sees up to 2,000.
#
# ![SmolLM2's nll by position: vanilla, window alone and LM-Infinite](figures/05_smollm2.png)

# %%
real = json.loads((plot.HERE / "figures" / "smollm2.json").read_text())
# a number per 125 positions, the first two within the window
for name in ("window", "LM-Infinite"):
    lost = [a - b for a, b in zip(real["nll"][name], real["vanilla"])]
    print(f"{name:12} loses {sum(lost[2:]) / len(lost[2:]):.2f} nats beyond position 250")
    assert max(lost[:2]) < 0.001
    assert min(lost[2:]) > 0.6 if name == "window" else max(lost) < 0.15

# %% [markdown]
# SmolLM2-135M is, here and in lessons 04 and 10, SmolLM2-135M-Instruct, converted from a file
# of 4-bit weights (`make smollm2` fetches its 93 MB). Its numbers were measured beforehand, see
# [smollm2.json](figures/smollm2.json); `make smollm2-figures` makes them again.
#
# In larger models still more depends on them: the paper finds Llama-2-7B's nll at 16,000 tokens
# at 6.43 without starting tokens and at 1.03 with a single one.
#
# **Where this lives.** [lambda_mask.py](../minilm_inf/lambda_mask.py). Its docstring draws an
# 8 x 8 mask, and a test parses that very drawing.
#
# ## Exercises
#
# 1. Information travels at most one window per layer. With `n_local=256` and 4 layers, from
#    how far back can a token in the middle still influence the present? Find the formula, then
#    print the composed mask of two layers for `n_local=8`, `n_global=0` (a matrix product), and
#    check.
# 2. How many keys does a text of n tokens cost in all, vanilla and with the Λ? From which n on
#    does the Λ with 256 and 10 need less than a tenth?
#
# Answers: [solutions/05_the_lambda_mask.py](solutions/05_the_lambda_mask.py).

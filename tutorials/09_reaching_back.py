# %% [markdown]
# # 09 · Reaching back
#
# **Question.** The middle of a long text is not seen. Can a query have back what it needs?
#
# LM-Infinite's third, optional part (paper, section 3.3): each head scores *all* middle keys,
# as if they stood at one fixed distance, and its `top_k` best join the softmax at that
# distance. Where they come from plays no part, so no distance is ever new. By default only the
# last token of the prompt and each generated one reach back, from layer `top_k_from_layer` on,
# which is the first.
#
# **Predict.** A number of five digits is hidden in a text and asked for at its end. The model
# was trained on 256 tokens, the text has up to 2,048. How often is the number found with no
# middle key, with 1 and with 5 for each head?

# %%
from dataclasses import replace

import numpy as np
import plot
import torch

from minilm_inf import LMInfinite, Rotary, load
from minilm_inf.evaluate.methods import Method, answers
from minilm_inf.evaluate.trials import PassKey
from minilm_inf.top_k import bring_back
from minilm_inf.train.practice import Practice


def comes_back(logits: list[float], i: int, n_local: int, n_global: int, k: int) -> set[int]:
    """The specification: the middle keys that query i has back; of a tie, the latest."""
    middle = range(n_global, i - n_local + 1)
    return set(sorted(middle, key=lambda j: (-logits[j], -j))[:k])


# %% [markdown]
# In the loop, a key is in the middle if it is neither a starting token nor in the window; the
# k largest logits win. The package does this for all heads at once, and here, with
# `top_k_queries="all"`, for all queries, so that each can be checked:

# %%
lm = LMInfinite(8, 2, 8, top_k=3, top_k_queries="all")  # top_k_distance: half the window
generator, at = torch.Generator().manual_seed(0), torch.arange(40)
q, k = torch.randn(2, 1, 1, 40, 32, generator=generator, dtype=torch.float64)
chosen, logits = bring_back(q, k, at, at, Rotary(32), lm, 32**-0.5, n_reaching=40)
for i in range(40):
    back = set(chosen[0, 0, i].nonzero().flatten().tolist())
    assert back == comes_back(logits[0, 0, i].tolist(), i, 8, 2, 3)

# %% [markdown]
# Now the tiny Llama, which has learned to answer such questions within its 256 tokens. A trial
# is a text of an exact length with the number at an exact depth; greedy decoding must write all
# five digits. (The text calls the number a pass key.)

# %%
model, tokenizer = load(plot.ROOT / "weights" / "tiny-llama")
text = (plot.HERE / "text.txt").read_text(encoding="utf-8")
maker = PassKey(Practice(tokenizer, np.array(tokenizer.encode(text, bos=False))), tokenizer)
example = maker.trial(60, 0.5, [5])
print(tokenizer.decode(example.ids))

lengths, depths, trials = (256, 512, 1024, 2048), (0.1, 0.3, 0.5, 0.7, 0.9), 3
plain = LMInfinite.for_model(model.config, n_global=10)


def found(lm: LMInfinite, length: int, depth: float) -> float:
    """The share of numbers that are found."""
    rows = [maker.trial(length, depth, [length, seed]).ids for seed in range(trials)]
    right = answers(model, Method("", lm), torch.tensor(rows), maker.width)
    return sum(n == maker.width for n in right) / trials


# %% [markdown]
# **Claim.** Without the middle, a number is found only where it stands in the window. With it,
# all are found again, in a text eight times as long as any in the training, 3 trials a cell.
# For this model a single middle key for each head is enough.

# %%
share = {
    k: [[found(replace(plain, top_k=k), n, depth) for n in lengths] for depth in depths]
    for k in (0, 1, 5)
}
table = {k: torch.tensor(rows) for k, rows in share.items()}
hidden = table[0][:, 1:][:3]  # beyond 256 tokens, at depths up to a half: never in the window
for k in share:
    some = 100 * table[k][:3, 1:].mean()
    print(f"k = {k}: {100 * table[k].mean():.0f}% of all, {some:.0f}% of the hidden numbers")
assert hidden.max() == 0 and table[0][:, 0].mean() > 0.9
assert table[1].mean() > 0.95 and table[5].mean() > 0.95

# %%
drawing, panels = plot.figure(3)
for (k, rows), axes in zip(share.items(), panels):
    axes.imshow(rows, vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            ink = "white" if value > 0.6 else plot.INK
            axes.text(x, y, f"{100 * value:.0f}%", ha="center", va="center", color=ink)
    plot.grid(axes, len(depths), len(lengths))
    axes.set(
        title=f"numbers found, top_k = {k}", xlabel="tokens", xticks=range(4), yticks=range(5)
    )
    axes.set(xticklabels=lengths, yticklabels=depths)
panels[0].set_ylabel("depth of the number")
plot.show(drawing, "Numbers found, by length and depth: no middle key, one and five per head")

# %% [markdown]
# The panels for 1 and 5 are the same. A task at which they differ is in exercise 2.
#
# Reaching back is not free for what was in sight: keys that come back take attention from the
# window's. With 5 of them tiny-gptj writes 80.8% of the numbers that stand in its window, and
# 97.4% without ([retrieval.md](../weights/retrieval.md); its n_global is 24, so that a number
# has room among the starting tokens, where the default is 10).
#
# What it costs: the whole past must be kept, its keys not turned, and scored by every token
# that reaches back. With `top_k` memory is not constant. The paper finds a gain too, of
# Llama-2-7B with k = 5 (a number in 16,000 tokens: 79%, against 27% for the last 4,000 tokens
# alone); there k = 1 finds fewer.
#
# **Where this lives.** [top_k.py](../minilm_inf/top_k.py) is the definition,
# [middle.py](../minilm_inf/fast/middle.py) asks in float32 first;
# `python -m minilm_inf.evaluate passkey` is the whole experiment.
#
# ## Exercises
#
# 1. Which middle keys do come back? At the last query of a trial of 512 tokens, count in how
#    many heads and layers one of the number's five digits is among them (`recording` of lesson
#    04 shows q and k).
# 2. Is more better? Hide six digits (`PassKey(practice, tokenizer, digits=6)`), which the model
#    has not practised, in 512 tokens, and compare k = 1 with k = 5. Does the distance at which
#    middle keys seem, 128, matter too? Try 16, 64 and 255 with five digits.
#
# Answers: [solutions/09_reaching_back.py](solutions/09_reaching_back.py).

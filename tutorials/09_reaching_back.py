# %% [markdown]
# # 09 · Reaching back
#
# **Question.** The middle of a long text is not seen. Can a query get back what it needs?
#
# This is LM-Infinite's third, optional part (paper, section 3.3): each head scores *all* middle
# keys, as if they stood at one fixed distance, and its `top_k` best join the softmax at that
# distance. Where they really stand plays no part, so no distance is ever new. By default only
# the last token of the prompt and each generated token reach back, in the layers from
# `top_k_from_layer` on (here, in all).
#
# **Predict.** A number of five digits is hidden in a text and asked for at its end. The model
# was trained on 256 tokens, the text has up to 2,048. How often is the number found with no
# middle key, and with one for each head? And what if it has six digits?

# %%
from dataclasses import replace

import numpy as np
import plot
import torch

from minilm_inf import LMInfinite, Rotary, load
from minilm_inf.evaluate.retrieval import share_found
from minilm_inf.evaluate.trials import PassKey
from minilm_inf.top_k import bring_back
from minilm_inf.train.practice import Practice


def comes_back(logits: list[float], i: int, n_local: int, n_global: int, k: int) -> set[int]:
    """The specification: the middle keys that query i has back; of a tie, the latest."""
    middle = range(n_global, i - n_local + 1)
    return set(sorted(middle, key=lambda j: (-logits[j], -j))[:k])


# %% [markdown]
# In this specification, a key is in the middle if it is neither a starting token nor in the
# window; the k largest logits win. The package does this for all heads at once, and here, with
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
# is a text of a given length with the number at a given depth; greedy decoding must write all
# five digits. (The text calls the number a pass key.)

# %%
model, tokenizer = load(plot.ROOT / "weights" / "tiny-llama")
text = (plot.HERE / "text.txt").read_text(encoding="utf-8")
practice = Practice(tokenizer, np.array(tokenizer.encode(text, bos=False)))
maker, longer = PassKey(practice, tokenizer), PassKey(practice, tokenizer, digits=6)
print(tokenizer.decode(maker.trial(60, 0.5, [5]).ids))

# %% [markdown]
# **Claim.** Without the middle, a number is found only where it stands in the window. With a
# single middle key for each head all are found, in texts up to eight times as long as any in
# training (3 trials a cell). More keys can do harm: a number of six digits, which the model has
# not practised, is found more often with 1 than with 5.

# %%
plain, lengths = LMInfinite.for_model(model.config, n_global=10), (256, 512, 1024, 2048)
depths, table = (0.1, 0.3, 0.5, 0.7, 0.9), {}
for k in (0, 1):
    lm = replace(plain, top_k=k)
    rows = [[share_found(model, lm, maker, n, depth, 3) for n in lengths] for depth in depths]
    table[k] = torch.tensor(rows)
    some = table[k][:3, 1:].mean()  # beyond 256 tokens, up to a half: never in the window
    print(
        f"k = {k}: {100 * table[k].mean():.0f}% of all, {100 * some:.0f}% of the hidden numbers"
    )
six = {
    k: share_found(model, replace(plain, top_k=k), longer, 512, 0.2, 24) for k in (0, 1, 2, 5)
}
print("six digits:", {k: f"{100 * share:.0f}%" for k, share in six.items()})
assert table[0][:3, 1:].max() == 0 and table[0][:, 0].mean() > 0.9 and table[1].mean() > 0.95
assert six[0] == 0 and six[1] > six[5] + 0.1

# %%
drawing, (*panels, bars) = plot.figure(3, width_ratios=(1.1, 1.1, 1))
for axes, (k, shares) in zip(panels, table.items()):
    plot.shares(axes, shares.tolist(), depths, lengths)
    axes.set(title=f"Five digits, top_k = {k}", xlabel="tokens")
panels[0].set_ylabel("share of the text before the number")
percent, colour = [100 * share for share in six.values()], plot.COLOURS["LM-Infinite + top-k"]
found = bars.bar(list(map(str, six)), percent, color=colour)
bars.bar_label(found, fmt="%.0f%%")
bars.set(
    title="Six digits, 512 tokens", xlabel="top_k", ylabel="numbers found, %", ylim=(0, 100)
)
plot.show(drawing, "One middle key a head finds the number again; more are not better")

# %% [markdown]
# **The words matter.** So far numbers and questions were worded as in training, where these
# models learned to copy an answer. Now the number is in sight, in texts of 256 tokens, but it
# is stated and asked for in other words:

# %%
wordings = {
    "as in training": (PassKey.states, PassKey.asks),
    "not asked": (["The pass key is {}."], "The pass key is {}"),
    "a password": (["The password is {}."], "What is the password? The password is {}"),
    "a code": (["The secret code is {}."], "What is the secret code? The secret code is {}"),
    "was": (["The pass key is {}."], "What was the pass key? It was {}"),
}
for name in ("tiny-llama", "tiny-mpt"):
    model, tokenizer = load(plot.ROOT / "weights" / name)
    practice = Practice(tokenizer, np.array(tokenizer.encode(text, bos=False)))
    maker, right = PassKey(practice, tokenizer), {}
    for wording, (maker.states, maker.asks) in wordings.items():
        right[wording] = share_found(model, None, maker, 256, 0.5, 40)
    print(f"{name:10} ", ", ".join(f"{words} {100 * x:.0f}%" for words, x in right.items()))
    assert right["as in training"] > 0.9 > 0.5 > right["was"]

# %% [markdown]
# So a number that is not found may well have been seen, and the question not understood: a
# token that comes back helps no more than it would in sight.
#
# Reaching back has a price for what is in sight: keys that come back take attention from the
# window. With 5 of them tiny-gptj finds 80.8% of the numbers that stand in its window, without
# them 97.4% ([retrieval.md](../weights/retrieval.md), made with n_global 24, so that a number
# fits among the starting tokens; with the default, 10, it does not, and is not found there).
#
# What it costs: the whole past must be kept, with its keys not turned, and every token that
# reaches back scores all of it. With `top_k`, memory is not constant. The paper finds a gain
# too, for Llama-2-7B with k = 5 (a number in 16,000 tokens: 79%, against 27% for the last 4,000
# tokens alone); there k = 1 finds fewer.
#
# **Where this lives.** [top_k.py](../minilm_inf/top_k.py) is the definition,
# [middle.py](../minilm_inf/fast/middle.py) asks in float32 first;
# `python -m minilm_inf.evaluate passkey` is the whole experiment.
#
# ## Exercises
#
# 1. Which middle keys come back? At the last query of a trial of 512 tokens, count in how many
#    heads and layers one of the number's five digits is among them (`recording`, in the module
#    that lesson 04 uses, shows q and k).
# 2. Does it matter that middle keys seem to be at distance 128? Try 16, 64 and 255. And which
#    layers must reach back? Try `top_k_from_layer` 1, 2 and 3.
#
# Answers: [solutions/09_reaching_back.py](solutions/09_reaching_back.py).

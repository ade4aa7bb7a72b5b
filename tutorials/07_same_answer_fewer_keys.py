# %% [markdown]
# # 07 · Same answer, fewer keys
#
# **Question.** The definition compares every query with every key, and then hides most of the
# result. Can we get the same numbers without computing what is hidden?
#
# `attend` is the definition, O(n²). `chunked_attend` cuts the queries into blocks: a block sees
# a band (its own keys and the n_local - 1 before them) and the starting tokens. Their logits
# stand side by side under one softmax, as in the definition. A key that is left out would have
# had a weight of exactly 0.
#
# **Predict.** With a window of 256 and 4 starting tokens, how does the work for 4,096 tokens
# compare between the two? And what happens to each when the text doubles?

# %%
from functools import partial

import plot
import torch

from minilm_inf import LMInfinite, Rotary, attend, chunked_attend
from minilm_inf.benchmark.race import extra_bytes, work
from minilm_inf.lambda_mask import lambda_mask

block, columns = torch.arange(24, 32), torch.arange(32)  # 8 queries, and all keys up to theirs
mask = lambda_mask(block, columns, LMInfinite(n_local=8, n_global=2))
assert mask.any(0).nonzero().flatten().tolist() == [0, 1, *range(24 - 7, 32)]

# %% [markdown]
# **Claim.** First of all, the answer is the same, also for texts of about one window, or two or
# four, where a kernel that is off by one at the end of a block gives itself away.

# %%
scheme, H, D = Rotary(32), 2, 32


def vectors(n: int, dtype=torch.float32):
    """q, k, v and positions for n random tokens, as attend takes them."""
    generator = torch.Generator().manual_seed(n)
    q, k, v = torch.randn(3, 1, H, n, D, generator=generator, dtype=dtype)
    return q, k, v, torch.arange(n), torch.arange(n)


lm, sizes = LMInfinite(64, 4, 64), (1, 63, 64, 65, 66, 127, 128, 129, 200, 257)
calls = [(*vectors(n, torch.float64), scheme, lm) for n in sizes]
worst = max(float((attend(*call) - chunked_attend(*call)).abs().max()) for call in calls)
print(f"largest difference in float64: {worst:.0e}")
assert worst < 1e-10

# %% [markdown]
# One softmax is not the only way. A kernel that gets the keys in parts can join its answers
# afterwards: attention over all keys is a weighted average of the attention over each part,
# with the softmax of the parts' log-sum-exps as weights.

# %%
logits, values = torch.randn(10, dtype=torch.float64), torch.randn(10, dtype=torch.float64)
parts = ((logits[:4], values[:4]), (logits[4:], values[4:]))
answers = torch.stack([x.softmax(0) @ v for x, v in parts])
weights = torch.stack([x.logsumexp(0) for x, _ in parts]).softmax(0)
assert torch.allclose(weights @ answers, logits.softmax(0) @ values)

# %% [markdown]
# Then the cost. Seconds depend on the machine; the products that a call computes, and the
# memory that it takes at its peak, beyond its inputs and its output, do not. Work is given in
# keys for each query, with two products to a key: one for its logit, one with its value.


# %%
def cost(function, n: int) -> tuple[float, int]:
    """Keys that are computed for each query, and bytes at the peak."""
    call = (*vectors(n), scheme, LMInfinite(256, 4, 256))  # made before the measurement begins
    run = partial(function, *call)
    return work(run) / (4 * H * D * n), extra_bytes(run, "cpu")


lengths = {attend: [2**e for e in range(9, 13)], chunked_attend: [2**e for e in range(9, 17)]}
costs = {function: [cost(function, n) for n in lengths[function]] for function in lengths}
for f, found in costs.items():
    table = [f"{keys:5,.0f} keys, {size:11,} bytes" for keys, size in found[2:4]]
    print(f"{f.__name__:14}  2,048 tokens: {table[0]}   4,096: {table[1]}")
(keys, size), (few, small) = costs[attend][3], costs[chunked_attend][3]
print(f"at 4,096 tokens {keys / few:.0f} times less work, {size / small:.0f} times less memory")
assert keys == 1.5 * 4096 and few < 360 and size > 3.9 * costs[attend][2][1] > 40 * small
assert costs[chunked_attend][-1][1] == small  # no more for 65,536 tokens than for 4,096

# %% [markdown]
# That is more than 4,096 / 260 = 16: the definition computes all logits twice, at true
# distances and at the ceiling, which with the product with the values makes 1.5 · 4,096 = 6,144
# keys for each query; a block computes 325, since it takes its queries' keys together. When the
# text doubles, work and memory of the definition grow fourfold. The work of the chunked path
# doubles, since the cost of each query stays the same, and so does its memory from 4,096 tokens
# on.

# %%
drawing, (seen, *panels) = plot.figure(3, width_ratios=(1.2, 1, 1))
past = columns <= block[:, None]  # the future stays white
plot.cells(seen, mask * torch.where(columns < 2, plot.START, plot.WINDOW) + (past & ~mask))
for edge in (1.5, 16.5):
    seen.axvline(edge, color=plot.INK, linestyle=":")
seen.set(title="A block of 8 queries: its keys", ylabel="query", aspect="auto")
seen.set_xticks([0.5, 9, 24], ["0, 1", "left out", "17 to 31: its band"])
seen.set_yticks([0, 7], [24, 31])
for part, title in enumerate(("Keys computed for each query", "Extra memory, MB")):
    for f, role in ((attend, "other"), (chunked_attend, "LM-Infinite")):
        y = [found[part] / (1, 1e6)[part] for found in costs[f]]
        plot.line(panels[part], lengths[f], y, role, f.__name__, marker="o", markersize=5)
    panels[part].set(title=title, xlabel="tokens n", xscale="log", yscale="log")
    panels[part].set_xticks([1000, 10_000], ["1,000", "10,000"])
panels[0].set_yticks([300, 1000, 3000], ["300", "1,000", "3,000"])
panels[1].set_yticks([1, 10, 100], ["1", "10", "100"])
panels[0].minorticks_off(), panels[1].minorticks_off()
plot.show(drawing, "The work for each token, and the memory, stop growing with the text")

# %% [markdown]
# For seconds, beside PyTorch's own kernels: `python -m minilm_inf.benchmark --quick`, or the
# table in the README.
#
# **Where this lives.** [chunked.py](../minilm_inf/fast/chunked.py), on
# [band.py](../minilm_inf/fast/band.py), and [chunk.py](../minilm_inf/fast/chunk.py) for
# whatever is no band; the definition is [attention.py](../minilm_inf/attention.py).
#
# ## Exercises
#
# 1. Does chunking need the Λ? Compare the two paths for vanilla, a sliding window, and the
#    ceiling without Λ. Where does chunking still save work?
# 2. Put NaN into all keys and values that the last query of a text does not see, and compute
#    that query alone. What do both paths return, and why is that a good test?
#
# Answers: [solutions/07_same_answer_fewer_keys.py](solutions/07_same_answer_fewer_keys.py).

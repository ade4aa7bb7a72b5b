# %% [markdown]
# # 12 · A kernel of your own
#
# **Question.** How does one write the whole of LM-Infinite's attention as a single kernel for a
# GPU, and how far does one get without having a GPU?
#
# A GPU runs thousands of *programs* at once. Each takes a few consecutive queries of one head
# past their keys, a *tile* at a time, and keeps three things of what it saw: the highest logit,
# the sum of the weights, and the weighted sum of the values. That is an *online softmax*:
# whenever a higher logit comes, both sums are scaled down to match, and the result is exact.
# [Triton](https://triton-lang.org) lets you write such programs in Python, and interprets them
# on any machine (`pip install triton==3.7.1`). Without it this lesson runs too, but checks
# nothing.
#
# **Predict.** A text has 160 tokens and a window of 48; queries and keys come in tiles of 16.
# How many of the 55 tiles on or below the diagonal does LM-Infinite visit?

# %%
import os

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
import plot
import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None
from minilm_inf.conformance import check

TILE = 16

# %% [markdown]
# ## One leg of the Λ
#
# `see` takes one tile of keys into the online softmax, and `program` is one program: it walks
# through the window of its queries, and then through the starting keys, which is all that
# LM-Infinite adds. The window's keys are placed and meet placed queries; the starting keys stay
# unplaced and meet queries placed at the ceiling C, so each of them seems exactly C away.

# %%
if triton:

    @triton.jit
    def see(state, q, keys, values, first, d_first, lowest, beyond, D: tl.constexpr):
        top, total, gathered = state
        row, column = tl.arange(0, 16), first + tl.arange(0, 16)
        place = column[:, None] * D + tl.arange(0, D)[None, :]
        there = ((column >= 0) & (column < beyond))[:, None]
        k = tl.load(keys + place, mask=there, other=0.0)
        v = tl.load(values + place, mask=there, other=0.0)
        d = d_first + row[:, None] - tl.arange(0, 16)[None, :]
        seen = (d >= lowest[0]) & (d < lowest[1]) & (column >= 0) & (column < beyond)
        logits = tl.where(seen, tl.dot(q, tl.trans(k)) * D**-0.5, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights, shrunk = tl.exp(logits - base[:, None]), tl.exp(top - base)
        total = total * shrunk + tl.sum(weights, 1)
        return higher, total, gathered * shrunk[:, None] + tl.dot(weights, v)

    @triton.jit
    def program(q, q_at_c, k, k_starting, v, out, n, G, L, D: tl.constexpr, H: tl.constexpr,
                GROUP: tl.constexpr):  # fmt: skip
        own, head = tl.program_id(0) * 16, tl.program_id(1)
        rows = own + tl.arange(0, 16)
        place = (head * n + rows)[:, None] * D + tl.arange(0, D)[None, :]
        there = (rows < n)[:, None]
        text = (head // GROUP) * n * D
        state = (tl.full([16], float("-inf"), tl.float32), tl.zeros([16], tl.float32),
                 tl.zeros([16, D], tl.float32))  # fmt: skip
        placed = tl.load(q + place, mask=there, other=0.0)
        for first in range(own - (L + 14) // 16 * 16, own + 1, 16):
            state = see(state, placed, k + text, v + text, first, own - first, (0, L), n, D)
        at_c = tl.load(q_at_c + place, mask=there, other=0.0)
        for first in range(0, G, 16):
            far = (L, n)
            state = see(state, at_c, k_starting + text, v + text, first, own - first, far, G, D)
        gathered = state[2] / tl.where(state[1] == 0, 1.0, state[1])[:, None]
        tl.store(out + place, gathered, mask=there)


# %% [markdown]
# The launcher places the vectors, and refuses what the kernel cannot do. `n_starting` is for
# this lesson: the first version leaves out the second leg.


# %%
def kernel(q, k, v, i, j, scheme, lm, n_starting=None):
    whole = j.dim() == 1 and torch.equal(i, j) and int(j[0]) == 0 and lm.n_local is not None
    C, (B, H, n, D) = lm.distance_ceiling, q.shape
    beyond_reach = C is not None and n <= C
    if not whole or scheme.has_bias or D & (D - 1) or not (beyond_reach or lm.n_local == C):
        raise NotImplementedError
    G = min(n, lm.n_global) if n_starting is None else n_starting
    place = scheme.at(i, q.dtype)
    at_c, starting = (q, k) if not beyond_reach else (place(q), place(k))
    if not beyond_reach:
        at_c = scheme.place(q, torch.full_like(i, C))
    vectors, out = [x.contiguous() for x in (place(q), at_c, place(k), starting, v)], q.clone()
    grid, group = ((n + TILE - 1) // TILE, B * H), H // k.shape[1]
    launch = program[grid]
    launch(*vectors, out, n, G, lm.n_local, D, H, group)
    return out


def one_leg(*call):
    return kernel(*call, n_starting=0)


def first_found(kernel) -> str:
    report = check(kernel, skip=["blocks"]) if triton else {}
    print(report if triton else "Triton is not installed: nothing is asked")
    return next(iter(report), "nothing")


names = [first_found(one_leg), first_found(kernel)]
assert names == (["starting", "nothing"] if triton else ["nothing"] * 2)

# %% [markdown]
# **Claim.** With one leg `check` misses the starting tokens; with both it finds nothing wrong,
# and lists what is not done: padded rows, fewer queries than keys, ALiBi. So a kernel can be
# known to be right before it ever meets a GPU; only its speed cannot.
#
# That speed comes from the tiles that are never visited:

# %%
n, L, G = 160, 48, 4
tiles = torch.zeros(n // TILE, n // TILE, dtype=torch.long)
for own in range(n // TILE):
    tiles[own, :own] = plot.UNSEEN
    tiles[own, max(0, own - (L + 14) // TILE) : own + 1] = plot.WINDOW
    if (own + 1) * TILE > L:
        tiles[own, 0] = plot.START
visited = int((tiles > plot.UNSEEN).sum())
print(f"{visited} of {int((tiles > 0).sum())} tiles")
assert visited == 40

drawing, axes = plot.figure()
plot.cells(axes, tiles)
axes.set(xlabel="tile of keys", ylabel="tile of queries: a program")
plot.show(drawing, f"A program visits its window and the starting keys: {visited} of 55 tiles")

# %% [markdown]
# In a longer text the share falls: with 16,384 tokens and a window of 2,048 it is a quarter.
#
# **Where this lives.** [fast/triton_band.py](../minilm_inf/fast/triton_band.py) is the same
# kernel, grown up: ALiBi, padding, fewer queries than keys, heads of any size, half precision,
# and no mask in tiles that every query sees whole. `make kernel` puts it through all of
# `check`.
#
# ## Exercises
#
# 1. `kernel` refuses ALiBi. What does it need: a change to `place`, to `see`, or to both?
# 2. How many tiles does a text of 16,384 tokens visit with n_local 2,048 and n_global 10, and
#    how many are on or below the diagonal?
#
# Answers: [solutions/12_a_kernel_of_your_own.py](solutions/12_a_kernel_of_your_own.py).

# %% [markdown]
# # 11 · Test your own kernel
#
# **Question.** You have written attention for another machine, or found someone's. How do you
# hold it to the definition, and learn *what* is wrong with it?
#
# `attend` is slow and plain on purpose: it is what every faster path is compared with. A random
# test says that a kernel is wrong; a few chosen ones say where to look.
#
# **Predict.** Three kernels are wrong: one sees one key too many in its window, one has its
# ceiling at n_local - 1, one rotates its keys twice. At which query position does each first
# give a wrong answer? (A fourth leaves the rows after its last block of 16 unwritten, as NaN.)

# %%
from dataclasses import replace

import plot
import torch

from minilm_inf import LMInfinite, Rotary, attend, chunked_attend

L, G, D = 16, 4, 32
scheme, lm = Rotary(D), LMInfinite(n_local=L, n_global=G, distance_ceiling=L)


def window_off_by_one(*call, lm):
    return chunked_attend(*call, lm=replace(lm, n_local=lm.n_local + 1))


def ceiling_off_by_one(*call, lm):
    return chunked_attend(*call, lm=replace(lm, distance_ceiling=lm.distance_ceiling - 1))


def keys_rotated_twice(q, k, v, i, j, scheme, lm):
    return chunked_attend(q, scheme.place(k, j), v, i, j, scheme, lm)


def last_row_not_written(*call, lm):
    out = chunked_attend(*call, lm=lm)
    out[:, :, 16 * (out.shape[2] // 16) :] = torch.nan  # what comes after the last block of 16
    return out


KERNELS = [chunked_attend, window_off_by_one, ceiling_off_by_one, keys_rotated_twice]
KERNELS += [last_row_not_written]

# %% [markdown]
# An error by query position already tells a lot. float64 keeps rounding, 1e-15, far away from
# mistakes. A kernel in float32 or bfloat16 is given vectors that are rounded already, and the
# definition gets these same vectors in float64:


# %%
def error(kernel, shape, T: int, S: int, lm: LMInfinite, dtype=torch.float64):
    """The largest difference from the definition, for each of the last T of S positions."""
    (B, H, H_kv), generator = shape, torch.Generator().manual_seed(S)
    sizes = ((B, H, T, D), (B, H_kv, S, D), (B, H_kv, S, D))
    q, k, v = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    i, j = torch.arange(S - T, S), torch.arange(S)
    right = attend(q.double(), k.double(), v.double(), i, j, scheme, lm)
    return (kernel(q, k, v, i, j, scheme, lm=lm) - right).abs().amax((0, 1, 3))


# %% [markdown]
# **Claim.** Five questions, asked in this order, narrow a mistake down. Each brings in one kind
# of thing more:
#
# 1. *A text within the window, no starting tokens.* Nothing is hidden and nothing at the
#    ceiling: what is wrong here is the positions, the scale or the softmax.
# 2. *Other shapes.* Two texts, two query heads for each key head, fewer queries than keys, a
#    length that is a multiple of nothing.
# 3. *A text longer than the window.* Only the window's edge is new.
# 4. *With starting tokens, without a ceiling.* The other leg of the Λ is new.
# 5. *With all.* Only the ceiling is new.

# %%
window, ones, twos, n = replace(lm, n_global=0), (1, 2, 2), (2, 4, 2), 3 * L + 1
QUESTIONS = {
    "positions, scale or softmax": (ones, L, L, window),
    "the shapes": (twos, 5, 13, window),
    "the window's edge": (twos, n, n, window),
    "the starting tokens": (twos, n, n, replace(lm, distance_ceiling=n)),
    "the ceiling": (twos, n, n, lm),
}


def named(kernel, tolerance=1e-10, dtype=torch.float64) -> str:
    """Where a kernel is wrong: the first question that it fails."""
    for name, question in QUESTIONS.items():
        if not float(error(kernel, *question, dtype).max()) <= tolerance:  # as NaN is not
            return name
    return "nothing found"


found = {kernel.__name__: named(kernel) for kernel in KERNELS}
print("\n".join(f"{name:20}  {what}" for name, what in found.items()))
wrong = ["the window's edge", "the ceiling", "positions, scale or softmax", "the shapes"]
for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 0.05)):
    assert [named(k, tolerance, dtype) for k in KERNELS] == ["nothing found", *wrong]
    rounding = max(float(error(chunked_attend, *q, dtype).max()) for q in QUESTIONS.values())
    print(f"a right kernel in {str(dtype)[6:]} is off by {rounding:.0e}")
    assert rounding < tolerance / 5

# %% [markdown]
# So in float32 expect errors of about 1e-6, and in bfloat16 of about 1e-2. Question 4 sets the
# ceiling out of reach, not to None, so that a kernel that cannot do without one can be asked as
# well. A kernel that *derives* its ceiling from its window fails question 4, and would pass 5.

# %%
by_row = {kernel.__name__: error(kernel, twos, n, n, lm) for kernel in KERNELS}
first = [(~(rows <= 1e-10)).nonzero().flatten().tolist()[:1] for rows in by_row.values()]
print("wrong from row", dict(zip(by_row, first)))
assert first == [[], [L + G], [L], [1], [3 * L]]

drawing, axes = plot.figure()
shades = [rows.nan_to_num(1.0).clamp(min=1e-17).log10().tolist() for rows in by_row.values()]
axes.imshow(shades, cmap="Greys", vmin=-19, vmax=1, aspect="auto")
plot.grid(axes, len(KERNELS), n)
for y, rows in enumerate(by_row.values()):
    axes.text(n, y, f"{float(rows.max()):.1g}", va="center")
axes.set_yticks(range(len(KERNELS)), by_row)
labels = ("0", "n_local", "\nn_local + n_global", "2 n_local", "3 n_local")
axes.set_xticks([0, L, L + G, 2 * L, 3 * L], labels)
axes.set(xlabel="query position", title="shade: size of the error; at the right, the largest")
plot.show(drawing, "The first row that is wrong tells what is wrong with a kernel")

# %% [markdown]
# The rotation is wrong at row 1, for row 0 sees only itself; the ceiling at row n_local, where
# key 0 stands at n_local and seems nearer. And the window only at row n_local + n_global:
# before it, the key too many is a starting token, which is seen in any case and at the same
# distance. A test of n_local + 1 tokens would have let it pass, and a test of 3 n_local tokens
# the row that is not written.
#
# The questions do not ask about padding (a key at position -1, which nobody sees), about NaN in
# keys that nobody sees (their weight is 0, but 0 · NaN is NaN), about a query that sees no key
# (its answer is 0), about large positions, about texts of many of *your* blocks, about `top_k`.
# Ask these next, by the same comparison: `attend` answers all of them.
#
# **Where this lives.** [attention.py](../minilm_inf/attention.py) is what to compare with. The
# sizes and settings that have broken kernels before are in
# [test_chunked.py](../tests/test_chunked.py).
#
# ## Exercises
#
# 1. Write three kernels: one forgets the scale, one counts a starting token twice while it is
#    still inside the window, one gives query head h the key head h mod H_kv. What do the
#    questions say?
# 2. Random vectors hide small mistakes: with 1,000 keys one key more changes little. Compare
#    the error of `window_off_by_one` for windows of 16 and of 1,024. How large a tolerance
#    would let the second pass?
#
# Answers: [solutions/11_test_your_own_kernel.py](solutions/11_test_your_own_kernel.py).

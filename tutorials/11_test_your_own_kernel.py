# %% [markdown]
# # 11 · Test your own kernel
#
# **Question.** You have written attention for another machine, or found someone's. How do you
# hold it to the definition, and learn *what* is wrong with it?
#
# `attend` is slow and plain on purpose: it is what every faster path is compared with. A random
# test says that a kernel is wrong; a few chosen ones say where.
#
# **Predict.** Three kernels are wrong: one sees one key too many in its window, one has its
# ceiling at n_local - 1, one rotates its keys twice. At which query position does each first
# give a wrong answer?

# %%
from dataclasses import replace

import plot
import torch

from minilm_inf import LMInfinite, Rotary, attend, chunked_attend

L, G, D = 16, 4, 32
scheme, lm = Rotary(D), LMInfinite(n_local=L, n_global=G, distance_ceiling=L)


def window_off_by_one(q, k, v, i, j, scheme, lm):
    return chunked_attend(q, k, v, i, j, scheme, replace(lm, n_local=lm.n_local + 1))


def ceiling_off_by_one(q, k, v, i, j, scheme, lm):
    low = replace(lm, distance_ceiling=lm.distance_ceiling - 1)
    return chunked_attend(q, k, v, i, j, scheme, low)


def keys_rotated_twice(q, k, v, i, j, scheme, lm):
    return chunked_attend(q, scheme.place(k, j), v, i, j, scheme, lm)


KERNELS = [chunked_attend, window_off_by_one, ceiling_off_by_one, keys_rotated_twice]

# %% [markdown]
# An error by query position already tells a lot. float64 keeps rounding, 1e-15, far away from
# mistakes:


# %%
def error(kernel, n: int, lm: LMInfinite) -> torch.Tensor:
    """The largest difference from the definition by query position, (n,)."""
    generator = torch.Generator().manual_seed(n)
    q, k, v = torch.randn(3, 1, 2, n, D, generator=generator, dtype=torch.float64)
    call = (q, k, v, torch.arange(n), torch.arange(n), scheme, lm)
    return (kernel(*call) - attend(*call)).abs().amax((0, 1, 3))


# %% [markdown]
# **Claim.** Four questions, asked in this order, name each mistake. Each changes one thing more
# than the one before it:
#
# 1. *A text within the window.* Nothing is hidden and nothing at the ceiling: what is wrong
#    here is the positions, the scale or the softmax.
# 2. *A longer text without starting tokens.* Only the window's edge is new.
# 3. *With starting tokens, without a ceiling.* The other leg of the Λ is new.
# 4. *With all.* Only the ceiling is new.

# %%
QUESTIONS = {
    "positions": (L, lm),
    "the window's edge": (3 * L, replace(lm, n_global=0)),
    "the starting tokens": (3 * L, replace(lm, distance_ceiling=3 * L)),
    "the ceiling": (3 * L, lm),
}


def named(kernel) -> str:
    """What is wrong with a kernel: the first question that it fails."""
    for name, (n, setting) in QUESTIONS.items():
        if float(error(kernel, n, setting).max()) > 1e-10:
            return name
    return "nothing"


found = {kernel.__name__: named(kernel) for kernel in KERNELS}
for name, what in found.items():
    print(f"{name:20} {what}")
wrong = ["nothing", "the window's edge", "the ceiling", "positions"]
assert list(found.values()) == wrong

# %% [markdown]
# Question 3 sets the ceiling out of reach, not to None, so that a kernel that cannot do without
# a ceiling can be asked as well. A kernel whose ceiling is *derived* from its window will give
# a wrong answer to it: then read question 3 and 4 together.

# %%
first = {}
drawing, axes = plot.figure()
roles = ("window", "start", "ceiling", "vanilla")
for place, (kernel, role) in enumerate(zip(KERNELS, roles)):
    by_row = error(kernel, 3 * L, lm)
    bad = (by_row > 1e-10).nonzero().flatten()
    first[kernel.__name__] = int(bad[0]) if len(bad) else None
    y = by_row.clamp(min=1e-17)
    plot.line(axes, range(3 * L), y, role, kernel.__name__, marker="osD^"[place], markersize=5)
plot_at = [("n_local", L), ("2 n_local", 2 * L)]
axes.set_xticks([0, *(x for _, x in plot_at)], ["0", *(name for name, _ in plot_at)])
axes.set(yscale="log", xlabel="query position", title="difference from the definition")
axes.legend(loc="center right")
plot.show(drawing, "The error by query position of a right kernel and of three wrong ones")
print(first)
assert first["window_off_by_one"] == L + G and first["ceiling_off_by_one"] == L
assert first["keys_rotated_twice"] == 1 and first["chunked_attend"] is None

# %% [markdown]
# The rotation is wrong at row 1, for row 0 sees only itself; the ceiling at row n_local, where
# key 0 stands at n_local and seems nearer. And the window only at row n_local + n_global:
# before it, the key too many is a starting token, which is seen in any case and at the same
# distance.
# A test of n_local + 1 tokens would have let it pass.
#
# **Where this lives.** [attention.py](../minilm_inf/attention.py) is what to compare with. The
# sizes and settings that have broken kernels before are in
# [test_chunked.py](../tests/test_chunked.py).
#
# ## Exercises
#
# 1. Write a kernel that forgets the scale, and one that counts a starting token twice while it
#    is still inside the window. What do the questions say?
# 2. Random vectors hide small mistakes: with 1,000 keys one key more changes little. Compare
#    the error of `window_off_by_one` for windows of 16 and of 1,024. How large a tolerance
#    would let the second pass?

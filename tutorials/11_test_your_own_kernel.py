# %% [markdown]
# # 11 · Test your own kernel
#
# **Question.** You have written attention for another machine, or found someone else's. How do
# you hold it to the definition, and learn *what* is wrong with it?
#
# `attend` is slow and plain on purpose: it is what every faster path is compared with. A random
# test says that a kernel is wrong; a few chosen ones say where to look.
#
# **Predict.** Three kernels are wrong: one sees one key too many in its window, one has its
# ceiling at n_local - 1, one rotates its keys twice. At which query position does each first
# give a wrong answer? (A fourth leaves the rows after its last full block of 16 unwritten, as
# NaN.)

# %%
from dataclasses import replace

import plot
import torch

from minilm_inf import LMInfinite, Rotary, attend, chunked_attend
from minilm_inf.conformance import check

L, G, D = 16, 4, 32
scheme, lm = Rotary(D), LMInfinite(n_local=L, n_global=G, distance_ceiling=L)


def window_off_by_one(*call):
    *others, lm = call
    return chunked_attend(*others, replace(lm, n_local=lm.n_local and lm.n_local + 1))


def ceiling_off_by_one(*call):
    *others, lm = call
    lower = lm.distance_ceiling and lm.distance_ceiling - 1
    return chunked_attend(*others, replace(lm, distance_ceiling=lower))


def keys_rotated_twice(q, k, v, i, j, scheme, lm):
    return chunked_attend(q, scheme.place(k, j), v, i, j, scheme, lm)


def last_row_not_written(*call):
    out = chunked_attend(*call)
    out[:, :, 16 * (out.shape[2] // 16) :] = torch.nan  # what comes after the last block of 16
    return out


KERNELS = [chunked_attend, window_off_by_one, ceiling_off_by_one, keys_rotated_twice]
KERNELS += [last_row_not_written]

# %% [markdown]
# `check` calls a kernel as `attend` is called, and compares. Each of its questions adds one
# thing to those before it, so the first that fails names the mistake:

# %%
print(check(ceiling_off_by_one))

# %% [markdown]
# **Claim.** The first name is the mistake's own. What follows is often the same mistake again:
# a kernel with a wrong ceiling has it wrong in padded texts, too.

# %%
found = {kernel.__name__: check(kernel) for kernel in KERNELS}
names = [next(iter(report), "nothing found") for report in found.values()]
for name, first in zip(found, names):
    print(f"{name:20}  {first}")
assert names == ["nothing found", "window", "ceiling", "positions", "shapes"]

# %% [markdown]
# A kernel in float32 or bfloat16 gets vectors that are rounded already, and the definition gets
# the same vectors in float64. What remains is the kernel's own rounding. Each type has a
# tolerance that a right kernel stays well below, and no planted mistake does:

# %%
for dtype in (torch.float64, torch.float32, torch.bfloat16):
    for kernel, name in zip(KERNELS, names):
        assert next(iter(check(kernel, dtype, skip=["blocks"])), "nothing found") == name


def error(kernel, n: int, dtype=torch.float64):
    """The largest difference from the definition at each position of a text of n tokens."""
    sizes, generator = ((2, 4, n, D), (2, 2, n, D), (2, 2, n, D)), torch.Generator()
    generator.manual_seed(n)
    q, k, v = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    i = torch.arange(n)
    right = attend(q.double(), k.double(), v.double(), i, i, scheme, lm)
    return (kernel(q, k, v, i, i, scheme, lm) - right).abs().amax((0, 1, 3))


n = 3 * L + 1
for dtype in (torch.float64, torch.float32, torch.bfloat16):
    rounding = float(error(chunked_attend, n, dtype).max())
    print(f"a right kernel in {str(dtype)[6:]} is off by {rounding:.0e}")

# %% [markdown]
# Where a row first goes wrong tells a lot as well:

# %%
by_row = {kernel.__name__: error(kernel, n) for kernel in KERNELS}
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
# The rotation is wrong at row 1, as row 0 sees only itself; the ceiling at row n_local, where
# key 0 is n_local away and seems nearer. The window is wrong only at row n_local + n_global:
# before that, the extra key is a starting token, which is seen anyway and at the same distance.
# A test of n_local + 1 tokens would have missed it, and a test of 3 n_local tokens would have
# missed the row that is not written.
#
# A kernel of your own need not be complete to be checked. A call that it answers with
# NotImplementedError is listed as not done; `placed=True` is for one that takes q and k already
# rotated, and knows no ceiling; `backward=True` asks for gradients, `top_k=True` for the middle
# keys that come back. And without a line of Python:
#
#     python -m minilm_inf.conformance my_module:my_kernel --dtype bfloat16 --device cuda
#
# **Where this lives.** [attention.py](../minilm_inf/attention.py) is what to compare with,
# [conformance/questions.py](../minilm_inf/conformance/questions.py) what is asked, at sizes
# where other implementations failed.
#
# ## Exercises
#
# 1. Write three kernels: one forgets the scale, one counts a starting token twice while it is
#    still inside the window, one gives query head h the key head h mod H_kv. What does
#    `check` say?
# 2. Random vectors hide small mistakes: among 1,000 keys, one more changes little. Compare the
#    error of `window_off_by_one` for windows of 16 and of 1,024. How large a tolerance would
#    let the second pass?
#
# Answers: [solutions/11_test_your_own_kernel.py](solutions/11_test_your_own_kernel.py).

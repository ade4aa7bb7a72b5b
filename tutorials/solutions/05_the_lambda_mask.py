# %% [markdown]
# # Solutions to lesson 05, the Λ-mask
#
# **1.** In one layer a query gathers from tokens up to n_local - 1 back. In the next these hold
# what they gathered themselves, n_local - 1 further back: after N layers the reach is
# N (n_local - 1), here 4 * 255 = 1,020 tokens. (The starting tokens add nothing for a token in
# the middle: they see only starting tokens.) In the drawing, # is one layer, + two.

# %% 1. Two layers: a path through any token between
import here  # noqa: F401
import torch

from minilm_inf import LMInfinite
from minilm_inf.lambda_mask import lambda_mask

positions = torch.arange(24)
one = lambda_mask(positions, positions, LMInfinite(n_local=8, n_global=0)).long()
two = (one @ one) > 0
for near, far in zip(one.tolist(), two.tolist()):
    print("".join("#" if a else "+" if b else "." for a, b in zip(near, far)))
d = positions[:, None] - positions
assert torch.equal(two, (d >= 0) & (d <= 2 * (8 - 1)))

# %% [markdown]
# **2.** Vanilla, the query at position i sees i + 1 keys: n (n + 1) / 2 in all. With
# the Λ it sees M = n_local + n_global = 266 from position M - 1 on, and i + 1 before: in all
# n M - M (M - 1) / 2 keys for n >= M. That is less than a tenth of the vanilla number where
# n^2 - (20 M - 1) n + 10 M (M - 1) > 0, above the larger root of this: from n = 5,183 on.

# %% 2. Keys in all, by the formulas and by counting
lm = LMInfinite(n_local=256, n_global=10)
M = lm.most_visible


def vanilla(n: int) -> int:
    return n * (n + 1) // 2


def limited(n: int) -> int:
    return n * M - M * (M - 1) // 2


for n in (266, 300, 2048):
    assert limited(n) == sum(lm.visible(i + 1) for i in range(n))
b, c = 20 * M - 1, 10 * M * (M - 1)
first = int((b + (b * b - 4 * c) ** 0.5) / 2) + 1
print(f"from {first:,} tokens on the Λ needs less than a tenth of the keys")
assert limited(first) * 10 < vanilla(first) and limited(first - 1) * 10 >= vanilla(first - 1)
assert first == 5183

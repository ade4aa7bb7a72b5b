# %% [markdown]
# # Solutions to lesson 05, the Λ-mask

# %% 1. The reach of N layers is N(n_local - 1): here 4 * 255 = 1,020 tokens
import here  # noqa: F401
import torch

from minilm_inf import LMInfinite
from minilm_inf.lambda_mask import lambda_mask

positions = torch.arange(40)
one = lambda_mask(positions, positions, LMInfinite(n_local=8, n_global=0)).long()
two = (one @ one) > 0  # a path through any token between
d = positions[:, None] - positions
assert torch.equal(two, (d >= 0) & (d <= 2 * (8 - 1)))
assert 4 * (256 - 1) == 1020

# %% 2. Keys in all
lm = LMInfinite(n_local=256, n_global=10)


def keys(n: int, lm) -> int:
    """What all queries of a text of n tokens see together."""
    return sum(lm.visible(i + 1) if lm else i + 1 for i in range(n))


n = 256
while keys(n, lm) >= keys(n, None) / 10:
    n += 1
print(f"from {n:,} tokens on the Λ needs less than a tenth of the keys")
assert keys(n - 1, lm) * 10 >= (n - 1) * n / 2 and n == 5183

# %% [markdown]
# # Solutions to lesson 01, how a query feels distance
#
# **1.** The fastest pair turns once in 6.3 tokens, the slowest in 35,333: in 256 tokens a model
# has seen 0.7% of that circle. The rest is new to it.

# %% 1. How long a turn takes
import math

import here  # noqa: F401
import torch

from minilm_inf import Rotary

wavelengths = 2 * math.pi / Rotary(32).frequencies
print(f"one turn takes from {wavelengths[0]:.1f} to {wavelengths[-1]:,.0f} tokens")
seen = 256 / float(wavelengths[-1])
print(f"in 256 tokens the slowest pair turns by {100 * seen:.1f}% of its circle")
assert 6 < wavelengths[0] < 7 and 35_000 < wavelengths[-1] < 36_000 and seen < 0.01

# %% [markdown]
# **2.** What the 24 contribute does not vary at all, since they are never turned; the 8 vary.

# %% 2. Coordinates that pass through
scheme, distances = Rotary(8, layout="pairs"), torch.arange(300)
q, k = torch.randn(2, 1, 1, 1, 32, dtype=torch.float64)
placed_q = scheme.place(q.expand(1, 1, 300, 32), distances)
placed_k = scheme.place(k, torch.zeros(1, dtype=torch.long))
each = (placed_q * placed_k)[0, 0]  # (S, D): what each coordinate contributes
turning, passing = each[:, :8].sum(-1), each[:, 8:].sum(-1)
print(f"over 300 distances the 8 vary by {turning.std():.2f}, the 24 by {passing.std():.2f}")
assert passing.std() < 1e-12 < 0.01 < turning.std()

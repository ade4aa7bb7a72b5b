# %% [markdown]
# # Solutions to lesson 07, same answer, fewer keys

# %% 1. All settings agree. Only a window saves work: a tenth is left; without one, all of it
from functools import partial

import here  # noqa: F401
import torch

from minilm_inf import LMInfinite, Rotary, attend, chunked_attend
from minilm_inf.benchmark.race import work

torch.set_num_threads(1)
n, scheme, positions = 1024, Rotary(32), torch.arange(1024)
q, k, v = torch.randn(3, 1, 2, n, 32, dtype=torch.float64)
settings = {
    "vanilla": LMInfinite(n_local=None, n_global=0),
    "ceiling without Λ": LMInfinite(n_local=None, n_global=0, distance_ceiling=64),
    "sliding window": LMInfinite(n_local=64, n_global=0, distance_ceiling=64),
    "LM-Infinite": LMInfinite(n_local=64, n_global=4, distance_ceiling=64),
}
share = {}
for name, lm in settings.items():
    call = q, k, v, positions, positions, scheme, lm
    assert torch.allclose(attend(*call), chunked_attend(*call), atol=1e-10)
    whole, chunked = (work(partial(f, *call)) for f in (attend, chunked_attend))
    share[name] = chunked / whole
assert share["sliding window"] < 0.5 and share["LM-Infinite"] < 0.5
assert share["vanilla"] == 1  # 0.6 with a ceiling: `attend` computes all logits twice
print("work against the definition:", {k: round(x, 2) for k, x in share.items()})

# %% 2. What is not seen must not be touched, not even by a product with 0: 0 * NaN is NaN
lm = settings["LM-Infinite"]
hidden = torch.zeros(n, dtype=torch.bool)
hidden[4 : n - 64] = True  # all but the starting tokens and the last query's window
k[:, :, hidden], v[:, :, hidden] = torch.nan, torch.nan
last = torch.tensor([n - 1])
for function in (attend, chunked_attend):
    out = function(q[:, :, -1:], k, v, last, positions, scheme, lm)
    assert out.isfinite().all()

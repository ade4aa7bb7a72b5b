# %% [markdown]
# # Solutions to lesson 07, same answer, fewer keys

# %% 1. All settings agree. Only a window saves work: a tenth is left; without one, all of it
import here  # noqa: F401
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from minilm_inf import LMInfinite, Rotary, attend, chunked_attend

torch.set_num_threads(1)
n, scheme, positions = 1024, Rotary(32), torch.arange(1024)
q, k, v = torch.randn(3, 1, 2, n, 32, dtype=torch.float64)
settings = {
    "full attention": LMInfinite(n_local=None, n_global=0),
    "ceiling without Λ": LMInfinite(n_local=None, n_global=0, distance_ceiling=64),
    "sliding window": LMInfinite(n_local=64, n_global=0, distance_ceiling=64),
    "LM-Infinite": LMInfinite(n_local=64, n_global=4, distance_ceiling=64),
}
fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
known = {fused: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}  # its own formulas lack it
share = {}
for name, lm in settings.items():
    answers, work = [], []
    for function in (attend, chunked_attend):
        with FlopCounterMode(display=False, custom_mapping=known) as count:
            answers.append(function(q, k, v, positions, positions, scheme, lm))
        work.append(count.get_total_flops())
    assert torch.allclose(*answers, atol=1e-10)
    share[name] = work[1] / work[0]
assert share["sliding window"] < 0.5 and share["LM-Infinite"] < 0.5
assert (
    share["full attention"] == 1
)  # and 0.6 with a ceiling: `attend` computes all logits twice
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

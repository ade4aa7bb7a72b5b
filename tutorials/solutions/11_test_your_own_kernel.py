# %% [markdown]
# # Solutions to lesson 11, test your own kernel

# %% 1. A missing scale fails within the window; so does a key that is counted twice
from dataclasses import replace

import here  # noqa: F401
import torch

from minilm_inf import LMInfinite, Rotary, attend, chunked_attend

torch.set_num_threads(1)
scheme = Rotary(32)


def error(kernel, n: int, lm: LMInfinite) -> float:
    q, k, v = torch.randn(3, 1, 2, n, 32, dtype=torch.float64)
    i = torch.arange(n)
    return float(
        (kernel(q, k, v, i, i, scheme, lm) - attend(q, k, v, i, i, scheme, lm)).abs().max()
    )


def without_scale(q, k, v, i, j, scheme, lm):
    return chunked_attend(q, k, v, i, j, scheme, lm, scale=1.0)


def counted_twice(q, k, v, i, j, scheme, lm):
    k, v = (torch.cat((x[:, :, : lm.n_global], x), 2) for x in (k, v))
    return attend(q, k, v, i, torch.cat((j[: lm.n_global], j)), scheme, lm)


lm = LMInfinite(n_local=16, n_global=4, distance_ceiling=16)
assert error(without_scale, 16, lm) > 0.01  # "positions", the scale or the softmax
assert error(counted_twice, 16, lm) > 0.01
assert error(counted_twice, 16, replace(lm, n_global=0)) < 1e-10  # so it is the starting tokens


# %% 2. The larger the window, the less one key matters
def window_off_by_one(q, k, v, i, j, scheme, lm):
    return chunked_attend(q, k, v, i, j, scheme, replace(lm, n_local=lm.n_local + 1))


errors = {}
for L in (16, 1024):
    errors[L] = error(window_off_by_one, L + 1, LMInfinite(L, 0, L))
    print(f"a window of {L:5}: the row behind it is wrong by {errors[L]:.4f}")
assert errors[1024] < errors[16] / 5  # a tolerance of 0.1 lets the second pass
assert 1e-5 < errors[1024] < 0.1

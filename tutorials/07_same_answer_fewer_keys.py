# %% [markdown]
# # 07 · Same answer, fewer keys
#
# **Question.** The definition compares every query with every key, and then hides most of the
# result. Can the same numbers be had without computing what is hidden?
#
# `attend` is the definition, O(n²). `chunked_attend` cuts the queries into blocks: a block sees
# its window, a band of keys just before it, and the starting tokens. Two softmaxes over parts
# of the keys are joined by what each part weighs, its log-sum-exp.
#
# **Predict.** With a window of 256, how does the work for 4,096 tokens compare, between the
# two? And what happens to either when the text doubles?

# %%
import plot
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from minilm_inf import LMInfinite, Rotary, attend, chunked_attend

scheme, H, D = Rotary(32), 2, 32


def vectors(n: int, dtype=torch.float32):
    """q, k, v and positions for n random tokens, as attend takes them."""
    generator = torch.Generator().manual_seed(n)
    q, k, v = torch.randn(3, 1, H, n, D, generator=generator, dtype=dtype)
    return q, k, v, torch.arange(n), torch.arange(n)


# %% [markdown]
# **Claim.** First of all, it is the same answer. A fast path that is proved later is not
# proved: so here are the sizes at which others have broken, around the window and its
# multiples.

# %%
lm = LMInfinite(n_local=64, n_global=4, distance_ceiling=64)
worst = 0.0
for n in (1, 63, 64, 65, 66, 127, 128, 129, 200, 257):
    call = (*vectors(n, torch.float64), scheme, lm)
    worst = max(worst, float((attend(*call) - chunked_attend(*call)).abs().max()))
print(f"largest difference in float64: {worst:.0e}")
assert worst < 1e-10

# %% [markdown]
# How two parts are joined, in one line: a softmax over all keys is the average of the softmaxes
# over two groups of them, weighted by the softmax of their log-sum-exps.

# %%
logits, values = torch.randn(10, dtype=torch.float64), torch.randn(10, dtype=torch.float64)
parts = ((logits[:4], values[:4]), (logits[4:], values[4:]))
answers = torch.stack([x.softmax(0) @ v for x, v in parts])
weights = torch.stack([x.logsumexp(0) for x, _ in parts]).softmax(0)
assert torch.allclose(weights @ answers, logits.softmax(0) @ values)

# %% [markdown]
# Then the cost. Seconds depend on the machine; what the calls multiply and the largest tensor
# that they make do not:


# %%
class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that is made while it lasts."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.bytes = max(self.bytes, out.numel() * out.element_size())
        return out


lm = LMInfinite(n_local=256, n_global=4, distance_ceiling=256)
work, memory, sizes = {}, {}, {attend: 2 ** torch.arange(9, 13)}
sizes[chunked_attend] = 2 ** torch.arange(9, 17)
for function, lengths in sizes.items():
    for n in lengths.tolist():
        with torch.inference_mode(), FlopCounterMode(display=False) as count, Largest() as made:
            function(*vectors(n), scheme, lm)
        work[function, n], memory[function, n] = count.get_total_flops(), made.bytes
for table, unit in ((work, "operations"), (memory, "bytes")):
    grow = [table[f, 4096] / table[f, 2048] for f in (attend, chunked_attend)]
    saved = table[attend, 4096] / table[chunked_attend, 4096]
    print(
        f"2,048 to 4,096: {unit} x {grow[0]:.1f}, chunked x {grow[1]:.1f}; {saved:.0f} x fewer"
    )
    assert grow[0] > 3.9 and grow[1] < 2.3 and saved > 15

# %%
drawing, panels = plot.figure(2)
for axes, table, what in zip(panels, (work, memory), ("operations", "largest tensor, bytes")):
    for function, role in ((attend, "vanilla"), (chunked_attend, "window")):
        y = [table[function, n] for n in sizes[function].tolist()]
        plot.line(axes, sizes[function], y, role, function.__name__, marker="o")
    axes.set(title=what, xlabel="tokens n", xscale="log", yscale="log")
    axes.set(xticks=[1000, 10_000], xticklabels=["1,000", "10,000"])
panels[0].legend()
plot.show(drawing, "On log-log axes the definition grows by n squared, the chunked path by n")

# %% [markdown]
# The tensor that still grows with n in the chunked path is the input itself. In seconds, beside
# PyTorch's own kernels: `python -m minilm_inf.benchmark --quick`, a table in the README.
#
# **Where this lives.** [chunked.py](../minilm_inf/chunked.py), on
# [band.py](../minilm_inf/band.py) and [triangles.py](../minilm_inf/triangles.py); the
# definition is [attention.py](../minilm_inf/attention.py).
#
# ## Exercises
#
# 1. Does chunking need the Λ? Compare the two paths under full attention, a sliding window, and
#    the ceiling without the Λ. Which of them still saves work?
# 2. Put NaN into all keys and values that no query of the last block sees, and ask for the last
#    query alone. What do both paths return, and why is that a good test?

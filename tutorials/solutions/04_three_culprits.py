# %% [markdown]
# # Solutions to lesson 04, three culprits

# %% [markdown]
# **1.** Let w be w_max. A probability is p_j = e^(w_j) / (sum of all e^(w_i)). Its numerator is
# at most e^w, each of the n terms below is at least e^-w, so p_j <= e^(2w) / n, and
# -ln p_j >= ln n - 2w. The entropy is the mean of -ln p_j under p, so it is at least that, too.
# In the tiny Llama the bound is positive in only 8% of the rows, since w_max is 8.8 in the
# median row and ln 4096 is 8.3; it never comes within 3.0 nats of the entropy.

# %% 1. Proposition 1, checked on random logits
import here
import torch

from minilm_inf import load
from minilm_inf.diagnose.recorder import entropy_and_logits

torch.set_num_threads(1)
for n in (10, 1000, 100_000):
    for w_max in (0.1, 1.0, 3.0):
        w = (2 * torch.rand(n, dtype=torch.float64) - 1) * w_max
        p = w.softmax(0)
        assert p.max() <= torch.tensor(2 * w_max).exp() / n
        entropy = -(p * p.log()).sum()
        assert entropy >= -p.max().log() >= torch.tensor(n).log() - 2 * w_max

model, tokenizer = load(here.ROOT / "weights" / "tiny-llama")
ids = tokenizer.encode(here.TEXT.read_text(encoding="utf-8"))[:4096]
rows = entropy_and_logits(model, ids, torch.arange(31, 4096, 32))
floor = rows.visible.log() - 2 * rows.bound
share, slack = float((floor > 0).double().mean()), float((rows.entropy - floor).min())
print(f"median w_max {rows.bound.median():.1f}; the bound is positive in {100 * share:.0f}% of")
print(f"the rows, and {slack:.1f} nats below the entropy at least")
assert share < 0.1 and slack > 3  # and so Proposition 1 holds in every row

# %% [markdown]
# **2.** Only from 2.73 nats within 256 tokens to 3.03 beyond 1,024; the tiny Llama's doubles.
# The bias falls by the slope for each token, without end: of two keys that fit equally well,
# one that is ln(1000) / slope tokens further away weighs a thousandth of the other.

# %% 2. ALiBi's far keys get nothing, so its entropy hardly grows
model, tokenizer = load(here.ROOT / "weights" / "tiny-mpt")
ids = tokenizer.encode(here.TEXT.read_text(encoding="utf-8"))[:2048]
queries = torch.arange(31, 2048, 32)
entropy = entropy_and_logits(model, ids, queries).entropy.mean((0, 1))
early, late = (float(entropy[part].mean()) for part in (queries < 256, queries >= 1024))
print(f"entropy {early:.2f} within 256 tokens, {late:.2f} beyond 1,024")
assert late < early + 0.5

# %% [markdown]
# # Solutions to lesson 04, three culprits

# %% 1. p_j = e^(w_j) / sum e^(w) <= e^B / (n e^(-B)), and entropy is the mean of -ln p_j
import here
import torch

from minilm_inf import load
from minilm_inf.config import FULL_ATTENTION
from minilm_inf.diagnosis.logits import Rows
from minilm_inf.diagnosis.recorder import recording

torch.set_num_threads(1)
for n in (10, 1000, 100_000):
    for B in (0.1, 1.0, 3.0):
        w = (2 * torch.rand(n, dtype=torch.float64) - 1) * B
        p = w.softmax(0)
        assert p.max() <= torch.tensor(2 * B).exp() / n
        entropy = -(p * p.log()).sum()
        assert entropy >= -p.max().log() >= torch.tensor(n).log() - 2 * B

# %% 2. ALiBi's far keys get nothing, so that its entropy does not grow
model, tokenizer = load(here.ROOT / "weights" / "tiny-mpt")
tokens = torch.tensor([tokenizer.encode(here.TEXT.read_text(encoding="utf-8"))[:2048]])
queries = torch.arange(31, 2048, 32)
rows = Rows(model, queries, [0, 2048], 10, FULL_ATTENTION)
with recording(model, rows.take, lambda layer, x: None), torch.inference_mode():
    model.read(tokens)
entropy = rows.entropy.mean((0, 1))
early, late = (float(entropy[part].mean()) for part in (queries < 256, queries >= 1024))
print(f"entropy {early:.2f} within 256 tokens, {late:.2f} beyond 1,024")
assert late < early + 0.5

# %% [markdown]
# # 10 · What it does not do
#
# **Question.** A model with LM-Infinite reads on fluently for ever. What of the text does it
# still know?
#
# **Predict.** A model of 4 layers with a window of 32 and 4 starting tokens reads 160 tokens.
# You change one of them. For which does the last prediction change?

# %%
import json

import plot
import torch
import torch.nn.functional as F

from minilm_inf import LMInfinite, load
from minilm_inf.compare import reencoded_nll, stream_nll
from minilm_inf.distance_ceiling import capped_logits
from minilm_inf.lambda_mask import lambda_mask

folder = plot.ROOT / "weights" / "tiny-llama"
model, tokenizer = load(folder, dtype=torch.float64)
bos, *ids = tokenizer.encode((plot.HERE / "text.txt").read_text(encoding="utf-8"))

# %% [markdown]
# Reach. A layer hands information on by at most n_local - 1 tokens, N layers by N times that.
# So a middle token influences the present only if it is at most N(n_local - 1) tokens back:
# here 4 · 31 = 124. A row for each changed token, in float64, so that little can be told from
# nothing:

# %%
n, N, L, G = 160, model.config.n_layer, 32, 4
lm = LMInfinite(n_local=L, n_global=G, distance_ceiling=L)
rows = torch.tensor([bos, *ids[: n - 1]]).repeat(n + 1, 1)
for j in range(n):
    rows[j, j] = (rows[j, j] + 700) % 2048
with torch.inference_mode():
    last = torch.cat([model.read(some, lm)[:, -1] for some in rows.split(23)])
    logits = model.head(last)
influence = (logits[:-1] - logits[-1]).abs().amax(1)  # the last row is the unchanged text

# %% [markdown]
# **Claim.** The starting tokens count, the last 124 and the present count, and everything
# between has no influence at all, beyond what float64 rounds off:

# %%
j, reach = torch.arange(n), N * (L - 1)
near, starting = n - 1 - j <= reach, j < G
print(f"tokens without any influence: {int((influence < 1e-12).sum())} of {n}")
assert (influence[~near & ~starting] < 1e-12).all()
assert (influence[near | starting] > 1e-12).all()

# %% [markdown]
# Fluency, then, is another matter. Four ways to read on with the same 266 keys in sight: the
# window alone, StreamingLLM, LM-Infinite, and truncation, which reads the last 256 tokens anew.
# StreamingLLM counts positions in its cache: a starting token that was passed seems as far away
# as its place in the cache says. In the package's terms that is a few lines:

# %%
model, _ = load(folder)
W, K = 256, 10


def streaming_llm(q, k, v):
    i, scale, scheme = torch.arange(q.shape[2]), q.shape[-1] ** -0.5, model.scheme
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    end = torch.full_like(i, W + K - 1)  # the newest token's place in a full cache
    passed = scheme.place(q, end) @ scheme.place(k, i).mT * scale
    logits = capped_logits(q, k, i, i, scheme, None, scale)
    logits = torch.where(i[:, None] - i >= W, passed, logits)
    unseen = ~lambda_mask(i, i, LMInfinite(W, K))
    return logits.masked_fill(unseen, -torch.inf).softmax(-1) @ v


@torch.inference_mode()
def by_hand(row: list[int]) -> torch.Tensor:
    x = model.embed(torch.tensor([row[:-1]]))
    for block in model.blocks:
        x = block(x, streaming_llm)
    logits = model.head(model.norm(x))[0]
    return F.cross_entropy(logits, torch.tensor(row[1:]), reduction="none")


methods = {
    "truncation": lambda row: reencoded_nll(model, row),
    "window": lambda row: stream_nll(model, row, LMInfinite(W + K, n_global=0)),
    "StreamingLLM": by_hand,
    "LM-Infinite": lambda row: stream_nll(model, row, LMInfinite(W, K, W)),
}
texts = [[bos, *ids[k * 2048 : (k + 1) * 2048]] for k in range(3)]
late = {name: [f(row)[512:].double() for row in texts] for name, f in methods.items()}
nll = {name: float(torch.stack(rows).mean()) for name, rows in late.items()}
print({name: round(value, 3) for name, value in nll.items()})
assert max(nll.values()) - min(nll.values()) < 0.05

# %%
drawing, (left, right) = plot.figure(2, width_ratios=(1.5, 1))
colours = [plot.COLOURS["start" if s else "window"] for s in starting]
left.bar(range(n), influence.tolist(), width=1, color=colours)
left.axvspan(G - 0.5, n - 1 - reach - 0.5, color=plot.COLOURS["middle"])
left.annotate("no influence", ((n - 1 - reach + G) / 2, 1e-7), ha="center", rotation=90)
left.set(yscale="log", ylim=(1e-15, 100), xlabel="token that is changed")
left.set(title="influence on the last logits")
bars = right.barh(nll.keys(), nll.values(), color=plot.COLOURS["window"], height=0.6)
right.bar_label(bars, fmt="%.2f", padding=-32, color="white")
right.invert_yaxis()
right.set(title="nll with as many keys in sight", xlabel="nats per token")
plot.show(drawing, "Left, which tokens still count. Right, the nll of four methods: all alike")

# %% [markdown]
# All four are as fluent as one another, and what they forget they forget alike; the nll of a
# novel does not show it, since few of its words hang on what was said a thousand words ago.
# LM-Infinite's gain over truncation is its cost: it reads each token once. In a real model,
# SmolLM2-135M, the window alone falls behind, and the other three stay alike. (Measured
# beforehand: [smollm2.json](figures/smollm2.json), `make smollm2 smollm2-figures`.)
#
# ![the nll of four methods with SmolLM2, 260 keys in sight](figures/10_smollm2.png)

# %%
real = json.loads((plot.HERE / "figures" / "smollm2.json").read_text())["nll"]
real = {name: sum(curve[4:]) / len(curve[4:]) for name, curve in real.items()}
window = real.pop("window")
assert window > max(real.values()) + 0.5 and max(real.values()) - min(real.values()) < 0.05

# %% [markdown]
# If the answer stands in the middle, reach back
# (lesson 09), or use another method: [neighbours](neighbours.md).
#
# **Where this lives.** [explain.py](../minilm_inf/explain.py) shows what a token was made from;
# [compare.py](../minilm_inf/compare.py) measures fluency,
# [retrieval.py](../minilm_inf/retrieval.py) memory.
#
# ## Exercises
#
# 1. Two texts have the same first 4 tokens and the same last 125. Between these the one has
#    1,000 tokens of its own, the other 10. Show that their last logits are the same.
# 2. Is the reach used? Find how far back the nearest token stands whose influence is below a
#    thousandth of the largest, and compare with 124.

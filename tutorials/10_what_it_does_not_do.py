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

from minilm_inf import LMInfinite, load
from minilm_inf.evaluate.compare import reencoded_nll, stream_nll, stream_pieces
from minilm_inf.evaluate.streaming_llm import StreamingLLM

folder = plot.ROOT / "weights" / "tiny-llama"
model, tokenizer = load(folder, dtype=torch.float64)
bos, *ids = tokenizer.encode((plot.HERE / "text.txt").read_text(encoding="utf-8"))

# %% [markdown]
# Reach, as in exercise 1 of lesson 05: N layers hand information on by at most N(n_local - 1)
# tokens, here 4 · 31 = 124. There a mask said so, here the model is asked: a row for each
# changed token, in float64, so that little can be told from nothing.

# %%
n, N, L, G = 160, model.config.n_layer, 32, 4
lm = LMInfinite(n_local=L, n_global=G, distance_ceiling=L)
rows = torch.tensor([bos, *ids[: n - 1]]).repeat(n + 1, 1)
for j in range(n):
    rows[j, j] = (rows[j, j] + 700) % 2048  # any other of the 2,048 ids
with torch.inference_mode():
    last = torch.cat([model.read(few, lm)[:, -1] for few in rows.split(23)])  # to save memory
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
# Fluency, then, is another matter. Four ways to read on with about as many keys in sight: a
# window of 266 alone; a window of 256 and 10 starting tokens, with StreamingLLM's distances or
# LM-Infinite's; and re-encoding (lesson 03), with 129 to 256. StreamingLLM counts distances in
# its cache: to a starting token j it is min(i, 265) - j, where LM-Infinite has min(i - j, 256).

# %%
model, _ = load(folder)
W, K = 256, 10


def streaming_llm(row: list[int]) -> torch.Tensor:
    return torch.cat(list(stream_pieces(model, row, StreamingLLM(model, W, K).read, 512)))


methods = {
    "LM-Infinite": lambda row: stream_nll(model, row, LMInfinite(W, K, W)),
    "StreamingLLM": streaming_llm,
    "re-encoding": lambda row: reencoded_nll(model, row),
    "window": lambda row: stream_nll(model, row, LMInfinite(W + K, n_global=0)),
}
texts = [[bos, *ids[k * 2048 : (k + 1) * 2048]] for k in range(6)]
late = {name: torch.stack([f(row)[512:] for row in texts]) for name, f in methods.items()}
more = {name: (late[name] - late["LM-Infinite"]).view(-1, 128).mean(1) for name in methods}
found = {}  # the mean difference on the same tokens, and its 95% interval over 72 pieces
for name, pieces in more.items():
    found[name] = float(pieces.mean()), 1.96 * float(pieces.std()) / len(pieces) ** 0.5
    print(f"{name:12} {late[name].mean():.3f}   {found[name][0]:+.3f} ± {found[name][1]:.3f}")
assert max(abs(mean) + around for mean, around in found.values()) < 0.05

# %%
drawing, (left, right) = plot.figure(2, width_ratios=(1.5, 1))
colours = [plot.COLOURS["start" if s else "window"] for s in starting]
left.bar(range(n), influence.tolist(), width=1, color=colours)
left.axvspan(G - 0.5, n - 1 - reach - 0.5, color=plot.COLOURS["middle"])
left.annotate("no influence", ((n - 1 - reach + G) / 2, 1e-7), ha="center", rotation=90)
left.set(yscale="log", ylim=(1e-15, 100), xlabel="token that is changed")
left.set(title="influence on the last token", ylabel="largest change of a logit")
for y, (name, (mean, around)) in enumerate(found.items()):
    role = "window" if name == "LM-Infinite" else "other"
    right.errorbar(mean, y, xerr=around, fmt="o", color=plot.COLOURS[role], capsize=4)
right.axvline(0, color=plot.INK, linewidth=1, linestyle=":")
right.set_yticks(range(len(found)), found)
right.invert_yaxis()
right.set(title="nll, less LM-Infinite's", xlabel="nats per token", xlim=(-0.01, 0.03))
plot.show(drawing, "Left, which tokens still count. Right, four methods: within 0.05 nat")

# %% [markdown]
# All four are nearly as fluent as one another, within 0.02 nat, though they do not forget the
# same: re-encoding reaches at most 255 tokens back, the others 255 or 265 in each layer. The
# nll of a novel does not show it. LM-Infinite's gain over re-encoding is its cost: it reads
# each token once. In a real model, SmolLM2-135M, the window alone falls behind, and the other
# three stay alike (measured beforehand, as in lesson 05):
#
# ![the nll of four methods with SmolLM2, 260 keys in sight](figures/10_smollm2.png)

# %%
real = json.loads((plot.HERE / "figures" / "smollm2.json").read_text())["nll"]
real = {name: sum(curve[4:]) / len(curve[4:]) for name, curve in real.items()}
window = real.pop("window")
assert window > max(real.values()) + 0.5 and max(real.values()) - min(real.values()) < 0.05

# %% [markdown]
# If the answer stands in the middle, reach back (lesson 09), or use another method:
# [neighbours](neighbours.md).
#
# **Where this lives.** [explain.py](../minilm_inf/writing/explain.py) shows what a token was
# made from; [compare.py](../minilm_inf/evaluate/compare.py) measures fluency,
# [retrieval.py](../minilm_inf/evaluate/retrieval.py) memory.
#
# ## Exercises
#
# 1. Two texts have the same first 4 tokens and the same last 125. Between these the one has
#    1,000 tokens of its own, the other 10. Show that their last logits are the same.
# 2. Is the reach used? Find how far back the nearest token stands whose influence is below a
#    thousandth of the largest, and compare with 124.
#
# Answers: [solutions/10_what_it_does_not_do.py](solutions/10_what_it_does_not_do.py).

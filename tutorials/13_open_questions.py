# %% [markdown]
# # 13 · Open questions
#
# **Question.** What does the paper leave open, and how much of it can a laptop answer?
#
# Three questions are left: whether other positional schemes fail as RoPE does, what n_global
# and n_local are worth, and how far anything gets through the layers. Tiny models can be
# trained for each of them and measured in every way. That took a few hours on one core, and
# was done beforehand: [questions.md](../weights/questions.md) has all tables and commands, and
# this lesson reads its numbers.
#
# **Predict.** The same small Llama is trained six times on 256 tokens, each time with another
# notion of position, and reads 16,384: with RoPE; with RoPE that turns more slowly (theta
# 500,000); with ALiBi; with xPos, which is RoPE that fades with distance; with no positions
# at all (NoPE); and with learned vectors for 256 positions. Which fail? Which of them does
# the ceiling help?

# %%
import json

import plot
import torch

from minilm_inf.diagnose.schemes import SCHEMES

files = [plot.ROOT / f"weights/questions/{x}.json" for x in ("schemes", "grid", "depth")]
schemes, grid, depth = (json.loads(path.read_text()) for path in files)
vanilla, bare = {}, {}  # nats lost against LM-Infinite; bare: by the Λ without a ceiling
for name in SCHEMES:
    runs = [run["nll"] for run in schemes["runs"] if run["scheme"] == name]  # a seed each
    last = {side: torch.tensor([nll[side] for nll in runs])[..., -1] for side in runs[0]}
    for side, lost in (("vanilla", vanilla), ("no-ceiling", bare)):
        lost[name] = round(float((last[side] - last["lambda"]).mean()), 2) + 0
    print(f"{name:20} vanilla {vanilla[name]:.2f}, Λ without ceiling {bare[name]:.2f}")

# %%
drawing, axes = plot.figure()
for shift, label, lost in ((-0.2, "vanilla", vanilla), (0.2, "Λ without ceiling", bare)):
    places = torch.arange(len(lost)) + shift
    bars = axes.barh(places, lost.values(), 0.38, color=plot.COLOURS[label], label=label)
    axes.bar_label(bars, [f" {nats:.2f}" for nats in lost.values()])
axes.set_yticks(range(len(SCHEMES)), SCHEMES)
axes.set_xlabel("nats per token more than LM-Infinite, from 8,192 to 16,384")
axes.set(xlim=(0, 1.4), ylim=(5.5, -0.5))
plot.show(drawing, "New distances break RoPE alone; too many keys wear xPos down")

# %% [markdown]
# **Claim.** Only RoPE fails at new distances, and only RoPE needs the ceiling.

# %%
assert min(vanilla["RoPE"], vanilla["RoPE, theta 500,000"]) > 1
assert min(bare["RoPE"], bare["RoPE, theta 500,000"]) > 0.3
assert max(bare[name] for name in SCHEMES if "RoPE" not in name) < 0.02
assert 0.3 < vanilla["xPos"] < 0.6 and min(*vanilla.values(), *bare.values()) >= 0
assert max(vanilla[name] for name in ("ALiBi", "NoPE", "learned")) < 0.1

# %% [markdown]
# A larger theta, which later models have, does not help beyond the trained length. xPos
# cannot meet a new distance, since far keys fade; but they fade to logits near 0, not to
# nothing, and 16,000 of them outweigh the near ones: factor 2 alone, and the Λ alone cures
# it. ALiBi's bias grows without end, so far keys weigh nothing. NoPE and learned positions
# hardly fail, but are 0.6 nat worse than the others to begin with, and may have little to
# lose.
#
# **Second: what do n_global and n_local buy?** Here are all of them for two of the shipped
# models, as nats above the paper's own setting (10 and 256). Predict: how many starting
# tokens are enough?


# %%
def above(name: str, n_local: int, n_global: int) -> float:
    """Nats per token more than with the paper's setting, on the same tokens."""
    cells = {tuple(cell["setting"]): cell["less"][0] for cell in grid[name]["cells"]}
    return cells[n_local, n_global, 256]


windows = (16, 32, 64, 128, 256, 512)
drawing, panels = plot.figure(2, sharey=True)
panels[0].set_ylabel("nats above the paper's setting")
for axes, name in zip(panels, ("tiny-llama", "tiny-mpt")):
    for n, role in ((0, "sliding window"), (1, "other"), (10, "LM-Infinite"), (100, "third")):
        nats = [above(name, window, n) for window in windows]
        plot.line(axes, windows, nats, role, f"n_global {n}")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    plot.trained(axes, 256)
    axes.set(title=name, xlabel="n_local", xlim=(14, 1100), ylim=(-0.03, 0.35))
    first, more = (above(name, 16, 0) - above(name, 16, n) for n in (1, 10))
    print(f"{name}: at n_local 16 one token is worth {first:.2f}, ten {more:.2f} nats")
    assert more - first < 0.02 and above(name, 128, 1) < 0.02
plot.show(drawing, "One starting token does what ten do; half a window costs little", "grid")

# %% [markdown]
# The first starting token is BOS in these models; it says nothing, but a model wants it. What
# is bought with keys is memory: with half a window the model reads nearly as well, and finds
# a pass key half as far back (the tables).
#
# **Third: where is the limit?** Through N layers, what a token says can travel N (n_local -
# 1) tokens (lesson 10). Models of 1, 2, 4 and 8 layers read with n_local 128. Measured is,
# first, how much another token in its place changes the distribution of what follows d tokens
# later (the total variation, in float64); and, second, what the model can use: by how many
# nats the right pass key is likelier, d tokens after it was stated, than if another had been
# stated. Predict: how far back does each go?

# %%
W, roles = 128, ("third", "other", "sliding window", "LM-Infinite")
drawing, (left, right) = plot.figure(2)
for model, role in zip(depth["models"], roles):
    n, change = model["layers"], model["influence"]
    keys = {entry["distance"]: entry for entry in model["keys"]}
    reach, label = n * (W - 1), f"{n} layer" + "s" * (n > 1)
    plot.line(left, range(1, reach + 1), change[1 : reach + 1], role, label)
    plot.line(right, keys, [x["nats"] for x in keys.values()], role, label, marker=".")
    sizes = ", ".join(f"{change[d]:.0e}" for d in (1, W - 1, reach))
    print(f"{label:8}: {sizes} at 1, {W - 1}, {reach:,}; {keys[127]['right']:.0%} right at 127")
    assert model["gradients"][0] > 0 == model["gradients"][1]  # at the reach, and one further
    assert keys[127]["right"] >= 0.9 or n == 1
    assert all(entry["right"] == 0 for d, entry in keys.items() if d >= W)
for axes, what in ((left, "the changed token"), (right, "the key")):
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.axvline(W, color=plot.INK, linewidth=1, linestyle=":", label="the window's end")
    axes.set_xlabel(f"tokens after {what}")
left.set(yscale="log", ylabel="change of what follows")
right.set_ylabel("nats by which the key is likelier")
plot.show(drawing, "Influence has a long reach; what can be used ends with the window", "depth")

# %% [markdown]
# Influence goes as far as it can, to the very token, and fades by orders of magnitude with each
# window that it crosses. A pass key goes as far as one window: the layers could hand it on,
# but nothing in training asked them to. So what breaks first is memory, at once and entirely.
# Fluency does not break, in as long a stream as was tried
# ([200 million tokens](../weights/README.md)).
#
# **What tiny models can tell.** A scheme that cannot meet a new distance does not fail at one:
# that is arithmetic, and holds at any size. So does the reach. How *much* is lost does not
# carry over: these models have 0.2 to 1.7 million parameters and texts of 256 tokens, want a
# starting token only in small windows, and need nothing from far away. Llama-2-7B loses 5.4
# nats without its starting tokens (the paper's figure), and may well hand on what no tiny
# model does.
#
# **Where this lives.** [schemes.py](../minilm_inf/diagnose/schemes.py): xPos, no positions and
# learned ones. The experiments themselves are programs of
# [weights/pages](../weights/pages): `schemes.py`, `grid.py` and `depth.py`.
#
# ## Exercises
#
# 1. xPos fades by half over how many tokens, in its fastest pair and in its slowest? Explain
#    from that why it tells about 70 distances apart, and no more.
# 2. A model of 32 layers with n_local 4,096: how far does influence reach, and how far would
#    you trust a pass key to come?
#
# Answers: [solutions/13_open_questions.py](solutions/13_open_questions.py).

# %% [markdown]
# # 08 · Reading for ever
#
# **Question.** What must be kept of a text that never ends?
#
# With full attention, every key and value: the cache grows with the text. With the Λ no query
# to come will see anything but the starting tokens and the last `n_local`. The rest can go.
#
# **Predict.** How many numbers does the tiny Llama's cache hold after a million tokens? It has
# 4 layers, 2 key heads of 32, a window of 256 and 10 starting tokens.

# %%
import json

import plot
import torch

from minilm_inf import LMInfinite, Rotary, load

model, tokenizer = load(plot.ROOT / "weights" / "tiny-llama")
lm = LMInfinite.for_model(model.config, n_global=10)
ids = tokenizer.encode((plot.HERE / "text.txt").read_text(encoding="utf-8"))

# %% [markdown]
# **Claim.** Reading in chunks with a cache is reading: the logits are those of the whole text
# at once, however it is cut. And with LM-Infinite the cache stops growing.

# %%
tokens = torch.tensor([ids[:2048]])
sizes = {"vanilla": [], "LM-Infinite": []}
with torch.inference_mode():
    for name, setting in (("vanilla", None), ("LM-Infinite", lm)):
        cache, pieces = model.new_cache(1, setting), []
        for chunk in tokens.split(64, 1):
            pieces.append(model(chunk, setting, cache=cache))
            sizes[name].append(cache.nbytes)
        whole = model(tokens, setting)
        assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-3)
print({name: f"{values[-1]:,} bytes" for name, values in sizes.items()})
token = 4 * 2 * 2 * 32 * 4  # bytes: layers, keys and values, heads, D, float32
assert len(set(sizes["LM-Infinite"][8:])) == 1 and sizes["vanilla"][-1] >= 2048 * token

# %% [markdown]
# **Angles.** A cache that lasts meets large positions. RoPE turns by position · frequency, and
# float32 has 24 bits: at position 200 million its angles are off by whole radians. So the
# package multiplies in float64, and rounds after the cosine. Here is a logit at a distance of
# 100, moved along the text; by lesson 01 it should not change at all:

# %%
scheme, generator = Rotary(32), torch.Generator().manual_seed(0)
q, k = torch.randn(2, 1, 64, 1, 32, generator=generator)


def in_float32(x: torch.Tensor, position: int) -> torch.Tensor:
    """Rotary.place, but for the angles' precision."""
    angles = torch.tensor(float(position)) * scheme.frequencies.float()
    a, b = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def logits(place, shift: int) -> torch.Tensor:
    return (place(q, shift + 100) * place(k, shift)).sum(-1) / 32**0.5


def in_float64(x, position):
    return scheme.place(x, torch.tensor([position]))


shifts = [10**e for e in range(2, 9)] + [200_000_000]
off = {
    place: [float((logits(place, s) - logits(in_float64, 0)).abs().max()) for s in shifts]
    for place in (in_float32, in_float64)
}
print(f"off by {off[in_float32][-1]:.1f} in float32, by {off[in_float64][-1]:.0e} in float64")
assert off[in_float32][-1] > 1 and max(off[in_float64]) < 1e-5

# %% [markdown]
# **For ever** has been tried: one stream of 200 million tokens, read by a smaller Llama in
# this way. Its measurements are in the repository:

# %%
curve = json.loads((plot.ROOT / "weights" / "stream-200m.json").read_text())["results"]
nll = [place["nll"] for place in curve["linear"]]
assert curve["tokens"] == 200_000_000
assert abs(sum(nll[:100]) - sum(nll[100:])) / 100 < 0.05

drawing, (memory, angles, stream) = plot.figure(3)
for name, role in (("vanilla", "vanilla"), ("LM-Infinite", "window")):
    plot.line(memory, range(64, 2049, 64), [x / 1e6 for x in sizes[name]], role, name)
for place, role in ((in_float32, "start"), (in_float64, "window")):
    plot.line(angles, shifts, off[place], role, place.__name__.replace("in_", ""), marker="o")
plot.line(stream, [i + 0.5 for i in range(200)], nll, "window", linewidth=1.2)
memory.set(title="cache, MB", xlabel="tokens read", ylim=(0, 5.5))
angles.set(title="error of a logit", xlabel="position", xscale="log", yscale="log")
angles.set_xticks([1e2, 1e4, 1e6, 1e8])
stream.set(title="nll of a stream", xlabel="million tokens", ylim=(2, 4))
memory.legend()
angles.legend()
plot.show(
    drawing, "The cache stops growing, angles stay exact, and the nll of a stream is flat"
)

# %% [markdown]
# Constant memory is not memory of everything: lesson 10.
#
# **Where this lives.** [cache.py](../minilm_inf/cache.py),
# [positions.py](../minilm_inf/positions.py) and [stream.py](../minilm_inf/stream.py);
# `make stream-200m` reads the stream again, in an hour.
#
# ## Exercises
#
# 1. Read the same text in chunks of 1, 7 and 300. How far do the last logits differ, and does
#    the size of the cache depend on the chunk?
# 2. Let a cache begin at position 200,000,000 (`model.new_cache(1, lm, first_position=...)`)
#    and compare the logits of 600 tokens with those at position 0.

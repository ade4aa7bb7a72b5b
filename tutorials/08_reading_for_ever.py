# %% [markdown]
# # 08 · Reading for ever
#
# **Question.** What must be kept of a text that never ends?
#
# With vanilla attention, every key and value: the cache grows with the text. With the Λ, no
# later query sees anything but the starting tokens and the last `n_local`. The rest can go.
# Window keys are kept turned by their positions; starting keys are kept ready for the ceiling,
# where their own position no longer matters.
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
# **Claim.** Reading in chunks with a cache gives the same logits as reading the whole text at
# once. (Here it is cut into 32 chunks; exercise 1 tries other sizes.) And with LM-Infinite the
# cache stops growing.

# %%
tokens = torch.tensor([ids[:2048]])
sizes = {}
with torch.inference_mode():
    for name, setting in (("vanilla", None), ("LM-Infinite", lm)):
        cache, pieces = model.new_cache(1, setting), []
        for chunk in tokens.split(64, 1):
            pieces.append(model(chunk, setting, cache=cache))
        assert torch.allclose(torch.cat(pieces, 1), model(tokens, setting), atol=1e-3)
        sizes[name] = cache.nbytes
token = 4 * 2 * 2 * 32  # numbers: layers, keys and values, heads, D; each has 4 bytes
for name, size in sizes.items():
    print(
        f"{name:11} {size:9,} bytes = {size // 4:9,} numbers = {size // 4 // token:5,} tokens"
    )
assert sizes["LM-Infinite"] == 4 * token * (256 + 10 + 10)
assert sizes["vanilla"] == 4 * token * 2048

# %% [markdown]
# So after 2,048 tokens, and after a million, it holds 141,312 numbers: 256 + 10 tokens, and
# room for a copy of the 10 right after the window, so that one product answers a query. (Texts
# of different lengths that are read side by side are padded in front; padding has negative
# positions, and no query sees it.) The figure shows what is in use: with vanilla as many tokens
# as were read, with LM-Infinite as many as the next query sees. (The vanilla cache's own buffer
# doubles whenever it is full.)

# %%
lengths = list(range(64, 16385, 64))
drawing, axes = plot.figure()
for name, kept in (("vanilla", lengths), ("LM-Infinite", map(lm.visible, lengths))):
    plot.line(axes, lengths, [4 * token * n / 1e6 for n in kept], name)
axes.set(xlabel="tokens read", ylabel="keys and values that are kept, MB", ylim=0)
plot.show(drawing, "With LM-Infinite the cache stops growing at 266 tokens")

# %% [markdown]
# **Angles.** A cache that lasts meets large positions. RoPE turns by position · frequency, and
# float32 has 24 bits, too few for position 200 million, which takes 28. So angles must be
# computed more exactly, and rounded only after the cosine: the package counts them in integers,
# as 2^64ths of a turn, and float64 does as well here. This is a logit at a distance of 100,
# moved along the text; by lesson 01 it should not change at all:

# %%
scheme, generator = Rotary(32), torch.Generator().manual_seed(0)
q, k = torch.randn(2, 1, 64, 1, 32, generator=generator)


def place(x: torch.Tensor, position: int, dtype) -> torch.Tensor:
    """Rotary.place with angles of a dtype."""
    angles = torch.tensor(position, dtype=dtype) * scheme.frequencies.to(dtype)
    (a, b), cos, sin = x.chunk(2, -1), angles.cos().float(), angles.sin().float()
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def logits(shift: int, dtype) -> torch.Tensor:
    return (place(q, shift + 100, dtype) * place(k, shift, dtype)).sum(-1) / 32**0.5


shifts = [10**e for e in range(2, 9)] + [200_000_000]
assert torch.allclose(
    place(q, shifts[-1], torch.float64), scheme.place(q, torch.tensor(shifts[-1:]))
)
off = {
    dtype: [float((logits(s, dtype) - logits(0, torch.float64)).abs().max()) for s in shifts]
    for dtype in (torch.float32, torch.float64)
}
print("off by {:.1f} in float32, by {:.0e} in float64".format(*(x[-1] for x in off.values())))
assert off[torch.float32][-1] > 1 and max(off[torch.float64]) < 1e-5

drawing, axes = plot.figure()
for dtype, role in ((torch.float32, "third"), (torch.float64, "other")):
    plot.line(axes, shifts, off[dtype], role, f"angles in {str(dtype)[6:]}", marker="o")
axes.set(xlabel="position", ylabel="error of a logit", xscale="log", yscale="log")
axes.set_xticks([1e2, 1e4, 1e6, 1e8], ["100", "10,000", "1,000,000", "100,000,000"])
plot.show(drawing, "In float64, angles are exact at position 200 million too", "angles")

# %% [markdown]
# **For ever** has been tried, with a smaller Llama,
# [nano-llama](../weights/README.md#the-weights). It read held-out texts in random order, again
# and again up to 200 million tokens, as one stream with one cache. The measurements are in the
# repository:

# %%
stream = json.loads((plot.ROOT / "weights" / "stream-200m.json").read_text())["results"]
nll = [piece["nll"] for piece in stream["linear"]]  # the means over 200 equal parts, in order
print(f"{stream['documents']} texts, {stream['tokens_of_all_documents']:,} tokens", end=", ")
print(f"repeated up to {stream['tokens']:,}", end="; nll of the first half and the last ")
print(f"{sum(nll[:100]) / 100:.3f}, {sum(nll[100:]) / 100:.3f}")
assert stream["tokens"] == 200_000_000 and len(nll) == 200
assert abs(sum(nll[:100]) - sum(nll[100:])) / 100 < 0.05

drawing, axes = plot.figure()
plot.line(axes, [i + 0.5 for i in range(200)], nll, "LM-Infinite", linewidth=1.2)
axes.set(xlabel="million tokens read", ylabel="nll, nats per token", ylim=(2, 4))
plot.show(drawing, "The nll of a stream of 200 million tokens stays where it was", "stream")

# %% [markdown]
# Constant memory does not remember everything: see lesson 10.
#
# **Where this lives.** [cache.py](../minilm_inf/fast/cache.py),
# [positions.py](../minilm_inf/positions.py) and
# [perplexity.py](../minilm_inf/evaluate/perplexity.py); `make stream-200m` reads the stream
# again, in about an hour.
#
# ## Exercises
#
# 1. Read the same text in chunks of 1, 7 and 300. By how much do the last logits differ, and
#    does the size of the cache depend on the chunk?
# 2. Let a cache begin at position 200,000,000 (`model.new_cache(1, lm, first_position=...)`),
#    and compare the logits of 600 tokens with those from position 0.
#
# Answers: [solutions/08_reading_for_ever.py](solutions/08_reading_for_ever.py).

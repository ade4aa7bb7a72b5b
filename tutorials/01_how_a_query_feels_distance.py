# %% [markdown]
# # 01 · How a query feels distance
#
# **Question.** Attention compares a query with a key by q · k. How does the answer come to
# depend on how far apart the two stand?
#
# Three ways are common, and each of the three families of this package uses one:
#
# - **RoPE in halves** (Llama): coordinates m and m + D/2 form a pair, and each pair is turned
#   by an angle that grows with the position, position · theta^(-2m/D), where theta is 10,000;
# - **RoPE in pairs** (GPT-J): the same, but coordinates 2m and 2m + 1 form a pair; in a GPT-J
#   only the first R coordinates turn (exercise 2), with R for D in the exponent; here all do;
# - **ALiBi** (MPT): vectors stay as they are; each head subtracts a slope times the distance:
#   head h, from 1 to H, has the slope 2^(-8h/H) if H is a power of two. (For other H the slopes
#   are taken from those of the next power of two, see `Alibi`.)
#
# One interface covers them: a scheme *places* a vector at a position, and adds a *bias* for a
# distance (in float64, since distances can be large). The logit of a query at i and a key at j
# is
#
#     place(q, i) · place(k, j) · scale + bias(i - j)
#
# **Predict.** A query and a key stand up to 255 tokens apart, first at the start of a text,
# then a million tokens further on. Which logits change?

# %%
import plot
import torch

from minilm_inf import Alibi, Rotary

D, H = 32, 4
schemes = {
    "RoPE in halves (Llama)": Rotary(D, layout="halves"),
    "RoPE in pairs (GPT-J)": Rotary(D, layout="pairs"),
    "ALiBi (MPT)": Alibi(H),
}
generator = torch.Generator().manual_seed(2)
q, noise = torch.randn(2, 1, H, 1, D, generator=generator, dtype=torch.float64)
k = q + 0.5 * noise  # a key that the query likes, (B, H, S, D); S = 1


def logits(scheme, shift: int, distances: torch.Tensor) -> torch.Tensor:
    """The logits of T copies of a query, each further from the one key: (H, T)."""
    j, i = torch.full((1,), shift), shift + distances  # the query moves away from the key
    placed_q = scheme.place(q.expand(1, H, len(i), D), i)
    placed_k = scheme.place(k, j)
    products = torch.einsum("bhtd,bhsd->hts", placed_q, placed_k) / D**0.5
    return (products + scheme.bias(distances[:, None]))[..., 0]


# %% [markdown]
# **Claim.** Only differences matter. None of the logits changes: a million tokens further on
# they are the same, at every distance.

# %%
distances, h = torch.arange(256), 3  # the third head
drawing, panels = plot.figure(3, sharey=True)
for (name, scheme), axes in zip(schemes.items(), panels):
    here, far = logits(scheme, 0, distances), logits(scheme, 1_000_000, distances)
    print(f"{name:24} largest change: {float((here - far).abs().max()):.1e}")
    assert torch.allclose(here, far, atol=1e-8)
    plot.line(
        axes, distances, here[h - 1], "third", "key at position 0", linewidth=6, linestyle="-"
    )
    plot.line(axes, distances, far[h - 1], "other", "key at position 1,000,000", color=plot.INK)
    axes.set(title=name, xlabel="distance i - j")
panels[2].set_title(f"ALiBi (MPT), head {h}")
panels[0].set_ylabel("logit of one query and one key")
plot.show(drawing, "A logit depends on the distance, and not on where the two stand")

# %% [markdown]
# RoPE's logit is a sum of waves, one for each pair. ALiBi's falls in a straight line, by its
# head's slope per token (h = 3 of H = 4 is drawn: 2^(-8 · 3/4) = 1/64):

# %%
alibi = schemes["ALiBi (MPT)"]
falls = logits(alibi, 0, distances).diff(dim=-1)  # from one distance to the next
assert torch.allclose(falls, -alibi.slopes[:, None].expand_as(falls))
assert alibi.slopes.tolist() == [2 ** (-8 * h / H) for h in range(1, H + 1)]
print("slopes per head:", alibi.slopes.tolist())

# %% [markdown]
# Here is what "turn" means, as a loop over pairs. With complex numbers it takes one line: a
# pair (x, y) is x + iy, and turning is a product with e^(i · angle). The package does the same
# with cosines and sines, for all pairs at once:


# %%
def turned(x: torch.Tensor, position: int, first, second) -> torch.Tensor:
    out = x.clone()
    for m, (a, b) in enumerate(zip(first, second)):
        angle = torch.tensor(position * 10000.0 ** (-2 * m / D), dtype=torch.float64)
        z = torch.complex(x[a], x[b]) * torch.exp(1j * angle)
        out[a], out[b] = z.real, z.imag
    return out


halves, pairs = list(schemes.values())[:2]
x, at = q[0, 0, 0], torch.tensor([77])
by_loop = turned(x, 77, range(D // 2), range(D // 2, D))
assert torch.allclose(halves.place(q, at)[0, 0, 0], by_loop)
by_loop = turned(x, 77, range(0, D, 2), range(1, D, 2))
assert torch.allclose(pairs.place(q, at)[0, 0, 0], by_loop)

# %% [markdown]
# The two layouts are one idea: reorder the coordinates of a vector, and one becomes the other.
# Still, a checkpoint that is read with the wrong layout gives nonsense.

# %%
order = torch.arange(D).view(2, -1).T.flatten()  # 0, D/2, 1, D/2 + 1, ...
assert torch.allclose(halves.place(q, at)[..., order], pairs.place(q[..., order], at))

# %% [markdown]
# So no logit depends on *where* a token stands, only on *how far back*. (Moving all positions
# changes no logit, though the mask of lesson 05 counts from the first token.) So a kernel may
# first subtract a common position: angles in float64 are off by about 1e-8 at 200 million,
# where the package, which counts turns in integers, is exact. A model is
# trained on the distances that its texts had; what its logits are worth at other distances is
# up to its scheme, and lesson 03 looks. And since a logit needs i and j only through i - j, a
# key can be made to *seem* at any distance d: place the query at d and the key at 0. Lesson 06
# does that.
#
# **Where this lives.** [positions.py](../minilm_inf/positions.py).
#
# ## Exercises
#
# 1. After how many tokens has RoPE's fastest pair turned once, and its slowest? With a training
#    length of 256, how much of the slowest pair's circle has a model ever seen?
# 2. Let a GPT-J head turn 8 of its 32 coordinates: `Rotary(8, layout="pairs")`. Show that what
#    the other 24 contribute to a logit is the same at every distance.
#
# Answers:
# [solutions/01_how_a_query_feels_distance.py](solutions/01_how_a_query_feels_distance.py).

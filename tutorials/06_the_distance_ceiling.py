# %% [markdown]
# # 06 · The distance ceiling
#
# **Question.** A starting token stays visible for ever. How far away should it seem?
#
# As the text grows, so does its distance, to values that the model never saw in training.
# LM-Infinite lets no key seem further away than a ceiling, `distance_ceiling`: where w(q, k, d)
# is the logit of q and k at distance d, it takes w(q, k, min(d, C)) (paper, section 3.2). C is
# the trained length, as in the paper, here 256. That is one step beyond the longest distance
# that the model saw, 255, which does no harm. `LMInfinite.for_model` sets it; the constructor
# alone sets no ceiling.
#
# **Predict.** Two ingredients, Λ and ceiling, make four combinations: neither, one, the other,
# both. Order them by how well they will read on beyond the trained length.

# %%
import plot
import torch

from minilm_inf import LMInfinite, Rotary, load
from minilm_inf.distance_ceiling import capped_logits
from minilm_inf.evaluate.compare import stream_nll
from minilm_inf.lambda_mask import distances, lambda_mask

D, C, T = 32, 5, 13
scheme, generator = Rotary(D), torch.Generator().manual_seed(1)
q, k = torch.randn(2, 1, 1, T, D, dtype=torch.float64, generator=generator)


def capped(q: torch.Tensor, k: torch.Tensor, ceiling: int) -> torch.Tensor:
    """The specification: q (T, D), k (S, D) -> logits (T, S); the future is left at 0."""
    out = torch.zeros(len(q), len(k), dtype=q.dtype)
    for i in range(len(q)):
        for j in range(i + 1):
            d = torch.tensor([min(i - j, ceiling)])
            out[i, j] = scheme.place(q[None, None, i : i + 1], d).squeeze() @ k[j]
    return out


# %% [markdown]
# Lesson 01 said how a key is made to seem at distance d: place the query at d, and the key at
# 0, which leaves it unchanged. The loop does that for each pair. The package asks the scheme
# twice, once for true distances and once with all keys at the ceiling, and each pair takes the
# answer that applies to it:

# %%
positions = torch.arange(T)
logits = capped_logits(q, k, positions, positions, scheme, C, 1.0)[0, 0].tril()
assert torch.allclose(logits, capped(q[0, 0], k[0, 0], C))
for wrong in (C - 1, C + 1):  # the check notices a ceiling that is off by one
    assert not torch.allclose(logits, capped(q[0, 0], k[0, 0], wrong), atol=0.1)

# %% [markdown]
# The drawing uses C = 5. A cell's number is the distance at which the query finds the key:

# %%
seen = lambda_mask(positions, positions, LMInfinite(n_local=C, n_global=2))
d = distances(positions, positions)
drawing, panels = plot.figure(2)
for axes, limit, far in zip(panels, (T, C), (plot.START, plot.CEILING)):
    plot.numbers(axes, d.clamp(max=limit), torch.where(d < C, plot.WINDOW, far) * seen)
    axes.set(xticks=[], yticks=[], xlabel="key", ylabel="query")
panels[0].set_title("Λ without ceiling: distances up to 12")
panels[1].set_title("LM-Infinite: distances up to 5")
plot.show(drawing, "With a ceiling of 5, no starting token seems more than 5 away")

# %% [markdown]
# The four combinations are settings: with `n_local=None` nothing leaves the window, with
# `distance_ceiling=None` distances grow. The model reads the texts of lesson 05 with each:

# %%
settings = {
    "vanilla": None,  # neither
    "Λ without ceiling": LMInfinite(n_local=256, n_global=10, distance_ceiling=None),
    "ceiling without Λ": LMInfinite(None, n_global=0, distance_ceiling=256),
    "LM-Infinite": LMInfinite(n_local=256, n_global=10, distance_ceiling=256),  # both
}
model, tokenizer = load(plot.ROOT / "weights" / "tiny-llama")
bos, *ids = tokenizer.encode((plot.HERE / "text.txt").read_text(encoding="utf-8"))
texts = [[bos, *ids[k * 2048 : (k + 1) * 2048]] for k in range(6)]
nll = {
    name: torch.stack([stream_nll(model, text, lm) for text in texts]).mean(0)
    for name, lm in settings.items()
}

# %% [markdown]
# **Claim.** Only both together stay flat. Vanilla explodes at once; the Λ alone explodes as
# soon as its starting tokens are further away than any training text was long; the ceiling
# alone rises slowly, as attention is spread over more and more keys.

# %%
early = float(nll["LM-Infinite"][128:256].mean())
late = {name: float(curve[1024:].mean()) for name, curve in nll.items()}
print({name: round(value, 2) for name, value in late.items()})
assert late["LM-Infinite"] < early + 0.1
assert late["LM-Infinite"] + 0.1 < late["ceiling without Λ"] < late["Λ without ceiling"] - 1
assert late["Λ without ceiling"] + 1 < late["vanilla"]
rise = nll["ceiling without Λ"] - nll["LM-Infinite"]  # the text's own ups and downs cancel
assert rise[512:1024].mean() < rise[1024:1536].mean() < rise[1536:].mean()
assert torch.allclose(nll["LM-Infinite"][:256], nll["vanilla"][:256], atol=1e-3)

# %%
drawing, axes = plot.figure()
for name, curve in nll.items():
    plot.steps(axes, range(0, 2049, 64), curve.view(-1, 64).mean(1).tolist(), name)
plot.trained(axes, 256)
axes.set(xlabel="position", ylabel="nll, nats per token", ylim=(2.5, 10))
plot.show(drawing, "Only Λ and ceiling together stay flat beyond 256 tokens", "nll")

# %% [markdown]
# The paper's ablation finds the same order for LLaMA-7B, read to 8,000 tokens. In our model the
# Λ without a ceiling does not stay bad but swings, about every 600 tokens. That fits the
# wavelength of one of the pairs that RoPE turns, 2π · 100: every 628 tokens it brings the
# starting tokens back to angles that they had when they were near.

# %%
wavelengths = 2 * torch.pi / model.scheme.frequencies
print("wavelengths of the slowest pairs:", [round(float(w)) for w in wavelengths[6:]])
assert abs(wavelengths[8] - 628) < 1

# %% [markdown]
# With the ceiling all pairs stay at one angle for good.
#
# **Where this lives.** [distance_ceiling.py](../minilm_inf/distance_ceiling.py), and
# [attention.py](../minilm_inf/attention.py), where mask and ceiling meet in one softmax.
#
# ## Exercises
#
# 1. With `n_local=distance_ceiling=C`, show for the tiny Llama with C = 64 that the first row
#    of logits that differs from vanilla is row C + 1 when there are starting tokens, and row C
#    when there are none. Why not the same?
# 2. Lower LM-Infinite's ceiling to 128, 32 and 8, with the window still at 256. Which keys does
#    it affect now, and what does it cost?
#
# Answers: [solutions/06_the_distance_ceiling.py](solutions/06_the_distance_ceiling.py).

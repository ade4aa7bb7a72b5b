# %% [markdown]
# # 03 · Too long
#
# **Question.** What happens to a model when a text grows longer than the texts it was trained
# on?
#
# The tiny models here were trained on texts of 256 tokens. The *nll* says how surprised a model
# is by the token that follows, in nats: blind guessing among 2,048 ids costs ln V = 7.62, and
# these models reach about 3.5 on Jane Austen's *Northanger Abbey*, which none of them has read.
#
# **Predict.** A model reads 2,000 tokens of it. Draw the nll by position: beyond 256, does it
# fall (more context), stay, or rise? Is it the same for RoPE and for ALiBi?

# %%
import math

import plot
import torch

from minilm_inf import load
from minilm_inf.evaluate.compare import reencoded_nll, stream_nll

TEXT = (plot.HERE / "text.txt").read_text(encoding="utf-8")
N, PIECES, L = 2048, 6, 256


def pieces(tokenizer) -> list[list[int]]:
    """Texts of N + 1 ids, each with its mark of a beginning."""
    bos, *ids = tokenizer.encode(TEXT)
    return [[bos, *ids[k * N : (k + 1) * N]] for k in range(PIECES)]


def mean_nll(score, model, texts) -> torch.Tensor:
    """The nll by position, averaged over the texts: (N,)."""
    return torch.stack([score(model, ids) for ids in texts]).mean(0)


# %% [markdown]
# A text has easy and hard places of its own. So each token is also scored by *re-encoding*:
# every 128 tokens the model restarts, on a piece of 256: the mark of a beginning and the last
# 255 tokens. Only its newest 128 predictions count, so each has 128 to 255 tokens of context
# besides that mark. (The first piece counts whole.) That is slow, but always within the trained
# length. Where *vanilla*, the plain model that sees the whole text, is worse, the length is to
# blame, not the text. In the GPT-J, RoPE turns 24 of a head's 32 coordinates:

# %%
families = {
    "Llama (RoPE)": "tiny-llama", "GPT-J (RoPE on 24 of 32)": "tiny-gptj",
    "MPT (ALiBi)": "tiny-mpt",
}  # fmt: skip
vanilla, reencoded = {}, {}
for name, folder in families.items():
    model, tokenizer = load(plot.ROOT / "weights" / folder)
    assert model.config.context_length == L
    texts = pieces(tokenizer)
    vanilla[name] = mean_nll(lambda model, ids: stream_nll(model, ids, None), model, texts)
    reencoded[name] = mean_nll(reencoded_nll, model, texts)

# %% [markdown]
# **Claim.** Within the trained length all is well. Beyond twice that length the Llama is worse
# than a blind guess, the GPT-J is far off too, and the little MPT reads on as before.

# %%
print(f"{'':24}  0 to 256   512 to 2,048   re-encoding")
for name in families:
    early, late = float(vanilla[name][:L].mean()), float(vanilla[name][2 * L :].mean())
    possible = float(reencoded[name][2 * L :].mean())
    print(f"{name:24} {early:9.2f} {late:14.2f} {possible:12.2f}")
    assert early < 4 and possible < 4  # no part of the text is that hard
    loss = late - possible
    if name.startswith("Llama"):
        assert late > math.log(2048)
    assert abs(loss) < 0.1 if name.startswith("MPT") else loss > 1

# %%
drawing, panels = plot.figure(3, sharey=True)
edges = range(0, N + 1, 64)
for name, axes in zip(families, panels):
    axes.axhline(math.log(2048), color=plot.INK, linewidth=0.8)
    for method, nll, width in (("re-encoding", reencoded, 4), ("vanilla", vanilla, 2)):
        means = nll[name].view(-1, 64).mean(1).tolist()
        plot.steps(axes, edges, means, method, linewidth=width, linestyle="-")
    plot.trained(axes, L)
    axes.set(title=name, xlabel="position", xticks=[0, 1000, 2000], ylim=(2.5, 10))
panels[0].set_ylabel("nll, nats per token")
panels[0].annotate("blind guess", (1990, 7.5), ha="right", va="top", fontsize=9)
plot.show(drawing, "Beyond 256 tokens both RoPE models fail, the ALiBi model does not")

# %% [markdown]
# RoPE does not merely stop gaining from more context; it breaks. ALiBi was made to extrapolate
# (Press et al., 2021), and at this size it does. The paper's MPT-7B fails nevertheless: its
# perplexity, e^nll, on ArXiv papers is 5.5 at 2,000 tokens (an nll of 1.7 nats), and 250 at
# 4,000 (an nll of 5.5). What a small model survives, a large one need not.
#
# **Where this lives.** [compare.py](../minilm_inf/evaluate/compare.py): `stream_nll` and
# `reencoded_nll`; `python -m minilm_inf.evaluate compare` makes the table of the README.
#
# ## Exercises
#
# 1. Does the failure need a long text, or only large *positions*? Read 200 tokens with a cache
#    whose first position is 100,000 (`model.new_cache(first_position=100_000)`), and compare
#    with position 0. What does lesson 01 say?
# 2. The tiny Llama begins to fail right after position 256. How far does it get before its mean
#    nll over 32 tokens first exceeds that of re-encoding by a whole nat?
#
# Answers: [solutions/03_too_long.py](solutions/03_too_long.py).

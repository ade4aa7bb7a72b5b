# %% [markdown]
# # 02 · Three families, one spine
#
# **Question.** A Llama, an MPT and a GPT-J differ in norms, MLPs, heads and positions. What do
# they share, and where would a change to how they look back have to go?
#
# | | Llama | MPT | GPT-J |
# |---|---|---|---|
# | positions | RoPE in halves | ALiBi | RoPE in pairs, on a part of the head |
# | norm | RMSNorm | LayerNorm | LayerNorm |
# | block | attention, then MLP | attention, then MLP | both side by side |
# | MLP | gated SiLU | GELU | GELU |
# | heads for keys | fewer than for queries | as many | as many |
#
# **Predict.** Write down, in words, what a model does between its embedding and its logits.
# How many of your lines mention a family?

# %%
import plot
import torch

from minilm_inf import attend, load
from minilm_inf.distance_ceiling import capped_logits

TEXT = (plot.HERE / "text.txt").read_text(encoding="utf-8")
families = {"Llama": "tiny-llama", "MPT": "tiny-mpt", "GPT-J": "tiny-gptj"}
models = {name: load(plot.ROOT / "weights" / folder) for name, folder in families.items()}

# %% [markdown]
# Here is the spine, in eight lines, and none mentions a family. A block is handed a vector for
# each token and a function; it makes queries, keys and values in its own way, calls the
# function, and does with the answer what its family does. `attend` is the package's definition
# of attention, and the scheme of lesson 01 is one of its arguments.


# %%
def spine(model, tokens, look_back):
    positions = torch.arange(tokens.shape[1])

    def attention(q, k, v):  # (B, H, T, D), and (B, H_kv, S, D) twice
        return look_back(q, k, v, positions, positions, model.scheme, None)

    x = model.embed(tokens)
    for block in model.blocks:
        x = block(x, attention)
    return model.head(model.norm(x))


# %% [markdown]
# **Claim.** These lines are all three models: they give the package's own logits.

# %%
seen = {}  # family -> the last layer's queries and keys


def recorded(q, k, v, positions, _, scheme, lm):
    seen[name] = q, k, positions, scheme
    return attend(q, k, v, positions, positions, scheme, lm)


with torch.inference_mode():
    for name, (model, tokenizer) in models.items():
        tokens = torch.tensor([tokenizer.encode(TEXT)[:48]])
        mine, theirs = spine(model, tokens, recorded), model(tokens)
        error = float((mine - theirs).abs().max())
        q, k = seen[name][:2]
        print(f"{name:6} difference {error:.0e}   q {tuple(q.shape)}   k {tuple(k.shape)}")
        assert error < 1e-4 and float(theirs.std()) > 1

# %% [markdown]
# So whatever changes how a model looks back goes into one function of q, k, v and positions,
# and serves all families. That function can also be watched. This is where the last layer
# looks, on the average of its heads, a row per query:

# %%
drawing, panels = plot.figure(3)
for (name, (q, k, positions, scheme)), axes in zip(seen.items(), panels):
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scale = q.shape[-1] ** -0.5
    logits = capped_logits(q, k, positions, positions, scheme, None, scale)
    future = positions[:, None] < positions
    weights = logits.masked_fill(future, -torch.inf).softmax(-1)[0].mean(0)
    assert torch.allclose(weights.sum(-1), torch.ones(48), atol=1e-5)
    assert weights[24:, 0].mean() > 2 / 36  # the first key gets more than twice an even share
    axes.imshow(weights.sqrt().tolist(), vmin=0, vmax=1)
    axes.set(title=name, xlabel="key j", xticks=[0, 20, 40], yticks=[0, 20, 40])
panels[0].set_ylabel("query i")
plot.show(drawing, "Attention in each family's last layer: the darker, the more is looked at")

# %% [markdown]
# The colour is the square root of the weight, so that small weights show. Each row adds up to
# 1, and above the diagonal lies the future, which nobody sees. In all three the first token
# is looked at more than twice as often as its share, however far behind it lies: keep that in
# mind for lesson 05.
#
# **Where this lives.** [transformer.py](../minilm_inf/transformer.py) is the spine;
# [llama.py](../minilm_inf/models/llama.py), [mpt.py](../minilm_inf/models/mpt.py) and
# [gptj.py](../minilm_inf/models/gptj.py) are the blocks. They have one skeleton, so that a diff
# of two of them shows only facts.
#
# ## Exercises
#
# 1. The tiny Llama has 6 heads for queries and 2 for keys and values. Which heads share a key?
#    Show that repeating each key head 3 times changes nothing in what `attend` returns.
# 2. Give the spine a `look_back` that sees only the token itself. How much worse does the tiny
#    Llama read `text.txt` then?

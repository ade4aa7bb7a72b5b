# %% [markdown]
# # 02 · Three families, one spine
#
# **Question.** A Llama, an MPT and a GPT-J differ in norms, MLPs, heads and positions. What do
# they share, and where would a change to how they look back have to go?
#
# | | Llama | MPT | GPT-J |
# |---|---|---|---|
# | positions | RoPE in halves | ALiBi | RoPE in pairs, on part of the head |
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
# Here is the spine, in eight lines, none of which mentions a family. A block is given a vector
# for each token, and a function; it makes queries, keys and values in its own way, calls the
# function, and does with the answer what its family does. `attend` is the package's definition
# of attention, and the scheme of lesson 01 is one of its arguments.


# %%
def spine(model, tokens, look_back):
    positions = torch.arange(tokens.shape[1])

    def attention(q, k, v):  # (B, H, T, D), and (B, H_kv, S, D) twice
        # positions of queries, of keys; None: no LM-Infinite yet
        return look_back(q, k, v, positions, positions, model.scheme, None)

    x = model.embed(tokens)
    for block in model.blocks:
        x = block(x, attention)
    return model.head(model.norm(x))


# %% [markdown]
# **Claim.** These lines run all three models: they give the package's own logits.

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
# and serves all families:

# %%
drawing, axes = plot.figure()
axes.set(xlim=(0, 12), ylim=(0, 6))
axes.axis("off")


def box(x: float, y: float, text: str, face: str = "white", ink: str = plot.INK):
    style = {"boxstyle": "round,pad=0.55", "facecolor": face, "edgecolor": plot.INK}
    axes.text(x, y, text, ha="center", va="center", color=ink, bbox=style, linespacing=1.4)


def arrow(x: float, y: float, to_x: float, to_y: float):
    axes.annotate("", (to_x, to_y), (x, y), arrowprops={"arrowstyle": "->", "color": plot.INK})


box(1.9, 5.1, "Llama\nRMSNorm\nattention, then gated MLP\nRoPE in halves")
box(6, 5.1, "MPT\nLayerNorm\nattention, then MLP\nALiBi")
box(10.1, 5.1, "GPT-J\nLayerNorm\nattention and MLP side by side\nRoPE in pairs")
spine_boxes = {0.6: "ids", 2.7: "embed", 6: "blocks", 9.3: "norm, head", 11.3: "logits"}
for x, text in spine_boxes.items():
    box(x, 2.75, text, plot.COLOURS["other"], "white")
box(6, 0.5, "look_back: LM-Infinite goes here", plot.COLOURS["LM-Infinite"], "white")
for x, to_x in ((1, 2.2), (3.2, 5.4), (6.6, 8.55), (10.05, 10.8)):
    arrow(x, 2.75, to_x, 2.75)
for x, to_x in ((1.9, 5.4), (6, 6), (10.1, 6.6)):
    arrow(x, 4.25, to_x, 3.1)
arrow(5.8, 2.4, 5.8, 0.85), arrow(6.2, 0.85, 6.2, 2.4)
axes.text(5.65, 1.6, "q, k, v, positions, scheme", ha="right", va="center")
axes.text(6.35, 1.6, "what each query gathers", va="center")
plot.show(drawing, "Three families share one spine, and one function that looks back")

# %% [markdown]
# That function is also a place to watch. This is the weight that the last layer gives to the
# first token of the text, averaged over its heads and over the queries 24 to 47:

# %%
for name, (q, k, positions, scheme) in seen.items():
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    # the logits q . k at their distances; None: no ceiling on these, which lesson 06 brings
    logits = capped_logits(q, k, positions, positions, scheme, None, q.shape[-1] ** -0.5)
    future = positions[:, None] < positions
    weights = logits.masked_fill(future, -torch.inf).softmax(-1)[0].mean(0)
    first, even = weights[24:, 0].mean(), (1 / (positions[24:] + 1)).mean()
    print(f"{name:6} {100 * first:.1f}% on the first token, an even share is {100 * even:.1f}%")
    assert first > 2 * even

# %% [markdown]
# On average, then, each of the three gives its first token more than twice an even share.
# Whether a model *needs* it is another question: lesson 05.
#
# **Where this lives.** [transformer.py](../minilm_inf/transformer.py) is the spine;
# [llama.py](../minilm_inf/models/llama.py), [mpt.py](../minilm_inf/models/mpt.py) and
# [gptj.py](../minilm_inf/models/gptj.py) are the blocks. They share one skeleton, so a diff of
# two of them shows only what differs.
#
# ## Exercises
#
# 1. The tiny Llama has 6 heads for queries and 2 for keys and values. Which heads share a key?
#    Show that repeating each key head 3 times changes nothing in what `attend` returns.
# 2. Give the spine a `look_back` that sees only the token itself. How much worse does the tiny
#    Llama read the first 256 tokens of `text.txt` then?
#
# Answers: [solutions/02_three_families_one_spine.py](solutions/02_three_families_one_spine.py).

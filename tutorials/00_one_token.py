# %% [markdown]
# # 00 · One token
#
# **Question.** What does a language model do, from text to text, for a single token?
#
# Four things: it turns text into numbers (*ids*), reads them, gives a score to every id that
# could follow (*logits*), and turns one of these ids back into text. All that LM-Infinite
# changes happens in the second step. This lesson walks through the four, and introduces the
# letters in which the course and the package write shapes. B, T, E and V are used here, the
# others from lesson 01 on:
#
# | letter | meaning | in the model used here |
# |---|---|---|
# | B | batch: texts read side by side | 1 |
# | T | queries: the tokens that are read now | 5 |
# | S | keys: the tokens that can be looked at | 5 |
# | H | heads, each with queries of its own | 6 |
# | H_kv | heads of keys and values; three heads of queries share each (K in the one-file) | 2 |
# | D | head dimension | 32 |
# | E | model width | 192 |
# | V | vocabulary | 2,048 |
#
# **Predict.** The model reads five tokens. How many predictions does it make, and does the
# first of them change when the fifth token does?

# %%
import plot
import torch

from minilm_inf import generate, load

model, tokenizer = load(plot.ROOT / "weights" / "tiny-llama")
ids = tokenizer.encode("The captain had")
print([(id, tokenizer.decode([id])) for id in ids])

# %% [markdown]
# Frequent words are one token, others are cut into pieces; the first id marks the beginning of
# a text. Reading goes from ids (B, T) to vectors (B, T, E), which every layer rewrites, and at
# the end to logits (B, T, V).

# %%
with torch.inference_mode():
    tokens = torch.tensor([ids])
    vectors = model.read(tokens)  # everything but the last step
    logits = model(tokens)
for letters, x in {"B T": tokens, "B T E": vectors, "B T V": logits}.items():
    print(f"{letters:6} {tuple(x.shape)}")

# %% [markdown]
# One prediction for every token that was read: T of them, not one. Row t of the logits says
# what may follow token t, and was made without looking at anything after t. So nothing is lost
# by reading a whole text at once, and the answer to the second question is no:

# %%
B, T, V = 1, len(ids), model.config.vocab_size
assert logits.shape == (B, T, V)
with torch.inference_mode():
    changed = tokens.clone()
    changed[0, -1] = tokenizer.encode("was")[-1]
    other = model(changed)
difference = (other - logits).abs().amax(-1)[0]  # of each row
print("largest change when 'had' becomes 'was':", [f"{x:.1f}" for x in difference.tolist()])
assert difference[:-1].max() < 1e-5 and difference[-1] > 0.1  # the past cannot see the end

# %% [markdown]
# The last row is the one that writes. Its softmax gives a probability for each of the V ids. In
# the figure ▁ marks the beginning of a word, which need not be whole: ▁g may become "gone".

# %%
chances = logits[0, -1].softmax(-1)
assert abs(float(chances.sum()) - 1) < 1e-5
best = chances.topk(10)
names = [tokenizer.processor.id_to_piece(id) for id in best.indices.tolist()]

drawing, axes = plot.figure()
bars = axes.barh(names[::-1], best.values.tolist()[::-1], color=plot.COLOURS["other"])
axes.bar_label(bars, fmt=" %.3f")
axes.set(xlabel="probability", xlim=(0, 0.21), ylabel="the ten likeliest tokens")
plot.show(drawing, 'After "The captain had" the model finds "been" the likeliest')

# %% [markdown]
# **Claim.** Writing is nothing but this, again and again: read everything, take an id from the
# last row, append it. `generate` keeps the keys and values of what it has read, and gives the
# same ids as five lines that read everything again at every step:

# %%
grown = list(ids)
with torch.inference_mode():
    for _ in range(20):
        last = model(torch.tensor([grown]))[0, -1]
        grown.append(int(last.argmax()))
assert grown[len(ids) :] == list(generate(model, ids, max_new_tokens=20, temperature=0))
print(tokenizer.decode(grown))

# %% [markdown]
# A model of 1.7 million parameters is no author, but it keeps to English, and that is enough to
# see it fail and recover in the lessons that follow.
#
# **Where this lives.** [transformer.py](../minilm_inf/transformer.py) is the spine that reads,
# [sampling.py](../minilm_inf/writing/sampling.py) takes an id from logits,
# [session.py](../minilm_inf/writing/session.py) holds `generate`, and
# [config.py](../minilm_inf/config.py) the letters.
#
# ## Exercises
#
# 1. How surprised was the model by each token of "The captain had"? Compute the nll (the
#    negative logarithm of the probability) of each id under the row before it, and compare its
#    mean with that of the same ids in reverse order. (The mark of the beginning stays first.)
# 2. Divide the logits by a temperature of 0.5 and of 2 before the softmax. Which raises the
#    probability of the likeliest token? Show that neither changes which token is likeliest.
#
# Answers: [solutions/00_one_token.py](solutions/00_one_token.py).

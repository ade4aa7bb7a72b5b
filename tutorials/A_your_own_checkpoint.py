# %% [markdown]
# # A · Bring your own checkpoint
#
# **Question.** You have a folder with a Llama, an MPT or a GPT-J on your disk. How do you read
# it, and will it fit into memory?
#
# This lesson makes such a folder itself, from the tiny GPT-J: its config.json, its tokenizer,
# and its weights as `pytorch_model.bin`, a pickle, the format of older checkpoints.
#
# **Predict.** Llama-2-7B keeps 32 key heads of 128 in each of 32 layers, in 16 bits. How large
# is its cache after 4,096 tokens, and after a million? And with LM-Infinite?

# %%
import contextlib
import shutil
import tempfile
from pathlib import Path

import plot
import torch
from safetensors.torch import load_file

from minilm_inf import LMInfinite, ModelConfig, generate, load, load_model
from minilm_inf.checkpoint.checkpoint import from_headers
from minilm_inf.convert.__main__ import main as convert
from minilm_inf.inspect.folder_facts import summary
from minilm_inf.writing.plan import cache_bytes

original, place = plot.ROOT / "weights" / "tiny-gptj", Path(tempfile.mkdtemp())
mine = place / "mine"
mine.mkdir()
for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
    shutil.copy(original / name, mine)
torch.save(load_file(original / "model.safetensors"), mine / "pytorch_model.bin")

# %% [markdown]
# `convert` writes model.safetensors beside the pickle, from which nothing but tensors is ever
# read. `inspect` looks into a folder in an instant, without reading weights, and says what it
# is and where every tensor goes. Its first lines are printed below. Both are commands: `python
# -m minilm_inf.convert FOLDER` and `python -m minilm_inf.inspect FOLDER`.

# %%
with contextlib.chdir(place):
    assert convert(["mine"]) == 0
for label, words in summary(mine, *from_headers(mine)):
    print(f"{label:12} {words}")

# %% [markdown]
# **Claim.** What is loaded from it is the same model: it writes the same text as the original.

# %%
texts = []
for folder in (original, mine):
    model, tokenizer = load(folder)
    lm = LMInfinite.for_model(model.config, n_global=10)
    written = generate(model, tokenizer.encode("The captain"), lm, 40, seed=1)
    texts.append(tokenizer.decode(list(written)))
print(texts[1])
assert texts[0] == texts[1]

# %% [markdown]
# If your memory does not hold it, `load(folder, dtype=torch.int8)`, or `--dtype int8`, rounds
# the weights of linear layers to eight bits as they are read
# ([int8.py](../minilm_inf/models/int8.py)). Llama-2-7B then takes 7.7 GB instead of 27.0, and
# writes 2.4 times as many tokens a second on the machine of README's table. The logits move a
# little:

# %%
small = load_model(mine, dtype=torch.int8)
some = torch.tensor([tokenizer.encode("The captain said that")])
with torch.inference_mode():
    before, after = model(some), small(some)
moved, spread = (after - before).std(), before.std()
print(f"the logits spread by {spread:.2f}, and moved by {moved:.3f}")
assert moved < 0.05 * spread
sizes = [sum(x.nbytes for x in one.parameters()) / 1e6 for one in (model, small)]
print(f"{sizes[0]:.1f} MB of weights in float32, {sizes[1]:.1f} MB in int8")
assert sizes[1] < 0.5 * sizes[0]

# %% [markdown]
# The memory needed is known before anything is loaded. The formula of `generate --plan` says
# exactly how large a cache will be:

# %%
tokens = torch.tensor([tokenizer.encode((plot.HERE / "text.txt").read_text())[:700]])
with torch.inference_mode():
    for setting in (None, lm):
        cache = model.new_cache(1, setting)
        model(tokens, setting, cache=cache)
        assert cache.nbytes == cache_bytes(model.config, 700, setting, torch.float32)

llama_2_7b = ModelConfig(
    family="llama", vocab_size=32000, n_layer=32, n_head=32, n_kv_head=32, n_embd=4096,
    head_dim=128, n_inner=11008, context_length=4096, norm_eps=1e-5, tied=False,
)  # fmt: skip
lengths = [2**e for e in range(8, 21)]
settings = {"vanilla": None, "LM-Infinite": LMInfinite.for_model(llama_2_7b, n_global=10)}
drawing, axes = plot.figure()
for name, setting in settings.items():
    gb = [cache_bytes(llama_2_7b, n, setting, torch.float16) / 1e9 for n in lengths]
    plot.line(axes, lengths, gb, name)
    print(f"{name:12} {gb[4]:.2f} GB at 4,096 tokens, {gb[-1]:.2f} GB at a million")
assert 500 < cache_bytes(llama_2_7b, 2**20, None, torch.float16) / 1e9 < 600
assert gb[-1] == gb[-2] < 3
assert round(gb[4] * 1e9) == (4096 + 2 * 10) * 2 * 32 * 32 * 128 * 2
axes.axhline(13.5, color=plot.INK, linewidth=1)
axes.annotate("the weights", (256, 14.5), fontsize=9)
axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="cache in 16 bits, GB")
axes.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
axes.set_xticks([1e3, 1e4, 1e5, 1e6], ["1,000", "10,000", "100,000", "1,000,000"])
plot.show(drawing, "LM-Infinite keeps Llama-2-7B's cache at 2 GB, however long the text")
shutil.rmtree(place)

# %% [markdown]
# At 4,096 tokens LM-Infinite takes a little more, 4,096 tokens and twice the starting 10
# (lesson 08). From there on it no longer grows.
#
# What a folder may hold: Llama 1 to 3.2, TinyLlama, SmolLM2, Mistral without a sliding window;
# MPT in both spellings; GPT-J. What is not understood is refused by name, never guessed. If a
# model loads and babbles, `python -m minilm_inf.inspect FOLDER --probe` asks whether another
# reading of the same numbers, such as the other RoPE layout, fits better.
#
# **Where this lives.** [checkpoint.py](../minilm_inf/checkpoint/checkpoint.py),
# [inspect/](../minilm_inf/inspect/__main__.py) and
# [convert/](../minilm_inf/convert/__main__.py).
#
# ## Exercises
#
# 1. In a copy of the folder, change a setting in config.json to an impossible value, such as
#    `"rotary_dim": 23`, or remove a tensor. What does `load` say?
# 2. With which `n_local` would Llama-2-7B's cache fit into 1 GB in 16 bits, with 10 starting
#    tokens?
#
# Answers: [solutions/A_your_own_checkpoint.py](solutions/A_your_own_checkpoint.py).

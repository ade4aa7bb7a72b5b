# %% [markdown]
# # B · Train your own tiny model
#
# **Question.** Does a barely trained model fail beyond the trained length too?
#
# This lesson trains a model from scratch in about fifteen seconds, on one core: a tokenizer of
# 512 ids, then a Llama of 100,000 parameters, on the 60,000 characters of `text.txt`. It is a
# poor model. The three tiny models of this repository took about an hour each, on much more
# text (the commands are in their cards, such as [tiny-llama](../weights/tiny-llama/README.md)).
#
# **Predict.** It reads 600,000 tokens, 256 at a time, the same text again and again. Does a
# model this young already fail beyond 256, and does LM-Infinite already help?

# %%
import json
import shutil
import tempfile
from pathlib import Path

import plot
import torch

from minilm_inf import LMInfinite, generate, load
from minilm_inf.evaluate.compare import stream_nll
from minilm_inf.train.__main__ import main as train

place = Path(tempfile.mkdtemp())
sizes = {"vocab-size": 512, "n-layer": 2, "n-embd": 64, "n-head": 2, "n-kv-head": 1}
sizes |= {"head-dim": 32, "n-inner": 128}
budget = {"tokens": 600_000, "tokens-per-step": 2048, "learning-rate": 0.004, "every": 50}
options = {"text": plot.HERE / "text.txt", "out": place / "mine", "repeats": 0, "threads": 1}
flags = [f"--{name}={value}" for name, value in (options | sizes | budget).items()]
assert train(flags) == 0

# %% [markdown]
# The folder that it writes is a checkpoint like any other: lesson A's commands read it.

# %%
model, tokenizer = load(place / "mine")
log = json.loads((place / "mine" / "training.json").read_text())["log"]
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
print(f"held-out nll {log[0]['held_out_nll']:.1f} -> {log[-1]['held_out_nll']:.1f}")
ids = tokenizer.encode("Catherine was")
print(tokenizer.decode([*ids, *generate(model, ids, None, 40, seed=1)]))
assert log[-1]["held_out_nll"] < log[0]["held_out_nll"] - 1

# %% [markdown]
# **Claim.** This one hardly fails. The model reads the text that it learned from, in pieces of
# 1,024 tokens: beyond 512, vanilla is worse than LM-Infinite by only about a tenth of a nat,
# where the tiny Llama lost five (lesson 06). The two models differ in size, layers, vocabulary
# and training all at once. Which of these makes the difference, one run cannot say.

# %%
bos, *ids = tokenizer.encode((plot.HERE / "text.txt").read_text(encoding="utf-8"))
texts = [[bos, *ids[k * 1024 : (k + 1) * 1024]] for k in range(12)]
lm = LMInfinite.for_model(model.config, n_global=10)
nll = {
    name: torch.stack([stream_nll(model, text, setting) for text in texts]).mean(0)
    for name, setting in (("vanilla", None), ("LM-Infinite", lm))
}
early = float(nll["vanilla"][64:256].mean())
late = {name: float(curve[512:].mean()) for name, curve in nll.items()}
print(f"nll {early:.2f} to 256;", {name: round(value, 2) for name, value in late.items()})
assert 0 < late["vanilla"] - late["LM-Infinite"] < 0.5 and late["LM-Infinite"] < early + 0.3

# %%
drawing, (learning, reading) = plot.figure(2)
steps = [entry["tokens"] / 1000 for entry in log]
plot.line(learning, steps, [e["train_loss"] for e in log], "other", "training", marker="o")
plot.line(learning, steps, [e["held_out_nll"] for e in log], "third", "held out", marker="o")
learning.set(title="While it learns", xlabel="thousand tokens", ylabel="nll, nats per token")
for name, curve in nll.items():
    plot.steps(reading, range(0, 1025, 64), curve.view(-1, 64).mean(1).tolist(), name)
plot.trained(reading, 256)
reading.set(title="Once it has learned", xlabel="position", ylim=(3, 3.8))
plot.show(drawing, "A barely trained model hardly fails beyond its length")
shutil.rmtree(place)

# %% [markdown]
# The exact numbers depend on the machine; the shape of the curves does not. To train a model on
# your own text: `python -m minilm_inf.train --text FILE --out FOLDER`. It can be stopped and
# resumed at any step.
#
# **Where this lives.** [train/](../minilm_inf/train/__main__.py), with
# [recipes.py](../minilm_inf/train/recipes.py) (sizes, initial weights, what is read when) and
# [practice.py](../minilm_inf/train/practice.py) (the exercises).
#
# ## Exercises
#
# 1. How large is the nll of a model that has learned nothing, and of one that knows only how
#    frequent each of the 512 ids is? Where between these is the first held-out point?
# 2. How many training tokens are there for each parameter? Compare the tiny Llama, which read
#    30.2 million tokens.
#
# Answers: [solutions/B_train_your_own.py](solutions/B_train_your_own.py).

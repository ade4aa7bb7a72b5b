# %% [markdown]
# # Solutions to lesson 13, open questions

# %% 1. By half over 71 tokens in the fastest pair, over 1,943 in the slowest
import math

import here  # noqa: F401

from minilm_inf.diagnose.schemes import XPos

scheme = XPos(32, 128.0)  # as trained here: head_dim 32, half of the trained length
halves = math.log(0.5) / scheme.fading  # tokens
assert halves[0].round() == 71 and halves[-1].round() == 1943
# The largest logit of this model is 13 (the table of the three factors). Once a pair has less
# than a thirteenth of itself left, it cannot make a difference of a nat any more.
life = math.log(1 / 13) / scheme.fading
circle = 2 * math.pi / scheme.frequencies  # tokens in which a pair turns around once
for pair in (0, 4, 8, 15):
    about = f"half gone in {halves[pair]:5,.0f} tokens, spent after {life[pair]:5,.0f}"
    print(f"pair {pair:2}: {about}, in which it turns {life[pair] / circle[pair]:4.1f} times")
# The pairs that turn often, and so tell neighbours apart, are spent within 500 tokens. Those
# that last turn less than once in their life: they fade, and do little else. RoPE's turn on.
often = life / circle > 5
assert life[often].max() < 500 and (life / circle)[8:].max() < 1.2

# %% 2. It reaches 131,040 tokens back; trust a pass key for 4,095
layers, n_local = 32, 4096
assert layers * (n_local - 1) == 131_040
# The first is arithmetic and holds for every model. The second is no law: layers may hand a key
# on, but no model here did. `python -m minilm_inf.evaluate passkey` measures it for yours.

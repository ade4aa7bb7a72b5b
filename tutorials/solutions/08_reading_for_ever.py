# %% [markdown]
# # Solutions to lesson 08, reading for ever

# %% 1. Chunks of any size: the logits differ by 1e-05, the size, 565,248 bytes, not at all
import here
import torch

from minilm_inf import LMInfinite, load

torch.set_num_threads(1)
model, tokenizer = load(here.ROOT / "weights" / "tiny-llama")
lm = LMInfinite.for_model(model.config, n_global=10)
tokens = torch.tensor([tokenizer.encode(here.TEXT.read_text(encoding="utf-8"))[:600]])
last, sizes = [], []
with torch.inference_mode():
    for size in (1, 7, 300):
        cache = model.new_cache(1, lm)
        for chunk in tokens.split(size, 1):
            logits = model(chunk, lm, cache=cache)
        last.append(logits[0, -1])
        sizes.append(cache.nbytes)
print(f"last logits differ by {(last[0] - last[2]).abs().max():.0e}; bytes {sizes}")
assert all(torch.allclose(x, last[0], atol=1e-3) for x in last)
assert len(set(sizes)) == 1

# %% 2. Far out in a stream: a difference of 1e-05, which is float32's rounding
with torch.inference_mode():
    near = model(tokens, lm, cache=model.new_cache(1, lm))
    far = model(tokens, lm, cache=model.new_cache(1, lm, first_position=200_000_000))
print(f"largest difference at position 200,000,000: {(near - far).abs().max():.0e}")
assert torch.allclose(near, far, atol=1e-3)

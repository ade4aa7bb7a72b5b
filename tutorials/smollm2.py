"""The numbers of lessons 04, 05 and 10 that need a real model, SmolLM2-135M-Instruct.

    make smollm2 smollm2-figures

The tiny models show no need of starting tokens; this one does. It was trained on 8,192 tokens,
so that nothing here is beyond its length: what is seen is what a sliding window takes away from
the vanilla model. The numbers, figures/smollm2.json, are committed, and the lessons draw them
and assert what they say; only this program needs the model.
"""

from __future__ import annotations

import json
import sys

import plot
import torch

from minilm_inf import LMInfinite, load
from minilm_inf.diagnose.recorder import entropy_and_logits
from minilm_inf.evaluate.methods import InCache, Method, Truncated

N, PIECES, W, G = 2080, 3, 256, 4
STEP = 130  # positions that are averaged for a step of a curve: half the keys in sight
FOLDERS = {"tiny Llama": "tiny-llama", "SmolLM2-135M": "smollm2-135m"}
METHODS = {  # by name; all but vanilla have as many keys in sight
    "vanilla": Method("", None),
    "re-encoding": Truncated("", None, W + G, n_bos=0),  # SmolLM2 has no mark of a beginning
    "sliding window": Method("", LMInfinite(W + G, n_global=0)),
    "StreamingLLM": InCache("", LMInfinite(W, G)),
    "LM-Infinite": Method("", LMInfinite(W, G, W)),
}


def measure() -> dict:
    """The weight on the first G tokens, by query, a mean over layers and heads; and the nll of
    each method, by STEP positions, a mean over PIECES texts of N tokens."""
    text = (plot.HERE / "text.txt").read_text(encoding="utf-8")
    queries = torch.arange(51, N, 52)
    found = {"queries": queries.tolist(), "weight": {}, "nll": {}}
    for name, folder in FOLDERS.items():
        model, tokenizer = load(plot.ROOT / "weights" / folder)
        ids = tokenizer.encode(text)
        rows = entropy_and_logits(model, ids[:N], queries, n_starting=G)
        found["weight"][name] = [round(x, 4) for x in rows.mass.mean((0, 1)).tolist()]
    texts = [ids[k * N : (k + 1) * N + 1] for k in range(PIECES)]
    for name, method in METHODS.items():
        print(name, file=sys.stderr)
        nll = [method.nll(model, row, 512) for row in texts]
        means = torch.stack(nll).view(PIECES, -1, STEP).mean((0, 2))
        found["nll"][name] = [round(x, 4) for x in means.tolist()]
    return found


def main():
    if not (plot.ROOT / "weights" / "smollm2-135m" / "model.safetensors").is_file():
        sys.exit("there is no weights/smollm2-135m: call `make smollm2` first")
    path = plot.HERE / "figures" / "smollm2.json"
    path.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

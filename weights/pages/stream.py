# ruff: noqa: E501
"""Write weights/README.md from weights/stream-200m.json: `make stream-page`.

The page shows what `make stream-200m` measured, and nothing else: test_readme.py holds it to
that.
"""

import sys
from pathlib import Path

from page import read, written

WEIGHTS = Path(__file__).resolve().parents[1]
RESULT = WEIGHTS / "stream-200m.json"

PAGE = """\
# The weights

| model | parameters | what it is for |
|---|---|---|
| [tiny-llama](tiny-llama/README.md) | 1,672,896 | the demo and the lessons: it fails past 256 tokens, and LM-Infinite fixes it |
| [tiny-mpt](tiny-mpt/README.md) | 1,291,536 | the same with ALiBi |
| [tiny-gptj](tiny-gptj/README.md) | 1,480,128 | the same with rotary pairs, on part of the head |
| [nano-llama](nano-llama/README.md) | 338,592 | small enough to read 200 million tokens in an hour, below |

All of them were trained here, on public-domain text, by the commands in their cards. Beyond the cards, these
pages say what was measured: [retrieval.md](retrieval.md), pass keys in texts of up to 64 times the trained length;
[methods.md](methods.md), eight ways to read on, compared; [qa.md](qa.md), questions about chapters that SmolLM2
answers; [diagnosis.md](diagnosis.md), the paper's three factors; [questions.md](questions.md), what the paper leaves
open, asked of tiny models; [speed.md](speed.md), where the time goes; and below, a stream of 200 million tokens.

## One stream of {total:,} tokens

The {documents} held-out documents, {all_tokens:,} tokens, joined into one stream and repeated in seeded
random order until it has {total:,} tokens. Nothing is reset on the way: one cache serves from start to end.
[nano-llama](nano-llama/README.md) was trained on {n_local} tokens at a time, and reads it
with n_local and distance_ceiling {n_local} and n_global {n_global}:

```
python -m minilm_inf.evaluate perplexity -m {model} --corpus {corpus} --stream --length {length} --threads {threads} --out weights/stream-200m.json
```

| | start | end |
|---|---|---|
| nll, nats per token: the second million, the last | {early:.4f} | {late:.4f} |
| tokens per second: the first and the last of 200 bins | {speed_start:,.0f} | {speed_end:,.0f} |
| resident memory: after the first and the last of 200 bins | {memory_start:.1f} MB | {memory_end:.1f} MB |

On the {pairs:,} tokens of the documents that are in both the second million and the last, the nll
differs by {difference:+.4f} nat ({low:+.4f} to {high:+.4f}). Over all {scored:,} scored tokens it is {nll:.4f} nat
({nll_low:.4f} to {nll_high:.4f}), {bits:.4f} bits per byte. {hours} on one
thread (PyTorch {version}), on a machine that did other work meanwhile, so the speed varies.

The run was never interrupted. Between the fourth bin and the last, resident memory grew by {growth:.1f} MB, and was
{lowest:.1f} to {highest:.1f} MB: the cache is fixed; what grows is what the process keeps around it.

The curve: the mean nll of each of 200 bins of {bin:,} tokens, from left to right, then from top to
bottom.

```
{curve}
```

All numbers, with the interval, the speed and the memory of each bin, are in
[stream-200m.json](stream-200m.json). `make stream-200m` makes it again, and `make stream-page` this page.
"""


def page(found: dict) -> str:
    """The page of a run's JSON."""
    settings, results, timing = found["settings"], found["results"], found["timing"]
    pairs, linear = results["early_and_late"], results["linear"]
    means = [f"{entry['nll']:.3f}" for entry in linear]
    lines = [" ".join(means[i : i + 10]) for i in range(0, len(means), 10)]
    memory = [entry["resident_bytes"] / 1e6 for entry in timing["linear"]]
    settled = memory[3:]  # by then all buffers have their size
    minutes = round(timing["seconds"] / 60)
    low, high = pairs["interval"]
    nll_low, nll_high = results["interval"]
    return PAGE.format(
        **settings, total=settings["length"], documents=results["documents"],
        all_tokens=results["tokens_of_all_documents"], early=pairs["early_nll"],
        late=pairs["late_nll"], speed_start=timing["linear"][0]["tokens_per_second"],
        speed_end=timing["linear"][-1]["tokens_per_second"], memory_start=memory[0],
        memory_end=memory[-1], growth=settled[-1] - settled[0], lowest=min(settled),
        highest=max(settled), pairs=pairs["pairs"], difference=pairs["difference"], low=low,
        high=high, scored=results["scored"], nll=results["nll"], nll_low=nll_low,
        nll_high=nll_high, bits=results["bits_per_byte"],
        hours=f"{minutes // 60} h {minutes % 60} min", version=settings["torch"].partition("+")[0],
        bin=linear[1]["last"] - linear[1]["first"], curve="\n".join(lines),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(written(WEIGHTS / "README.md", lambda: page(read(RESULT))))

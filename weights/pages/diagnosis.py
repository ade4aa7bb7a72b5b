# ruff: noqa: E501
"""Write weights/diagnosis.md from weights/diagnosis/*.json: `make diagnosis-page`.

The page shows what `make diagnosis` measured, and nothing else: test_readme.py holds it to that.
Of a run's numbers, only its settings and what they come to for each factor are kept.
"""

import json
import sys
from pathlib import Path

from page import read, written

WEIGHTS = Path(__file__).resolve().parents[1]
RUNS = WEIGHTS / "diagnosis"
MODELS = ("smollm2-135m", "tiny-llama", "tiny-gptj", "tiny-mpt")

PAGE = """\
# Why a plain transformer fails on long texts

The paper names three factors: distances that were never trained, too many keys, and starting tokens, which
differ from all others. `python -m minilm_inf.diagnose` looks for each of them in any checkpoint, decides by
fixed rules (minilm_inf/diagnose/factors.py) whether the model shows it, and writes every number down. Here are
its findings for the models of this folder, and for SmolLM2-135M-Instruct (`make smollm2`). "In part" means, for
factor 1, that far keys gain weight, though |logit| itself does not grow.

| model | factor 1: logits | factor 2: entropy | factor 3: starting tokens |
| --- | --- | --- | --- |
{verdicts}

{models}

## What the paper reports, and what is seen here

- In none of the models with rotary positions does |logit| itself explode beyond the trained length: within it,
  logits far below zero are nearly as large already. What explodes are the logits of keys further away than any
  trained distance, and the ceiling undoes exactly that. In the MPT |logit| does grow, but only downward, with ALiBi's
  bias: no far key gains weight.
- Entropy grows as the paper says in all three rotary models, and LM-Infinite keeps it within 0.3 nat of its value
  at the trained length.
- The starting tokens matter a lot in SmolLM2, where a quarter of all attention rests on ten of them, and hardly
  at all in the tiny models. Why that is so was not measured.
"""

MODEL = """\
## {name}

```
{command}
```

{words}

![logits, entropy, and attention on the starting tokens](diagnosis/{name}.png)"""


def command(name: str, settings: dict) -> str:
    """The command that made a result."""
    few = f" --documents {len(settings['texts'])}" if len(settings["texts"]) != 4 else ""
    return f"python -m minilm_inf.diagnose -m weights/{name} --corpus corpus{few}"


def page(runs: dict[str, dict]) -> str:
    """The whole page, of results by model."""
    rows, parts = [], []
    for name, run in runs.items():
        factors = [run["factors"][f"factor_{i}"] for i in (1, 2, 3)]
        rows.append(f"| {name} | {' | '.join(factor['verdict'] for factor in factors)} |")
        words = "\n".join(f"- factor {i}, {f['words']}" for i, f in enumerate(factors, 1))
        parts.append(
            MODEL.format(name=name, command=command(name, run["settings"]), words=words)
        )
    return PAGE.format(verdicts="\n".join(rows), models="\n\n".join(parts))


def load() -> dict[str, dict]:
    """The published results by model."""
    return {name: read(RUNS / f"{name}.json") for name in MODELS}


def made() -> str:
    """The page, of runs that are without the numbers of their figures from then on."""
    for path in RUNS.glob("*.json"):
        run = read(path)
        run.pop("curves", None)
        path.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    return page(load())


def main() -> int:
    return written(WEIGHTS / "diagnosis.md", made)


if __name__ == "__main__":
    sys.exit(main())

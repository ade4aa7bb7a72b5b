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

The paper names three factors: distances that were never trained, too many keys, and starting tokens that
are not what the others are. `python -m minilm_inf.diagnose` looks for each of them in any checkpoint, says by
fixed rules (minilm_inf/diagnose/factors.py) whether the model shows it, and writes every number down. Here it
is asked of the models of this folder, and of SmolLM2-135M-Instruct (`make smollm2`).

| model | factor 1: logits | factor 2: entropy | factor 3: starting tokens |
| --- | --- | --- | --- |
{verdicts}

{models}

## What of the paper is seen, and what is not

- That |logit| itself explodes beyond the trained length is seen in none of the models with rotary positions:
  within it, logits far below zero are nearly as large already. What explodes are the logits of keys further away than
  any trained distance, and the ceiling undoes just that. In the MPT |logit| does grow, downward only, as ALiBi's
  bias does: no far key gains weight.
- Entropy grows as the paper says in all three rotary models, and LM-Infinite keeps it within 0.3 nat of what
  it is at the trained length.
- The starting tokens matter much in SmolLM2, where a quarter of all attention rests on ten of them, and hardly
  in the tiny models. Why, is not measured here.
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

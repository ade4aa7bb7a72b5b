# ruff: noqa: E501
"""Write weights/methods.md from weights/methods.json: `make methods-page`.

The page shows what `make methods` measured, and nothing else: test_readme.py holds it to that.
"""

import sys
from pathlib import Path

from page import read, written

from minilm_inf.evaluate import table

WEIGHTS = Path(__file__).resolve().parents[1]

PAGE = """\
# Eight ways to read past the trained length

On the same documents, and with the same number of visible keys except for the two that see all, read by
[tiny-llama](tiny-llama/README.md):

```
python -m minilm_inf.evaluate compare -m weights/tiny-llama --corpus corpus --threads 1 --sweep --out weights/methods.json --figure weights/methods.png
```

![nats per token by position, for eight methods](methods.png)

{table}

{notes}

The cache holds the keys and values that the next token needs. LM-Infinite with other n_global and n_local, one
changed at a time:

{sweep}

## What the paper reports, and what is seen here

- Vanilla fails right after the trained length, and so does the Λ without a ceiling, which then swings
  between failing and reading well; the ceiling without the Λ rises steadily; LM-Infinite stays flat.
- A large n_global costs a little, as in the paper. An n_global of 0 is a catastrophe there (6.43 against 1.03
  nats); here it costs 0.016 nat. SmolLM2, whose starting tokens do matter, is in [diagnosis.md](diagnosis.md).
- StreamingLLM, which counts positions inside its cache, reads as well as LM-Infinite with the same number of keys.
- Only top-k finds a pass key in the middle. Used for every token it does not improve the reading.
"""


def page(result: dict) -> str:
    """The whole page, of a result of `evaluate compare --sweep`."""
    return PAGE.format(table=table.methods_table(result), notes=table.notes(result),
                       sweep=table.sweep_table(result))  # fmt: skip


def load() -> dict:
    """The published result."""
    return read(WEIGHTS / "methods.json")


def main() -> int:
    return written(WEIGHTS / "methods.md", lambda: page(load()))


if __name__ == "__main__":
    sys.exit(main())

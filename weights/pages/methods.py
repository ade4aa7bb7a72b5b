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

The same documents and, but for two that see all, the same number of visible keys, read by
[tiny-llama](tiny-llama/README.md):

```
python -m minilm_inf.evaluate compare -m weights/tiny-llama --corpus corpus --threads 1 --sweep --out weights/methods.json --figure weights/methods.png
```

![nats per token by position, for eight methods](methods.png)

{table}

{notes}

The cache is of the keys and values that the next token needs. LM-Infinite with other n_global and n_local, one
at a time:

{sweep}

## What of the paper is seen, and what is not

- Full attention fails right after the trained length, and so does the Λ without a ceiling, which then swings
  between failing and reading well; the ceiling without the Λ rises steadily; LM-Infinite stays flat.
- A large n_global costs a little, as in the paper. That none at all is a catastrophe there (6.43 against 1.03
  nats) is not seen here: it costs 0.016 nat. SmolLM2, whose starting tokens matter, is in
  [diagnosis.md](diagnosis.md).
- StreamingLLM, which counts positions inside its cache, reads as well as LM-Infinite with as many keys.
- None of them but top-k finds a pass key in the middle, and top-k, asked for by every token, reads no better
  for it.
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

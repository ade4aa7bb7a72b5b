# ruff: noqa: E501
"""Write weights/qa.md from weights/qa/*.json: `make qa-page`.

The page shows what `make qa` measured, and nothing else: test_readme.py holds it to that.
"""

import sys
from itertools import pairwise
from math import inf
from pathlib import Path

from page import read, written

from minilm_inf.evaluate.qa import METHODS, mean
from minilm_inf.evaluate.qa_data import words_of
from minilm_inf.evaluate.table import grid, percent

WEIGHTS = Path(__file__).resolve().parents[1]
RUNS = WEIGHTS / "qa"
REFERENCE = "lambda"  # what differences are to

PAGE = """\
# Questions about chapters

{questions} questions about {texts} texts, of {shortest:,} to {longest:,} tokens with the prompt: chapters of Moby-Dick,
Northanger Abbey, Sense and Sensibility and Persuasion, and the addresses on the State of the Union of 1790 and
1803. A few words of the text answer each. [qa/chapters.json](qa/chapters.json) holds texts, questions and answers, in
Qasper's form. The texts are in the public domain, and the questions, written for this, are placed there too.

SmolLM2-135M-Instruct answers, which was trained on {context:,} tokens at a time. Its window is {n_local:,} here, so that
the methods differ: all but full attention have {budget:,} visible keys.

```
{command}
```

In hundredths, with 95% intervals that draw the {texts} texts. An answer *names* a reference if all its words stand in it,
in their order, one after the other:

{scores}

How many answers name a reference, by the tokens of the whole prompt (and how many questions there are):

{lengths}

Minus LM-Infinite, question by question:

{differences}

Asked the same without any text, the model names {closed}, at an F1 of {closed_f1}:

```
{closed_command}
```

## What this says of a small model

{prose}

The first question about each text, the reference in italics, and what was written by LM-Infinite with top-k:

{examples}
"""
PROSE = """\
- **It answers in sentences**, whatever the prompt asks for. So no method's answers match exactly, F1 stays low where
  an answer is right, and the table compares methods, not models: with full attention too SmolLM2 names {full}.
- **It reads what it answers**: without the text it names {closed}. Nothing here is known by heart.
- **LM-Infinite alone names {lambda}**. What has left its window is lost, as with pass keys; but that is not all: of
  prompts below 2,000 tokens its window holds half and more, and yet it names {short_lambda}, where truncation with as
  many keys names {short_truncate}. What else it costs this model was not looked into.
- **The top-k middle tokens bring it back**: {topk}, as much as full attention within the intervals, with {budget:,}
  visible keys.
- **Truncation of the middle names {truncate}**: of chapters as short as most of these much is left. The beginning
  alone gives {head}.
- {questions} questions about {texts} texts are few. Only large differences can be seen, and the {beyond} beyond the
  trained length prove nothing by themselves."""


def command(run: dict, out: str) -> str:
    """The command of a run."""
    told = run["settings"]
    template = told["template"] if " " not in told["template"] else f'"{told["template"]}"'
    methods = (
        ""
        if len(told["methods"]) == len(METHODS)
        else f" --methods {','.join(told['methods'])}"
    )
    return (
        f"python -m minilm_inf.evaluate qa -m {told['model']} --chat --data {told['data']} --template {template}"
        f" -n {told['max_new_tokens']} --n-local {told['lm_infinite']['n_local']} --threads {told['threads']}{methods}"
        f" --out weights/qa/{out}"
    )


def names(text: str, answers: list[str]) -> int:
    """Whether a text holds all words of an answer, in their order, one after the other."""
    words = f" {' '.join(words_of(text))} "
    return int(any(f" {' '.join(words_of(answer))} " in words for answer in answers))


def table(rows: list[tuple], corner: str) -> str:
    """Rows of a method, a name and a mean as a table with a line for each method."""
    cells = [
        row | {"method": METHODS[method], corner: name, "accuracy": row["mean"]}
        for method, name, row in rows
    ]
    return grid(cells, "method", corner, percent)


def scored(run: dict) -> list[dict]:
    """The questions of a run, with what each answer names."""
    examples = run["results"]["examples"]
    for x in examples:
        for found in x["written"].values():
            found["names it"] = names(found["text"], x["answers"])
    return examples


def page(run: dict, closed: dict) -> str:
    """The whole page, of what `make qa` measured."""
    told, examples, methods = run["settings"], scored(run), list(run["results"]["methods"])
    context, lm, scores = told["context_length"], told["lm_infinite"], ("names it", "f1")
    bins, by_heart = {}, scored(closed)
    for x in sorted(examples, key=lambda x: x["tokens"]):
        edges = pairwise((0, 2000, 4000, context, inf))
        low, high = next(pair for pair in edges if x["tokens"] <= pair[1])
        name = f"{low:,} to {high:,}" if high < inf else f"beyond {low:,}"
        bins.setdefault(name, []).append(x)
    less = [x | {"written": minus_reference(x["written"], scores)} for x in examples]
    rows = {
        "scores": [(m, s, mean(examples, m, s)) for m in methods for s in (*scores, "exact match")],
        "lengths": [(m, f"{name} ({len(some)})", mean(some, m, "names it")) for name, some in bins.items() for m in methods],
        "differences": [(m, s, mean(less, m, s)) for m in methods if m != REFERENCE for s in scores],
    }  # fmt: skip
    shown = {x["text"]: x for x in reversed(examples)}
    lines = [
        f"- {x['question']} *{x['answers'][0]}*: {' '.join(x['written']['topk']['text'].split())}"
        for x in sorted(shown.values(), key=lambda x: x["text"])
    ]
    facts = {name: table(several, "score") for name, several in rows.items()}
    facts |= {name: cell(examples, name, "names it") for name in methods}
    facts |= {
        "questions": len(examples), "texts": run["results"]["texts"], "context": context,
        "shortest": min(x["tokens"] for x in examples), "longest": max(x["tokens"] for x in examples),
        "n_local": lm["n_local"], "budget": lm["n_local"] + lm["n_global"],
        "beyond": len(bins.get(f"beyond {context:,}", ())), "command": command(run, "smollm2-135m.json"),
        "closed": cell(by_heart, "full", "names it"), "closed_f1": cell(by_heart, "full", "f1"),
        "closed_command": command(closed, "closed-book.json"), "examples": "\n".join(lines),
    }  # fmt: skip
    facts["head"] = facts.pop("truncate-head")
    short = next(iter(bins.values()))
    facts |= {f"short_{m}": cell(short, m, "names it") for m in ("lambda", "truncate")}
    return PAGE.format(**facts, prose=PROSE.format(**facts))


def minus_reference(written: dict, scores) -> dict:
    """The scores of each method, minus those of LM-Infinite."""
    return {
        method: {score: found[score] - written[REFERENCE][score] for score in scores}
        for method, found in written.items()
    }


def cell(examples: list[dict], method: str, score: str) -> str:
    """A method's mean, with its interval."""
    found = mean(examples, method, score)
    return percent(found | {"accuracy": found["mean"]})


def load() -> tuple[dict, dict]:
    """The published results."""
    return read(RUNS / "smollm2-135m.json"), read(RUNS / "closed-book.json")


def main() -> int:
    return written(WEIGHTS / "qa.md", lambda: page(*load()))


if __name__ == "__main__":
    sys.exit(main())

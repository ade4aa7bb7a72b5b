# ruff: noqa: E501
"""Write weights/retrieval.md from weights/retrieval/*.json: `make retrieval-page`.

The page shows what `make retrieval` and `make retrieval-sweeps` measured, and nothing else:
test_readme.py holds it to that. Of a run, only its shares are kept, not every trial.
"""

import json
import sys
from pathlib import Path

from pages import read, written

from minilm_inf.evaluate.methods import LABELS
from minilm_inf.evaluate.report import PLACES, percent
from minilm_inf.terminal.tables import markdown as table

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
RUNS = WEIGHTS / "retrieval"
MODELS = ("tiny-llama", "tiny-gptj", "tiny-mpt")
ALL_LENGTHS = "1,2,4,8,16,32,64"

PAGE = """\
# Something said early, asked for late

Does a model find a pass key again that was said once, somewhere in a long text? Each text is exactly as
long as it says, its filler is held-out text of which no sentence occurs twice, and the five digits are
random; an answer counts if greedy decoding writes all of them. {trials} trials for each length and each of
{depths} depths, the same questions for every method; in brackets Wilson's 95% interval.

```
{command}
```

- *full attention*: the vanilla model;
- *truncation*: the vanilla model on BOS and the last {context} tokens, the answer included;
- *LM-Infinite*: with n_local = distance_ceiling = {context} and n_global = {n_global}, so many that a pass key
  has room among the starting tokens;
- *LM-Infinite + top-k*: the same, and in every head the {top_k} best tokens of the middle, at distance {distance},
  from layer {first} on, for the prompt's last token and all that are written.

Run on {where}. {hours}

{models}

## How many, how far, from which layer

The paper's Tables 6 and 7 ask this of Llama-2. Here, of tiny-llama, at n_global 10, all depths:

```
{sweep_command}
```

{sweeps}

## What of the paper is seen, and what is not

- Λ alone finds a pass key in the starting tokens and in the window, and never in the middle. With top-k the
  middle comes back, at 64 times the trained length too. That is the paper's result.
- Truncation finds it in the last {context} tokens only. Full attention never finds it beyond the trained
  length where positions are rotary, and with ALiBi it fades: {fading}. The paper's MPT-7B fails at once.
- Half the window is a good distance, as in the paper. Of four layers the second must take part: with top-k from
  the third on, no more is found than by Λ alone. (In the paper's 32, beginning at the 5th or 6th is best.)
- What top-k costs: of ever more tokens to choose from, more that come back are wrong ones, and disturb what
  is near. It shows where the needle is in the window (depth 1) or among the starting tokens (depth 0): there
  Λ alone is better at 16,384 tokens in the two rotary models, and most of all in tiny-gptj.
"""

MODEL = """\
## {name}

![share of right answers by length and depth, one panel for each method](retrieval/{name}.png)

{controls}

{lengths}

Over the lengths beyond {context}, by where the needle lies:

{places}

LM-Infinite + top-k, % by depth and length:

{cells}"""


def slim(result: dict) -> dict:
    """A run's result without its single trials."""
    found = json.loads(json.dumps(result))
    for cell in found["results"]["cells"]:
        cell.pop("right", None)
        cell.pop("where", None)
    return found


def picked(rows: list[dict], **wanted) -> dict | None:
    """The row with these values; None where there is none."""
    return next((row for row in rows if all(row.get(k) == v for k, v in wanted.items())), None)


def of_model(name: str, result: dict) -> str:
    """A model's part of the page."""
    settings, found = result["settings"], result["results"]
    methods, lengths = list(settings["methods"]), settings["lengths"]
    titles = [LABELS[method] for method in methods]
    worst = min(found["controls"]["inside_by_depth"], key=lambda row: row["accuracy"])
    absent = max(row["accuracy"] for row in found["controls"]["needle_absent"])
    controls = (
        f"Inside the context {percent(found['controls']['inside'])}, least at depth {worst['depth']:g}: "
        f"{percent(worst)}. Controls: the question alone {percent(found['controls']['question_alone'])}; "
        f"texts without a needle, at most {absent:.1%}."
    )
    return MODEL.format(
        name=name,
        context=settings["context_length"],
        controls=controls,
        lengths=table(
            ["length", *titles],
            [[f"{n:,}", *(percent(picked(found["by_length"], method=m, length=n)) for m in methods)]
             for n in lengths]),
        places=table(
            ["lies in", *titles],
            [[PLACES[w], *(percent(picked(found["by_place"], method=m, where=w)) for m in methods)]
             for w in PLACES]),
        cells=table(
            ["depth", *(f"{n:,}" for n in lengths)],
            [[f"{d:g}", *(f"{picked(found['cells'], method='topk', length=n, depth=d)['accuracy']:.0%}"
                          for n in lengths)]
             for d in settings["depths"]]),
    )  # fmt: skip


def of_sweeps(result: dict) -> str:
    """The tables of what was swept."""
    lengths, parts = result["settings"]["lengths"], []
    for name, rows in result["results"]["sweeps"].items():
        values = list(dict.fromkeys(row["method"] for row in rows))
        lines = [
            [
                value.partition("=")[2],
                *(percent(picked(rows, method=value, length=n)) for n in lengths),
            ]
            for value in values
        ]
        parts.append(table([name, *(f"{n:,} tokens" for n in lengths)], lines))
    return "\n\n".join(parts)


def page(runs: dict[str, dict], sweeps: dict, commands: dict[str, str], note: str) -> str:
    """The whole page, of results by model, and of the sweeps'."""
    settings = runs["tiny-llama"]["settings"]
    lm = settings["methods"]["topk"]["lm_infinite"]
    device = settings["device"]
    return PAGE.format(
        trials=settings["trials"],
        depths=len(settings["depths"]),
        command=commands["retrieval"],
        context=settings["context_length"],
        n_global=lm["n_global"],
        top_k=lm["top_k"],
        distance=lm["top_k_distance"] or lm["n_local"] // 2,
        first=lm["top_k_from_layer"],
        where=f"{'one GPU' if device.startswith('cuda') else 'the CPU'}, PyTorch {settings['torch']}",
        hours=note,
        models="\n\n".join(of_model(name, runs[name]) for name in MODELS),
        sweep_command=commands["sweeps"],
        sweeps=of_sweeps(sweeps),
        fading=", ".join(
            f"{row['accuracy']:.0%} at {row['length']:,}"
            for row in runs["tiny-mpt"]["results"]["by_length"]
            if row["method"] == "full" and row["length"] > settings["context_length"]
        ),
    )


COMMANDS = {
    "retrieval": "python -m minilm_inf.evaluate passkey -m weights/tiny-llama --corpus corpus "
    f"--lengths {ALL_LENGTHS} --trials 50 --n-global 24 --top-k-middle 5",
    "sweeps": "python -m minilm_inf.evaluate passkey -m weights/tiny-llama --corpus corpus --lengths 8 "
    "--trials 50 --methods topk --sweep k=1,3,5,10 distance=32,64,128,192,256 from-layer=0,1,2,3",
}
NOTE = "A length of 16,384 tokens takes minutes for each method on two CPU cores."


def load(folder: Path = RUNS) -> tuple[dict[str, dict], dict]:
    """The published runs: of the models, and of the sweeps."""
    runs = {name: read(folder / f"{name}.json") for name in MODELS}
    return runs, read(folder / "sweeps.json")


def made() -> str:
    """The page, of runs that are slim from then on."""
    for path in RUNS.glob("*.json"):
        path.write_text(json.dumps(slim(read(path)), indent=0) + "\n")
    return page(*load(), COMMANDS, NOTE)


def main() -> int:
    return written(WEIGHTS / "retrieval.md", made)


if __name__ == "__main__":
    sys.exit(main())

# ruff: noqa: E501
"""Write weights/retrieval.md from weights/retrieval/*.json: `make retrieval-page`.

The page shows what `make retrieval` measured, and nothing else: test_readme.py holds it to that.
"""

import sys
from pathlib import Path

from page import read, written

from minilm_inf.evaluate.retrieval import needles, pooled, sweeps
from minilm_inf.evaluate.table import grid, percent
from minilm_inf.evaluate.trials import ABSENT

WEIGHTS = Path(__file__).resolve().parents[1]
RUNS = WEIGHTS / "retrieval"
MODELS = ("tiny-llama", "tiny-gptj", "tiny-mpt")
ALL_LENGTHS = "1,2,4,8,16,32,64"

PAGE = """\
# Something said early, asked for late

Does a model find a pass key that was stated once, somewhere in a long text? Each text has exactly the length
given, its filler is held-out text in which no sentence occurs twice, and the five digits are random; an answer
counts if greedy decoding writes all of them. There are {trials} trials for each length and each of {depths}
depths, the same questions for every method; in brackets Wilson's 95% interval.

```
{command}
```

- *vanilla*: full causal attention, true distances;
- *re-encoding*: the vanilla model on BOS and the last {context} tokens, the answer included;
- *LM-Infinite*: with n_local = distance_ceiling = {context} and n_global = {n_global}, so that a pass key fits
  among the starting tokens;
- *LM-Infinite + top-k*: the same, and in every head the {top_k} best tokens of the middle, at distance {distance},
  from layer {first} on, for the prompt's last token and every token that is written.

Run on {where}. {hours}

{models}

## How many, how far, from which layer

The paper's Tables 6 and 7 ask this of Llama-2. Here, of tiny-llama, at n_global 10, all depths:

```
{sweep_command}
```

{sweeps}

## What the paper reports, and what is seen here

- LM-Infinite alone finds a pass key among the starting tokens and in the window, and never in the middle. With
  top-k the middle comes back, even at 64 times the trained length. That is the paper's result.
- Re-encoding finds it only in the last {context} tokens. Vanilla never finds it beyond the trained length where
  positions are rotary, and with ALiBi it fades: {fading}. The paper's MPT-7B fails at once.
- Half the window is a good distance, as in the paper. Of four layers the second must take part: with top-k from
  the third on, no more is found than by LM-Infinite alone. (In the paper's 32, beginning at the 5th or 6th is best.)
- What top-k costs: the more tokens there are to choose from, the more of those that come back are wrong, and they
  disturb what is near. This shows where the needle is in the window (depth 1) or among the starting tokens (depth
  0): there LM-Infinite alone is better at 16,384 tokens in the two rotary models, above all in tiny-gptj.
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


def of_model(name: str, result: dict) -> str:
    """A model's part of the page."""
    settings, cells = result["settings"], result["results"]["cells"]
    inside = [c for c in needles(cells, ["full"]) if c["length"] == settings["context_length"]]
    worst = min(inside, key=lambda row: row["accuracy"])
    absent = pooled([c for c in cells if c["depth"] == ABSENT], "method")
    controls = (
        f"Within the trained length {percent(*pooled(inside))} are found, at depth "
        f"{worst['depth']:g}, the worst, {percent(worst)}. As a control, in texts without a "
        f"needle: at most {max(row['accuracy'] for row in absent):.1%}."
    )
    return MODEL.format(
        name=name, context=settings["context_length"], controls=controls,
        lengths=grid(pooled(needles(cells, settings["asked"]), "length", "method"), "length", "method"),
        places=grid(result["results"]["by_place"], "where", "method", corner="lies in"),
        cells=grid(needles(cells, ["topk"]), "depth", "length",
                   lambda cell: f"{cell['accuracy']:.0%}"),
    )  # fmt: skip


def of_sweeps(result: dict) -> str:
    """The tables of what was swept."""
    return "\n\n".join(
        grid(rows, "method", "length", corner=f"{name}, by tokens")
        for name, rows in sweeps(result).items()
    )


def page(runs: dict[str, dict], sweeps: dict, commands: dict[str, str], note: str) -> str:
    """The whole page, of results by model, and of the sweeps'."""
    settings = runs["tiny-llama"]["settings"]
    lm = settings["methods"]["topk"]["lm_infinite"]
    where = "one GPU" if settings["device"].startswith("cuda") else "the CPU"
    return PAGE.format(
        trials=settings["trials"], depths=len(settings["depths"]), hours=note,
        command=commands["retrieval"], context=settings["context_length"],
        n_global=lm["n_global"], top_k=lm["top_k"], first=lm["top_k_from_layer"],
        distance=lm["top_k_distance"] or lm["n_local"] // 2,
        where=f"{where}, PyTorch {settings['torch']}",
        models="\n\n".join(of_model(name, runs[name]) for name in MODELS),
        sweep_command=commands["sweeps"], sweeps=of_sweeps(sweeps),
        fading=", ".join(
            f"{row['accuracy']:.0%} at {row['length']:,}"
            for row in pooled(needles(runs["tiny-mpt"]["results"]["cells"], ["full"]), "length")
            if row["length"] > settings["context_length"]
        ),
    )  # fmt: skip


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


def main() -> int:
    return written(WEIGHTS / "retrieval.md", lambda: page(*load(), COMMANDS, NOTE))


if __name__ == "__main__":
    sys.exit(main())

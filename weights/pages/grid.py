# ruff: noqa: E501
"""What n_global and n_local buy: section 2 of weights/questions.md, and what it shows.

    make grid       measure it (hours on one core; goes on where it stopped)

questions.py writes the page.
"""

import json
import sys
from collections import namedtuple
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
from page import read

from minilm_inf import LMInfinite, corpus, load
from minilm_inf.evaluate import figure
from minilm_inf.evaluate.compare import stream_nll
from minilm_inf.evaluate.documents import encoded
from minilm_inf.evaluate.intervals import interval
from minilm_inf.evaluate.methods import Method
from minilm_inf.evaluate.retrieval import Asked, Cell, trial
from minilm_inf.evaluate.table import number
from minilm_inf.evaluate.trials import Pairs, PassKey
from minilm_inf.terminal.files import write_beside
from minilm_inf.terminal.tables import markdown
from minilm_inf.train.practice import Practice

WEIGHTS = Path(__file__).resolve().parents[1]
RESULT = WEIGHTS / "questions" / "grid.json"
# Of `documents`, tokens `first` to `length` count, in blocks. Questions stand in `text` tokens, `trials` at each of `depths`.
Plan = namedtuple("Plan", "trained n_global n_local documents first length block text trials depths")  # fmt: skip
N_GLOBAL, N_LOCAL = (0, 1, 2, 4, 10, 32, 100), (16, 32, 64, 128, 256, 512)
TINY = Plan(256, N_GLOBAL, N_LOCAL, 8, 640, 1408, 128, 704, 4, (1, 0.96, 0.89, 0.75, 0.46, 0.2, 0))  # fmt: skip
SMALL = Plan(2048, N_GLOBAL, tuple(8 * x for x in N_LOCAL), 3, 4224, 4480, 32, 320, 3, (1, 0.75, 0.46, 0))  # fmt: skip
PLANS = {"tiny-llama": TINY, "tiny-gptj": TINY, "tiny-mpt": TINY, "smollm2-135m": SMALL}
BUDGET = 128  # keys in all of further settings
DRAWN, TINIES = (0, 1, 10, 100), list(PLANS)[:3]
TRAINED, OTHERS = ["keys", "pairs"], ["keys, other words", "pairs, other words"]
TASKS = {  # and words other than the trained ones: to state it, and to ask for it
    "keys": (PassKey, None),
    "pairs": (Pairs, None),
    "keys, other words": (PassKey, (["The secret code is {}."], "What is the secret code? The secret code is {}")),
    "pairs, other words": (Pairs, (["The code of {} is {}."], "What is the code of {0}? The code of {0} is {1}")),
}  # fmt: skip


def settings(plan: Plan) -> list[tuple]:
    """n_local, n_global and ceiling of the paper's own setting, and of all others."""
    found = [(plan.trained, 10, plan.trained)]
    found += [(window, n, plan.trained) for n in plan.n_global for window in plan.n_local]
    if plan is TINY:
        found += [(BUDGET - n, n, plan.trained) for n in plan.n_global]
    found += [(window, 10, other) for window in apart(plan) for other in (window, None)]
    return list(dict.fromkeys(found))


def apart(plan: Plan) -> tuple[int, int]:
    """The windows that are read with other ceilings, and with none, as well."""
    return plan.trained // 4, plan.trained * 2


class Bench:
    """A model, its documents, and the makers of its questions."""

    def __init__(self, name: str, texts: dict[str, str]):
        self.plan, (self.model, tokenizer) = PLANS[name], load(WEIGHTS / name)
        texts = dict(list(texts.items())[-self.plan.documents :])
        self.documents = encoded(texts, tokenizer, self.plan.length).values()
        ids = tokenizer.encode(" ".join(text[:100_000] for text in texts.values()), bos=False)
        practice, self.trials = Practice(tokenizer, np.array(ids)), {}
        for task, (maker, words) in TASKS.items():
            made = maker(practice, tokenizer)
            made.states, made.asks = words or (made.states, made.asks)
            self.trials[task] = partial(trial, made)
        self.cells = [Cell("", self.plan.text, depth) for depth in self.plan.depths]
        asked = [self.trials["keys"](cell, 0) for cell in self.cells]
        self.distances = [len(one.ids) - one.width - 1 - one.stated[0] for one in asked]

    def nll(self, lm: LMInfinite) -> np.ndarray:
        """The mean of each block."""
        nll = [stream_nll(self.model, ids, lm)[self.plan.first :] for ids in self.documents]
        return np.reshape([x.numpy() for x in nll], (-1, self.plan.block)).mean(1).round(5)

    def found(self, lm: LMInfinite, task: str) -> list[int]:
        """How many answers are right at each depth."""
        ways = {"": Method("", lm)}
        run = Asked(self.model, ways, self.cells, self.trials[task], lm, self.plan.trials)
        while run.done < run.total:
            run.step()
        return run.right.sum(1).tolist()


def measure():
    """All that is not in the result yet: nll, and then what is asked."""
    known = read(RESULT) if RESULT.exists() else {}
    bench = cache(lambda name: Bench(name, corpus.documents(WEIGHTS.parent / "corpus", True)))
    nll = [(name, setting, None) for name in PLANS for setting in settings(PLANS[name])]
    asked = [(name, setting, task) for task in TASKS for name, setting, _ in nll]
    for name, setting, task in nll + asked:
        lm, cell = LMInfinite(*setting), cell_of(known, name, *setting)
        skipped = task and (
            lm.n_local >= PLANS[name].text or task in OTHERS and lm.n_global != 10
        )
        if skipped or cell and (task is None or task in cell):
            continue
        if task:
            cell[task] = bench(name).found(lm, task)
        else:
            blocks = bench(name).nll(lm)
            first = {"distances": bench(name).distances, "blocks": blocks.tolist(), "cells": []}
            model = known.setdefault(name, first)  # the paper's setting is the first
            less = blocks - np.array(model["blocks"])
            less = less.mean(), *interval(less, np.ones(len(less)), [0])
            less = [round(float(x), 4) for x in less]
            model["cells"].append({"setting": list(setting), "less": less})
        text = json.dumps(known).replace('{"setting"', '\n{"setting"') + "\n"
        write_beside(RESULT, text.encode())
        print(name, setting, task or "nll", file=sys.stderr, flush=True)
    print(f"all of {RESULT.name} is measured: delete it to measure it again", file=sys.stderr)


# ---- what the page shows


def cell_of(known: dict, name: str, *setting) -> dict | None:
    """What was found of a setting."""
    cells = known.get(name, {"cells": ()})["cells"]
    return next((cell for cell in cells if cell["setting"] == [*setting]), None)


def shown(cell: dict | None, star: str) -> str:
    """nll minus that of the paper's setting; and how many keys and pairs are found."""
    if cell is None:
        return "-"
    less, low, high = cell["less"]
    found = ", ".join(str(sum(cell[task])) for task in ("keys", "pairs") if task in cell)
    return (
        f"{number(less, '{:+.3f}')} ± {(high - low) / 2:.3f}"
        + f"; {found}" * bool(found)
        + star
    )


def grid_table(known: dict, name: str) -> str:
    """A line for each window, one for BUDGET keys in all, and those with other ceilings."""
    plan, lines = PLANS[name], []
    star = {64: " \\*", 132: " \\*\\*"}  # budgets that occur twice
    rows = [(str(x), [(x, n, plan.trained) for n in plan.n_global]) for x in plan.n_local]
    if plan is TINY:
        rows += [("128 - n_global", [(BUDGET - n, n, 256) for n in N_GLOBAL])]
    rows += [(f"{x}, ceiling {x}", [(x, n, x) for n in N_GLOBAL]) for x in apart(plan)]
    rows += [(f"{x}, no ceiling", [(x, n, None) for n in N_GLOBAL]) for x in apart(plan)]
    for title, row in rows:
        found = [cell_of(known, name, *setting) for setting in row]
        cells = [shown(cell, star.get(s[0] + s[1], "")) for cell, s in zip(found, row)]
        lines += [[title, *cells]] * any(found)
    return markdown(["n_local", *(f"n_global {n}" for n in plan.n_global)], lines)


def distance_table(known: dict) -> str:
    """n_global 10: how many answers are found at each distance."""
    lines = []
    for name, window in product(TINIES, N_LOCAL):
        cell = cell_of(known, name, window, 10, 256)
        counts = [" ".join(map(str, cell.get(task, "-"))) for task in TASKS]
        lines += [[name, str(window), *counts]] * ("keys" in cell)
    return markdown(["model", "n_local", *TASKS], lines)


def picture(known: dict) -> bytes:
    """nll by n_local, a panel for each model and a line for each of four n_global."""
    title = "The first starting token helps most where windows are small; no window above the "
    drawing = figure.new(15, 4.8, title + "trained length helps")
    grey, red = (
        (figure.GREY, (0, (4, 1)), "s"),
        (figure.KEYS["starting"], (0, (3, 1, 1, 1)), "^"),
    )
    styles = figure.STYLES["window"], grey, figure.STYLES["lambda"], red
    axes = drawing.subplots(1, len(PLANS), sharey=True)
    for axis, (name, plan) in zip(axes, PLANS.items()):
        for n, (colour, dashes, marker) in zip(DRAWN, styles):
            cells = [cell_of(known, name, window, n, plan.trained) for window in plan.n_local]
            style = {"color": colour, "linestyle": dashes, "marker": marker}
            nll = [cell["less"][0] for cell in cells]
            axis.plot(plan.n_local, nll, label=f"n_global {n}", **style)
        figure.by_tokens(axis, plan.trained, "n_local (log scale)")
        axis.set_title(name, fontsize=11)
    axes[0].set_ylabel("nll minus that of the paper's setting")
    named = axes[0].get_legend_handles_labels()
    drawing.legend(*named, loc="outside lower center", ncols=5, frameon=False)
    return figure.png(drawing)


SECTION = """\
## 2. What do n_global and n_local buy?

```
make grid
```

Each setting reads the same tokens of held-out documents, which lie beyond what it sees at once: 640 to 1,408 of each of eight (of
three, 4,224 to 4,480, for SmolLM2). The tables show nll minus that of the paper's setting, n_global 10 and n_local = ceiling = trained
length, ± half the 95% interval of the difference, which is taken block by block; and, where they were asked, how many of 28 pass
keys and of 28 pairs (one of four people's numbers) are found. The ceiling is the trained length, 256, unless a line says otherwise. SmolLM2's
is 8,192 by its config, too long for this; it learned on 2,048 first, which counts as its trained length here, and of it 12 keys and
12 pairs in texts of 320 tokens were asked. One star marks settings that see 64 keys in all, two those with 132; in the line
"128 - n_global" all see 128.

![nll by n_local, four models, four n_global](questions/grid.png)

{grids}

Right answers at n_global 10, of 4 at each of the distances {distances}:

{distance}

What is seen here, for tiny-llama, tiny-gptj and tiny-mpt in this order, and then for SmolLM2:

- **The first starting token is worth the more, the smaller the window**, and tells nothing: it is BOS, in SmolLM2 the
  text's first. With a window of 16 it is worth {nll[16 first]} nats, with 256 {nll[256 first]}. With ALiBi it matters
  least. To SmolLM2 it is worth {smol[first]} with windows of 128, 256, .. 2,048: no window replaces it.
- **More than one buy little.** At 256, ten instead of one cost {nll[10 more]}, and a hundred {nll[100 more]}. With
  a window of 16, a hundred instead of ten help two of the three, and not tiny-gptj. To SmolLM2, at
  2,048, ten cost {smol[more]}, and a hundred {smol[hundred]}.
- **Of the same 128 keys**, 127 and one starting token read best (in tiny-mpt by next to nothing): {nll[127 1]}.
  Without it: {nll[128 0]}; 28 and a hundred: {nll[28 100]}.
- **The window's returns fall.** With one starting token, half the trained length costs {nll[128 1]}, a quarter
  {nll[64 1]}, a sixteenth {nll[16 1]}; SmolLM2 {smol[half]}, {smol[quarter]}, {smol[sixteenth]}. Twice the trained length costs {nll[512 1]}:
  a loss with rotary positions, although the ceiling keeps every distance a trained one; what is left is how many keys there are, and
  how many at the ceiling. With ALiBi it is neither a loss nor a gain, and nor is it for SmolLM2 ({smol[twice]}).
- **The ceiling**, at n_global 10: with a window of 64, a ceiling of 64 costs {nll[64 ceiling 64]} where 256 costs
  {nll[64 10]}, and none {nll[64 ceiling None]}. With a window of 512, one of 512 costs {nll[512 ceiling 512]}.
  So with rotary positions it must not exceed the trained length, and does better as low as a small window; with ALiBi it hardly matters.
  Nor does it to SmolLM2, which later learned on 8,192 and reads no further than 4,480 here: 512 costs {smol[capped]} with ceilings
  of 2,048, 512 and none, 4,096 {smol[wide]} with 2,048, 4,096 and none. `--distance-ceiling` is n_local unless told,
  which is right for every window up to the trained length.
- **Information is bought key by key.** Worded as in training, {inside[0]} of {inside[1]} answers in the window are found, and
  {outside[0]} of {outside[1]} others. 32 starting tokens buy what is said at the very beginning, if the window holds the question: with
  16, tiny-llama finds {start[0]} of 4 pass keys there, and {start[1]} of 4 pairs, whose question names somebody.
  A window of twice the trained length loses some of what a smaller one finds: tiny-llama then finds {wide} of 20 pairs in the
  window. In other words, what is in the window is found less often: {other}.
- **The best window**, with one starting token, is {best}. No interval sets it
  apart from the paper's setting.
- **A rule of thumb**: n_local = the trained length and one to ten starting tokens. If fewer keys must do, take them from the
  window, whose second half is worth least, and leave the first starting token. The default follows this rule, so
  `--n-local auto` would change nothing, and there is none.

What such models cannot tell: in texts of 256 tokens there is little to learn from far away, so that a window may be halved does
not follow for Llama-2-7B, and costs SmolLM2 several times as much; nor that a hundred starting tokens cost (there 1.02 nats with 10
and with 100, 6.43 with none). The intervals hold for blocks of these documents, and four questions at a distance show only what is
all or nothing.
"""


def section() -> str:
    """The section. Raises AssertionError where the numbers no longer bear out a sentence."""
    known = read(RESULT)
    nll = {}  # by model, and by n_local and n_global; and what the first token is worth, and more
    for name, model in known.items():
        cells = [cell for cell in model["cells"] if cell["setting"][2] == PLANS[name].trained]
        of = nll[name] = {"{} {}".format(*cell["setting"]): cell["less"][0] for cell in cells}
        tens = [cell for cell in model["cells"] if cell["setting"][1] == 10]
        of |= {"{0} ceiling {2}".format(*cell["setting"]): cell["less"][0] for cell in tens}
        low, high = cell_of(known, name, best(of), 1, PLANS[name].trained)["less"][1:]
        assert low < 0 < high
        if name not in TINIES:
            continue
        assert (
            (of["512 ceiling 512"] > 0.5)
            == (of["64 ceiling None"] > 0.5)
            == (name != "tiny-mpt")
        )
        assert (of["64 ceiling 64"] < of["64 10"] - 0.005) == (name != "tiny-mpt")
        of |= {f"{x} first": of[f"{x} 0"] - of[f"{x} 1"] for x in N_LOCAL}
        of |= {f"{n} more": of[f"256 {n}"] - of["256 1"] for n in (10, 100)}
        windows, keys = [of[f"{x} 1"] for x in N_LOCAL], [of[f"{128 - n} {n}"] for n in DRAWN]
        first = [of[f"{x} first"] for x in N_LOCAL[:5]]
        assert sorted(first, reverse=True) == first and min(keys) == keys[1]
        assert sorted(windows[:5], reverse=True) == windows[:5]
        assert windows[3] < 0.02 and abs(windows[4]) < 0.01
        assert (of["16 100"] > of["16 10"]) == (name == "tiny-gptj")
        assert (of["512 1"] > 0.05) == (name != "tiny-mpt")
    inside, outside = (answers(known, TRAINED, inside) for inside in (True, False))
    other = {name: answers(known, OTHERS, True, [name]) for name in TINIES}
    other = {name: (right, asked) for name, (right, asked) in other.items() if asked}
    wide = sum(cell_of(known, "tiny-llama", 512, 10, 256)["pairs"][:5])
    assert wide < 10 and all(right < 0.95 * asked for right, asked in other.values())
    smol = of_smollm2(nll["smollm2-135m"])
    start = [cell_of(known, "tiny-llama", 16, 32, 256)[task][-1] for task in TRAINED]
    assert inside[0] > 0.9 * inside[1] and outside[0] == 0
    assert start == [TINY.trials, 0]
    return SECTION.format(
        grids="\n\n".join(f"{name}:\n\n{grid_table(known, name)}" for name in PLANS),
        distances=", ".join(map(str, known["tiny-llama"]["distances"])),
        distance=distance_table(known),
        nll={key: ", ".join(number(nll[name][key], "{:+.3f}") for name in TINIES)
             for key in nll[TINIES[0]] if all(key in nll[name] for name in TINIES)},
        smol=smol, inside=inside, outside=outside, wide=wide,
        other=", ".join("{} in {}".format("{} of {}".format(*x), name) for name, x in other.items()),
        start=start, best=", ".join(f"{best(nll[name])} in {name}" for name in PLANS),
    )  # fmt: skip


def of_smollm2(nll: dict) -> dict[str, str]:
    """Its numbers in the sentences; it has other windows than the tiny models."""
    first = [nll[f"{x} 0"] - nll[f"{x} 1"] for x in SMALL.n_local[:5]]
    less = {
        name: nll[f"{x} 1"]
        for name, x in zip(("sixteenth", "quarter", "half", "twice"), (128, 512, 1024, 4096))
    }
    more = {"more": nll["2048 10"] - nll["2048 1"], "hundred": nll["2048 100"] - nll["2048 1"]}
    assert sorted(first, reverse=True) == first and first[-1] > 0.4 and less["half"] > 0.04
    assert max(map(abs, more.values())) < 0.01 and abs(less["twice"]) < 0.01
    told = {name: number(x, "{:+.3f}") for name, x in (less | more).items()}
    told["first"] = ", ".join(f"{x:+.3f}" for x in first)
    for name, window in (("capped", 512), ("wide", 4096)):
        ceilings = [nll[f"{window} ceiling {ceiling}"] for ceiling in (2048, window, None)]
        assert max(ceilings) - min(ceilings) < 0.02
        told[name] = ", ".join(f"{x:+.3f}" for x in ceilings)
    return told


def best(nll: dict) -> int:
    """The n_local of the lowest nll with one starting token."""
    return min(
        (int(x.split()[0]) for x in nll if x.endswith(" 1")), key=lambda x: nll[f"{x} 1"]
    )


def answers(known: dict, tasks: list[str], inside: bool, names=TINIES) -> tuple[int, int]:
    """Right ones, and all, of those that a window of up to 256 holds, or does not."""
    counts = []
    for name, n_local, task in product(names, N_LOCAL[:5], tasks):
        found = cell_of(known, name, n_local, 10, 256).get(task, ())
        at = zip(known[name]["distances"], found)
        counts += [right for distance, right in at if (distance < n_local) == inside]
    return sum(counts), TINY.trials * len(counts)


if __name__ == "__main__":
    measure()

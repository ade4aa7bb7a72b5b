# ruff: noqa: E501
"""What a token in the middle still passes on: section 3 of weights/questions.md.

    make depth      train Llamas of 1, 2, 4 and 8 layers, and measure them

All have nano-llama's width. They read with a window of 128, and what goes from a token to one d
tokens later is measured in two ways: as influence, of any kind and size, and as what the model
can use, a pass key that it is then asked for. questions.py writes the page.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from page import read
from schemes import WEIGHTS, prepared, program, rounded

from minilm_inf import LMInfinite
from minilm_inf.evaluate import figure
from minilm_inf.evaluate.table import number
from minilm_inf.models import llama
from minilm_inf.terminal.files import write_beside
from minilm_inf.terminal.tables import markdown
from minilm_inf.train.__main__ import Run
from minilm_inf.train.practice import ASK_KEY, Practice, five_digits
from minilm_inf.train.recipes import Phase, Settings

RESULT = WEIGHTS / "questions" / "depth.json"
LAYERS = (1, 2, 4, 8)
LM = LMInfinite(128, 4, 128)
TOKENS = 8_000_000
N_TEXTS, N_KEYS = 12, 100
DISTANCES = (40, 80, 120, 126, 127, 128, 129, 140, 200, 254, 350, 508, 700, 1016)


@dataclass(frozen=True)
class Keys(Settings):
    """Short repeats, until a model can copy; then text with many keys, to which it looks back.
    What failed: repeats of up to 64 tokens, at a rate of 0.002 (4 layers copied nothing)."""

    def phase(self, step: int) -> Phase:
        if step < 0.25 * self.steps:
            return Phase(until=0.25, window=64, repeats=1.0, retrieval=0.0)
        return Phase(until=1.0, window=256, repeats=0.1, retrieval=0.5)


def runs(folder: Path, texts: Path):
    """Every training, as (layers, Run)."""
    config, parts = prepared(texts)
    for n_layer in LAYERS:
        settings = Keys(TOKENS, 1, 1024, 1e-3, config.vocab_size)
        model = llama.build(replace(config, n_layer=n_layer))
        yield n_layer, Run(model, settings, folder / f"layers-{n_layer}.state", *parts)


def influence(model, practice: Practice) -> list[float]:
    """How much another token in its place changes what follows d tokens later: the mean over
    texts of the total variation of the two distributions, for d = 0, 1, .. beyond all reach."""
    rng, model, found = np.random.default_rng(0), model.double(), []
    reach, at = model.config.n_layer * (LM.n_local - 1), LM.n_global + 20
    for _ in range(N_TEXTS):
        ids = torch.tensor([practice.ordinary(rng, at + reach + 60)] * 2)
        ids[1, at] = int(rng.choice(practice.ids))
        one, other = model(ids, LM)[:, at:].softmax(-1)
        found.append((one - other).abs().sum(-1) / 2)
    model.float()
    return torch.stack(found).mean(0).tolist()


@torch.enable_grad()
def at_the_reach(model, practice: Practice) -> list[float]:
    """The largest gradient of a hidden state for the embedding N (n_local - 1) tokens before it,
    and for one more: unlike a difference, it is not rounded to 0, however small."""
    at, n = LM.n_global + 20, model.config.n_layer * (LM.n_local - 1)
    ids = practice.ordinary(np.random.default_rng(0), at + n + 2)
    ids[at] = next(id for id in practice.ids.tolist() if id not in ids)
    hidden, weight = model.double().read(torch.tensor([ids]), LM)[0], model.embed.weight
    found = []
    for d in (n, n + 1):
        (gradient,) = torch.autograd.grad(hidden[at + d].sum(), weight, retain_graph=True)
        found.append(float(gradient[ids[at]].abs().max()))
    model.float()
    return found


def keys(model, practice: Practice, distance: int) -> dict:
    """What is left of a pass key: each digit was stated `distance` tokens before the token that
    it has to follow. right: the share of answers whose five digits are all the likeliest. nats:
    by how much the answer is likelier than where another key was stated."""
    rng, rows = np.random.default_rng(distance), []
    lengths = [len(practice.encode(f"The pass key is 12345{end}")) for end in (".", "")]
    tail = lengths[0] - lengths[1]
    for _ in range(N_KEYS):
        key, other = five_digits(rng), five_digits(rng)
        asked = practice.encode(ASK_KEY.format(key))
        before = practice.excerpt(rng, LM.n_global + LM.n_local)
        between = practice.excerpt(rng, distance)[: distance - tail - len(asked) + 1]
        for stated in (key, other):
            fact = practice.encode(f"The pass key is {stated}.")
            rows.append([*practice.bos, *before, *fact, *between, *asked])
    nll, right = [], []
    for some in torch.tensor(rows).split(20):
        scores = model(some[:, :-1], LM)[:, -5:].log_softmax(-1)
        right.append((scores.argmax(-1) == some[:, -5:]).all(-1))
        nll.append(-scores.gather(-1, some[:, -5:, None]).sum((-1, -2)))
    nll, right = torch.cat(nll).view(-1, 2), torch.cat(right).view(-1, 2)[:, 0].double()
    more = nll[:, 1] - nll[:, 0]
    return {
        "distance": distance, "right": float(right.mean()), "nats": float(more.mean()),
        "interval": [float(more.mean() + x * 1.96 * more.std() / N_KEYS**0.5) for x in (-1, 1)],
    }  # fmt: skip


@torch.no_grad()
def measure_all(folder: Path, texts: Path):
    """Measure every model, all of which must have been trained."""
    found = []
    for n_layer, run in runs(folder, texts):
        run.load_state()
        assert run.step == run.settings.steps, "train it first"
        print(f"measuring {n_layer} layers", file=sys.stderr)
        near = [d for d in DISTANCES if d <= n_layer * (LM.n_local - 1)]
        entry = {"layers": n_layer, "held_out_nll": run.log[-1]["held_out_nll"]}
        entry["influence"] = influence(run.model, run.held_out)
        entry["gradients"] = at_the_reach(run.model, run.held_out)
        entry["keys"] = [keys(run.model, run.held_out, d) for d in near]
        found.append(entry)
    text = json.dumps(rounded({"tokens": TOKENS, "models": found})) + "\n"
    write_beside(RESULT, text.encode())


# ---- what the page shows


def picture(found: dict) -> bytes:
    """Influence by distance, and what is left of a key."""
    title = "Influence reaches N (n_local - 1) tokens back and grows faint; a key is lost as it leaves the window"
    drawing = figure.new(13, 5.2, title)
    left, right = drawing.subplots(1, 2)
    styles = (figure.STYLES[name][:2] for name in ("full", "no-lambda", "window", "lambda"))
    for model, (colour, dashes) in zip(found["models"], styles):
        n, change = model["layers"], model["influence"]
        look = {"color": colour, "linestyle": dashes, "label": f"{n} layer" + "s" * (n > 1)}
        reach = n * (LM.n_local - 1)
        left.plot(range(1, reach + 1), change[1 : reach + 1], **look)
        left.plot([reach], [change[reach]], "|", color=colour, markersize=14)
        d, nats, low, high = zip(
            *((e["distance"], e["nats"], *e["interval"]) for e in model["keys"])
        )
        right.fill_between(d, low, high, color=colour, alpha=0.2, linewidth=0)
        right.plot(d, nats, marker=".", **look)
    for axis, what in ((left, "the one that was changed"), (right, "the key")):
        figure.by_tokens(axis, LM.n_local, f"tokens after {what} (log scale)")
        axis.lines[-1].set_label("the window ends")
    left.set(yscale="log", ylabel="change of the next token's distribution")
    right.set(ylabel="nats by which the right key is likelier")
    drawing.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
    )
    return figure.png(drawing)


def influence_table(models: list[dict]) -> str:
    """How much a token changes what follows, by distance."""
    shown, rows = (1, 16, 127, 128, 254, 508), []
    for model in models:
        size, reach = model["influence"], model["layers"] * (LM.n_local - 1)
        at = [f"{size[d]:.0e}" if d <= reach else "-" for d in shown]
        ends = (f"{x:.0e}" if x else "0" for x in model["gradients"])
        rows.append([str(model["layers"]), f"{reach:,}", *at, *ends])
    later = [f"{d} later" for d in shown]
    head = ["layers", "N (n_local - 1)", *later, "gradient there", "one token further"]
    return markdown(head, rows)


def key_table(models: list[dict]) -> str:
    """What is left of a pass key, by distance."""
    shown, rows = [d for d in DISTANCES if d not in (80, 126, 129, 350)], []
    for model in models:
        of = {entry["distance"]: entry for entry in model["keys"]}
        cells = [told(of[d]) if d in of else "-" for d in shown]
        rows.append([str(model["layers"]), f"{model['held_out_nll']:.2f}", *cells])
    return markdown(["layers", "held-out nll", *map(str, shown)], rows)


def told(entry: dict) -> str:
    """Right answers, and nats with half their interval."""
    low, high = entry["interval"]
    return f"{entry['right']:.0%}; {number(entry['nats'], '{:.1f}')} ± {(high - low) / 2:.1f}"


SECTION = """\
## 3. Where is the limit?

```
make depth
```

Llamas of 1, 2, 4 and 8 layers, of [nano-llama](nano-llama/README.md)'s width, learned from {tokens:,} tokens each: a quarter of
them repeats, and after that text of 256 tokens, half of whose windows state keys and ask for them. They read with n_local =
ceiling = {window} and n_global {n_global}, so what a token says can travel {one} tokens through each layer (lesson 10).

**Influence**: in {texts} held-out texts, one token in the middle is replaced by another. How much the distribution of the next
token changes, d tokens later: its total variation, from 0 to 1, the mean over the texts, in float64. That shows no
difference below 1e-15, so at the reach itself the table gives a gradient: the largest entry of that of the hidden state there
(the sum of its entries) for the token's embedding.

{influence}

**What a model can use**: a pass key is stated in ordinary text, and asked for so that the token before each digit stands d tokens
after where that digit was stated. The share of {keys} keys that are right in all five digits; and by how many nats the right one is
likelier than where another had been stated, with half its 95% interval.

{usable}

![influence and pass keys by distance, for four models](questions/depth.png)

{findings}
"""


FINDINGS = """\
- **Influence reaches N (n_local - 1) tokens back, and not one further.** There every model's gradient is something, if only
  {faint} in 8 layers; one token further it is exactly 0. On the way influence fades with every window that it crosses: in 8
  layers it is {near} at the end of the first, {second} at that of the second, {fourth} at that of the fourth.
- **What can be used ends with the window**, at any depth. {last} tokens back, 2, 4 and 8 layers give {inside} of the keys; one
  token further, none. There the right key is even less likely than another, by {wrong} nats: each digit has left when it is
  due, the next one has not, and is sometimes copied in its place. The layers could hand a key on, as influence proves; but
  in training every key was in sight, so nothing taught them to. One layer finds none anywhere: to copy takes two.
- **No length of a stream was found at which the nll drifts.** Of 200,000,000 tokens, the last million cost nano-llama
  {difference:+.4f} nat more ({low:+.4f} to {high:+.4f}) than the same tokens near the beginning
  ([curve](README.md#one-stream-of-200000000-tokens)). Nothing in a state that reaches N (n_local - 1) tokens back could
  drift, except the angles of positions, and these are exact.
- **What breaks first** is memory: at one window, at once and entirely. Fluency does not break.

What this cannot tell: whether a larger model, or one that was trained to, hands facts on through its layers. The reach is
arithmetic and holds for Llama-2-7B (32 x 4,095 tokens); how little of it these models use is a finding about them.
"""


def findings(models: list[dict]) -> str:
    """What the tables say, in sentences that hold for them."""
    window, size = LM.n_local, {model["layers"]: model["influence"] for model in models}
    keys = {n: {e["distance"]: e for e in m["keys"]} for n, m in zip(size, models)}
    for n, found in size.items():
        reach = n * (window - 1)
        assert max(found[reach + 1 :]) < 1e-15
        assert all(abs(e["nats"]) < 0.05 for d, e in keys[n].items() if d >= window + 12)
        assert all(e["right"] == 0 for d, e in keys[n].items() if d >= window or n == 1)
    inside, beyond = ([keys[n][d] for n in (2, 4, 8)] for d in (window - 1, window))
    drift = read(WEIGHTS / "stream-200m.json")["results"]["early_and_late"]
    assert min(e["right"] for e in inside) >= 0.9 and max(e["interval"][1] for e in beyond) < 0
    assert abs(drift["difference"]) < 0.001
    assert all(at > 0 == beyond for at, beyond in (model["gradients"] for model in models))
    faint, *fading = (
        f"{x:.0e}" for x in (models[-1]["gradients"][0], *(size[8][d] for d in (127, 254, 508)))
    )
    low, high = drift["interval"]
    return FINDINGS.format(
        last=window - 1, inside=", ".join(f"{e['right']:.0%}" for e in inside),
        wrong=", ".join(f"{-e['nats']:.1f}" for e in beyond), faint=faint, near=fading[0],
        second=fading[1], fourth=fading[2], difference=drift["difference"], low=low, high=high,
    )  # fmt: skip


def section() -> str:
    """The section. Raises AssertionError where the numbers no longer bear out a sentence."""
    found = read(RESULT)
    return SECTION.format(
        tokens=found["tokens"], window=LM.n_local, one=LM.n_local - 1, n_global=LM.n_global,
        texts=N_TEXTS, keys=N_KEYS, influence=influence_table(found["models"]),
        usable=key_table(found["models"]), findings=findings(found["models"]),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(program(__doc__, runs, measure_all))

# ruff: noqa: E501
"""Write weights/questions.md from weights/questions/*.json: `make questions-page`.

Every sentence that says what was found stands beside an assertion of it on these numbers.
"""

import math
import sys
from collections import Counter
from pathlib import Path
from statistics import mean

import depth as of_depth
import grid as of_windows
import numpy as np
from page import read, written

from minilm_inf.evaluate.figure import STYLES, by_tokens, new, png
from minilm_inf.evaluate.intervals import interval
from minilm_inf.terminal.tables import markdown

WEIGHTS = Path(__file__).resolve().parents[1]
FOLDER = WEIGHTS / "questions"
TRAINED, OCTAVES = 256, [256 * 2**i for i in range(7)]  # the last position of each octave
LABELS = {
    "vanilla": ("full", "vanilla"), "no-ceiling": ("no-ceiling", "Λ without ceiling"),
    "lambda": ("lambda", "LM-Infinite"),
}  # fmt: skip


def by_scheme(found: dict) -> dict[str, list[dict]]:
    """The runs of each scheme, one for each seed."""
    names = dict.fromkeys(run["scheme"] for run in found["runs"])
    return {name: [run for run in found["runs"] if run["scheme"] == name] for name in names}


def told(values) -> str:
    """The mean of one number for each seed and text, and its interval over them."""
    values = np.array(values).flatten()
    low, high = interval(values, np.ones(len(values)), [0, 20])
    return f"{values.mean():.2f} ({low:.2f} to {high:.2f})"


def nll(runs: list[dict], name: str, octave: int, less: str | None = None) -> np.ndarray:
    """The nll of one octave, of every seed and text; or how much it is above another's."""
    found = np.array([[text[octave] for text in run["nll"][name]] for run in runs])
    return found - nll(runs, less, octave) if less else found


def scheme_tables(schemes: dict[str, list[dict]]) -> tuple[str, str]:
    """nll, and what the three factors come to."""
    reading, factors = [], []
    for name, runs in schemes.items():
        last = len(OCTAVES) - 1
        reading.append([
            name, told(nll(runs, "vanilla", 0)), told(nll(runs, "vanilla", 1, "lambda")),
            told(nll(runs, "vanilla", last, "lambda")), told(nll(runs, "no-ceiling", last, "lambda")),
            told(nll(runs, "lambda", last)),
        ])  # fmt: skip
        numbers = [
            [run["factors"][f"factor_{i}"]["numbers"] for run in runs] for i in (1, 2, 3)
        ]
        size, entropy, start = (
            {
                key: mean(one[key] for one in of)
                for key in of[0]
                if not isinstance(of[0][key], list)
            }
            for of in numbers
        )
        ranges = [mean(run["told_apart"][i] for run in runs) for i in (7, -1)]
        factors.append([
            name, f"{size['vanilla_within']:.1f} to {size['vanilla']:.1f}",
            f"{size['vanilla_far']:.1f} ({size['capped_far']:.1f})", verdicts(runs, 1),
            f"{entropy['grows']:+.2f} of {entropy['uniform_would_grow']:.2f}", verdicts(runs, 2),
            f"{start['apart']:.2f}", f"{start['cost']:+.3f}", verdicts(runs, 3),
            f"{ranges[0]:,.0f}, {ranges[1]:,.0f}",
        ])  # fmt: skip
    head = ["positions", "within 256", "vanilla, 256 to 512", "vanilla, 8,192 to 16,384",
            "Λ without ceiling, there", "LM-Infinite, there"]  # fmt: skip
    first = markdown(head, reading)
    head = ["positions", "largest logit, to 256 and to 16,384", "far keys' (as if at 256)", "factor 1",
            "entropy grows by", "factor 2", "first 25 stand apart", "without the first 10", "factor 3",
            "distances told apart, of 256 and of 16,384"]  # fmt: skip
    return first, markdown(head, factors)


def verdicts(runs: list[dict], factor: int) -> str:
    """What the seeds show."""
    counts = Counter(run["factors"][f"factor_{factor}"]["verdict"] for run in runs)
    return ", ".join(f"{n} x {what}" if len(counts) > 1 else what for what, n in counts.items())


def draw_schemes(schemes: dict[str, list[dict]]) -> bytes:
    """A column for each scheme: nll by position, the largest logit by distance, entropy."""
    figure = new(
        17,
        9,
        "RoPE alone fails at new distances, and needs the ceiling; too many keys wear xPos down, and the Λ cures that; the others hardly fail",
    )
    axes = figure.subplots(3, len(schemes), sharex=True, sharey="row")
    for column, (name, runs) in enumerate(schemes.items()):
        for side, (style, label) in LABELS.items():
            colour, dashes, _ = STYLES[style]
            look = {"color": colour, "linestyle": dashes, "label": label}
            x = [math.sqrt(last * max(last / 2, 64)) for last in OCTAVES]
            y = [nll(runs, side, octave).mean() for octave in range(len(OCTAVES))]
            axes[0, column].plot(x, y, **look)
            if side != "no-ceiling":
                at = runs[0]["logits"][side]["distance"]
                size = np.mean([run["logits"][side]["highest"] for run in runs], 0)
                axes[1, column].plot(at, size, **look)
                curve = runs[0]["entropy"][side]
                x = [math.sqrt(a * (b - 1)) for a, b in zip(curve["first"], curve["last"])]
                nats = np.mean([run["entropy"][side]["mean"] for run in runs], 0)
                axes[2, column].plot(x[1:], nats[1:], **look)
        uniform = runs[0]["entropy"]["vanilla"]["ln_visible"]
        axes[2, column].plot(
            x[1:], uniform[1:], color="#767676", linestyle=":", label="ln n, if uniform"
        )
        axes[0, column].set_title(name)
        for row, what in enumerate(("position", "distance up to", "position")):
            by_tokens(axes[row, column], TRAINED, what)
    for row, what in enumerate(
        ("nll, nats per token", "highest logit, mean of heads", "entropy of attention, nats")
    ):
        axes[row, 0].set_ylabel(what)
    handles = {
        label: line for ax in axes[:, 0] for line, label in zip(*ax.get_legend_handles_labels())
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=5, frameon=False)
    return png(figure)


SCHEMES = """\
## 1. How do positional schemes differ beyond the trained length?

The same Llama of 340,000 parameters, [nano-llama](nano-llama/README.md)'s shape, was trained six times on the same
{tokens:,} tokens, 256 at a time, with {seeds} seeds each. Only its notion of position differs
([schemes.py](../minilm_inf/diagnose/schemes.py)):

- RoPE, with theta 10,000 and 500,000 ([arXiv 2104.09864](https://arxiv.org/abs/2104.09864));
- ALiBi ([arXiv 2108.12409](https://arxiv.org/abs/2108.12409));
- xPos, RoPE that fades with distance ([arXiv 2212.10554](https://arxiv.org/abs/2212.10554)), half as far as in its
  paper, since the trained length is a quarter of that paper's;
- NoPE, no positions at all: what is seen, everything before, tells the place
  ([arXiv 2305.19466](https://arxiv.org/abs/2305.19466));
- learned vectors for 256 positions, the negative control: all positions beyond get the last one.

```
make schemes
```

The first {n} tokens of {texts} held-out documents, in nats per token; in the columns of vanilla and of the Λ without
a ceiling, how many more than with LM-Infinite (n_local and ceiling 256, n_global 10). Means, with bootstrap intervals
of 95% over the {units} pairs of a seed and a document.

{reading}

![nll, the highest logit and entropy, for six schemes](questions/schemes.png)

What the three factors come to, as `python -m minilm_inf.diagnose` decides them; means over the seeds:

{factors}

*Largest logit*: the largest |logit| over distances up to 256, and over all. *Far keys'*: the highest logit of a key 256
or more away, and what the same keys would have at 256. *Entropy*: by how much it grows from 128 to 256 keys up to the
last octave, and by how much uniform attention's would. *Stand apart*: how far the mean hidden state of the first 25
positions lies from the others', in units of their spread. *Without the first 10*: nats that it costs LM-Infinite to
drop its starting tokens. *Distances told apart* (Theorem 1): among the first 256, and among all 16,384, the largest set
found in which any two distances differ by a nat or more, in the logit of one of 64 pairs of queries and keys; mean over
the heads.

{findings}
"""


def scheme_findings(schemes: dict[str, list[dict]]) -> str:
    """What the tables say, in sentences that hold for them."""
    last = len(OCTAVES) - 1
    lost = {name: nll(runs, "vanilla", last, "lambda").mean() for name, runs in schemes.items()}
    soon = {name: nll(runs, "vanilla", 1, "lambda").mean() for name, runs in schemes.items()}
    bare = {
        name: nll(runs, "no-ceiling", last, "lambda").mean() for name, runs in schemes.items()
    }
    rope, slow = "RoPE", "RoPE, theta 500,000"
    others = [name for name in schemes if name not in (rope, slow)]
    flat = max(
        nll(runs, "lambda", last).mean() - nll(runs, "lambda", 0).mean()
        for runs in schemes.values()
    )
    costs = [
        run["factors"]["factor_3"]["numbers"]["cost"]
        for runs in schemes.values()
        for run in runs
    ]
    far = {
        name: [run["factors"]["factor_1"]["numbers"] for run in runs]
        for name, runs in schemes.items()
    }
    assert flat < 0 and max(map(abs, costs)) < 0.01
    assert min(soon[rope], soon[slow]) > 0.4 and min(bare[rope], bare[slow]) > 0.3
    assert all(
        x["vanilla_far"] > 2 * x["capped_far"] for name in (rope, slow) for x in far[name]
    )
    assert max(soon[name] for name in others if name != "learned") < 0.05
    assert max(abs(bare[name]) for name in others) < 0.02 and abs(lost["ALiBi"]) < 0.01
    assert 0.2 < lost["xPos"] < lost[rope] and 0 < lost["NoPE"] < 0.1
    young = min(nll(schemes[name], "lambda", 0).mean() for name in ("NoPE", "learned"))
    grown = max(
        nll(schemes[name], "lambda", 0).mean()
        for name in schemes
        if name not in ("NoPE", "learned")
    )
    assert young - grown > 0.5 and all(
        told[0] == told[-1] == 1 for told in apart(schemes, "NoPE")
    )
    assert all(
        told[-1] > 40 * told[7]
        for told in apart(schemes, rope) + apart(schemes, slow) + apart(schemes, "ALiBi")
    )
    assert all(told[-1] < 1.1 * told[7] for told in apart(schemes, "xPos"))
    return f"""\
- **LM-Infinite reads all six as well at 64 times the trained length as within it.**
- **New distances (factor 1) are RoPE's trouble alone.** Keys further away than any in training get logits several times
  as high as the same keys would get at the ceiling, and within the next 256 tokens vanilla loses {soon[rope]:.2f} nat, with theta
  500,000 {soon[slow]:.2f}. A larger theta does not help beyond the trained length: in the end {lost[slow]:.2f} nat are lost with it, and
  {lost[rope]:.2f} without. Here, and only here, the ceiling does what the Λ alone cannot: without it {bare[rope]:.2f} and {bare[slow]:.2f} nat stay
  lost.
- **Too many keys (factor 2) do their harm slowly.** xPos fades, so no distance is a surprise to it. But far keys, whose
  logits are all near 0, become many: vanilla loses {soon["xPos"]:.2f} nat at first, and {lost["xPos"]:.2f} in the end. The Λ alone cures that.
  NoPE and learned positions lose {lost["NoPE"]:.2f}, although their entropy grows as much. ALiBi loses nothing: its bias is a window
  already, if a soft one.
- **Lost starting tokens (factor 3) trouble none of them** at n_local 256: without them the nll changes by less than 0.01
  nat. In question 2 the very first one matters, where the window is small.
- **A ceiling on distance has no effect on a scheme that has no distances.** For NoPE and learned positions LM-Infinite with
  and without it is the same by construction; all that it does there is to hide keys. For ALiBi and xPos the ceiling
  changes less than 0.02 nat.
- **Distances told apart (Theorem 1).** RoPE tells ever more of them apart, and its highest logit grows with them. ALiBi
  does too, at the price that the theorem names, an ever larger |logit|; but that grows downward, and only hides what is
  far. xPos stops at 70 or so, NoPE has one, and neither gets logits that it did not have in training.

What this cannot tell: these are models of 340,000 parameters and 3 million tokens. NoPE and learned positions had not yet
made much of places by then: within 256 tokens they are {young - grown:.1f} nat worse than the others, so that they fail little beyond may
only mean that they have little to lose. Starting tokens matter more in larger models ([SmolLM2](diagnosis.md)).
"""


def apart(schemes: dict[str, list[dict]], name: str) -> list[list[float]]:
    """How many of the first 2, 4, .. distances each seed tells apart."""
    return [run["told_apart"] for run in schemes[name]]


def scheme_section() -> str:
    """Question 1."""
    found = read(FOLDER / "schemes.json")
    schemes = by_scheme(found)
    reading, factors = scheme_tables(schemes)
    seeds = {len(runs) for runs in schemes.values()}
    return SCHEMES.format(
        tokens=found["tokens"], seeds=min(seeds), n="16,384", texts=len(found["documents"]),
        units=min(seeds) * len(found["documents"]), reading=reading, factors=factors,
        findings=scheme_findings(schemes),
    )  # fmt: skip


PAGE = """\
# Open questions

What the paper leaves open, asked of models small enough to be trained on purpose. Each answer has its command; the
numbers are in [questions](questions).

{schemes}
{windows}
{depth}"""


def page() -> str:
    """The whole page."""
    sections = {"windows": of_windows.section(), "depth": of_depth.section()}
    return PAGE.format(schemes=scheme_section(), **sections)


def main() -> int:
    schemes = by_scheme(read(FOLDER / "schemes.json"))
    (FOLDER / "schemes.png").write_bytes(draw_schemes(schemes))
    (FOLDER / "grid.png").write_bytes(of_windows.picture(read(FOLDER / "grid.json")))
    (FOLDER / "depth.png").write_bytes(of_depth.picture(read(FOLDER / "depth.json")))
    return written(WEIGHTS / "questions.md", page)


if __name__ == "__main__":
    sys.exit(main())

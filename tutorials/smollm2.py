"""The second figures of lessons 04, 05 and 10, made with a real model: SmolLM2-135M-Instruct.

    make smollm2 smollm2-figures

The tiny models show no need of starting tokens; this one does. It was trained on 8,192 tokens,
so that nothing here is beyond its length: what is seen is what a window alone takes away from
the vanilla model. The figures and the numbers, figures/smollm2.json, are committed, and the
lessons assert the numbers; only this program needs the model.
"""

from __future__ import annotations

import json
import sys

import plot
import torch
import torch.nn.functional as F

from minilm_inf import LMInfinite, load
from minilm_inf.config import FULL_ATTENTION
from minilm_inf.diagnose.recorder import Rows, recording
from minilm_inf.distance_ceiling import capped_logits
from minilm_inf.evaluate.compare import stream_nll
from minilm_inf.lambda_mask import lambda_mask

N, PIECES, W, G = 2000, 3, 256, 4
STEP = 125  # positions that are averaged for a point of a curve
FOLDERS = {"tiny Llama": "tiny-llama", "SmolLM2-135M": "smollm2-135m"}


def weight_on_the_first(model, ids: list[int], queries: torch.Tensor) -> list[float]:
    """The weight that a plain model gives its first G tokens, by query: a mean over layers and
    heads."""
    rows = Rows(model, queries, [0, len(ids)], G, FULL_ATTENTION)
    with recording(model, rows.take, lambda layer, x: None), torch.inference_mode():
        model.read(torch.tensor([ids]))
    return [round(float(x), 4) for x in rows.mass.mean((0, 1))]


@torch.inference_mode()
def truncated(model, ids: list[int]) -> torch.Tensor:
    """The nll of each id but the first, scored within its last W + G ids: the second half of a
    window each time. (n - 1,), float64."""
    size, stride, pieces = W + G, (W + G) // 2, []
    for start in range(0, len(ids) - 1, stride):
        first = max(0, start + stride - size)
        row = torch.tensor([ids[first : start + stride + 1]])
        nll = F.cross_entropy(model(row[:, :-1])[0], row[0, 1:], reduction="none")
        pieces.append(nll[start - first :])
    return torch.cat(pieces).double()


@torch.inference_mode()
def streaming_llm(model, ids: list[int]) -> torch.Tensor:
    """The nll of each id but the first with StreamingLLM's positions, as in lesson 10."""

    def look_back(q, k, v):
        i, scale, scheme = torch.arange(q.shape[2]), q.shape[-1] ** -0.5, model.scheme
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        end = torch.full_like(i, W + G - 1)
        passed = scheme.place(q, end) @ scheme.place(k, i).mT * scale
        logits = capped_logits(q, k, i, i, scheme, None, scale)
        logits = torch.where(i[:, None] - i >= W, passed, logits)
        unseen = ~lambda_mask(i, i, LMInfinite(W, G))
        return logits.masked_fill(unseen, -torch.inf).softmax(-1) @ v

    x = model.embed(torch.tensor([ids[:-1]]))
    for block in model.blocks:
        x = block(x, look_back)
    logits = model.head(model.norm(x))[0]
    return F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").double()


METHODS = {  # with as many keys in sight
    "truncation": truncated,
    "window": lambda model, ids: stream_nll(model, ids, LMInfinite(W + G, n_global=0)),
    "StreamingLLM": streaming_llm,
    "LM-Infinite": lambda model, ids: stream_nll(model, ids, LMInfinite(W, G, W)),
}


def measure() -> dict:
    """All numbers of the three figures."""
    text = (plot.HERE / "text.txt").read_text(encoding="utf-8")
    found = {"weight": {}, "nll": {}}
    queries = torch.arange(49, N, 50)
    for name, folder in FOLDERS.items():
        model, tokenizer = load(plot.ROOT / "weights" / folder)
        found["weight"][name] = weight_on_the_first(model, tokenizer.encode(text)[:N], queries)
    ids = tokenizer.encode(text)  # SmolLM2's, which begins a text without a mark
    texts = [ids[k * N : (k + 1) * N + 1] for k in range(PIECES)]
    found["queries"] = queries.tolist()

    def curve(score) -> list[float]:
        mean = torch.stack([score(model, row) for row in texts]).mean(0)
        return [round(float(part.mean()), 4) for part in mean.split(STEP)]

    for name, score in METHODS.items():
        print(name, file=sys.stderr)
        found["nll"][name] = curve(score)
    found["vanilla"] = curve(lambda model, ids: stream_nll(model, ids, None))  # sees all keys
    return found


def draw(found: dict):
    """The three figures, into figures/."""
    plot.lesson = "04_smollm2"
    drawing, axes = plot.figure()
    for name, dashes in (("SmolLM2-135M", "-"), ("tiny Llama", "-.")):
        weights = [100 * weight for weight in found["weight"][name]]
        plot.line(axes, found["queries"], weights, "vanilla", linestyle=dashes)
    axes.annotate("SmolLM2-135M, trained on 8,192 tokens", (2000, 49), ha="right")
    axes.annotate("tiny Llama", (2000, 7), ha="right")
    axes.axvline(256, color=plot.INK, linewidth=1, linestyle=":")
    axes.annotate(" trained length of the tiny Llama: 256", (256, 56), fontsize=9)
    axes.set(
        xlabel="position of the query",
        ylabel=f"weight on the first {G} tokens, %",
        ylim=(0, 60),
        title="SmolLM2 leans on its first tokens, the tiny Llama does not",
    )
    plot.show(drawing, "")
    places = [STEP * (i + 0.5) for i in range(len(found["nll"]["window"]))]
    plot.lesson = "05_smollm2"
    drawing, axes = plot.figure()
    curves = found["nll"] | {"vanilla": found["vanilla"]}
    for method, role, label, style in (
        ("window", "other", f"window alone: the last {W + G} tokens", {}),
        ("vanilla", "vanilla", "vanilla: all tokens", {"linewidth": 5, "linestyle": "-"}),
        ("LM-Infinite", "window", f"LM-Infinite: the first {G} and the last {W} tokens", {}),
    ):
        plot.line(axes, places, curves[method], role, label, **style)
    axes.axvline(W, color=plot.INK, linewidth=1, linestyle=":")
    axes.annotate(" the window is full: 256", (W, 3.02), va="bottom", fontsize=9)
    axes.set(
        xlabel="position",
        ylabel="nll, nats per token",
        title=f"Without its first {G} tokens SmolLM2 loses more than half a nat",
        ylim=(3, 5.25),
    )
    axes.legend(loc="upper right")
    plot.show(drawing, "")
    plot.lesson = "10_smollm2"
    drawing, axes = plot.figure()
    late = {name: sum(curve[4:]) / len(curve[4:]) for name, curve in found["nll"].items()}
    names = {"truncation": "re-encoding", "window": "window alone"}
    labels = [names.get(name, name) for name in late]
    roles = ["window" if name == "LM-Infinite" else "other" for name in late]
    colours = [plot.COLOURS[role] for role in roles]
    bars = axes.barh(labels, list(late.values()), color=colours, height=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=-36, color="white")
    axes.invert_yaxis()
    axes.set(title=f"SmolLM2-135M with {W + G} keys in sight", xlabel="nll, nats per token")
    plot.show(drawing, "")


def main():
    if plot.matplotlib is None:
        sys.exit("figures need matplotlib: call `make tutorials` first, which installs it")
    if not (plot.ROOT / "weights" / "smollm2-135m" / "model.safetensors").is_file():
        sys.exit("there is no weights/smollm2-135m: call `make smollm2` first")
    found = measure()
    path = plot.HERE / "figures" / "smollm2.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(found)


if __name__ == "__main__":
    main()

"""Question 1 of weights/questions.md: how positional schemes differ beyond the trained length.

    make schemes     train six schemes with three seeds, and measure them (3 hours on one core)

The same small Llama each time, nano-llama's but for its positions: the same text in the same
order, ordinary windows alone. What was interrupted goes on where it stopped, in runs/questions.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from page import read

from minilm_inf import LMInfinite, corpus
from minilm_inf.diagnose import schemes
from minilm_inf.diagnose.factors import factors_of
from minilm_inf.diagnose.measure import Diagnosis
from minilm_inf.diagnose.recorder import recording
from minilm_inf.distance_ceiling import capped_logits
from minilm_inf.evaluate.compare import edges, nll_by_piece
from minilm_inf.models.llama_config import config_from_hf
from minilm_inf.terminal.files import parse_object, write_beside
from minilm_inf.text.tokenizer import load as load_tokenizer
from minilm_inf.train.__main__ import Run, encode_all, train
from minilm_inf.train.practice import Practice
from minilm_inf.train.recipes import Phase, Settings

WEIGHTS = Path(__file__).resolve().parents[1]
NANO = WEIGHTS / "nano-llama"
SEEDS = (1, 2, 3)
RESULT = WEIGHTS / "questions" / "schemes.json"
N, N_DOCUMENTS = 16_384, 4  # tokens of a text, 64 x the trained length
N_PAIRS, APART = 64, 1.0  # of a query and a key; the least difference of two distances, in nats
TOKENS, TOKENS_PER_STEP = 3_000_000, 2048


@dataclass(frozen=True)
class Plain(Settings):
    """Windows of ordinary text alone."""

    def phase(self, step: int) -> Phase:
        return Phase(until=1.0, window=256, repeats=0.0, retrieval=0.0)


def prepared(texts: Path):
    """nano-llama's config, and what is learned from and held out, in its tokens."""
    tokenizer = load_tokenizer(NANO)
    config = config_from_hf(parse_object((NANO / "config.json").read_bytes()))
    parts = [
        Practice(tokenizer, encode_all(tokenizer, corpus.documents(texts, held_out)))
        for held_out in (False, True)
    ]
    return config, parts


def runs(folder: Path, texts: Path):
    """Every training, as (scheme, seed, Run), whose state lies in a file of its own."""
    config, parts = prepared(texts)
    for seed, name in product(SEEDS, schemes.SCHEMES):  # a seed's six, and then the next
        settings = Plain(TOKENS, seed, TOKENS_PER_STEP, 2e-3, config.vocab_size)
        state = folder / f"{name.replace(' ', '').replace(',', '-')}-{seed}.state"
        yield name, seed, Run(schemes.build(config, name), settings, state, *parts)


def learn(run: Run):
    """Have a training done, from where it stopped."""
    run.path.parent.mkdir(parents=True, exist_ok=True)
    if run.path.exists():
        run.load_state()
    print(f"{run.path.stem}, from step {run.step}", file=sys.stderr)
    train(run, 250, stopped=lambda: False)


# ---- what is measured of each


def measured(model, documents: dict[str, list[int]]) -> dict:
    """All numbers of one model: what the three factors come to, nll by octave of positions and
    document, with another reading by the Λ without a ceiling, and distances told apart."""
    trained = model.config.context_length
    lm = LMInfinite.for_model(model.config)
    diagnosis = Diagnosis(model, N, lm)
    diagnosis.read_all(documents)
    factors, curves = factors_of(diagnosis)
    nll, cuts = diagnosis.nll, edges(trained, N)
    no_ceiling = LMInfinite(lm.n_local, lm.n_global)
    with torch.inference_mode():
        rows = [torch.tensor([ids]) for ids in documents.values()]
        nll["no-ceiling"] = [
            nll_by_piece(model, model.read(x[:, :-1], no_ceiling)[0], x[0, 1:]) for x in rows
        ]
        apart = told_apart(model, rows[0][:, :trained])
    return {
        "factors": {name: factor | {"words": ""} for name, factor in factors.items()},
        "logits": curves["logits"], "entropy": curves["entropy"], "told_apart": apart,
        "nll": {name: [[float(x[a:b].mean()) for a, b in zip(cuts, cuts[1:])] for x in texts]
                for name, texts in nll.items()},
    }  # fmt: skip


def told_apart(model, tokens: torch.Tensor) -> list[float]:
    """How many of the first 2, 4, .. N distances a head tells apart, its mean over heads: the
    largest number of them of which any two differ, in the logit of some query and key that the
    model has of a text, by APART or more; as found by going through them in order."""
    seen = []
    with recording(model, lambda layer, q, k: seen.append((q, k))):
        model.read(tokens)
    found, scale = [], model.config.head_dim**-0.5
    generator = torch.Generator().manual_seed(0)
    at = [torch.randint(tokens.shape[1], (N_PAIRS,), generator=generator) for _ in range(2)]
    for q, k in seen:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        of_pairs = []
        for i, j in zip(*at):  # (H, N) of each pair
            one = q[:, :, i, None].expand(-1, -1, N, -1)
            distances, home = torch.arange(N), torch.zeros(1, dtype=torch.long)
            logits = capped_logits(
                one, k[:, :, j, None], distances, home, model.scheme, None, scale
            )
            of_pairs.append(logits[0, ..., 0].expand(q.shape[1], N))
        found += [packed(logits) for logits in torch.stack(of_pairs, -1)]  # (N, pairs) each
    return torch.tensor(found).double().mean(0).tolist()


def packed(points: torch.Tensor) -> list[int]:
    """Of the first 2, 4, .. points (N, pairs), how many lie APART from all that were kept."""
    kept, n_kept, counts = torch.empty_like(points), 0, []
    for number, point in enumerate(points, 1):
        if not n_kept or (kept[:n_kept] - point).abs().amax(-1).min() >= APART:
            kept[n_kept] = point
            n_kept += 1
        if number > 1 and number & (number - 1) == 0:
            counts.append(n_kept)
    return counts


@torch.inference_mode()
def measure_all(folder: Path, texts: Path):
    """Measure every model that is trained and not measured yet; once all are, publish it."""
    path, n_runs = folder / RESULT.name, len(SEEDS) * len(schemes.SCHEMES)
    known = read(path) if path.exists() else {"runs": []}
    have = {(entry["scheme"], entry["seed"]) for entry in known["runs"]}
    tokenizer, held_out = load_tokenizer(NANO), corpus.documents(texts, True)
    encoded = {name: tokenizer.encode(text)[: N + 1] for name, text in held_out.items()}
    long = [name for name, ids in encoded.items() if len(ids) > N][:N_DOCUMENTS]
    for name, seed, run in runs(folder, texts):
        if (name, seed) in have or not run.path.exists():
            continue
        run.load_state()
        if run.step == run.settings.steps:
            print(f"measuring {name}, seed {seed}", file=sys.stderr)
            entry = {"scheme": name, "seed": seed, "held_out_nll": run.log[-1]["held_out_nll"]}
            entry |= measured(run.model, {text: encoded[text] for text in long})
            known["runs"].append(entry)
            tokens = run.settings.steps * run.settings.tokens_per_step
            known |= {"documents": long, "tokens": tokens}
            write_beside(path, (json.dumps(rounded(known)) + "\n").encode())
    if len(known["runs"]) == n_runs:
        write_beside(RESULT, path.read_bytes())


def rounded(found):
    """The same with numbers of five digits."""
    if isinstance(found, dict):
        return {name: rounded(x) for name, x in found.items()}
    if isinstance(found, list):
        return [rounded(x) for x in found]
    return float(f"{found:.5g}") if isinstance(found, float) else found


def arguments(about: str):
    """The flags of this program and its like."""
    line = argparse.ArgumentParser(description=about)
    line.add_argument("what", choices=("train", "measure"))
    line.add_argument("--corpus", type=Path, default=Path("corpus"))
    line.add_argument("--folder", type=Path, default=Path("runs/questions"))
    line.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("K", "N"))
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    return line.parse_args()


def program(about: str, runs, measure_all) -> int:
    """What this program and its like do: train a part of all runs, or measure them."""
    options = arguments(about)
    if options.what == "measure":
        measure_all(options.folder, options.corpus)
        return 0
    part, parts = options.part
    for number, (*_, run) in enumerate(runs(options.folder, options.corpus)):
        if number % parts == part:
            learn(run)
    return 0


if __name__ == "__main__":
    sys.exit(program(__doc__, runs, measure_all))

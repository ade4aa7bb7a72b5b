"""Kills at random moments, of a text that is scored, a model in training, a conversion.

    python tests/kills.py [--kills 40] [--seed 0]

Each run is killed by SIGKILL at a moment drawn over as long as it takes, and started again,
with --resume where it left a state, until it ends. What it wrote then is held, byte by byte, to
what a run wrote that nobody killed, and nothing else may be there. Runs follow each other until
as many kills as asked for have met one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from minilm_inf.checkpoint import load_model
from minilm_inf.checkpoint.checkpoint import named_pieces
from minilm_inf.convert import __main__ as convert
from minilm_inf.evaluate import __main__ as evaluate
from minilm_inf.train import __main__ as train

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "weights" / "nano-llama"
TEXT = ROOT / "tutorials" / "text.txt"


def scoring(more: str, folder: Path) -> int:
    """A text in chunks of 64, its state saved after each."""
    out = folder / "run.json"
    if (folder / "run.json.state").exists():
        return evaluate.main(["perplexity", "--resume", str(out)])
    flags = f"perplexity -m {NANO} --text {TEXT} --chunk 64 --threads 1 --save-every 0 {more}"
    return evaluate.main([*flags.split(), "--out", str(out)])


def training(folder: Path) -> int:
    """Twelve steps of a tiny model, its state saved after every second one."""
    flags = f"--text {TEXT} --vocab-size 330 --n-layer 1 --n-embd 16 --n-head 2 --head-dim 8"
    flags += " --n-kv-head 1 --n-inner 16 --tokens 3072 --tokens-per-step 256 --every 2"
    there = (folder / "model.state").exists()
    more = ["--resume"] * there
    return train.main([*flags.split(), "--threads", "1", "--out", str(folder / "model"), *more])


def conversion(folder: Path) -> int:
    """Two shards of nano-llama, which are pickles as long as there is no config.json."""
    if not (folder / "config.json").exists():
        pieces = {name: x.clone() for name, x in named_pieces(load_model(NANO)).items()}
        weight_map = {}
        for number in (1, 2):
            file = f"pytorch_model-0000{number}-of-00002.bin"
            half = {name: pieces[name] for name in list(pieces)[number - 1 :: 2]}
            torch.save(half, folder / file)
            weight_map |= dict.fromkeys(half, file)
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "pytorch_model.bin.index.json").write_text(index)
        shutil.copy(NANO / "config.json", folder)
    return convert.main([str(folder)])


KINDS = {
    "stream": partial(scoring, "--length 3000"),
    "top-k": partial(scoring, "--length 1500 --top-k-middle 3 --middle disk"),
    "train": training, "convert": conversion,
}  # fmt: skip


def begin(run, folder: Path) -> int:
    """The process, a copy of this one, that takes a run on."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(null, number)
        os._exit(run(folder))
    return child


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder but for what a run says of its machine and its command."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        if path.name in ("run.json", "training.json"):
            facts = json.loads(content)
            kept = {name: facts[name] for name in facts if name not in ("timing", "command")}
            content = json.dumps(kept).encode()
        found[str(path.relative_to(folder))] = content
    return found


def taken_on(run, folder: Path, seconds: float, source: random.Random) -> int:
    """Take a run to its end, through kills where there are seconds: how many there were."""
    kills = 0
    while True:
        child = begin(run, folder)
        if seconds:
            time.sleep(source.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != -signal.SIGKILL:
            assert code == 0, f"it ends with {code}"
            return kills
        kills += 1


def hold(kind: str, count: int, source: random.Random) -> bool:
    """Kill runs of a kind `count` times, and print what became of them."""
    run, kills, runs, wrong = KINDS[kind], 0, 0, []
    with tempfile.TemporaryDirectory() as whole:
        start = time.monotonic()
        taken_on(run, Path(whole), 0, source)
        seconds, expected = time.monotonic() - start, contents(Path(whole))
    while kills < count:
        with tempfile.TemporaryDirectory() as folder:
            kills += taken_on(run, Path(folder), seconds, source)
            runs += 1
            found = contents(Path(folder))
        names = {*found, *expected}
        wrong += [name for name in names if found.get(name) != expected.get(name)]
    print(f"{kind}: {kills} kills in {runs} runs of {seconds:.1f} s, differing: {wrong or 0}",
          flush=True)  # fmt: skip
    return not wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kills", type=int, default=40, help="of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = random.Random(options.seed)
    return 0 if all([hold(kind, options.kills, source) for kind in KINDS]) else 1


if __name__ == "__main__":
    sys.exit(main())

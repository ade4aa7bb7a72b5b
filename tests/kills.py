"""Kills at random moments, of a text that is scored, a model in training, a conversion.

    python tests/kills.py [--kills 40] [--seed 0] [--only stream]

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


def stream(folder: Path) -> int:
    """A text of 3,000 tokens in chunks of 64, its state saved after each."""
    out = folder / "run.json"
    if (folder / "run.json.state").exists():
        return evaluate.main(["perplexity", "--resume", str(out)])
    flags = f"perplexity -m {NANO} --text {TEXT} --length 3000 --chunk 64 --threads 1"
    return evaluate.main([*flags.split(), "--save-every", "0", "--out", str(out)])


def top_k(folder: Path) -> int:
    """The same with the top-k middle, which is kept in a file."""
    out = folder / "run.json"
    if (folder / "run.json.state").exists():
        return evaluate.main(["perplexity", "--resume", str(out)])
    flags = f"perplexity -m {NANO} --text {TEXT} --length 1500 --chunk 64 --threads 1"
    flags += " --top-k-middle 3 --middle disk --save-every 0"
    return evaluate.main([*flags.split(), "--out", str(out)])


def training(folder: Path) -> int:
    """Twelve steps of a tiny model, its state saved after every second one."""
    flags = f"--text {TEXT} --vocab-size 330 --n-layer 1 --n-embd 16 --n-head 2 --head-dim 8"
    flags += " --n-kv-head 1 --n-inner 16 --tokens 3072 --tokens-per-step 256 --every 2"
    there = (folder / "model.part" / train.STATE_FILE).exists()
    more = ["--resume"] * there
    return train.main([*flags.split(), "--threads", "1", "--out", str(folder / "model"), *more])


def conversion(folder: Path) -> int:
    """Two shards of nano-llama, as pickles."""
    return convert.main([str(folder)])


def pickled(folder: Path):
    """What conversion begins with."""
    shutil.copy(NANO / "config.json", folder)
    pieces = {name: piece.clone() for name, piece in named_pieces(load_model(NANO)).items()}
    halves = [list(pieces)[0::2], list(pieces)[1::2]]
    files = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for names, file in zip(halves, files):
        torch.save({name: pieces[name] for name in names}, folder / file)
    weight_map = {name: file for names, file in zip(halves, files) for name in names}
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "pytorch_model.bin.index.json").write_text(index)


KINDS = {
    "stream": (stream, None), "top-k": (top_k, None), "train": (training, None),
    "convert": (conversion, pickled),
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


def unbroken(run, folder: Path) -> float:
    """Take a run to its end: the seconds that it took."""
    start = time.monotonic()
    _, status = os.waitpid(begin(run, folder), 0)
    assert status == 0, f"{run.__name__} ends with {os.waitstatus_to_exitcode(status)}"
    return time.monotonic() - start


def killed(run, folder: Path, seconds: float, source: random.Random) -> int:
    """Take a run to its end through kills: how many there were."""
    kills = 0
    while True:
        child = begin(run, folder)
        time.sleep(source.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != -signal.SIGKILL:
            assert code == 0, f"{run.__name__} ends with {code}"
            return kills
        kills += 1


def hold(kind: str, count: int, source: random.Random):
    """Kill runs of a kind `count` times, and print what became of them."""
    run, prepare = KINDS[kind]
    kills, runs, wrong = 0, 0, []
    with tempfile.TemporaryDirectory() as whole:
        if prepare:
            prepare(Path(whole))
        pristine = contents(Path(whole))
        seconds = unbroken(run, Path(whole))
        expected = contents(Path(whole))
        while kills < count:
            with tempfile.TemporaryDirectory() as folder:
                for name, content in pristine.items():
                    (Path(folder) / name).write_bytes(content)
                kills += killed(run, Path(folder), seconds, source)
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
    parser.add_argument("--only", choices=KINDS, help="one kind")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds = [options.only] if options.only else KINDS
    source = random.Random(options.seed)
    return 0 if all([hold(kind, options.kills, source) for kind in kinds]) else 1


if __name__ == "__main__":
    sys.exit(main())

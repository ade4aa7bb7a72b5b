"""Why a plain transformer fails on long texts: the paper's three factors, of any checkpoint.

    python -m minilm_inf.diagnose --corpus corpus/
    python -m minilm_inf.diagnose -m FOLDER --text FILE... --n-local 512 --length 2000

    factor 1    distances never trained: the running maximum of |logit| by distance
    factor 2    too many keys: the entropy of attention by number of visible keys
    factor 3    starting tokens: how far the first positions' hidden states stand from the rest,
                how much attention they get, and what it costs to drop them

each for the vanilla model and for LM-Infinite with the given flags. Prints a line for each
factor, which says whether this model shows it (by the rules in minilm_inf/diagnose/factors.py),
and writes diagnosis.json, with all numbers, and, if matplotlib is installed, factors.png.
"""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

import torch

from ..checkpoint.checkpoint import dtype_name
from ..evaluate.documents import add_texts, encoded, texts_of
from ..terminal import options as flags
from ..terminal.ending import guarded
from ..terminal.files import PICTURE, check_output, write_beside
from . import figures
from .factors import factors_of
from .measure import Diagnosis

FEWEST = 16  # tokens beyond the window and the trained length of which anything can be said
BEGINS = b'{\n "settings": '


def main(arguments: list[str] | None = None) -> int:
    parser = flags.Parser(prog="python -m minilm_inf.diagnose", description=__doc__)
    add_texts(parser)
    flags.add_counts(
        parser,
        ("--documents", 1, 4, "how many of the corpus are read (%(default)s)"),
        ("--length", 1, None, "tokens of each (default: 4,096, or 2 x context_length)"),
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER",
                        help="where the files go (default: runs/diagnose-NAME)")  # fmt: skip
    flags.add_model(parser)
    flags.add_sight(parser)
    options = parser.parse_args(arguments)
    if options.attention != "lambda" or options.top_k_middle or options.n_global == 0:
        parser.error(
            "a diagnosis compares vanilla with LM-Infinite and its starting tokens: leave out "
            "--attention, --top-k-middle and --n-global 0"
        )
    return guarded(lambda: run(options), smaller="--length")


def run(options) -> int:
    """The diagnosis: its numbers are written and told before they are drawn."""
    out = options.out or Path("runs") / f"diagnose-{options.model.resolve().name}"
    numbers, picture = out / "diagnosis.json", out / "factors.png"
    check_output(numbers, BEGINS)
    check_output(picture, PICTURE)
    facts, factors, curves = measure(options)
    found = {"settings": facts, "factors": factors, "curves": curves}
    try:
        write_beside(numbers, (json.dumps(found, indent=1) + "\n").encode())
    finally:
        for number, factor in enumerate(factors.values(), 1):
            print(f"factor {number}, {factor['words']}.", flush=True)
    if flags.can_draw():
        write_beside(picture, figures.draw(factors, curves, facts))
    else:
        print("no figures: matplotlib is not installed", file=sys.stderr)
    print(f"written to {out}", file=sys.stderr)
    return 0


def measure(options) -> tuple[dict, dict, dict]:
    """What must be known of the run, its factors, and its curves."""
    texts = texts_of(options)
    if not options.text:
        texts = dict(islice(texts.items(), options.documents))
    model, tokenizer = flags.load(options)
    config, lm = model.config, flags.attention(options, model.config)
    length = options.length or max(4096, 2 * config.context_length)
    least = max(config.context_length, lm.n_local) + FEWEST
    if length < least:
        raise ValueError(
            f"{length:,} tokens are not beyond the trained length and the window: take a "
            f"--length of {least:,} or more"
        )
    documents = encoded(texts, tokenizer, length)
    diagnosis = Diagnosis(model, length, lm)
    diagnosis.read_all(documents)
    facts = {
        "model": str(options.model), "texts": list(documents), "n": length,
        "context_length": config.context_length, "n_layer": config.n_layer,
        "n_local": lm.n_local, "n_global": lm.n_global,
        "distance_ceiling": lm.distance_ceiling,
        "dtype": f"torch.{dtype_name(model)}", "torch": torch.__version__,
    }  # fmt: skip
    return facts, *factors_of(diagnosis)


if __name__ == "__main__":
    sys.exit(main())

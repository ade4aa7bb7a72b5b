"""Why a plain transformer fails on long texts: the paper's three factors, of any checkpoint.

    python -m minilm_inf.diagnose --corpus corpus/
    python -m minilm_inf.diagnose -m FOLDER --text FILE... --n-local 512 --length 2000

    factor 1    distances never trained: the running maximum of |logit| by distance; and
                Theorem 1 as a number
    factor 2    too many keys: the entropy of attention by number of visible keys
    factor 3    starting tokens: how far the first positions' hidden states stand from the rest,
                how much attention they get, and what it costs to drop them

each of the vanilla model beside LM-Infinite with the given flags. Prints a line for each
factor, which says whether this model shows it (by the rules in minilm_inf/diagnose/factors.py)
and writes two files to a folder: diagnosis.json, with all numbers, and, where matplotlib is
installed, factors.png. Memory is that of one layer: it grows with the length of a text, and
never with its square.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from .. import corpus
from ..evaluate.documents import encoded
from ..terminal import options as flags
from ..terminal.ending import guarded
from ..terminal.files import PICTURE, check_output, read_text, write_beside
from . import figures
from .factors import factors_of
from .measure import Diagnosis

TIMES_TRAINED = 16  # the text's length, in trained lengths
CHEAP = 4096  # tokens up to which that many are read unasked; beyond, twice the trained length
MAIN, BEGINS = "diagnosis.json", b'{\n "settings": '
FEWEST = 16  # tokens of a text of which any of this can be said


def main(arguments: list[str] | None = None) -> int:
    parser = flags.Parser(prog="python -m minilm_inf.diagnose", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    text = parser.add_argument_group("text")
    text.add_argument("--corpus", type=Path, default=Path("corpus"), metavar="FOLDER",
                      help="held-out documents of minilm_inf.corpus (%(default)s)")  # fmt: skip
    text.add_argument(
        "--text", type=Path, nargs="+", metavar="FILE", help="your own UTF-8 files"
    )
    text.add_argument("--documents", type=flags.at_least(1), default=4, metavar="N",
                      help="how many of the corpus are read (%(default)s)")  # fmt: skip
    text.add_argument("--length", type=flags.at_least(FEWEST), metavar="N",
                      help="tokens of each (16 x context_length; where that is more than "
                      "4,096, 2 x context_length or 4,096)")  # fmt: skip
    text.add_argument("--seed", type=flags.seed, default=0, metavar="N",
                      help="of what is sampled (%(default)s)")  # fmt: skip
    result = parser.add_argument_group("result")
    result.add_argument("--out", type=Path, metavar="FOLDER",
                        help="where the files go (runs/diagnose-NAME)")  # fmt: skip
    result.add_argument("--json", action="store_true",
                        help="print diagnosis.json in the place of words")  # fmt: skip
    flags.add_model(parser)
    flags.add_sight(parser)
    options = parser.parse_args(arguments)
    try:
        check(options)
    except ValueError as error:
        parser.error(str(error))
    return guarded(lambda: run(options), smaller="--length")


def check(options):
    """Raise ValueError for flags that a diagnosis cannot follow."""
    flags.check_attention(options)
    if options.attention == "full":
        raise ValueError(
            "the vanilla model is measured anyway: leave out --attention, or take window"
        )
    if options.top_k_middle:
        raise ValueError("a diagnosis is of the Λ alone: leave out --top-k-middle")


def run(options) -> int:
    """The diagnosis: its numbers are written and told before they are drawn."""
    out = options.out or Path("runs") / f"diagnose-{options.model.resolve().name}"
    picture = out / "factors.png"
    check_output(out / MAIN, BEGINS)
    check_output(picture, PICTURE)
    if not flags.can_draw():
        print("no figures: matplotlib is not installed", file=sys.stderr)
    facts, factors, curves = measure(options)
    found = {"settings": facts, "factors": factors, "curves": curves}
    content = json.dumps(found, indent=1)
    words = [f"factor {i}, {f['words']}." for i, f in enumerate(factors.values(), 1)]
    try:
        write_beside(out / MAIN, (content + "\n").encode())
    finally:
        print(content if options.json else "\n".join(words), flush=True)
    if flags.can_draw():
        write_beside(picture, figures.draw(factors, curves, facts))
    print(f"written to {out}", file=sys.stderr)
    return 0


def measure(options) -> tuple[dict, dict, dict]:
    """What must be known of the run, its factors, and its curves."""
    texts = chosen(options)
    model, tokenizer = flags.load(options)
    config, lm = model.config, flags.attention(options, model.config)
    length = options.length or default_length(config.context_length)
    documents = encoded(texts, tokenizer, length)
    diagnosis = Diagnosis(model, length, lm, options.seed)
    diagnosis.read_all(documents, lambda line: print(line, file=sys.stderr))
    facts = {
        "model": str(options.model), "family": config.family, "texts": list(documents),
        "n": length, "context_length": config.context_length,
        "n_layer": config.n_layer, "n_head": config.n_head,
        "attention": options.attention, "n_local": lm.n_local, "n_global": lm.n_global,
        "distance_ceiling": lm.distance_ceiling, "has_bias": model.scheme.has_bias,
        "seed": options.seed, "dtype": str(model.embed.weight.dtype).removeprefix("torch."),
        "device": model.embed.weight.device.type, "torch": torch.__version__,
    }  # fmt: skip
    return facts, *factors_of(diagnosis)


def default_length(context_length: int) -> int:
    """How many tokens of a text are read unasked.

    >>> [default_length(n) for n in (128, 256, 1024, 8192)]
    [2048, 4096, 4096, 16384]
    """
    many = TIMES_TRAINED * context_length
    return many if many <= CHEAP else max(CHEAP, 2 * context_length)


def chosen(options) -> dict[str, str]:
    """The texts that are read, by name."""
    if options.text:
        return {str(path): read_text(path) for path in options.text}
    texts = corpus.documents(options.corpus, held_out=True)
    return dict(list(texts.items())[: options.documents])


if __name__ == "__main__":
    sys.exit(main())

"""What a model can do with a text, measured.

    python -m minilm_inf.evaluate perplexity --corpus corpus/ --out run.json
    python -m minilm_inf.evaluate compare --corpus corpus/
    python -m minilm_inf.evaluate passkey
    python -m minilm_inf.evaluate recall --task pairs

Each task says in its own --help what it measures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..terminal import options as flags
from ..terminal.ending import guarded
from ..train.practice import NAMES
from . import comparison, perplexity, retrieval
from .methods import LABELS
from .retrieval import METHODS, TOP_K, numbers, swept

MOST_TRIALS, MOST_SEED = 10**6, 2**63 - 1


def main(arguments: list[str] | None = None) -> int:
    options = parsed(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: options.run(options), options.smaller)


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The flags of a command line; it ends the program where they make no sense."""
    line = flags.Parser(prog="python -m minilm_inf.evaluate", description=__doc__)
    line.formatter_class = argparse.RawDescriptionHelpFormatter
    tasks = line.add_subparsers(dest="task", required=True)
    add_perplexity(tasks)
    add_compare(tasks)
    add_passkey(tasks)
    add_recall(tasks)
    options = line.parse_args(arguments)
    options.given, options.parse = arguments[1:], parsed
    try:
        options.check(options)
    except ValueError as error:
        tasks.choices[options.task].error(str(error))
    return options


def task_of(tasks, name: str, what: str, room):
    """The parser of a task, which its room describes."""
    return tasks.add_parser(
        name, help=what, description=room.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def add_counts(group, *rows):
    """Flags that take whole numbers: name, least, default, words, and most, where there is."""
    for name, least, default, words, *most in rows:
        kind = flags.at_least(least, *most)
        group.add_argument(name, type=kind, default=default, metavar="N", help=words)


def add_text(group, what: str = ""):
    """The flags of where text comes from; what: it is."""
    group.add_argument("--text", type=Path, nargs="+", metavar="FILE",
                       help=f"{what}your own UTF-8 files")  # fmt: skip
    group.add_argument("--corpus", type=Path, default=Path("corpus"), metavar="FOLDER",
                       help=f"{what}held-out documents of minilm_inf.corpus "
                       "(%(default)s)")  # fmt: skip


def add_result(task):
    """The group of flags that say what becomes of a result."""
    group = task.add_argument_group("result")
    group.add_argument("--json", action="store_true", help="print one JSON object")
    return group


def check_resume(options):
    """Raise ValueError for --resume with another flag."""
    alone = len(options.given) == 2 and "--resume".startswith(options.given[0])
    if options.resume and not alone and len(options.given) > 1:  # --resume=RUN.json is one
        raise ValueError("--resume takes no other flag: the run goes on with its own")


# ---- perplexity: any number of tokens, in constant memory


def add_perplexity(tasks):
    what = "nll by position of any number of tokens, resumable"
    task = task_of(tasks, "perplexity", what, perplexity)
    text = task.add_argument_group("text, from one of these").add_mutually_exclusive_group()
    add_text(text)
    text.add_argument(
        "--tokens", type=Path, metavar="FILE.npy", help="ids, as numpy.save writes them"
    )
    text = task.add_argument_group("reading")
    text.add_argument("--stream", action="store_true", help="all documents as one text")
    add_counts(
        text,
        ("--length", 2, None, "tokens of the stream (one pass), or of each document at most "
         "(all)"),
        ("--chunk", 1, 2048, "tokens read at a time (%(default)s)"),
        ("--bins", 1, 200, "equal bins of positions (%(default)s)", 10**6),
        ("--seed", 0, 0, "of later passes, and of the intervals (%(default)s)", MOST_SEED),
    )  # fmt: skip
    kept = add_result(task)
    flags.add_saving(kept)
    flags.add_plan(kept)
    flags.add_model(task)
    flags.add_sight(task, queries="all")
    task.set_defaults(
        check=check_perplexity, run=perplexity.evaluate, smaller="--chunk or --n-local"
    )


def check_perplexity(options):
    """Raise ValueError for flags that this task cannot follow."""
    flags.check_attention(options)
    if options.top_k_middle and options.top_k_queries == "last":
        raise ValueError(
            "of a text that is scored, --top-k-queries last lets no token reach back: take all"
        )
    check_resume(options)


# ---- compare: methods on the same documents, with as many visible keys


def add_compare(tasks):
    what = "methods on the same documents, with as many visible keys"
    task = task_of(tasks, "compare", what, comparison)
    text = task.add_argument_group("text")
    add_text(text)
    text.add_argument("--prefill-chunk", "--chunk", type=flags.at_least(1), default=512,
                      dest="chunk", metavar="N",
                      help="tokens read at a time (%(default)s)")  # fmt: skip
    add_counts(
        text,
        ("--documents", 1, None, "the first N of them (all)"),
        ("--length", 2, None, "tokens of each document (16 x context_length)"),
        ("--trials", 0, 50, "pass keys that each method is asked for (%(default)s)",
         MOST_TRIALS),
    )  # fmt: skip
    kept = add_result(task)
    kept.add_argument("--out", type=Path, metavar="FILE.json", help="write the same there")
    kept.add_argument("--figure", type=picture, metavar="FILE.png",
                      help="draw nll by position (needs matplotlib)")  # fmt: skip
    flags.add_model(task)
    add_compared(task)
    task.set_defaults(
        check=lambda options: None,
        run=comparison.evaluate,
        smaller="--length or --prefill-chunk",
        attention="lambda",  # of methods that see a Λ
        top_k_queries="all",
    )


def picture(text: str) -> Path:
    """An argparse type: the path of a PNG."""
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png")
    return Path(text)


def add_compared(task):
    """The flags of what is compared."""
    group = task.add_argument_group("methods")
    group.add_argument("--methods", type=flags.some_of(LABELS), default=list(LABELS),
                       metavar="NAME,NAME", help=f"of {', '.join(LABELS)} (all)")  # fmt: skip
    group.add_argument("--sweep", action="store_true",
                       help="LM-Infinite with other n_global and n_local as well, a table "
                       "each")  # fmt: skip
    add_counts(
        group,
        ("--n-local", 1, None, "keys of the window; with the starting tokens, what each method "
         "sees (context_length - n_global)"),
        ("--n-global", 0, 10, "starting tokens that are always seen (%(default)s)"),
        ("--distance-ceiling", 0, None, "of the methods that have one (the window's size)"),
        ("--top-k-middle", 1, 5, "middle tokens of topk, which its window is smaller by "
         "(%(default)s)"),
        ("--top-k-distance", 0, None, "how far away they seem (half its window)"),
        ("--top-k-from-layer", 0, None, "the first layer, from 0, in which they come back (an "
         "eighth of the layers)"),
    )  # fmt: skip


# ---- passkey and recall: what a long text's end finds in it


def add_passkey(tasks):
    task = add_retrieval(tasks, "passkey", "whether a pass key is found, by length and depth")
    task.set_defaults(kind="passkey", pairs=None)


def add_recall(tasks):
    task = add_retrieval(tasks, "recall", "the same for one fact among several")
    task.add_argument("--task", dest="kind", choices=("pairs",), default="pairs",
                      help="people and their numbers (%(default)s)")  # fmt: skip
    told = "people whose numbers are told (%(default)s)"
    add_counts(task, ("--pairs", 1, 4, told, len(NAMES)))


def add_retrieval(tasks, name: str, what: str):
    task = task_of(tasks, name, what, retrieval)
    add_axes(task)
    add_asked(task)
    kept = add_result(task)
    kept.add_argument("--heatmap", type=Path, metavar="FILE.png",
                      help="draw it, a panel for each method; needs matplotlib")  # fmt: skip
    flags.add_saving(kept)
    task.set_defaults(
        check=check_retrieval,
        run=retrieval.evaluate,
        smaller="--rows, --prefill-chunk or --lengths",
    )
    return task


def add_axes(task):
    """The flags of what is asked, and how often."""
    group = task.add_argument_group("what is asked")
    group.add_argument("--lengths", type=numbers(float, 1e-9, 1e9, "positive numbers"),
                       default=[1, 2, 4, 8], metavar="X,X",
                       help="tokens of a trial, BOS, question and answer among them, as "
                       "multiples of context_length (1,2,4,8)")  # fmt: skip
    group.add_argument("--depths", type=numbers(float, 0, 1, "numbers from 0 to 1"),
                       default=[i / 10 for i in range(11)], metavar="X,X",
                       help="shares of the filler before what is asked for "
                       "(0,0.1,...,1)")  # fmt: skip
    add_counts(
        group,
        ("--trials", 1, 20, "per length, depth and method (%(default)s)", MOST_TRIALS),
        ("--seed", 0, 0, "of all texts, which are the same for every method (%(default)s)",
         MOST_SEED),
    )  # fmt: skip
    group.add_argument("--filler", choices=("text", "repeat"), default="text",
                       help="ordinary text, or the paper's sentences over and over "
                       "(%(default)s)")  # fmt: skip
    add_text(group.add_mutually_exclusive_group(), "filler: ")


def add_asked(task):
    """The flags of who is asked."""
    group = task.add_argument_group("who is asked")
    group.add_argument("--methods", type=flags.some_of(METHODS), default=list(METHODS),
                       metavar="NAME,NAME",
                       help=f"of {', '.join(METHODS)} (all); topk takes --top-k-middle "
                       f"{TOP_K} unless told")  # fmt: skip
    group.add_argument("--sweep", type=swept, nargs="+", default=[], metavar="NAME=N,N",
                       help="topk once more with each of these k, distance or "
                       "from-layer, a table each")  # fmt: skip
    add_counts(
        group,
        ("--prefill-chunk", 1, 512, "tokens of a row read at a time (%(default)s)"),
        ("--rows", 1, None, "trials read side by side (as memory allows)"),
    )  # fmt: skip
    flags.add_model(task)
    flags.add_sight(task)


def check_retrieval(options):
    """Raise ValueError for flags that these tasks cannot follow."""
    check_resume(options)
    retrieval.check(options)


if __name__ == "__main__":
    sys.exit(main())

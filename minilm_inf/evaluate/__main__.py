"""What a model can do with a text, measured.

    python -m minilm_inf.evaluate perplexity --corpus corpus/ --out run.json
    python -m minilm_inf.evaluate compare --corpus corpus/
    python -m minilm_inf.evaluate passkey
    python -m minilm_inf.evaluate recall --task pairs
    python -m minilm_inf.evaluate needles --suite ruler
    python -m minilm_inf.evaluate qa --data questions.jsonl

Each task says in its own --help what it measures.
"""

from __future__ import annotations

import argparse
import re
import sys
from functools import partial
from pathlib import Path

from ..terminal import options as flags
from ..terminal.ending import guarded
from ..writing import plan
from . import comparison, perplexity, qa, retrieval, ruler
from .documents import add_texts
from .methods import LABELS
from .qa_data import PLAIN, PROMPTS
from .resume import carry_out
from .shares import Share, before, joined

MOST_TRIALS = 10**6
TOP_K = 5  # the paper's


def main(arguments: list[str] | None = None) -> int:
    options = parsed(sys.argv[1:] if arguments is None else arguments)
    work = planned if options.plan else carry_out
    return guarded(lambda: work(options), "--chunk or --n-local")


def planned(options) -> int:
    """What perplexity will take: printed, and nothing is run."""
    net = plan.network(options)
    if options.length is None:
        raise ValueError("--plan reads no text: say by --length how many tokens there will be")
    lm, share = flags.attention(options, net.config), joined()
    n, more = options.length, {}
    if share.count > 1:  # the last begins furthest from the beginning
        own = Share(share.count - 1, share.count).of(n - 1)
        warm_up = sum(map(len, before(own.start, lm, net.config.n_layer)))
        n, more = len(own) + warm_up, {"processes": share.count, "warm-up": warm_up}
    return 0 if share.rank else plan.show(net, options, lm, [n], 0, options.chunk, **more)


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The flags of a command line; it ends the program where they make no sense."""
    line = flags.Parser(prog="python -m minilm_inf.evaluate", description=__doc__)
    tasks = line.add_subparsers(dest="task", required=True)
    add_perplexity(tasks)
    add_compare(tasks)
    add_retrieval(tasks, "passkey", "whether a pass key is found, by length and depth")
    add_retrieval(tasks, "recall", "the same for one fact among several")
    add_retrieval(tasks, "needles", "RULER's synthetic tasks, answered freely", ruler)
    add_qa(tasks)
    options = line.parse_args(arguments)
    options.given, options.parse = arguments[1:], parsed
    try:
        check(options)
    except ValueError as error:
        tasks.choices[options.task].error(str(error))
    return options


def check(options):
    """Raise ValueError for flags that contradict each other."""
    given = options.given
    if options.resume and len(given) > 1 + (given[0] == "--resume"):
        raise ValueError("--resume takes no other flag: the run goes on with its own")
    if options.task == "qa" and not (options.data or options.resume):
        raise ValueError("say by --data which file holds the questions")
    if options.task != "perplexity" and options.attention != "lambda":
        raise ValueError("--attention is lambda here: --methods names the others")
    if "topk" in options.methods or options.sweep:
        options.top_k_middle = options.top_k_middle or TOP_K
    flags.check_attention(options)
    options.middle = options.middle or "ram"


# ---- flags


def task_of(tasks, name: str, room, what: str, methods=(), queries: str = "all"):
    """The group for what is asked, of a task that its room describes.

    methods: those it asks. queries: who reaches back with top-k.
    """
    task = tasks.add_parser(name, help=what, description=room.__doc__)
    task.set_defaults(room=room, figure=None, plan=False, methods=[], sweep=[])
    task.set_defaults(data=None, corpus=None, text=None)
    if room is not qa:
        add_texts(task)
    asked = task.add_argument_group("what is asked")
    if methods:
        more = f"; topk takes --top-k-middle {TOP_K} unless given"
        add_names(asked, "--methods", methods, more)
    add = task.add_argument_group("result").add_argument
    add("--json", action="store_true", help="print one JSON object")
    if hasattr(room, "picture"):
        add("--figure", "--heatmap", type=Path, metavar="FILE.png",
            help="draw the result (needs matplotlib)")  # fmt: skip
    add("--out", type=Path, metavar="RUN.json", help="write the result there, and during the "
        "run a state beside it; without it an interrupted run is lost")  # fmt: skip
    add("--save-every", type=flags.at_least(0), default=60, metavar="SECONDS",
        help="how often the state is saved (%(default)s)")  # fmt: skip
    add("--resume", type=Path, metavar="RUN.json",
        help="continue an interrupted run; takes no other flag")  # fmt: skip
    flags.add_model(task)
    flags.add_sight(task, queries)
    return asked


def add_names(group, flag: str, known, more=""):
    """A flag that takes some of the known names, and all of them where it is not given."""
    told = f"of {', '.join(known)}{more} (default: all)"
    group.add_argument(flag, type=several(partial(one_of, known)), default=list(known),
                       metavar="NAME,NAME", help=told)  # fmt: skip


def add_perplexity(tasks):
    what = "nll by position of any number of tokens, in constant memory"
    asked = task_of(tasks, "perplexity", perplexity, what)
    add = asked.add_argument
    add("--stream", action="store_true", help="repeat the documents until --length")
    add("--plan", action="store_true", help="print the memory and the arithmetic of reading "
        "--length tokens, and run nothing")  # fmt: skip
    flags.add_counts(
        asked,
        ("--length", 2, None, "tokens that are read (default: all documents, once)"),
        ("--chunk --prefill-chunk", 1, 2048, "tokens read at a time (%(default)s)"),
    )


def add_compare(tasks):
    what = "methods on the same documents, with as many visible keys"
    asked = task_of(tasks, "compare", comparison, what, LABELS)
    asked.add_argument("--sweep", action="store_true", default=False,
                       help="LM-Infinite with other n_global and n_local as well")  # fmt: skip
    flags.add_counts(
        asked,
        ("--length", 2, None, "tokens of each document (default: 16 x context_length)"),
        ("--chunk --prefill-chunk", 1, 512, "tokens read at a time (%(default)s)"),
        ("--trials", 0, 50, "pass keys for each method (%(default)s)", MOST_TRIALS),
    )


def add_retrieval(tasks, name: str, what: str, room=retrieval):
    asked = task_of(tasks, name, room, what, retrieval.METHODS, "last")
    add = asked.add_argument
    usual = "4,8" if room is ruler else "1,2,4,8"  # 1 and 2 leave some of RULER's no room
    add("--lengths", type=several(flags.between(0, 1e9)), default=usual, metavar="X,X",
        help="tokens of a trial, BOS, question and answer among them, as multiples of "
        "context_length (%(default)s)")  # fmt: skip
    if room is ruler:
        add("--suite", choices=["ruler"], default="ruler", help="so far the only one")
        add_names(asked, "--tasks", ruler.TASKS)
    else:
        add("--depths", type=several(flags.between(0, 1)), metavar="X,X",
            default=[i / 10 for i in range(11)], help="shares of the filler before what is "
            "asked for (default: 0,0.1,...,1)")  # fmt: skip
        add("--sweep", type=swept, nargs="+", default=[], metavar="NAME=N,N", help="also topk "
            "with each of these values of k, distance or from-layer")  # fmt: skip
    if name == "recall":
        add("--task", dest="kind", choices=["pairs"], default="pairs",
            help="people's numbers, so far the only one")  # fmt: skip
    flags.add_counts(
        asked,
        ("--trials", 1, 20, "per length, method, and depth or task (%(default)s)", MOST_TRIALS),
        ("--chunk --prefill-chunk", 1, 512, "tokens of a row read at a time (%(default)s)"),
    )


def add_qa(tasks):
    what = "questions about long texts, answered in words: F1 and exact match"
    asked = task_of(tasks, "qa", qa, what, qa.METHODS, "last")
    add = asked.add_argument
    add("--data", type=Path, metavar="FILE", help="Qasper's .json; or a .jsonl, LongBench's or "
        "with context, question and answers in each row")  # fmt: skip
    add("--chat", action="store_true", help="ask in the model's chat form")
    add("--template", type=template, metavar="TEXT", help="a prompt with {context} and "
        f"{{question}}, or the one of {', '.join(PROMPTS)} (default: the set's own; else "
        f"{PLAIN}'s)")  # fmt: skip
    flags.add_counts(
        asked,
        ("-n --max-new-tokens", 1, None, "tokens of an answer (default: the set's own)"),
        ("--chunk --prefill-chunk", 1, 512, "tokens read at a time (%(default)s)"),
    )


def several(kind):
    """An argparse type: values of an argparse type with commas between them, each once."""
    return lambda text: list(dict.fromkeys(map(kind, text.split(","))))


def one_of(known, name: str) -> str:
    """An argparse type, once it is told what is known: one of those names."""
    if name not in known:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    return name


def template(text: str) -> str:
    """An argparse type: a prompt with a place for the question, or the name of one."""
    return text if re.search(r"\{(question|input)\}", text) else one_of(PROMPTS, text)


def swept(text: str) -> tuple[str, list[int]]:
    """An argparse type: k=1,3,5, distance=... or from-layer=..."""
    name, _, values = text.partition("=")
    least = int(one_of(retrieval.SWEEPS, name) == "k")
    return name, several(flags.at_least(least))(values)


if __name__ == "__main__":
    sys.exit(main())

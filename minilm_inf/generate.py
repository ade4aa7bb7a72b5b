"""Write on from a prompt, streamed, past the length that the model was trained on.

    python -m minilm_inf.generate -p "It was a bright morning, and" -n 2000

This is the program; session.generate, which yields ids and knows no text, is what it calls.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from .terminal import options as flags
from .terminal.ending import guarded, say
from .terminal.files import SAVED, as_text, check_output, read_text
from .text.chat import KNOWN, Chat
from .text.tokenizer import load as load_tokenizer
from .writing import explain, plan, sampling
from .writing.conversation import converse
from .writing.reply import Plain, as_json, replies, save, show_now, statistics, tell_cut
from .writing.session import Session

PROMPT = "My dear friend, I have much to tell you of our voyage, and"
SHOWN = 400  # characters of a prompt's end that a terminal shows before the text


def parser() -> argparse.ArgumentParser:
    parser = flags.Parser(
        prog="python -m minilm_inf.generate",
        description="Write on from a prompt, past the length that the model was trained on.",
    )
    add_text(parser.add_argument_group("text"))
    add_sampling(parser.add_argument_group("sampling"))
    flags.add_model(parser)
    flags.add_sight(parser)
    speed = parser.add_argument_group("speed")
    flags.add_counts(speed, ("--prefill-chunk", 1, 1024, "tokens read at a time (%(default)s)"))
    speed.add_argument("--compile", action="store_true",
                       help="compile the decode step: 20 seconds, once for a model (kept in "
                       "~/.cache/minilm_inf); saves what small operations cost")  # fmt: skip
    add_output(parser.add_argument_group("output"))
    return parser


def add_text(group):
    """The flags of what is read, and of where the text ends."""
    add, prompt = group.add_argument, group.add_mutually_exclusive_group()
    prompt.add_argument("-p", "--prompt", action="append", metavar="TEXT",
                        help="the prompt; - reads stdin; several are continued side by side, "
                        "each as if alone (default: what is piped in, or else "
                        f"{PROMPT!r})")  # fmt: skip
    prompt.add_argument("-f", "--file", type=Path, help="read the prompt from a UTF-8 file")
    add("-n", "--max-new-tokens", "--max-tokens", type=flags.at_least(0), default=256,
        metavar="N", help="how far to write on (%(default)s)")  # fmt: skip
    add("--save", type=Path, metavar="FILE",
        help="save what was read to a file before writing on; -n 0 only reads")  # fmt: skip
    add("--load", type=Path, metavar="FILE", help="go on from what --save kept, as if just "
        "read: with a prompt on a line of its own, or without one")  # fmt: skip
    add("--chat", action="store_true",
        help="the prompt is a turn of a conversation, and the text the model's reply, in the "
        f"form of its chat template: {KNOWN}")  # fmt: skip
    add("--system", metavar="TEXT",
        help="--chat's system message (default: the chat template's own)")  # fmt: skip
    add("--ignore-eos", action="store_true", help="write on after an EOS")


def add_sampling(group):
    """The flags of how a token is drawn."""
    for words, kind, default, metavar, told in (
        ("-t --temperature --temp", float, 0.8, "X",
         "0 takes the likeliest token each time (%(default)s)"),
        ("--top-k --top-k-sampling", int, 50, "K",
         "only the K likeliest; 0 is off (%(default)s)"),
        ("--top-p", float, 1.0, "P",
         "only the likeliest that add up to P; 1 is all (%(default)s)"),
        ("--seed", flags.seed, 1234, "N",
         "the same seed and settings give the same text (%(default)s)"),
    ):  # fmt: skip
        how = dict(type=kind, default=default, metavar=metavar, help=told)
        group.add_argument(*words.split(), **how)


def add_output(group):
    """The flags of what is shown."""
    for words, told in (
        ("--json", "print one JSON object and nothing else; its ids hold the one that ended "
         "the text"),
        ("--plan", "print the memory and the arithmetic that this would take, and run nothing"),
        ("--explain", "then say what the last token saw of the text"),
        ("-q --quiet", "no statistics, no notes, and no prompt before the text"),
        ("-i --interactive", "a loop of prompts on one growing text; /help lists its commands"),
    ):  # fmt: skip
        group.add_argument(*words.split(), action="store_true", help=told)


def main(arguments: list[str] | None = None) -> int:
    line = parser()
    options = line.parse_args(arguments)
    try:
        sampling.check(options.temperature, options.top_k, options.top_p)
        check(options)
        flags.check_attention(options)
    except ValueError as error:
        line.error(str(error))
    return guarded(lambda: run(options), smaller="--prefill-chunk, --n-local or --n-global")


def check(options):
    """Raise ValueError for flags that contradict each other."""
    several = len(options.prompt or ()) > 1
    given = [getattr(options, name) for name in "prompt file save json explain plan".split()]
    for wrong, sentence in (
        (options.system is not None and not options.chat,
         "--system has no meaning without --chat"),
        (several and (options.compile or options.explain),
         "--compile and --explain are for one text at a time: give one --prompt"),
        (options.interactive and any(given),
         "--prompt, --file, --save, --json, --explain and --plan have no meaning with "
         "--interactive"),
        (options.load and options.explain or options.plan and (options.load or options.save),
         "--explain has no meaning with --load, nor --plan with --load or --save"),
    ):  # fmt: skip
        if wrong:
            raise ValueError(sentence)


def run(options) -> int:
    check_output(options.save, SAVED, "--save")
    if options.plan:
        model, tokenizer = plan.network(options), load_tokenizer(options.model)
    else:
        model, tokenizer = flags.load(options)
    turns = Chat(options.model, tokenizer, options.system) if options.chat else Plain(tokenizer)
    lm = flags.attention(options, model.config)
    prompts = [] if options.interactive else prompts_of(options)
    ids = [encode_prompt(turns, prompt, lm, options) for prompt in prompts]
    if options.plan:
        lengths, new = list(map(len, ids)), options.max_new_tokens
        return plan.show(model, options, lm, lengths, new, options.prefill_chunk)
    how = options.prefill_chunk, options.compile, options.middle or "ram"
    session = Session(model, lm, *how, max(1, len(prompts)))
    if options.load:
        session.load(options.load)
    if options.interactive:
        return converse(session, turns, options, sampling.seeded(options.seed))
    generators = [sampling.seeded(options.seed) for _ in prompts]
    is_streamed = not options.json and len(prompts) == 1
    show = show_now if is_streamed else lambda text: None
    before = [prompt_before(prompt, options) for prompt in prompts]
    keep = partial(save, session, options.save, not options.quiet)
    results = replies(session, turns, ids, options, generators, show, before[0], is_read=keep)
    spans = explain.explain(session) if options.explain else []
    for number, (prompt, result) in enumerate(zip(prompts, results)):
        if options.json:
            found = as_json(session, options, prompt, result)
            found |= {"explain": [span._asdict() for span in spans]} if spans else {}
            print(json.dumps(found, ensure_ascii=False, default=str))
        else:
            print("" if is_streamed else f"[{number + 1}] {before[number]}{result.text}")
    if spans and not options.json:
        print("\n" + explain.table(spans, tokenizer.decode, ids[0] + results[0].ids))
    if not options.quiet:
        say("\n".join(statistics(session, results)))
    tell_cut(results, options)
    return 0


def encode_prompt(turns, prompt: str, lm, options) -> list[int]:
    """A prompt's ids, none for nothing after --load; and a note where some cannot be seen."""
    if options.load:
        return turns.prompt(prompt, first=False) if prompt else []
    ids = turns.prompt(prompt, first=True)
    hidden = 0 if lm is None or lm.top_k else len(ids) - lm.visible(len(ids))
    if hidden and not options.quiet:
        say(f"note: {hidden:,} of the prompt's {len(ids):,} tokens are neither starting tokens "
            "nor in the window, and cannot be seen")  # fmt: skip
    return ids


def prompts_of(options) -> list[str]:
    """The texts of the prompts: --file's, or each --prompt's; without them what is piped in, if
    it is anything. Raises ValueError where one cannot be read, or holds nothing."""
    if options.file:
        return [read(options.file)]
    if options.prompt:
        return [read("-") if text == "-" else text for text in options.prompt]
    piped = "" if sys.stdin.isatty() else read("-", least=0)
    usual = "" if options.load else PROMPT
    return [piped.removesuffix("\n") or usual]  # the line end is echo's, and not the text's


def read(path: Path | str, least: int = 1) -> str:
    """The text of a file, or of stdin, "-", with the line ends of every system as ours. Raises
    ValueError where it cannot be read, or has fewer characters."""
    name = "standard input" if path == "-" else path
    text = as_text(sys.stdin.buffer.read(), name) if path == "-" else read_text(path)
    if len(text) < least:
        raise ValueError(f"{name} is empty: it holds no prompt")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def prompt_before(prompt: str, options) -> str:
    """What a terminal shows before the text: the prompt, dim; its end, where it is long."""
    if options.json or options.quiet or not sys.stdout.isatty():
        return ""
    end = prompt if len(prompt) <= SHOWN else "..." + prompt[-SHOWN:]
    return f"\033[2m{end}\033[0m" + "\n" * options.chat


if __name__ == "__main__":
    sys.exit(main())

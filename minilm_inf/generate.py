"""Write on from a prompt, streamed, past the length that the model was trained on.

    python -m minilm_inf.generate -p "It was a bright morning, and" -n 2000

This is the program; session.generate, which yields ids and knows no text, is what it calls.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .terminal import options as flags
from .terminal.ending import guarded
from .terminal.files import as_text, read_text
from .text.chat import KNOWN, Chat
from .text.tokenizer import load as load_tokenizer
from .writing import explain, plan, sampling
from .writing.conversation import converse
from .writing.reply import Plain, as_json, replies, show_now, statistics
from .writing.session import Session

LARGEST_INPUT = 2**28  # bytes of what is piped in, which may have no end
PROMPT = "My dear friend, I have much to tell you of our voyage, and"


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
                       help="compile the decode step: half a minute first; then a small model "
                       "is 2 to 3 times as fast, a large one little faster")  # fmt: skip
    add_output(parser.add_argument_group("output"))
    return parser


def add_text(group):
    """The flags of what is read, and of where the text ends."""
    add, prompt = group.add_argument, group.add_mutually_exclusive_group()
    prompt.add_argument("-p", "--prompt", action="append", metavar="TEXT",
                        help="the prompt; - reads stdin; several are written side by side, "
                        f"each as if alone ({PROMPT!r})")  # fmt: skip
    prompt.add_argument("-f", "--file", type=Path, help="read the prompt from a UTF-8 file")
    add("-n", "--max-new-tokens", type=flags.at_least(0), default=256, metavar="N",
        help="how far to write on (%(default)s)")  # fmt: skip
    add("--chat", action="store_true",
        help="the prompt is a turn of a conversation, and the text the model's reply, in the "
        f"form of its chat template: {KNOWN}")  # fmt: skip
    add("--system", metavar="TEXT", help="--chat's system message (the chat template's own)")
    add("--ignore-eos", action="store_true", help="write on after an EOS")


def add_sampling(group):
    """The flags of how a token is drawn."""
    for words, kind, default, metavar, told in (
        ("-t --temperature", float, 0.8, "X",
         "0 takes the likeliest token each time (%(default)s)"),
        ("--top-k", int, 50, "K", "only the K likeliest; 0 is off (%(default)s)"),
        ("--top-p", float, 1.0, "P", "only the likeliest that add up to P (%(default)s: all)"),
        ("--seed", flags.seed, 1234, "N",
         "the same seed and settings give the same text (%(default)s)"),
    ):  # fmt: skip
        group.add_argument(
            *words.split(), type=kind, default=default, metavar=metavar, help=told
        )


def add_output(group):
    """The flags of what is shown."""
    for words, told in (
        ("--json", "print one JSON object and nothing else; its ids hold the one that ended "
         "the text"),
        ("--plan", "print the memory and the arithmetic that this would take, and run nothing"),
        ("--explain", "then say what the last token saw of the text"),
        ("-q --quiet", "no statistics and no notes"),
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
    given = options.prompt, options.file, options.json, options.explain
    for wrong, sentence in (
        ((options.prompt or []).count("-") > 1,
         "-p - reads all of stdin, and can be given once only"),
        (options.system is not None and not options.chat,
         "--system has no meaning without --chat"),
        (options.compile and several, "--compile is for one text at a time: give one --prompt"),
        (options.explain and several, "--explain is for one text at a time: give one --prompt"),
        (options.interactive and any(given),
         "--prompt, --file, --json and --explain have no meaning with --interactive"),
    ):  # fmt: skip
        if wrong:
            raise ValueError(sentence)


def run(options) -> int:
    if options.plan:
        return run_plan(options)
    model, tokenizer = flags.load(options)
    turns, lm = turns_of(tokenizer, options), flags.attention(options, model.config)
    prompts = options.prompt or [PROMPT]
    session = Session(
        model, lm, options.prefill_chunk, options.compile, options.middle or "ram",
        len(prompts),
    )  # fmt: skip
    generators = [sampling.seeded(options.seed) for _ in prompts]
    if options.interactive:
        return converse(session, turns, options, *generators)

    prompts = [read_prompt(options, text) for text in prompts]
    ids = [encode_prompt(turns, prompt, lm, options) for prompt in prompts]
    is_streamed = not options.json and len(prompts) == 1
    show = show_now if is_streamed else lambda text: None
    results = replies(session, turns, ids, options, generators, show)
    spans = explain.explain(session) if options.explain else []
    for number, (prompt, result) in enumerate(zip(prompts, results), 1):
        if options.json:
            found = as_json(session, options, prompt, result)
            found |= {"explain": [span.as_json() for span in spans]} if spans else {}
            print(json.dumps(found, ensure_ascii=False, default=str))
        else:
            print("" if is_streamed else f"[{number}] {result.text}")
    if spans and not options.json:
        written = ids[0] + [step.id for step in results[0].steps]
        print("\n" + explain.table(spans, tokenizer.decode, written))
    if not options.quiet:
        print("\n".join(statistics(session, results)), file=sys.stderr)
    return 0


def turns_of(tokenizer, options) -> Plain | Chat:
    if options.chat:
        return Chat(options.model, tokenizer, options.system)
    return Plain(tokenizer)


def run_plan(options) -> int:
    """What the run would take: the prompts are encoded, and nothing else is done."""
    net = plan.network(options)
    lm = flags.attention(options, net.config)
    if options.interactive:
        raise ValueError("how long a conversation grows is not known: plan it with -f and -n")
    turns = turns_of(load_tokenizer(options.model), options)
    prompts = [read_prompt(options, text) for text in options.prompt or [PROMPT]]
    lengths = [len(encode_prompt(turns, prompt, lm, options)) for prompt in prompts]
    how = options.max_new_tokens, options.prefill_chunk, options.middle
    return plan.show(net, plan.plan(net, lm, lengths, *how), options.json)


def encode_prompt(turns, prompt: str, lm, options) -> list[int]:
    """A prompt's ids, and a note where some cannot be seen."""
    ids = turns.prompt(prompt, first=True)
    hidden = 0 if lm is None or lm.top_k else len(ids) - lm.visible(len(ids))
    if hidden and not options.quiet:
        print(f"note: {hidden} of the prompt's {len(ids)} tokens lie outside the window and "
              "cannot be seen", file=sys.stderr)  # fmt: skip
    return ids


def read_prompt(options, given: str) -> str:
    """The prompt's text: of --file, or of what was given. Raises ValueError where it cannot be
    read, or is empty."""
    if options.file is None and given != "-":
        return given
    if options.file is None:
        content = sys.stdin.buffer.read(LARGEST_INPUT + 1)
        if len(content) > LARGEST_INPUT:
            raise ValueError(f"standard input holds more than {LARGEST_INPUT:,} bytes")
        text = as_text(content, "standard input")
    else:
        text = read_text(options.file)
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # the line ends of every system
    if not text:
        raise ValueError(f"{options.file or 'standard input'} is empty: it holds no prompt")
    return text


if __name__ == "__main__":
    sys.exit(main())

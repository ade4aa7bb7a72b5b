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
    flags.add_counts(speed, ("--prefill-chunk", 1, 512, "tokens read at a time (%(default)s)"))
    speed.add_argument("--path", choices=("chunked", "reference"), default="chunked",
                       help="in O(n), or by the slow definition (%(default)s)")  # fmt: skip
    speed.add_argument(
        "--compile", action="store_true",
        help="compile the decode step: half a minute first; then a small model is 2 to 3 times "
        "as fast, a large one little faster",
    )  # fmt: skip
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
    add("--stop", action="append", default=[], metavar="TEXT",
        help="end where this text appears; may be given several times")  # fmt: skip
    add("--chat", action="store_true",
        help="the prompt is a turn of a conversation, and the text the model's reply, in the "
        f"form of its chat template: {KNOWN}")  # fmt: skip
    add("--system", metavar="TEXT", help="--chat's system message (the chat template's own)")
    add("--no-bos", action="store_true", help="no BOS in front of the prompt")
    add("--ignore-eos", action="store_true", help="write on after an EOS")


def add_sampling(group):
    """The flags of how a token is drawn."""
    for words, kind, default, metavar, told in (
        ("-t --temperature", float, 0.8, "X",
         "0 takes the likeliest token each time (%(default)s)"),
        ("--top-k", int, 50, "K", "only the K likeliest; 0 is off (%(default)s)"),
        ("--top-p", float, 1.0, "P", "only the likeliest that add up to P (%(default)s: all)"),
        ("--min-p", float, 0.0, "P",
         "only those P times as likely as the likeliest (%(default)s: all)"),
        ("--repetition-penalty", float, 1.0, "X",
         "above 1, what occurred becomes less likely (%(default)s)"),
        ("--seed", flags.seed, 1234, "N",
         "the same seed and settings give the same text (%(default)s)"),
    ):  # fmt: skip
        group.add_argument(
            *words.split(), type=kind, default=default, metavar=metavar, help=told
        )


def add_output(group):
    """The flags of what is shown."""
    for words, told in (
        ("--no-stream", "print the text when it is complete"),
        ("--echo", "print the prompt before the text"),
        ("--json", "print one JSON object and nothing else; its ids hold the one that ended "
         "the text"),
        ("--explain", "then say what the last token saw of the text"),
        ("-q --quiet", "no statistics and no notes"),
        ("-i --interactive", "a loop of prompts on one growing text; /help lists its commands"),
    ):  # fmt: skip
        group.add_argument(*words.split(), action="store_true", help=told)
    flags.add_plan(group)


def main(arguments: list[str] | None = None) -> int:
    line = parser()
    options = line.parse_args(arguments)
    try:
        sampling.check(
            options.temperature, options.top_k, options.top_p, options.min_p,
            options.repetition_penalty,
        )  # fmt: skip
        check_output(options)
        flags.check_attention(options)
    except ValueError as error:
        line.error(str(error))
    return guarded(lambda: run(options), smaller="--prefill-chunk, --n-local or --n-global")


def check_output(options):
    """Raise ValueError for flags that contradict each other, and for an empty --stop."""
    several = len(options.prompt or ()) > 1
    for wrong, sentence in (
        ("" in options.stop, "--stop needs a text that is not empty"),
        ((options.prompt or []).count("-") > 1,
         "-p - reads all of stdin, and can be given once only"),
        (options.chat and options.no_bos,
         "--no-bos has no meaning with --chat: the chat template decides"),
        (options.system is not None and not options.chat,
         "--system has no meaning without --chat"),
        (options.compile and several, "--compile is for one text at a time: give one --prompt"),
        (options.explain and several, "--explain is for one text at a time: give one --prompt"),
        (options.explain and options.top_k_middle and options.path == "reference",
         "--explain has no meaning with --top-k-middle and --path reference"),
    ):  # fmt: skip
        if wrong:
            raise ValueError(sentence)
    for name in ("explain", "prompt", "file", "no_stream", "echo", "json"):
        if options.interactive and getattr(options, name) not in (None, False):
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} has no meaning with --interactive")


def run(options) -> int:
    if options.plan:
        return run_plan(options)
    model, tokenizer = flags.load(options)
    turns = turns_of(tokenizer, options)
    lm = flags.attention(options, model.config)
    prompts = options.prompt or [None]
    session = Session(
        model, lm, options.path, options.prefill_chunk, options.compile,
        options.middle or "ram", len(prompts),
    )  # fmt: skip
    generators = [sampling.seeded(options.seed) for _ in prompts]
    if options.interactive:
        return converse(session, turns, options, *generators)

    prompts = [read_prompt(options, text) for text in prompts]
    ids = [encode_prompt(turns, prompt, lm, options) for prompt in prompts]
    streaming = not (options.json or options.no_stream or len(prompts) > 1)
    if options.echo and streaming:
        show_now(prompts[0])
    show = show_now if streaming else lambda text: None
    results = replies(session, turns, ids, options, generators, show)
    if streaming:
        print()
    else:
        show_all(session, options, prompts, ids, results)
    if options.explain and not options.json:
        written = ids[0] + [step.id for step in results[0].steps]
        print("\n" + explain.table(explain.explain(session), tokenizer.decode, written))
    if not options.quiet:
        print("\n".join(statistics(session, results)), file=sys.stderr)
    return 0


def show_all(session: Session, options, prompts, ids, results):
    """Texts that are complete: each after its number, where there are several; with --json, an
    object a line."""
    for number, (prompt, own, result) in enumerate(zip(prompts, ids, results), 1):
        if options.json:
            found = as_json(session, options, prompt, own, result)
            if options.explain:
                found["explain"] = [span.as_json() for span in explain.explain(session)]
            print(json.dumps(found, ensure_ascii=False))
        else:
            before = f"[{number}] " if len(results) > 1 else ""
            print(f"{before}{prompt if options.echo else ''}{result.text}")


def turns_of(tokenizer, options) -> Plain | Chat:
    if options.chat:
        return Chat(options.model, tokenizer, options.system)
    return Plain(tokenizer, bos=not options.no_bos)


def run_plan(options) -> int:
    """What the run would take: the prompts are encoded, and nothing else is done."""
    net = plan.network(options)
    lm = flags.attention(options, net.config)
    notes = []
    if options.interactive:
        if lm is None or lm.n_local is None:
            raise ValueError(
                "how long a conversation grows is not known, and with --attention full its "
                "cache grows with it: plan it with -f FILE and -n"
            )
        lengths = [lm.n_local + lm.n_global + options.prefill_chunk]
        notes = ["How long the conversation grows is not known: its window is taken as full."]
    else:
        turns = turns_of(load_tokenizer(options.model), options)
        prompts = [read_prompt(options, text) for text in options.prompt or [None]]
        lengths = [len(encode_prompt(turns, prompt, lm, options)) for prompt in prompts]
    found = plan.writing(
        net, lm, lengths, options.max_new_tokens, options.prefill_chunk, options.path
    )
    if options.middle == "disk":
        length = max(lengths) + max(0, options.max_new_tokens - 1)
        found = plan.on_disk(found, net, lm, length, len(lengths))
    return plan.show(net, [found], options.json, notes)


def encode_prompt(turns, prompt: str, lm, options) -> list[int]:
    """A prompt's ids, and a note where some cannot be seen. Raises ValueError for none."""
    ids = turns.prompt(prompt, first=True)
    if not ids:
        raise ValueError("the prompt is empty: give -p TEXT, or leave out --no-bos")
    hidden = 0 if lm is None or lm.top_k else len(ids) - lm.visible(len(ids))
    if hidden and not options.quiet:
        print(f"note: {hidden} of the prompt's {len(ids)} tokens lie outside the window and "
              "cannot be seen", file=sys.stderr)  # fmt: skip
    return ids


def read_prompt(options, given: str | None = None) -> str:
    """The prompt's text: of --file, or of what was given, by default -p's one text. Raises
    ValueError where it cannot be read."""
    if given is None:
        given = options.prompt[0] if options.prompt else PROMPT
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
        where = "standard input" if options.file is None else options.file
        raise ValueError(f"{where} is empty: there is no prompt in it")
    return text


if __name__ == "__main__":
    sys.exit(main())

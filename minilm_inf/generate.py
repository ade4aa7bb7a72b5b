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
from .terminal.files import read_standard_input, read_text
from .text.chat import Chat
from .text.chat_template import KNOWN
from .text.tokenizer import load as load_tokenizer
from .writing import explain, plan, sampling
from .writing.batch import Batch
from .writing.conversation import converse
from .writing.reply import Plain, as_json, replies, reply, show_now, statistics
from .writing.session import Session

PROMPT = "My dear friend, I have much to tell you of our voyage, and"


def parser() -> argparse.ArgumentParser:
    parser = flags.Parser(
        prog="python -m minilm_inf.generate",
        description="Write on from a prompt, past the length that the model was trained on.",
    )
    text = parser.add_argument_group("text")
    prompt = text.add_mutually_exclusive_group()
    prompt.add_argument(
        "-p",
        "--prompt",
        action="append",
        metavar="TEXT",
        help="the prompt; - reads stdin; several are written side by side, each as if alone "
        f"({PROMPT!r})",
    )
    prompt.add_argument("-f", "--file", type=Path, help="read the prompt from a UTF-8 file")
    text.add_argument(
        "-n",
        "--max-new-tokens",
        type=flags.at_least(0),
        default=256,
        metavar="N",
        help="how far to write on (%(default)s)",
    )
    text.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end where this text appears; may be given several times",
    )
    text.add_argument(
        "--chat",
        action="store_true",
        help="the prompt is a turn of a conversation, and the text the model's reply, in the "
        f"form of its chat template: {KNOWN}",
    )
    text.add_argument(
        "--system", metavar="TEXT", help="--chat's system message (the chat template's own)"
    )
    text.add_argument("--no-bos", action="store_true", help="no BOS in front of the prompt")
    text.add_argument("--ignore-eos", action="store_true", help="write on behind an EOS")

    draw = parser.add_argument_group("sampling")
    draw.add_argument("-t", "--temperature", type=float, default=0.8, metavar="X",
                      help="0 takes the likeliest token each time (%(default)s)")  # fmt: skip
    draw.add_argument("--top-k", type=int, default=50, metavar="K",
                      help="only the K likeliest; 0 is off (%(default)s)")  # fmt: skip
    draw.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="only the likeliest that add up to P (%(default)s: all)",
    )
    draw.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="only those P times as likely as the likeliest (%(default)s: all)",
    )
    draw.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="above 1, what occurred becomes less likely (%(default)s)",
    )
    draw.add_argument(
        "--seed",
        type=flags.seed,
        default=1234,
        metavar="N",
        help="the same seed and settings give the same text (%(default)s)",
    )

    flags.add_model(parser)
    flags.add_attention(parser)
    parser.add_argument_group("speed").add_argument(
        "--compile", action="store_true",
        help="compile the decode step: half a minute first; then a small model is 2 to 3 times "
        "as fast, a large one little faster",
    )  # fmt: skip

    out = parser.add_argument_group("output")
    out.add_argument(
        "--no-stream", action="store_true", help="print the text when it is complete"
    )
    out.add_argument("--echo", action="store_true", help="print the prompt before the text")
    out.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object and nothing else; its ids hold the one that ended the text",
    )
    out.add_argument("--explain", action="store_true",
                     help="then say what the last token saw of the text")  # fmt: skip
    out.add_argument("-q", "--quiet", action="store_true", help="no statistics and no notes")
    out.add_argument(
        "-i",
        "--interactive",
        action="store_true",
        help="a loop of prompts on one growing text; /help lists its commands",
    )
    flags.add_plan(out)
    return parser


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
    if "" in options.stop:
        raise ValueError("--stop needs a text that is not empty")
    if (options.prompt or []).count("-") > 1:
        raise ValueError("-p - reads all of stdin, and can be given once only")
    if options.chat and options.no_bos:
        raise ValueError("--no-bos has no meaning with --chat: the chat template decides")
    if options.system is not None and not options.chat:
        raise ValueError("--system has no meaning without --chat")
    if options.compile and len(options.prompt or ()) > 1:
        raise ValueError("--compile is for one text at a time: give one --prompt")
    if options.explain and len(options.prompt or ()) > 1:
        raise ValueError("--explain is for one text at a time: give one --prompt")
    if options.explain and options.top_k_middle and options.path == "reference":
        raise ValueError("--explain has no meaning with --top-k-middle and --path reference")
    idle = {
        "--explain": options.explain,
        "--prompt": options.prompt is not None,
        "--file": options.file is not None,
        "--no-stream": options.no_stream,
        "--echo": options.echo,
        "--json": options.json,
    }
    for flag, given in idle.items():
        if options.interactive and given:
            raise ValueError(f"{flag} has no meaning with --interactive")


def run(options) -> int:
    if options.plan:
        return run_plan(options)
    model, tokenizer = flags.load(options)
    turns = turns_of(tokenizer, options)
    lm = flags.attention(options, model.config)
    if len(options.prompt or ()) > 1:
        return run_batch(model, turns, lm, options)
    middle = options.middle or "ram"
    session = Session(model, lm, options.path, options.prefill_chunk, options.compile, middle)
    generator = sampling.seeded(options.seed)
    if options.interactive:
        return converse(session, turns, options, generator)

    prompt = read_prompt(options)
    ids = encode_prompt(turns, prompt, lm, options)
    streaming = not (options.json or options.no_stream)
    show = show_now if streaming else lambda text: None
    if options.echo and not options.json:
        show_now(prompt)
    result = reply(session, turns, ids, options, generator, show, enough=lambda: False)
    if options.json:
        found = as_json(session, session.length, options, prompt, ids, result)
        if options.explain:
            found["explain"] = [span.as_json() for span in explain.explain(session)]
        print(json.dumps(found, ensure_ascii=False))
    else:
        print("" if streaming else result.text)
        if options.explain:
            written = [step.id for step in result.steps]
            print(
                "\n" + explain.table(explain.explain(session), tokenizer.decode, ids + written)
            )
    if not options.quiet:
        print("\n".join(statistics(session, result)), file=sys.stderr)
    return 0


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


def run_batch(model, turns, lm, options) -> int:
    """Several prompts: their texts are printed when all are complete, each behind its number;
    with --json, an object a line."""
    prompts = [read_prompt(options, text) for text in options.prompt]
    ids = [encode_prompt(turns, prompt, lm, options) for prompt in prompts]
    middle = options.middle or "ram"
    batch = Batch(model, ids, lm, options.path, options.prefill_chunk, middle)
    watched = sys.stderr.isatty() and not options.quiet

    def report(written: int, growing: int):
        if watched:
            line = f"\r{written} tokens, {growing} texts grow "
            print(line, end="", file=sys.stderr, flush=True)

    results = replies(batch, turns, options, report)
    if watched:
        print(file=sys.stderr)
    for number, (prompt, result) in enumerate(zip(prompts, results), 1):
        length = result.prompt_tokens + result.new_tokens
        if options.json:
            found = as_json(batch, length, options, prompt, ids[number - 1], result)
            print(json.dumps(found, ensure_ascii=False))
        else:
            print(f"[{number}] {prompt if options.echo else ''}{result.text}")
    if not options.quiet:
        new = sum(result.new_tokens for result in results)
        speed = new / max(results[0].decode_seconds, 1e-9)
        print(f"{len(results)} prompts, new {new} tokens ({speed:,.0f} tokens/s together)",
              file=sys.stderr)  # fmt: skip
    return 0


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
    text = read_standard_input() if options.file is None else read_text(options.file)
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # the line ends of every system
    if not text:
        where = "standard input" if options.file is None else options.file
        raise ValueError(f"{where} is empty: there is no prompt in it")
    return text


if __name__ == "__main__":
    sys.exit(main())

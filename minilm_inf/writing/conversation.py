"""A conversation: a loop of prompts and replies on one growing text.

Ctrl-C at the prompt only says how to leave. While a prompt is read and a reply written it is
noted, and acted on between two tokens: so no forward pass is ever cut in two, and all that was
said stays.
"""

from __future__ import annotations

import contextlib
import signal
import sys

from ..terminal.ending import Terminated, say, signals_noted
from .reply import Reply, replies, save, show_now, statistics, tell_cut
from .session import Session

HELP = """\
Type a text, and the model writes on from all that was said so far.
/stats  what the last reply took, and how much of the text can be seen
/reset  forget everything
/save FILE, /load FILE  keep all that was said; go on from it, with --seed's draws again
/exit   leave (or exit, quit, q, Ctrl-D); Ctrl-C stops a reply"""
LEAVE = "/exit", "exit", "quit", "q"


def converse(session: Session, turns, options, generator) -> int:
    """A loop of prompts on one growing text, until /exit or the end of the input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing, where the platform has it)
    with contextlib.suppress(AttributeError):  # line ends of any system; encode refuses bytes
        sys.stdin.reconfigure(errors="surrogateescape", newline=None)  # that are not UTF-8
    mark = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    last: Reply | None = None
    if not options.quiet:
        say("/help lists the commands")
    while True:
        try:
            line = input(mark).removeprefix("\ufeff")
            command = line.rstrip()
            if command in LEAVE:
                return 0
            if command == "/help":
                say(HELP)
            elif command == "/reset":
                session.forget()
                last = None
            elif command == "/stats":
                say("\n".join(statistics(session, [last])) if last else "nothing was written")
            elif command.split(" ")[0] in ("/save", "/load"):
                keep(session, *command.partition(" ")[::2], options, generator)
            elif command.startswith("/"):
                say(f"there is no command {command[:200]}; /help lists them")
            elif command:
                last = answer(session, turns, options, generator, line) or last
        except EOFError:
            return 0
        except Terminated:
            raise
        except KeyboardInterrupt:
            say("\n/exit leaves")


def keep(session: Session, command: str, path: str, options, generator):
    """/save or /load a file, or say why that cannot be."""
    try:
        if command == "/save":
            return save(session, path.strip())
        session.load(path.strip())
        generator.manual_seed(options.seed)
        say(f"loaded {session.lengths[0]:,} tokens: {path}")
    except (ValueError, OSError) as error:
        say(error)


def answer(session: Session, turns, options, generator, text: str) -> Reply | None:
    """Show the reply to a text; say why where there can be none."""
    try:
        ids = turns.prompt(text, first=session.cache.length == 0)
    except ValueError as error:
        torn = any("\ud800" <= letter <= "\udfff" for letter in text)
        say("that was not UTF-8 text; it was left out" if torn else error)
        return None
    with signals_noted(signal.SIGINT) as came:
        [reply] = replies(
            session, turns, [ids], options, [generator], show_now, enough=lambda: bool(came)
        )
    print(flush=True)
    if came and not options.quiet:
        say("stopped: what was written so far stays, and the next prompt follows it")
    tell_cut([reply], options)
    return reply

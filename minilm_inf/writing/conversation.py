"""A conversation: a loop of prompts and replies on one growing text.

Ctrl-C at the prompt only says how to leave. While a prompt is read and a reply written it is
noted, and acted on between two tokens: so no forward pass is ever cut in two, and all that was
said stays.
"""

from __future__ import annotations

import contextlib
import signal
import sys

from ..terminal.ending import Terminated, forgive, signals_noted
from .reply import Reply, replies, show_now, statistics
from .session import Session

LONGEST_LINE = 2**24  # characters, where nobody types them

HELP = """\
Type a text, and the model writes on from all that was said so far.
/stats  what the last reply took, and how much of the text can be seen
/reset  forget everything
/exit   leave (or Ctrl-D); Ctrl-C stops a reply"""


class Conversation:
    """What was said so far, with whom, and what the last reply took."""

    def __init__(self, session: Session, turns, options, generator):
        self.session, self.turns = session, turns
        self.options, self.generator = options, generator
        self.last: Reply | None = None

    def take(self, line: str) -> bool:
        """Do what a line asks for; whether the conversation goes on."""
        command = line.rstrip()
        if command == "/exit":
            return False
        if command == "/help":
            say(HELP)
        elif command == "/reset":
            self.session, self.last = self.session.fresh(), None
        elif command == "/stats":
            lines = statistics(self.session, [self.last]) if self.last else []
            say("\n".join(lines) or "nothing was written yet")
        elif command.startswith("/"):
            say(f"there is no command {command[:200]}; /help lists them")
        elif command:
            self.answer(line)
        return True

    def answer(self, text: str):
        """Show a reply to a text; say why where there can be none."""
        try:
            ids = self.turns.prompt(text, first=self.session.length == 0)
        except ValueError as error:
            torn = any("\ud800" <= letter <= "\udfff" for letter in text)
            say("that was not UTF-8 text; it was left out" if torn else error)
            return
        with signals_noted(signal.SIGINT) as came:
            [self.last] = replies(
                self.session, self.turns, [ids], self.options, [self.generator], show_now,
                enough=lambda: bool(came),
            )  # fmt: skip
        print(flush=True)
        if came and not self.options.quiet:
            say("stopped: what was written so far stays, and the next prompt follows it")


def converse(session: Session, turns, options, generator) -> int:
    """A loop of prompts on one growing text, until /exit or the end of the input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing, where the platform has it)
    forgive(sys.stdin, "surrogateescape")  # encode refuses what is not UTF-8
    with contextlib.suppress(AttributeError):
        sys.stdin.reconfigure(newline=None)  # the line ends of every system
    mark = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    conversation = Conversation(session, turns, options, generator)
    if not options.quiet:
        say("/help lists the commands")
    while True:
        try:
            if not conversation.take(read_line(mark).removeprefix("\ufeff")):
                return 0
        except EOFError:
            return 0
        except Terminated:
            raise
        except KeyboardInterrupt:
            say("\n/exit leaves")


def read_line(mark: str) -> str:
    """The next line, without its end; mark: what a terminal shows before it.

    Raises EOFError where there is none, and ValueError for one without an end.
    """
    if mark:
        return input(mark)
    line = sys.stdin.readline(LONGEST_LINE + 1)
    if not line:
        raise EOFError
    if len(line) > LONGEST_LINE:
        raise ValueError(f"a line of standard input has {LONGEST_LINE:,} characters or more")
    return line.removesuffix("\n")


def say(text):
    """Print a line that is no part of the conversation."""
    print(text, file=sys.stderr)

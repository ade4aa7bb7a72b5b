"""What a chat template writes for a conversation of which only the roles are known.

Nothing is run: names are looked up in a dict, texts are joined, loops go over the messages, and
a question is answered only where the roles, or what transformers hands a template, decide it.
What somebody will say, and BOS, EOS and today's date, are each one character in the text that
comes out, from Unicode's private use. Anything else is unknown, and so is the template then.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .template_syntax import UnknownTemplate

BOS, EOS, DATE, STRIP, STRIPPED = "\ue000\ue001\ue002\ue003\ue004"  # STRIP text STRIPPED
SAID = "\ue010\ue011\ue012\ue013\ue014\ue015"  # the content of each message
PRIVATE = re.compile("[\ue000-\uf8ff]")
MOST_STEPS = 5000  # of one conversation; known templates take some hundreds
LONGEST_TEXT = 20_000
LONGEST_LIST = 100

UNKNOWN, UNDEFINED = object(), object()
FUNCTIONS = ("raise_exception", "strftime_now", "namespace")
COMPARED = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "in": lambda a, b: a in b,
    "not in": lambda a, b: a not in b,
}


class NotAllowed(Exception):
    """The template raises an exception of its own about such a conversation."""


class Function(NamedTuple):
    name: str


class Namespace(dict):
    """What a loop may change for good."""


def unrolled(statements: list, roles: list[str]) -> str:
    """What a template writes for messages of these roles, before the reply.

    Raises UnknownTemplate where that depends on anything unknown, and NotAllowed where the
    template refuses such roles.
    """
    messages = [{"role": role, "content": said} for role, said in zip(roles, SAID)]
    names = {name: Function(name) for name in FUNCTIONS}
    names |= {
        "messages": messages, "tools": None, "documents": None, "add_generation_prompt": True,
        "bos_token": BOS, "eos_token": EOS,
    }  # fmt: skip
    writer = Writer()
    writer.run(statements, names)
    return writer.written


class Writer:
    """What was written so far, and how many steps were taken."""

    def __init__(self):
        self.written = ""
        self.steps = 0

    def step(self):
        """Raise UnknownTemplate where a template takes far more steps than any known one."""
        self.steps += 1
        if self.steps > MOST_STEPS or len(self.written) > LONGEST_TEXT:
            raise UnknownTemplate

    def run(self, statements: list, names: dict):
        """Go through statements; names: name -> value, to which they add."""
        for kind, *parts in statements:
            if kind == "write":
                text = self.value(parts[0], names)
                if not isinstance(text, str):
                    raise UnknownTemplate
                self.written += text
            elif kind == "set":
                self.assign(*parts, names)
            elif kind == "if":
                self.branch(parts[0], names)
            elif kind == "for":
                self.loop(*parts, names)
            else:
                raise UnknownTemplate

    def assign(self, name: str, attribute: str | None, value: tuple, names: dict):
        value = self.value(value, names)
        if attribute is None:
            names[name] = value
        elif isinstance(names.get(name), Namespace):
            names[name][attribute] = value
        else:
            raise UnknownTemplate

    def branch(self, branches: list, names: dict):
        """The first branch whose condition holds."""
        for condition, statements in branches:
            holds = truth(self.value(condition, names))
            if holds is UNKNOWN:
                raise UnknownTemplate
            if holds:
                return self.run(statements, names)

    def loop(self, name: str, items: tuple, statements: list, names: dict):
        """Once for every item; what is set inside is forgotten after it."""
        items = self.value(items, names)
        if not isinstance(items, list):
            raise UnknownTemplate
        for at, item in enumerate(items):
            self.step()
            loop = {
                "index0": at, "index": at + 1, "first": at == 0, "last": at == len(items) - 1,
                "length": len(items),
            }  # fmt: skip
            self.run(statements, names | {name: item, "loop": loop})

    def value(self, node: tuple, names: dict):
        """The value of a node of template_syntax; UNKNOWN where it cannot be told."""
        self.step()
        kind, *parts = node
        if kind == "value":
            return parts[0]
        if kind == "name":
            return names.get(parts[0], UNDEFINED)
        if kind == "list":
            short = len(parts[0]) <= LONGEST_LIST
            return [self.value(part, names) for part in parts[0]] if short else UNKNOWN
        if kind in ("and", "or", "not", "if"):
            return self.logic(kind, parts, names)
        if kind == "is":
            name, value, wanted = parts
            return tested(name, self.value(value, names), wanted)
        if kind == "filter":
            return filtered(parts[0], self.value(parts[1], names), parts[2])
        if kind == "call":
            return self.call(*parts, names)
        if kind in ("item", "slice"):
            return self.part(kind, *parts, names)
        if kind == "unknown":
            return UNKNOWN
        return joined(kind, *(self.value(part, names) for part in parts))

    def logic(self, kind: str, parts: list, names: dict):
        """and, or, not, and VALUE if VALUE else VALUE; what need not be known is not asked."""
        first = self.value(parts[0], names)
        holds = truth(first)
        if kind == "if":
            return UNKNOWN if holds is UNKNOWN else self.value(parts[1 if holds else 2], names)
        if kind == "not":
            return UNKNOWN if holds is UNKNOWN else not holds
        if holds is UNKNOWN:
            return UNKNOWN
        return first if holds == (kind == "or") else self.value(parts[1], names)

    def call(self, function: tuple, arguments: list, names: dict):
        """namespace(...), strftime_now("%d %b %Y"), raise_exception(...), text.strip()."""
        if function[0] == "item" and function[2] == ("value", "strip") and not arguments:
            return filtered("trim", self.value(function[1], names), [])
        named = {
            node[1]: self.value(node[2], names) for node in arguments if node[0] == "named"
        }
        match self.value(function, names):
            case Function("namespace") if len(named) == len(arguments):
                return Namespace(named)
            case Function("strftime_now") if arguments == [("value", "%d %b %Y")]:
                return DATE
            case Function("raise_exception"):
                raise NotAllowed
        return UNKNOWN

    def part(self, kind: str, value: tuple, at, names: dict):
        """VALUE.name, VALUE[...] and VALUE[a:b]."""
        value = self.value(value, names)
        if kind == "slice":
            at = [end and self.value(end, names) for end in at]
            whole = all(end is None or type(end) is int for end in at)
            fits = isinstance(value, list) and whole and len(at) == 2
            return value[slice(*at)] if fits else UNKNOWN
        at = self.value(at, names)
        if isinstance(value, dict) and isinstance(at, str):
            return value.get(at, UNDEFINED)
        if isinstance(value, list) and type(at) is int:
            return value[at] if -len(value) <= at < len(value) else UNDEFINED
        return UNKNOWN


def is_known(value) -> bool:
    """Whether a value is a text without what people will say, or a number or truth or None."""
    if isinstance(value, str):
        return not PRIVATE.search(value)
    return value is None or isinstance(value, int)


def truth(value):
    """Whether a value counts as true, or UNKNOWN: what people will say may be nothing."""
    if isinstance(value, str) and not is_known(value):
        spoken = STRIP in value or not PRIVATE.sub("", value)
        return UNKNOWN if spoken and BOS not in value and EOS not in value else True
    return value if value is UNKNOWN else value is not UNDEFINED and bool(value)


def tested(name: str, value, wanted: bool):
    """VALUE is [not] NAME."""
    tests = {"defined": value is not UNDEFINED, "undefined": value is UNDEFINED,
             "none": value is None, "string": isinstance(value, str)}  # fmt: skip
    return UNKNOWN if value is UNKNOWN or name not in tests else tests[name] == wanted


def filtered(name: str, value, arguments: list):
    """VALUE | trim and VALUE | length."""
    if name == "trim" and isinstance(value, str) and not arguments:
        if is_known(value):
            return value.strip()
        return UNKNOWN if BOS in value or EOS in value else STRIP + value + STRIPPED
    if name == "length" and isinstance(value, list):
        return len(value)
    return UNKNOWN


def joined(word: str, a, b):
    """a + b and the like."""
    if word in COMPARED:
        return compared(word, a, b)
    if word in ("+", "~") and isinstance(a, str) and isinstance(b, str):
        if len(a) + len(b) > LONGEST_TEXT:
            raise UnknownTemplate
        return a + b
    if type(a) is int and type(b) is int:
        if word == "%" and b > 0:
            return a % b
        if word in ("+", "-") and abs(a) + abs(b) < 2**31:
            return a + b if word == "+" else a - b
    return UNKNOWN


def compared(word: str, a, b):
    """a == b and the like: whatever somebody will say, it is no number and no truth."""
    if UNKNOWN in (a, b):
        return UNKNOWN
    if isinstance(b, dict | list):
        keys = isinstance(b, dict) or all(map(is_known, b))
        return COMPARED[word](a, b) if "in" in word and keys and is_known(a) else UNKNOWN
    if "in" in word:
        both = isinstance(a, str) and isinstance(b, str) and is_known(a) and is_known(b)
        return COMPARED[word](a, b) if both else UNKNOWN
    if isinstance(a, str) == isinstance(b, str) and not (is_known(a) and is_known(b)):
        return UNKNOWN
    return COMPARED[word](a, b)

"""What a chat template writes for a conversation of which only the roles are known.

Nothing is run: names are looked up in a dict, texts are joined, loops go over the messages, and
a question is answered only where the roles, or what transformers hands a template, decide it.
What somebody will say, and BOS, EOS and today's date, are each one character in the text that
comes out, from Unicode's private use. Anything else is unknown, and so is the template then.
"""

from __future__ import annotations

import ast
import re

from .template_syntax import UnknownTemplate

BOS, EOS, DATE, STRIP, STRIPPED = "\ue000\ue001\ue002\ue003\ue004"  # STRIP text STRIPPED
SAID = "\ue010\ue011\ue012\ue013\ue014\ue015"  # the content of each message
PRIVATE = re.compile("[\ue000-\uf8ff]")
MOST_STEPS = 5000  # of one conversation; known templates take some hundreds
LONGEST_TEXT = 20_000
FUNCTIONS = ("strftime_now", "namespace", "raise_exception")
UNDEFINED, UNKNOWN = object(), object()


class NotAllowed(Exception):
    """The template raises an exception of its own about such a conversation."""


class Namespace(dict):
    """What a loop may change for good."""


def unrolled(statements: list[ast.stmt], roles: list[str]) -> str:
    """What a template writes for messages of these roles, before the reply.

    Raises UnknownTemplate where that depends on anything unknown, and NotAllowed where the
    template refuses such roles.
    """
    names = {
        "messages": [{"role": role, "content": said} for role, said in zip(roles, SAID)],
        "tools": None, "documents": None, "add_generation_prompt": True,
        "bos_token": BOS, "eos_token": EOS, **dict.fromkeys(FUNCTIONS, object()),
    }  # fmt: skip
    writer = Writer()
    writer.run(statements, names)
    return writer.written


class Writer:
    """What was written so far, and how many steps were taken."""

    def __init__(self):
        self.written, self.steps = "", 0

    def step(self):
        """Raise UnknownTemplate where a template takes far more steps than any known one."""
        self.steps += 1
        if self.steps > MOST_STEPS or len(self.written) > LONGEST_TEXT:
            raise UnknownTemplate

    def run(self, statements: list[ast.stmt], names: dict):
        """Go through statements; names: name -> value, to which they add."""
        for statement in statements:
            self.step()
            match statement:
                case ast.Pass():
                    pass
                case ast.Expr(ast.Call(ast.Name("write"), [node])):
                    self.written += text(self.value(node, names))
                case ast.Assign([target], node):
                    self.assign(target, node, names)
                case ast.If(condition, body, other):
                    self.run(body if truth(self.value(condition, names)) else other, names)
                case ast.For(ast.Name(name), node, body) if name not in FUNCTIONS:
                    self.loop(name, self.value(node, names), body, names)
                case _:
                    raise UnknownTemplate

    def assign(self, target: ast.expr, node: ast.expr, names: dict):
        """name = value, or name["attribute"] = value; it may be unknown until it is used."""
        try:
            value = self.value(node, names)
        except UnknownTemplate:
            value = UNKNOWN
        match target:
            case ast.Name(name) if name not in FUNCTIONS:
                names[name] = value
            case ast.Subscript(ast.Name(name), ast.Constant(str(attribute))) if isinstance(
                names.get(name), Namespace
            ):
                names[name][attribute] = value
            case _:
                raise UnknownTemplate

    def loop(self, name: str, items, body: list[ast.stmt], names: dict):
        """Once for every item; what is set inside is forgotten after it."""
        if not isinstance(items, list):
            raise UnknownTemplate
        for at, item in enumerate(items):
            loop = {"index0": at, "index": at + 1, "first": at == 0, "length": len(items),
                    "last": at == len(items) - 1}  # fmt: skip
            self.run(body, names | {name: item, "loop": loop})

    def value(self, node: ast.expr, names: dict):
        """The value of an expression. Raises UnknownTemplate where it cannot be told; what
        need not be known is not asked."""
        self.step()

        def of(part: ast.expr):
            return self.value(part, names)

        match node:
            case ast.Constant(value):
                return value
            case ast.Name(name):
                return known(names.get(name, UNDEFINED))
            case ast.List(parts):
                return [of(part) for part in parts]
            case ast.BoolOp(kind, [*parts, last]):
                for part in parts:
                    value = of(part)
                    if truth(value) == isinstance(kind, ast.Or):
                        return value
                return of(last)
            case ast.UnaryOp(ast.Not(), part):
                return not truth(of(part))
            case ast.UnaryOp(ast.USub(), ast.Constant(int(number))):
                return -number
            case ast.IfExp(condition, one, other):
                return of(one if truth(of(condition)) else other)
            case ast.Compare(a, [kind], [b]):
                return compared(kind, of(a), of(b))
            case ast.BinOp(a, kind, b):
                return joined(kind, of(a), of(b))
            case ast.Attribute() | ast.Call() | ast.Subscript():
                return postfix(node, of)
        raise UnknownTemplate


def postfix(node: ast.expr, of):
    """The value of what follows a value: a filter, a call, an index; `of` values its parts."""
    match node:
        case ast.Attribute(part, name):
            return filtered(name, of(part))
        case ast.Call(ast.Subscript(part, ast.Constant("strip")), [], []):
            return filtered("trim", of(part))
        case ast.Call(ast.Name("strftime_now"), [ast.Constant("%d %b %Y")], []):
            return DATE
        case ast.Call(ast.Name("raise_exception")):
            raise NotAllowed
        case ast.Call(ast.Name("namespace"), [], named):
            return Namespace({keyword.arg: of(keyword.value) for keyword in named})
        case ast.Subscript(part, ast.Slice(a, b, None)):
            ends = [end and of(end) for end in (a, b)]
            if all(end is None or type(end) is int for end in ends):
                return lists(of(part))[slice(*ends)]
        case ast.Subscript(part, at):
            return item(of(part), of(at))
    raise UnknownTemplate


def known(value):
    """A value that is not UNKNOWN."""
    if value is UNKNOWN:
        raise UnknownTemplate
    return value


def text(value) -> str:
    """A value that is a text."""
    if not isinstance(value, str):
        raise UnknownTemplate
    return value


def lists(value) -> list:
    if not isinstance(value, list):
        raise UnknownTemplate
    return value


def item(value, at):
    """VALUE.name, VALUE["name"] and VALUE[0]."""
    if isinstance(value, dict) and isinstance(at, str):
        return known(value.get(at, UNDEFINED))
    if type(at) is not int:
        raise UnknownTemplate
    return value[at] if -len(lists(value)) <= at < len(value) else UNDEFINED


def is_plain(value) -> bool:
    """Whether a value is a text without what people will say, or a number or truth or None."""
    if isinstance(value, str):
        return not PRIVATE.search(value)
    return value is None or isinstance(value, int)


def truth(value) -> bool:
    """Whether a value counts as true; what people will say may be nothing."""
    if isinstance(value, str) and not is_plain(value):
        spoken = STRIP in value or not PRIVATE.sub("", value)
        if spoken and BOS not in value and EOS not in value:
            raise UnknownTemplate
    return value is not UNDEFINED and bool(value)


def filtered(name: str, value):
    """VALUE is [not] defined and the like, VALUE | trim, and VALUE | length."""
    if name.startswith("is_"):
        tests = {"defined": value is not UNDEFINED, "undefined": value is UNDEFINED,
                 "none": value is None, "string": isinstance(value, str)}  # fmt: skip
        test = name.removeprefix("is_").removeprefix("not_")
        if test in tests:
            return tests[test] != name.startswith("is_not_")
    if name == "length":
        return len(lists(value))
    if name == "trim" and isinstance(value, str):
        if is_plain(value):
            return value.strip()
        if BOS not in value and EOS not in value:
            return STRIP + value + STRIPPED
    raise UnknownTemplate


def joined(kind: ast.operator, a, b):
    """a + b and the like; @ stands for Jinja's ~."""
    if type(a) is int and type(b) is int:
        match kind:
            case ast.Mod() if b > 0:
                return a % b
            case ast.Add() if abs(a) + abs(b) < 2**31:
                return a + b
            case ast.Sub() if abs(a) + abs(b) < 2**31:
                return a - b
    elif isinstance(kind, ast.Add | ast.MatMult) and len(text(a) + text(b)) <= LONGEST_TEXT:
        return a + b
    raise UnknownTemplate


def compared(kind: ast.cmpop, a, b) -> bool:
    """a == b, and a in b: whatever somebody will say, it is no number and no truth."""
    if isinstance(kind, ast.In | ast.NotIn):
        if isinstance(b, dict):
            b = list(b)
        told = isinstance(b, list) or isinstance(a, str) and isinstance(b, str)
        if told and is_plain(a) and all(map(is_plain, b)):
            return (a in b) == isinstance(kind, ast.In)
    elif isinstance(kind, ast.Eq | ast.NotEq) and not isinstance(b, dict | list):
        # UNDEFINED and lists and dicts are equal to nothing that is none of them
        alike = isinstance(a, str) == isinstance(b, str)
        if not alike or (is_plain(a) and is_plain(b)):
            return (a == b) == isinstance(kind, ast.Eq)
    raise UnknownTemplate

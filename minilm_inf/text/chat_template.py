"""What a chat template writes around the words of a conversation.

A template is a program that comes with the weights. It is read, and never run: its statements
are followed as far as known templates need it. Names are looked up in a dict, texts are joined
and trimmed, loops go over the messages. What people say decides nothing: it is not known yet,
and a symbol stands for it, one of Unicode's 32 characters that occur in no text. Whatever else
a template does is unknown, and so is the template then.
"""

from __future__ import annotations

import ast
import re
from datetime import date

from .template_syntax import LONGEST, UNTOLD, UnknownTemplate

MOST_STEPS = 5000  # of one conversation; known templates take some hundreds
MOST_SAID = 200
SYMBOLS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
SYMBOL = re.compile(f"([{SYMBOLS[0]}-{SYMBOLS[-1]}])")
BOS, EOS, LEFT, RIGHT = SYMBOLS[:4]  # the tokens, and the ends of what is to be trimmed
UNDEFINED, UNKNOWN = (), object()  # the value of a name without one; of one that is not told


class Reader:
    """What a template writes for turns, each a role and its words, before the reply.

    Raises one of UNTOLD where that cannot be told, or where it refuses such turns.
    """

    def __init__(self, statements: list[ast.stmt], turns: list[tuple[str, str]]):
        self.written, self.steps = "", 0
        self.names = {
            "messages": [{"role": role, "content": words} for role, words in turns],
            "bos_token": BOS, "eos_token": EOS, "add_generation_prompt": True,
            "tools": None, "documents": None,
            "strftime_now": object(), "namespace": object(), "raise_exception": object(),
        }  # fmt: skip
        self.follow(statements)
        if len(SYMBOL.findall(self.written)) > MOST_SAID:
            raise UnknownTemplate

    def step(self):
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise UnknownTemplate

    def follow(self, statements: list[ast.stmt]):
        """Go through statements one by one."""
        for statement in statements:
            self.step()
            match statement:
                case ast.Pass():
                    pass
                case ast.Expr(ast.Call(ast.Name("write"), [node], [])):
                    self.written = joined(self.written, self.value(node))
                case ast.Assign([target], node):
                    self.assign(target, node)
                case ast.If(test, body, other):
                    self.follow(body if told(self.value(test)) else other)
                case ast.For(ast.Name(name), node, body):
                    self.repeat(name, self.value(node), body)
                case _:
                    raise UnknownTemplate

    def repeat(self, name: str, items, body: list[ast.stmt]):
        """Once for every item; what is set inside is forgotten after it."""
        if not isinstance(items, list):
            raise UnknownTemplate
        outside = self.names
        for at, item in enumerate(items):
            loop = {"index0": at, "index": at + 1, "first": at == 0, "length": len(items),
                    "last": at == len(items) - 1}  # fmt: skip
            self.names = outside | {name: item, "loop": loop}
            self.follow(body)
        self.names = outside

    def assign(self, target: ast.expr, node: ast.expr):
        """name = value, or name["attribute"] = value; it may be unknown until it is used."""
        try:
            value = self.value(node)
        except UNTOLD:
            value = UNKNOWN
        match target:
            case ast.Name(name):
                self.names[name] = value
            case ast.Subscript(ast.Name(name), ast.Constant(str(attribute))):
                item(self.names, name)[attribute] = value
            case _:
                raise UnknownTemplate

    def value(self, node: ast.expr):
        """The value of an expression; what need not be known for it is not asked."""
        of = self.value
        self.step()
        match node:
            case ast.Constant(str() | int() | None as value):
                return told(value)
            case ast.Name(name):
                return item(self.names, name)
            case ast.List(parts):
                return [of(part) for part in parts]
            case ast.BoolOp(kind, [*parts, last]):
                for part in parts:
                    value = told(of(part))
                    if bool(value) == isinstance(kind, ast.Or):
                        return value
                return of(last)
            case ast.UnaryOp(ast.Not(), part):
                return not told(of(part))
            case ast.UnaryOp(ast.USub(), ast.Constant(int(number))):
                return -number
            case ast.IfExp(test, one, other):
                return of(one if told(of(test)) else other)
            case ast.Compare(a, [ast.Eq() | ast.NotEq() as kind], [b]):
                return same(of(a), of(b)) == isinstance(kind, ast.Eq)
            case ast.Compare(a, [ast.In() | ast.NotIn() as kind], [b]):
                value = of(a)
                return any(same(value, x) for x in of(b)) == isinstance(kind, ast.In)
            case ast.BinOp(a, ast.Mod(), b):
                return divmod(of(a), of(b))[1]  # of numbers alone
            case ast.BinOp(a, ast.Add() | ast.MatMult(), b):
                return joined(of(a), of(b))
            case ast.Attribute(part, name):
                return filtered(name, of(part))
            case ast.Subscript(part, ast.Slice(a, b, None)):
                return item(of(part), slice(a and of(a), b and of(b)))
            case ast.Subscript(part, at):
                return item(of(part), of(at))
            case ast.Call(ast.Subscript(part, ast.Constant("strip")), [], []):
                return filtered("trim", of(part))
            case ast.Call(ast.Name("strftime_now"), [ast.Constant("%d %b %Y" as form)], []):
                return date.today().strftime(form)
            case ast.Call(ast.Name("namespace"), [], named):
                return {keyword.arg: of(keyword.value) for keyword in named}
        raise UnknownTemplate


def item(value, at):
    """VALUE.name, VALUE["name"], VALUE[0] and VALUE[1:]; and what a name stands for."""
    if isinstance(value, dict) and isinstance(at, str):
        value, at = [value.get(at, UNDEFINED)], 0
    if not isinstance(value, list) or value[at] is UNKNOWN:
        raise UnknownTemplate
    return value[at]


def told(value):
    """A value that decides something. Raises UnknownTemplate where it holds what people say."""
    if isinstance(value, dict) or (isinstance(value, str) and SYMBOL.search(value)):
        raise UnknownTemplate
    return value


def same(a, b) -> bool:
    """Whether two values are equal, as those of two kinds never are, whatever people say."""
    return type(a) is type(b) and told(a) == told(b)


def joined(a, b):
    """The sum of two texts, or of two numbers."""
    if type(a) is not type(b) or not isinstance(a, str | int) or len(f"{a}{b}") > LONGEST:
        raise UnknownTemplate
    return a + b


def filtered(name: str, value):
    """VALUE | trim, VALUE | length, and VALUE is [not] defined and the like."""
    if name == "length" and isinstance(value, list):
        return len(value)
    if name == "trim" and isinstance(value, str):
        return f"{LEFT}{value}{RIGHT}" if SYMBOL.search(value) else value.strip()
    tests = {"defined": value is not UNDEFINED, "undefined": value is UNDEFINED,
             "none": value is None, "string": isinstance(value, str)}  # fmt: skip
    return tests[name.removeprefix("is_").removeprefix("not_")] == ("is_not_" not in name)


def trimmed(text: str) -> str:
    """A text without the spaces at the ends of those parts that are to be trimmed.

    >>> trimmed(f"[{LEFT} a {LEFT} {RIGHT}{RIGHT}]")
    '[a]'
    """
    while LEFT in text:
        text = re.sub(
            f"{LEFT}([^{LEFT}{RIGHT}]*){RIGHT}", lambda inside: inside[1].strip(), text
        )
    return text

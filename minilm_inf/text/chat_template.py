"""What a chat template writes around the words of a conversation.

A template is a program that comes with the weights. It is read, and never run: its statements
are followed as far as known templates need it. Names are looked up in a dict, texts are joined
and trimmed, loops go over the messages; what people say decides nothing. Whatever else a
template does is unknown, and so is the template then.
"""

from __future__ import annotations

import ast
from datetime import date
from typing import NamedTuple

from .template_syntax import LONGEST, UNTOLD, UnknownTemplate

MOST_STEPS = 5000  # of one conversation; known templates take some hundreds
MOST_PIECES = 200
FUNCTIONS = ("strftime_now", "namespace", "raise_exception")
UNDEFINED, UNKNOWN = (), object()  # the value of a name without one; of one that is not told


class Piece(NamedTuple):
    """A part of a text. who: the role whose words it is, "bos" or "eos", or "" for what the
    template writes itself."""

    who: str
    words: str


class Said:
    """A text that is not all the template's own: it can be joined and trimmed, no more."""

    def __init__(self, *pieces: Piece):
        self.pieces: list[Piece] = []
        for piece in pieces:
            if self.pieces and not piece.who and not self.pieces[-1].who:
                piece = Piece("", self.pieces.pop().words + piece.words)
            self.pieces.append(piece)
        own = sum(len(words) for who, words in self.pieces if not who)
        if own > LONGEST or len(self.pieces) > MOST_PIECES:
            raise UnknownTemplate

    def __bool__(self) -> bool:
        raise UnknownTemplate

    def __eq__(self, other) -> bool:
        if isinstance(other, str | Said):
            raise UnknownTemplate
        return False


class Reader:
    """What a template writes for turns, each a role and its words, before the reply: pieces.

    Raises one of UNTOLD where that cannot be told, or where it refuses such turns.
    """

    def __init__(self, statements: list[ast.stmt], turns: list[tuple[str, str]]):
        self.written, self.steps = "", 0
        said = [(role, Said(Piece(role, words))) for role, words in turns]
        self.names = dict.fromkeys(FUNCTIONS, object()) | {
            "messages": [{"role": role, "content": words} for role, words in said],
            "tools": None, "documents": None, "add_generation_prompt": True,
            "bos_token": Said(Piece("bos", "bos")), "eos_token": Said(Piece("eos", "eos")),
        }  # fmt: skip
        self.follow(statements)
        self.pieces = pieces(self.written)

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
                    self.follow(body if self.value(test) else other)
                case ast.For(ast.Name(name), node, body) if name not in FUNCTIONS:
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
            case ast.Name(name) if name not in FUNCTIONS:
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
                return value
            case ast.Name(name):
                return item(self.names, name)
            case ast.List(parts):
                return [of(part) for part in parts]
            case ast.BoolOp(kind, [*parts, last]):
                for part in parts:
                    value = of(part)
                    if bool(value) == isinstance(kind, ast.Or):
                        return value
                return of(last)
            case ast.UnaryOp(ast.Not(), part):
                return not of(part)
            case ast.UnaryOp(ast.USub(), ast.Constant(int(number))):
                return -number
            case ast.IfExp(test, one, other):
                return of(one if of(test) else other)
            case ast.Compare(a, [ast.Eq() | ast.NotEq() as kind], [b]):
                return (of(a) == of(b)) == isinstance(kind, ast.Eq)
            case ast.Compare(a, [ast.In() | ast.NotIn() as kind], [b]):
                return (of(a) in of(b)) == isinstance(kind, ast.In)
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


def joined(a, b):
    """The sum of two texts, or of two numbers."""
    if type(a) is type(b) is int:
        return a + b
    both = Said(*pieces(a), *pieces(b))
    return a + b if isinstance(a, str) and isinstance(b, str) else both


def pieces(text) -> list[Piece]:
    """The pieces of a text. Raises UnknownTemplate for a value that is none."""
    if isinstance(text, Said):
        return text.pieces
    if not isinstance(text, str) or len(text) > LONGEST:
        raise UnknownTemplate
    return [Piece("", text)]


def filtered(name: str, value):
    """VALUE | trim, VALUE | length, and VALUE is [not] defined and the like."""
    tests = {"defined": value is not UNDEFINED, "undefined": value is UNDEFINED,
             "none": value is None, "string": isinstance(value, str | Said)}  # fmt: skip
    test = name.removeprefix("is_").removeprefix("not_")
    if name.startswith("is_") and test in tests:
        return tests[test] != name.startswith("is_not_")
    if name == "length" and isinstance(value, list):
        return len(value)
    if name != "trim":
        raise UnknownTemplate
    if isinstance(value, str):
        return value.strip()
    trimmed = list(pieces(value))
    forth, back = range(len(trimmed)), reversed(range(len(trimmed)))
    for order, strip in ((forth, str.lstrip), (back, str.rstrip)):
        for at in order:  # where a piece is nothing but spaces, the next one ends the text
            trimmed[at] = trimmed[at]._replace(words=strip(trimmed[at].words))
            if trimmed[at].words:
                break
    return Said(*trimmed)

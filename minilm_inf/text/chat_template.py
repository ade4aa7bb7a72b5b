r"""What a chat template writes around the words of a conversation.

A template is a program that comes with the weights, in Jinja. It is read, and never run: it is
spelled as Python, of which Python's own parser makes statements, since both write values alike:

    {% for m in messages %}          for m in messages:
    {{ m.role ~ m['x'] | trim }}         write(m["role"] @ m["x"].trim)
    {% if m.content is none %}           if m["content"].is_none:

These are followed as far as known templates need it. Names are looked up in a dict, texts are
joined and trimmed, loops go over the messages. What people say decides nothing: it is not known
yet, and a symbol stands for it, one of Unicode's 32 characters that occur in no text. Whatever
else a template does is unknown, and so is the template then.
"""

from __future__ import annotations

import ast
import re
import warnings
from datetime import date

LONGEST = 30_000  # characters of a template, or of a text in it; known ones have below 10,000
MOST_STEPS = 5000  # of one conversation; known templates take some hundreds
MOST_SAID = 200
SYMBOLS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
SYMBOL = re.compile(f"([{SYMBOLS[0]}-{SYMBOLS[-1]}])")
BOS, EOS, LEFT, RIGHT = SYMBOLS[:4]  # the tokens, and the ends of what is to be trimmed
INNERMOST = re.compile(f"{LEFT}([^{LEFT}{RIGHT}]*){RIGHT}")
UNDEFINED, UNKNOWN = (), object()  # the value of a name without one; of one that is not told
LINES = {  # a tag's first word -> the line of Python for it
    "{": "write({})", "set": "{}", "if": "if {}:", "elif": "elif {}:", "else": "else:",
    "endif": "pass", "for": "for {}:", "endfor": "pass",
}  # fmt: skip
STRING = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
OPENING = re.compile(r"\{[{%#][-+]?")
CLOSING = {
    "{": re.compile(rf"((?:{STRING}|[^'\"])*?)([-+]?\}}\}})", re.DOTALL),
    "%": re.compile(rf"((?:{STRING}|[^'\"])*?)([-+]?%\}})", re.DOTALL),
    "#": re.compile(r"(.*?)([-+]?#\})", re.DOTALL),
}
SPELLED = re.compile(
    rf"({STRING})|\bis\s+(not\s+)?(\w+)|([.|])\s*([A-Za-z_]\w*)|\b(true|false|none)\b|[~\n]",
    re.DOTALL,
)


def parsed(source: str) -> list[ast.stmt]:
    """A template's statements: write(value), assignments, if and for. Raises an Exception
    where it is none of this kind."""
    if len(source) > LONGEST:
        raise NotImplementedError
    lines, depth = [], 0  # and the number of open blocks
    for word, rest in tags(re.sub(r"\r\n?", "\n", source).removesuffix("\n")):
        depth -= word in ("elif", "else", "endif", "endfor")
        line = LINES[word].format(readable(rest) or ("_ in _()" if word == "for" else "_()"))
        lines.append(" " * depth + line)
        if line.endswith(":"):
            depth += 1
            lines.append(" " * depth + "pass")
    return ast.parse("\n".join(lines)).body


def readable(code: str) -> str | None:
    """Code that Python can read, None for other: it matters only where it would be reached."""
    try:
        [_] = ast.parse(code.encode("ascii")).body
    except Exception:
        return None
    return code


def tags(source: str):
    """Each tag's first word and the rest of it, in Python's spelling; "{" for a value that is
    written, as text between tags is. Comments are left out."""
    at, closed = 0, ""
    while opening := OPENING.search(source, at):
        kind = opening[0][1]
        end = CLOSING[kind].match(source, opening.end())
        if not end:
            raise NotImplementedError
        yield "{", ascii(without_margin(source[at : opening.start()], closed, opening[0], at))
        code = SPELLED.sub(spelled, end[1]).strip()
        if kind == "{":
            yield "{", code
        elif kind == "%":
            word = re.match(r"\w*", code)[0]
            yield word, code.removeprefix(word).strip()
        at, closed = end.end(), end[2]
    yield "{", ascii(without_margin(source[at:], closed, "", at))


def without_margin(text: str, closed: str, opening: str, at: int) -> str:
    """What is left of the text from `at`, between the end of one tag and the opening of the
    next, as in transformers (trim_blocks and lstrip_blocks)."""
    if opening.endswith("-"):
        text = text.rstrip()
    elif opening in ("{%", "{#"):
        line = text.rfind("\n") + 1
        if (line or at == 0) and not text[line:].strip():
            text = text[:line]
    if closed.startswith("-"):
        return text.lstrip()
    return text.removeprefix("\n") if closed in ("%}", "#}") else text


def spelled(found: re.Match) -> str:
    """A part of a tag as Python has it: a string, a test, a name after a dot, a filter."""
    string, negated, test, mark, name, constant = found.groups()
    if string:
        raw = string[1:-1].encode("ascii", "backslashreplace")
        with warnings.catch_warnings(action="ignore"):  # \[ is a backslash and a bracket
            return ascii(raw.decode("unicode-escape"))
    if test:
        return f" .is_{'not_' if negated else ''}{test}"
    if name:
        return f'["{name}"]' if mark == "." else f" .{name}"
    return constant.title() if constant else "@" if found[0] == "~" else " "


class Reader:
    """What a template writes for turns, each a role and its words, before the reply.

    Raises an Exception where that cannot be told, or where it refuses such turns: whatever
    Python cannot do with a template's values is unknown as well.
    """

    def __init__(self, statements: list[ast.stmt], turns: list[tuple[str, str]]):
        self.written, self.steps = "", iter(range(MOST_STEPS))
        self.names = {
            "messages": [{"role": role, "content": words} for role, words in turns],
            "bos_token": BOS, "eos_token": EOS, "add_generation_prompt": True,
            "tools": None, "documents": None,
            "strftime_now": object(), "namespace": object(), "raise_exception": object(),
        }  # fmt: skip
        self.follow(statements)
        if len(SYMBOL.findall(self.written)) > MOST_SAID:
            raise NotImplementedError

    def follow(self, statements: list[ast.stmt]):
        """Go through statements one by one."""
        for statement in statements:
            next(self.steps)
            match statement:
                case ast.Pass():
                    pass
                case ast.Expr(ast.Call(ast.Name("write"), [node], [])):
                    self.written = joined(self.written, self.value(node))
                case ast.Assign([target], node):
                    self.assign(target, node)
                case ast.If(test, body, other):
                    self.follow(body if told(self.value(test)) else other)
                case ast.For(ast.Name(name), node, body, []):
                    self.repeat(name, self.value(node), body)
                case _:
                    raise NotImplementedError

    def repeat(self, name: str, items, body: list[ast.stmt]):
        """Once for every item; what is set inside is forgotten after it."""
        if not isinstance(items, list):
            raise NotImplementedError
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
        except Exception:
            value = UNKNOWN
        match target:
            case ast.Name(name):
                self.names[name] = value
            case ast.Subscript(ast.Name(name), ast.Constant(str(attribute))):
                item(self.names, name)[attribute] = value
            case _:
                raise NotImplementedError

    def value(self, node: ast.expr):
        """The value of an expression; what need not be known for it is not asked."""
        of = self.value
        next(self.steps)
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
        raise NotImplementedError


def item(value, at):
    """VALUE.name, VALUE["name"], VALUE[0] and VALUE[1:]; and what a name stands for."""
    if isinstance(value, dict) and isinstance(at, str):
        value, at = [value.get(at, UNDEFINED)], 0
    if not isinstance(value, list) or value[at] is UNKNOWN:
        raise NotImplementedError
    return value[at]


def told(value):
    """A value that decides something, which nothing may that holds what people say."""
    if isinstance(value, dict) or (isinstance(value, str) and SYMBOL.search(value)):
        raise NotImplementedError
    return value


def same(a, b) -> bool:
    """Whether two values are equal, as those of two kinds never are, whatever people say."""
    return type(a) is type(b) and told(a) == told(b)


def joined(a, b):
    """The sum of two texts, or of two numbers."""
    if type(a) is not type(b) or not isinstance(a, str | int) or len(f"{a}{b}") > LONGEST:
        raise NotImplementedError
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
        text = INNERMOST.sub(lambda inside: inside[1].strip(), text)
    return text

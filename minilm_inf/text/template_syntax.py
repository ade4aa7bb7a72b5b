r"""A chat template, which is written in Jinja, spelled as Python for Python's own parser.

    {% for m in messages %}          for m in messages:
    {{ m.role ~ m['x'] | trim }}         write(m["role"] @ m["x"].trim)
    {% if m.content is none %}           if m["content"].is_none:

Both languages write values alike; a name after a dot becomes an index, so that only filters and
tests are attributes. Nothing of it is ever run.
"""

from __future__ import annotations

import ast
import re
import warnings

LONGEST = 30_000  # characters of a template, or of a text in it; known ones have below 10,000
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


class UnknownTemplate(Exception):
    """What is not done here, or cannot be told without knowing what people will say."""


UNTOLD = (
    UnknownTemplate, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError,
    RecursionError, MemoryError,
)  # fmt: skip
"""What reading a template may raise: what Python cannot do with it is unknown as well."""


def parsed(source: str) -> list[ast.stmt]:
    """A template's statements: write(value), assignments, if and for. Raises one of UNTOLD
    where it is none of this kind."""
    if len(source) > LONGEST:
        raise UnknownTemplate
    lines: list[str] = []
    open_blocks: list[str] = []  # "if" and "for"
    for kind, inside in tags(re.sub(r"\r\n?", "\n", source).removesuffix("\n")):
        word, text = "", inside if kind == "text" else SPELLED.sub(spelled, inside)
        if kind == "text":
            line = f"write({text!a})"
        elif kind == "{":
            line = readable(f"write({text})", "_()")
        else:
            word, text = re.match(r"\s*(\w*)(.*)", text).groups()
            closes = {"elif": "if", "else": "if", "endif": "if", "endfor": "for"}.get(word)
            if closes and open_blocks.pop() != closes:
                raise UnknownTemplate
            line = statement(word, text.strip())
        lines.append(" " * len(open_blocks) + line)
        if word in ("if", "elif", "else", "for"):
            open_blocks.append("for" if word == "for" else "if")
            lines.append(" " * len(open_blocks) + "pass")
    if open_blocks:
        raise UnknownTemplate
    return ast.parse("\n".join(lines)).body


def tags(source: str):
    """("text", text), ("{", inside) and ("%", inside) in turn; comments are left out."""
    at, closed = 0, ""
    while opening := OPENING.search(source, at):
        kind = opening[0][1]
        end = CLOSING[kind].match(source, opening.end())
        if not end:
            raise UnknownTemplate
        yield "text", without_margin(source[at : opening.start()], closed, opening[0], at == 0)
        if kind != "#":
            yield kind, end[1]
        at, closed = end.end(), end[2]
    yield "text", without_margin(source[at:], closed, "", at == 0)


def without_margin(text: str, closed: str, opening: str, first: bool) -> str:
    """What is left of the text between the end of one tag and the opening of the next, as in
    transformers (trim_blocks and lstrip_blocks)."""
    if opening.endswith("-"):
        text = text.rstrip()
    elif opening in ("{%", "{#"):
        line = text.rfind("\n") + 1
        if (line or first) and not text[line:].strip():
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


def statement(word: str, rest: str) -> str:
    """A line of Python for a statement's first word, and the rest of it."""
    match word:
        case "if" | "elif":
            return word + readable(f"if {rest}:", "if _():")[2:]
        case "for":
            return readable(f"for {rest}:", "for _ in _():")
        case "set":
            return readable(rest, "_()")
        case "else" | "endif" | "endfor":
            return {"else": "else:"}.get(word, "pass")
    raise UnknownTemplate


def readable(line: str, other: str) -> str:
    """A line that Python can read, or else the other one, which is no known statement."""
    try:
        found = ast.parse(line.encode("ascii") + b" pass" * line.endswith(":"))
        return line if len(found.body) == 1 else other
    except UNTOLD:
        return other

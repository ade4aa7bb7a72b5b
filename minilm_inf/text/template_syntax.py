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

LINES = {  # a tag's first word -> the line of Python for it
    "{": "write({})", "set": "{}", "if": "if {}:", "elif": "elif {}:", "else": "else:",
    "endif": "pass", "for": "for {}:", "endfor": "pass",
}  # fmt: skip
CLOSED = {"elif": "if", "else": "if", "endif": "if", "endfor": "for"}
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
    inside: list[str] = []  # the open blocks, "if" and "for"
    for word, rest in tags(re.sub(r"\r\n?", "\n", source).removesuffix("\n")):
        if word in CLOSED and inside.pop() != CLOSED[word]:
            raise UnknownTemplate
        line = LINES[word].format(readable(rest) or ("_ in _()" if word == "for" else "_()"))
        lines.append(" " * len(inside) + line)
        if line.endswith(":"):
            inside.append("for" if word == "for" else "if")
            lines.append(" " * len(inside) + "pass")
    if inside:
        raise UnknownTemplate
    return ast.parse("\n".join(lines)).body


def readable(code: str) -> str | None:
    """Code that Python can read, None for other: it matters only where it would be reached."""
    try:
        [_] = ast.parse(code.encode("ascii")).body
    except UNTOLD:
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
            raise UnknownTemplate
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

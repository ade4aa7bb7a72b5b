r"""A chat template spelled as Python, so that Python's own parser can read it.

    {% for m in messages %}          for m in messages:
    {{ m.role ~ m['x'] | trim }}         write(m["role"] @ m["x"].trim)
    {% if m.content is none %}           if m["content"].is_none:

Both languages write values alike; a name after a dot becomes an index, so that only filters and
tests are attributes. What Python cannot read is unknown(), and never run: nothing here is.
Spaces around statements go as they go in transformers (trim_blocks and lstrip_blocks).
"""

from __future__ import annotations

import ast
import re

OPENING = re.compile(r"\{[{%#][-+]?")
CLOSING = {
    kind: re.compile(rf"\s*([-+]?{end})")
    for kind, end in (("{", "}}"), ("%", "%}"), ("#", "#}"))
}
TOKEN = re.compile(
    r"""\s*(?:(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*") | (?P<number>\d+)
    | (?P<word>[A-Za-z_]\w*) | (?P<symbol>[=!<>]=|[-+*/%~|.,:()\[\]{}=<>]))""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
CONSTANTS = {"true": "True", "false": "False", "none": "None"}
UNKNOWN = "unknown()"  # a call of a name that no template has


class UnknownTemplate(Exception):
    """What is not a template of a known form."""


def parsed(source: str) -> list[ast.stmt]:
    """A template's statements: write(value), assignments, if and for.

    Raises UnknownTemplate where it is none of this kind.
    """
    source = re.sub(r"\r\n?", "\n", source).removesuffix("\n")
    lines: list[str] = []
    open_blocks: list[str] = []  # "if" and "for"
    for kind, content in pieces(source):
        if kind == "text":
            line = f"write({content!r})"
        elif kind == "{":
            line = f"write({value(spelled(content))})"
        else:
            word, rest = content[0], spelled(content[1:])
            if word in ("elif", "else", "endif", "endfor"):
                ends = "for" if word == "endfor" else "if"
                if not open_blocks or open_blocks.pop() != ends:
                    raise UnknownTemplate
            line = statement(word, rest)
        lines.append(" " * len(open_blocks) + line)
        if line.endswith(":"):
            open_blocks.append("for" if line.startswith("for ") else "if")
            lines.append(" " * len(open_blocks) + "pass")
    if open_blocks:
        raise UnknownTemplate
    return as_python("\n".join(lines)).body


def statement(word: str, rest: str) -> str:
    """A line of Python for a statement's first word, and the rest of it."""
    if word in ("if", "elif"):
        return f"{word} {value(rest)}:"
    if word == "else":
        return "else:"
    if word == "for":
        return f"for {rest}:" if is_python(f"for {rest}:\n pass") else f"for _ in {UNKNOWN}:"
    if word == "set" and is_python(rest, ast.Assign):
        return rest
    # generation: where a reply stands, in training
    if word in ("endif", "endfor", "generation", "endgeneration"):
        return "pass"
    raise UnknownTemplate


def value(text: str) -> str:
    """A value in Python, or what stands for one that Python cannot read."""
    return text if is_python(f"({text})", ast.Expr) else UNKNOWN


def is_python(text: str, kind: type = ast.For) -> bool:
    """Whether a text is one statement of this kind."""
    try:
        body = as_python(text).body
    except UnknownTemplate:
        return False
    return len(body) == 1 and isinstance(body[0], kind)


def as_python(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UnknownTemplate from error


def spelled(tokens: list[str]) -> str:
    """A tag's tokens as Python has them.

    >>> spelled(["not", "a", ".", "b", "is", "not", "none"])
    'not a ["b"] .is_not_none'
    """
    words, waiting = [], list(tokens)
    while waiting:
        token = waiting.pop(0)
        name = waiting[0] if waiting and waiting[0].isidentifier() else None
        if token in (".", "|") and name:
            words.append(f'["{name}"]' if token == "." else f".{name}")
            del waiting[0]
        elif token == "is" and name:
            negated = waiting[:1] == ["not"]
            test = waiting[1:2] if negated else waiting[:1]
            words.append(f".is_{'not_' * negated}{''.join(test)}")
            del waiting[: 1 + negated]
        elif token[0] in "'\"":
            words.append(repr(unescaped(token)))
        else:
            words.append(CONSTANTS.get(token.lower(), "@" if token == "~" else token))
    return " ".join(words)


def unescaped(string: str) -> str:
    """What a string in quotes stands for."""
    try:
        return string[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape")
    except UnicodeDecodeError as error:  # an escape that is none
        raise UnknownTemplate from error


def pieces(source: str):
    """("text", text), ("{", tokens) and ("%", tokens) in turn; comments are left out."""
    at, closed = 0, ""
    while opening := OPENING.search(source, at):
        yield "text", trimmed(source[at : opening.start()], closed, opening[0], at == 0)
        kind = opening[0][1]
        if kind == "#":
            end = source.find("#}", opening.end())
            if end < 0:
                raise UnknownTemplate
            at, closed = end + 2, source[max(end - 1, opening.end()) : end + 2]
        else:
            tokens, at, closed = lexed(source, opening.end(), kind)
            yield kind, tokens
    yield "text", trimmed(source[at:], closed, "", at == 0)


def trimmed(text: str, closed: str, opening: str, first: bool) -> str:
    """What is left of the text between the end of one tag and the opening of the next."""
    if opening.endswith("-"):
        text = text.rstrip()
    elif opening in ("{%", "{#"):
        line = text.rfind("\n") + 1
        if (line or first) and not text[line:].strip():
            text = text[:line]
    if closed.startswith("-"):
        return text.lstrip()
    trims = closed[-2:] in ("%}", "#}") and "+" not in closed
    return text.removeprefix("\n") if trims else text


def lexed(source: str, at: int, kind: str) -> tuple[list[str], int, str]:
    """The tokens of a tag, where it ends, and how."""
    tokens: list[str] = []
    depth = 0
    while True:
        end = CLOSING[kind].match(source, at) if depth == 0 else None
        if end and tokens:
            return tokens, end.end(), end[1]
        found = TOKEN.match(source, at)
        if not found or depth < 0:  # a string or a tag without its end, among others
            raise UnknownTemplate
        tokens.append(found[found.lastgroup])
        depth += (tokens[-1] in "([{") - (tokens[-1] in ")]}")
        at = found.end()

"""A chat template's text as statements, in the part of Jinja that known templates need.

    ("write", value)   ("set", name, attribute or None, value)   ("for", name, list, statements)
    ("if", [(condition, statements), ...])   ("unknown",)

Values are tuples as well, such as ("+", a, b); what is not of this part is ("unknown",).
Spaces around statements go as they go in transformers (trim_blocks and lstrip_blocks).
"""

from __future__ import annotations

import re
from typing import NamedTuple

OPENING = re.compile(r"\{[{%#][-+]?")
CLOSING = {
    kind: re.compile(rf"\s*([-+]?{end})")
    for kind, end in (("{", "}}"), ("%", "%}"), ("#", "#}"))
}
TOKEN = re.compile(
    r"""\s*(?:(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*") | (?P<number>\d+)
    | (?P<word>[^\W\d]\w*) | (?P<symbol>[=!<>]=|[-+*/%~|.,:()\[\]{}=<>]))""",
    re.VERBOSE | re.DOTALL,
)
# What stands between two values; the last binds most.
LEVELS = (("==", "!=", "in", "not in"), ("+", "-"), ("~",), ("%",))
UNKNOWN = ("unknown",)
CONSTANTS = {"true": True, "false": False, "none": None}


class UnknownTemplate(Exception):
    """What is not a template of a known form."""


class Token(NamedTuple):
    kind: str
    text: str


def parsed(source: str) -> list:
    """A template's statements. Raises UnknownTemplate where it is none of this kind."""
    source = re.sub(r"\r\n?", "\n", source).removesuffix("\n")
    body: list = []
    open_blocks: list[tuple[tuple, list]] = []  # an if or a for, and where it stands
    for kind, content in pieces(source):
        if kind == "text":
            body.append(("write", ("value", content)))
        elif kind == "{":
            body.append(("write", Parser(content).whole()))
        else:
            body = statement(content, body, open_blocks)
    if open_blocks:
        raise UnknownTemplate
    return body


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
    return (
        text.removeprefix("\n") if closed[-2:] in ("%}", "#}") and "+" not in closed else text
    )


def lexed(source: str, at: int, kind: str) -> tuple[list[Token], int, str]:
    """The tokens of a tag, where it ends, and how."""
    tokens: list[Token] = []
    depth = 0
    while True:
        end = CLOSING[kind].match(source, at) if depth == 0 else None
        if end:
            return tokens, end.end(), end[1]
        found = TOKEN.match(source, at)
        if not found:  # a string or a tag without its end, among others
            raise UnknownTemplate
        tokens.append(Token(found.lastgroup, found[found.lastgroup]))
        depth += (tokens[-1].text in "([{") - (tokens[-1].text in ")]}")
        at = found.end()


def statement(tokens: list[Token], body: list, open_blocks: list) -> list:
    """Put a statement into body; the list that the next one belongs to."""
    parser = Parser(tokens)
    word = parser.next().text
    if word in ("if", "for"):
        block = ("if", [(parser.whole(), [])]) if word == "if" else parser.loop()
        body.append(block)
        open_blocks.append((block, body))
        return block[1][-1][1] if word == "if" else block[3]
    if word in ("elif", "else", "endif", "endfor"):
        if not open_blocks or open_blocks[-1][0][0] != ("for" if word == "endfor" else "if"):
            raise UnknownTemplate
        block, outside = open_blocks[-1]
        if word.startswith("end"):
            open_blocks.pop()
            return outside
        condition = parser.whole() if word == "elif" else ("value", True)
        block[1].append((condition, []))
        return block[1][-1][1]
    if word == "raw":
        raise UnknownTemplate
    if word not in ("generation", "endgeneration"):  # where a reply stands: nothing is written
        body.append(parser.assignment() if word == "set" else UNKNOWN)
    return body


class Parser:
    """The tokens of one tag, read from left to right."""

    def __init__(self, tokens: list[Token]):
        self.tokens, self.at = tokens, 0

    def next(self) -> Token:
        """The token that is taken now."""
        self.at += 1
        return self.peek(-1)

    def peek(self, ahead: int = 0) -> Token:
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else Token("end", "")

    def takes(self, *texts: str) -> bool:
        """Whether these words or symbols come next; they are then taken."""
        for ahead, text in enumerate(texts):
            token = self.peek(ahead)
            if token.text != text or token.kind == "string":
                return False
        self.at += len(texts)
        return True

    def whole(self) -> tuple:
        """The value that all tokens that are left make up."""
        try:
            value = self.value()
        except UnknownTemplate:
            return UNKNOWN
        return value if self.at == len(self.tokens) else UNKNOWN

    def loop(self) -> tuple:
        """for NAME in VALUE."""
        name = self.next()
        known = name.kind == "word" and self.takes("in")
        return ("for", name.text, self.whole() if known else UNKNOWN, [])

    def assignment(self) -> tuple:
        """set NAME = VALUE, or set NAME.NAME = VALUE."""
        name, attribute = self.next(), None
        if self.takes("."):
            attribute = self.next().text
        return ("set", name.text, attribute, self.whole()) if self.takes("=") else UNKNOWN

    def value(self) -> tuple:
        """VALUE if VALUE else VALUE, or what binds more."""
        value = self.logic("or")
        if self.takes("if"):
            condition = self.logic("or")
            other = self.value() if self.takes("else") else UNKNOWN
            value = ("if", condition, value, other)
        return value

    def logic(self, word: str) -> tuple:
        inner = (lambda: self.logic("and")) if word == "or" else self.negation
        value = inner()
        while self.takes(word):
            value = (word, value, inner())
        return value

    def negation(self) -> tuple:
        return ("not", self.negation()) if self.takes("not") else self.binary(0)

    def binary(self, level: int) -> tuple:
        if level == len(LEVELS):
            return self.postfix(self.primary())
        value = self.binary(level + 1)
        while word := self.operator(LEVELS[level]):
            value = (word, value, self.binary(level + 1))
            if level == 0:  # a == b == c would be another question
                break
        return value

    def operator(self, known: tuple[str, ...]) -> str | None:
        """The operator that comes next, which is then taken, if it is one of those."""
        if "not in" in known and self.takes("not", "in"):
            return "not in"
        token = self.peek()
        if token.text not in known or token.kind == "string":
            return None
        self.at += 1
        return token.text

    def primary(self) -> tuple:
        token = self.next()
        if token.kind == "string":
            return ("value", unescaped(token.text))
        if token.kind == "number" and len(token.text) < 10:
            return ("value", int(token.text))
        if token.kind == "word" and token.text.lower() in CONSTANTS:
            return ("value", CONSTANTS[token.text.lower()])
        if token.kind == "word":
            return ("name", token.text)
        if token.text == "-" and self.peek().kind == "number":
            return ("value", -self.primary()[1])
        if token.text == "[":
            return ("list", self.listed("]"))
        if token.text == "(":
            value = self.value()
            if self.takes(")"):
                return value
        raise UnknownTemplate

    def listed(self, end: str) -> list[tuple]:
        """Values with commas between them, up to `end`; NAME = VALUE is one that is "named"."""
        values = []
        while not self.takes(end):
            name = self.peek().text if self.peek(1) == Token("symbol", "=") else None
            self.at += 2 if name else 0
            values.append(("named", name, self.value()) if name else self.value())
            if self.peek().text not in (",", end):
                raise UnknownTemplate
            self.takes(",")
        return values

    def postfix(self, value: tuple) -> tuple:
        """What follows a value: .name, [...], (...), |filter and `is` tests."""
        while True:
            if self.takes("."):
                value = ("item", value, ("value", self.next().text))
            elif self.takes("["):
                value = self.subscript(value)
            elif self.takes("("):
                value = ("call", value, self.listed(")"))
            elif self.takes("|"):
                name = self.next().text
                value = ("filter", name, value, self.listed(")") if self.takes("(") else [])
            elif self.takes("is"):
                wanted = not self.takes("not")
                value = ("is", self.next().text, value, wanted)
            else:
                return value

    def subscript(self, value: tuple) -> tuple:
        """VALUE[...]: an item, or a slice."""
        ends: list[tuple | None] = [None]
        while not self.takes("]"):
            if self.takes(":"):
                ends.append(None)
            else:
                ends[-1] = self.value()
        if len(ends) == 1:
            return ("item", value, ends[0] or UNKNOWN)
        return ("slice", value, ends)


def unescaped(string: str) -> str:
    """What a string in quotes stands for."""
    try:
        return string[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape")
    except UnicodeDecodeError as error:  # an escape that is none
        raise UnknownTemplate from error

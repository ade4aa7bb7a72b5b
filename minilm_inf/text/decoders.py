"""Tokens back to text, one by one, as the decoder of a tokenizer.json says it.

    Replace        ▁ becomes a space
    ByteFallback   tokens like <0xE2> become bytes, and these text, where all of a run are UTF-8
    Fuse, Strip    a space at the beginning of the whole text goes
    Metaspace      ▁ becomes a space, but in the first token, where it goes
    null           a space between any two tokens

Each step keeps what it cannot yet tell. So what is streamed is, joined, what all tokens at once
are decoded to, because both are done here.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .json_parts import Part
from .normalizers import plain_text

BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


class Replace:
    """One text for another."""

    def __init__(self, old: str, new: str):
        self.old, self.new = old, new

    def push(self, token: str) -> list[str]:
        return [token.replace(self.old, self.new)]

    def flush(self) -> list[str]:
        return []


class Bytes:
    """Runs of bytes become characters. A run of which a part is no UTF-8 is U+FFFD for every
    byte, so that no character is certain before its run ends."""

    def __init__(self):
        self.waiting = bytearray()

    def push(self, token: str) -> list[str]:
        byte = BYTE.fullmatch(token)
        if byte is None:
            return [*self.flush(), token]
        self.waiting.append(int(byte[1], 16))
        return []

    def flush(self) -> list[str]:
        run, self.waiting = self.waiting, bytearray()
        try:
            return [run.decode("utf-8")] if run else []
        except UnicodeDecodeError:
            return ["\ufffd"] * len(run)


class Strip:
    """Takes up to `count` of a character from the beginning of the whole text."""

    def __init__(self, content: str, count: int):
        self.content, self.left = content, count

    def push(self, token: str) -> list[str]:
        while self.left and token.startswith(self.content):
            token, self.left = token[1:], self.left - 1
        if token:
            self.left = 0
        return [token]

    def flush(self) -> list[str]:
        return []


class First:
    """What is put before every token but the first, or done to the first only.

    first, others: functions of a token.
    """

    def __init__(self, first: Callable[[str], str], others: Callable[[str], str], begun: bool):
        self.how, self.others = others if begun else first, others

    def push(self, token: str) -> list[str]:
        how, self.how = self.how, self.others
        return [how(token)]

    def flush(self) -> list[str]:
        return []


class Decoder:
    """Steps one after the other, each on what the one before has told for certain."""

    def __init__(self, steps: list):
        self.steps = steps

    def push(self, tokens: list[str]) -> str:
        """The text that some tokens make certain, perhaps none."""
        return self._through(tokens, self.steps)

    def flush(self) -> str:
        """The text of whatever still waits."""
        text = ""
        for at, step in enumerate(self.steps):
            text += self._through(step.flush(), self.steps[at + 1 :])
        return text

    @staticmethod
    def _through(parts: list[str], steps: list) -> str:
        for step in steps:
            parts = [part for token in parts for part in step.push(token)]
        return "".join(parts)


def decoder_from_json(raw: Part) -> Callable[[bool], Decoder]:
    """A function that begins a Decoder; its argument: whether the text continues another, whose
    beginning is not to be stripped. Raises ValueError for what is not implemented."""
    steps = raw["decoders"].items() if raw["type"].text("") == "Sequence" else [raw]
    makers, fused = [], False
    for step in steps:
        kind = step["type"].text("")
        if kind == "Strip" and not fused:
            raise step.wrong("after a Fuse (nothing else is implemented)")
        fused = fused or kind == "Fuse"
        if kind != "Fuse":
            makers.append(_maker(step, len(steps)))
    return lambda begun: Decoder([make(begun) for make in makers])


def _maker(step: Part, steps: int) -> Callable:
    """A function that begins a step."""
    if step.is_null and steps == 1:
        return lambda begun: First(str, lambda token: " " + token, begun)
    step["type"].only("Replace", "ByteFallback", "Fuse", "Strip", "Metaspace")
    kind = step["type"].value
    if kind == "Replace":
        old, new = plain_text(step["pattern"]), step["content"].text()
        return lambda begun: Replace(old, new)
    if kind == "ByteFallback":
        return lambda begun: Bytes()
    if kind == "Strip":
        step["stop"].only(0)
        content, count = step["content"].text(), step["start"].id()
        return lambda begun: Strip(content, 0 if begun else count)
    mark, scheme = metaspace(step)
    first = "" if scheme != "never" else " "
    return lambda begun: First(
        lambda token: token.replace(mark, first), lambda token: token.replace(mark, " "), begun
    )


def metaspace(raw: Part) -> tuple[str, str]:
    """What stands for a space, and when one is put before a text."""
    mark, scheme = raw["replacement"].text(), raw["prepend_scheme"].text("always")
    if len(mark) != 1:
        raise raw["replacement"].wrong("one character")
    raw["prepend_scheme"].only(None, "always", "first", "never")
    if scheme != "never" and not raw["add_prefix_space"].flag(True):
        raise raw["add_prefix_space"].wrong("true where prepend_scheme is not never")
    return mark, scheme

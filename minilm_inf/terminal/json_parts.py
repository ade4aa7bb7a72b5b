"""The JSON files of a checkpoint, each value checked as it is taken."""

from __future__ import annotations

import re
from pathlib import Path

from .files import read_json, shown

LARGEST_ID = 2**24  # no vocabulary comes near it
LARGEST_SIZE = 2**20  # no width, count or vocabulary of a language model comes near it
SURROGATES = re.compile("[\ud800-\udfff]")
REQUIRED = object()  # the default of a value that has none


class Part:
    """A value of a JSON file, and where it stands there, for the sentence that refuses it.

    What is absent is null, and null has whatever default is asked for. taken: the names that
    were asked for. Every method raises ValueError, with the file's name and the place, for a
    value of another kind.

    >>> Part({"vocab": {"a": 1.5}}, "tokenizer.json")["vocab"].ids()
    Traceback (most recent call last):
    ValueError: tokenizer.json: vocab["a"] must be a whole number from 0 to 16777215, not 1.5
    """

    def __init__(self, value, file: Path | str = "", place: str = ""):
        self.value, self.file, self.place = value, file, place
        self.taken: set[str] = set()

    @property
    def is_null(self) -> bool:
        return self.value is None

    def __getitem__(self, name: str) -> Part:
        """The part of an object that has this name."""
        self.taken.add(name)
        return Part(self._object().get(name), self.file, f"{self.place}.{name}".strip("."))

    def __contains__(self, name: str) -> bool:
        return name in self._object()

    def _object(self) -> dict:
        return self._value({}, lambda x: isinstance(x, dict), "an object")

    def fields(self) -> dict[str, Part]:
        """All parts of an object by their names."""
        return {
            name: Part(value, self.file, f"{self.place}[{shown(name)}]")
            for name, value in self._object().items()
        }

    def items(self) -> list[Part]:
        """The parts of a list."""
        values = self._value([], lambda x: isinstance(x, list), "a list")
        return [Part(x, self.file, f"{self.place}[{at}]") for at, x in enumerate(values)]

    def text(self, default=REQUIRED):
        """A text that is Unicode."""
        return self._value(default, lambda x: isinstance(x, str) and is_unicode(x), "a text")

    def integer(self, default=REQUIRED, at_most: int = LARGEST_SIZE):
        """A whole number from 1 on."""
        wanted = f"a whole number from 1 to {at_most}"
        return self._value(default, lambda x: type(x) is int and 1 <= x <= at_most, wanted)

    def number(self, default=REQUIRED):
        """A number above 0 that is no infinity in disguise."""
        wanted = "a number above 0 and below 1e30"
        return self._value(default, lambda x: type(x) in (int, float) and 0 < x < 1e30, wanted)

    def flag(self, default: bool = False) -> bool:
        """true or false."""
        return self._value(default, lambda x: isinstance(x, bool), "true or false")

    def id(self) -> int:
        """A token's id."""
        return self._value(REQUIRED, is_id, f"a whole number from 0 to {LARGEST_ID - 1}")

    def id_list(self) -> tuple[int, ...]:
        """Token ids: one, a list, or null for none; always as a tuple, each once."""
        ids = self.items() if isinstance(self.value, list) else [self]
        return () if self.is_null else tuple(dict.fromkeys(part.id() for part in ids))

    def ids(self) -> dict[str, int]:
        """A vocabulary: each token's id, and no two the same."""
        owner: dict[int, str] = {}
        for token, id in self._object().items():
            if not is_id(id):
                self.fields()[token].id()  # which says so
            if not is_unicode(token):
                raise self.error(f"{self.place} holds a token that is not Unicode")
            if owner.setdefault(id, token) != token:
                raise self.error(f"{self.place} gives the id of {shown(token)} to another too")
        return dict(self._object())

    def only(self, *allowed):
        """The value, which must be one of those that are implemented."""
        if self.value not in allowed:
            raise self.wrong(
                f"{' or '.join(map(shown, allowed))} (nothing else is implemented)"
            )
        return self.value

    def _value(self, default, holds, wanted: str):
        """The value, of which `holds` must be true; null has the default, if there is one."""
        if self.is_null and default is not REQUIRED:
            return default
        if self.is_null:
            raise self.error(f"the key {self.place} is missing, and has no default")
        if not holds(self.value):
            raise self.wrong(wanted)
        return self.value

    def wrong(self, wanted: str) -> ValueError:
        """The error for a value that is not what was wanted; a long value is cut."""
        return self.error(f"{self.place} must be {wanted}, not {shown(self.value)}")

    def error(self, sentence: str) -> ValueError:
        """An error about this file."""
        return ValueError(f"{self.file}: {sentence}" if self.file else sentence)


def part_of(path: Path) -> Part:
    """What a JSON file holds; null for a file that is not there."""
    return Part(read_json(path) if path.is_file() else None, path)


def is_id(value) -> bool:
    """Whether a value can be a token's id: true is 1 in Python, but no id."""
    return type(value) is int and 0 <= value < LARGEST_ID


def is_unicode(text: str) -> bool:
    """Whether a text holds no half of a surrogate pair."""
    return text.isascii() or not SURROGATES.search(text)

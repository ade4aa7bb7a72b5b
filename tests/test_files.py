"""Files are read with a sentence, written whole, and never somebody else's."""

import os

import pytest

from minilm_inf.terminal import files


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    """Catches a half-written result; a .part that a failure, or a kill, leaves lying about; a
    run that takes away what another process is writing."""
    path = tmp_path / "r.json"
    gone, running = 2**30, os.getppid()  # processes
    here = f".r.json.{running}.part"
    for name in (f".r.json.{gone}.part", here, f".r.json2.{gone}.part", ".mine.part"):
        (tmp_path / name).write_bytes(b"ha")
    files.write_beside(path, b"old")
    with pytest.raises(RuntimeError), files.beside(path) as part:
        part.write_bytes(b"ha")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == [".mine.part", here, f".r.json2.{gone}.part", "r.json"]


@pytest.mark.parametrize("name", ["x" * 255, "file/x", "folder"])
def test_a_path_that_cannot_be_written_is_one_short_sentence(tmp_path, name):
    """Catches a traceback, a sentence that is longer than a screen, or one that comes when all
    is computed."""
    (tmp_path / "file").write_bytes(b"{}")
    (tmp_path / "folder").mkdir()
    calls = [lambda: files.write_beside(tmp_path / name, b"x")]
    calls += [lambda: files.check_output(tmp_path / name)] * (name != "x" * 255)
    for call in calls:
        with pytest.raises(ValueError, match="cannot be written|is a folder") as caught:
            call()
        assert len(str(caught.value)) < 400
    assert leftovers(tmp_path) == ["file", "folder"]


def test_an_output_is_no_device_and_nobody_elses(tmp_path):
    """Catches --out that destroys the text that is read, a device, or somebody's notes."""
    (tmp_path / "book.txt").write_text("once")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "book.txt")
    for name in ("book.txt", "link", "fifo", "."):
        with pytest.raises(ValueError, match="--figure"):
            files.check_output(tmp_path / name, b"{", "--figure")
    (tmp_path / "earlier").write_text("{}")
    for name in ("earlier", "new", "a/new"):
        files.check_output(tmp_path / name, begins=b"{")


@pytest.mark.parametrize(
    "content, words",
    [
        (b'{"a": 1, "a": 2}', "twice"),
        (b"[" * 100_000, "nested"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b"\xff\xfe{\x00}\x00", "UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_what_is_no_object_is_said_so(tmp_path, content, words):
    """Catches a Python word, or a traceback, for JSON of another shape."""
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        files.read_json(path)
    assert str(path) in str(caught.value)


def test_what_is_read(tmp_path):
    """Catches a mark that becomes the first character of a prompt, or spoils a config; a
    program that reads /dev/zero until the memory is gone; the words of a codec for a name."""
    path = tmp_path / "x"
    path.write_bytes(b'\xef\xbb\xbf{"a": "b"}')
    assert files.read_text(path)[0] == "{" and files.read_json(path) == {"a": "b"}
    for name, largest, words in (
        (path, 5, "more than 5 bytes"), ("/dev/zero", 1000, "no file"),
        ("\ud800", 1000, "no file has such a name"), (tmp_path / "none", 9, "No such file"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            files.read_bytes(name, largest)

"""Files are read with a sentence, written whole, held by one run, and never somebody else's."""

import os
import signal

import pytest

from minilm_inf.terminal import files


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    """Catches a half-written result, and a .part that a failure leaves lying about."""
    path = tmp_path / "r.json"
    files.write_beside(path, b"old")
    with pytest.raises(RuntimeError), files.beside(path) as part:
        part.write_bytes(b"ha")
        raise RuntimeError
    assert path.read_bytes() == b"old" and leftovers(tmp_path) == ["r.json"]


def test_two_writers_never_share_a_file(tmp_path):
    """Catches a fixed name beside the file: one run's rename takes what another writes."""
    path = tmp_path / "r.json"
    with files.beside(path) as first, files.beside(path) as second:
        assert first != second
        first.write_bytes(b"1" * 10)
        second.write_bytes(b"2")
    assert path.read_bytes() == b"1" * 10 and leftovers(tmp_path) == ["r.json"]


def test_new_files_have_the_rights_that_the_user_asks_for(tmp_path):
    """Catches files that only their owner can read, as temporary ones are."""
    before = os.umask(0o022)
    try:
        files.write_beside(tmp_path / "r.json", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "r.json").stat().st_mode & 0o777 == 0o644


def test_without_replace_nothing_is_overwritten(tmp_path):
    """Catches a conversion that writes over weights which came there meanwhile."""
    path = tmp_path / "w"
    with pytest.raises(ValueError, match="there already"), files.beside(path, False) as part:
        part.write_bytes(b"ours")
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs" and leftovers(tmp_path) == ["w"]


@pytest.mark.parametrize("name", ["x" * 255, "no/such/folder"])
def test_a_path_that_cannot_be_written_is_one_short_sentence(tmp_path, name):
    """Catches a traceback, and a sentence that is longer than a screen."""
    with pytest.raises(ValueError, match="cannot be written") as caught:
        files.write_beside(tmp_path / name, b"x")
    assert len(str(caught.value)) < 300


def test_an_output_is_held_by_one_run(tmp_path):
    """Catches two runs with one --out: the second is to be refused at its start; a killed one
    holds nothing, and what it left is swept."""
    out = tmp_path / "r.json"
    held, told = os.pipe()
    other = os.fork()
    if other == 0:
        with files.claimed(out), files.beside(out):
            os.write(told, b"held")
            signal.pause()
    try:
        assert os.read(held, 4) == b"held"
        with pytest.raises(ValueError, match="another run writes"), files.claimed(out):
            pass
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    assert len(leftovers(tmp_path)) == 2  # the lock and the part of the killed run
    with files.claimed(out):
        assert leftovers(tmp_path) == [".r.json.lock"]
    assert leftovers(tmp_path) == []


def test_an_output_is_no_input_no_device_and_nobody_elses(tmp_path):
    """Catches --out that destroys the text that is read, a device, or somebody's notes."""
    text, model, fifo = tmp_path / "book.txt", tmp_path / "model", tmp_path / "fifo"
    text.write_text("once")
    model.mkdir()
    os.mkfifo(fifo)
    (tmp_path / "link").hardlink_to(text)
    (tmp_path / "symbolic").symlink_to(text)
    (tmp_path / "notes").write_text("mine")
    for name in ("book.txt", "link", "symbolic", "model/new.json", "fifo", "notes", "model"):
        with pytest.raises(ValueError, match="--out"):
            files.check_output(tmp_path / name, (text, model, None), begins=b"{")
    (tmp_path / "earlier").write_text("{}")
    for name in ("earlier", "new"):
        files.check_output(tmp_path / name, (text, model), begins=b"{")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"[]", "a list"),
        (b"null", "null"),
        (b"1.5", "1.5"),
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


def test_a_byte_order_mark_is_dropped(tmp_path):
    """Catches a mark that becomes the first character of a prompt, or spoils a config."""
    path = tmp_path / "x"
    path.write_bytes(b'\xef\xbb\xbf{"a": "b"}')
    assert files.read_text(path)[0] == "{" and files.read_json(path) == {"a": "b"}


def test_an_endless_file_is_refused_by_its_size():
    """Catches a program that reads /dev/zero until the memory is gone."""
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        files.read_bytes("/dev/zero", largest=1000)


def test_a_name_that_no_file_can_have():
    """Catches the words of a codec, for half a character in a name."""
    with pytest.raises(ValueError, match="no file has such a name"):
        files.read_bytes("\ud800")

"""Files, read with one sentence for what is wrong and written whole or not at all.

read_...       up to a size that memory can bear; UTF-8, and JSON that is an object
beside         written under a name of its own, flushed, renamed: never there in part
claimed        held by one run at a time
check_output   is no input, no device, and no work of somebody else's
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks: there, two runs with one output are not told
    fcntl = None

LARGEST = 2**30  # bytes of a regular file
LARGEST_STREAM = 2**28  # bytes of a pipe or a device, whose size is not known before
LARGEST_JSON = 2**27
RESULT, PICTURE = b'{\n "task": ', b"\x89PNG"  # what our results and pictures begin with
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
KINDS = {dict: "an object", list: "a list", str: "a string", type(None): "null"}


def shown(value) -> str:
    """A user's value as JSON, cut at 200 characters.

    >>> shown(None), shown({"a": [True, 1.5]})
    ('null', '{"a": [true, 1.5]}')
    """
    text = json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)
    return text if len(text) <= 200 else text[:200] + "..."


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """A file's bytes. Raises ValueError where it cannot be read, is larger than `largest`, or
    is only git-lfs's pointer to a file."""
    try:
        with open(path, "rb") as file:
            info = os.fstat(file.fileno())
            known = stat.S_ISREG(info.st_mode) and info.st_size <= largest
            content = read_up_to(file, info.st_size if known else min(largest, LARGEST_STREAM))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {named(path)}: {reason(error)}") from error
    refuse_pointer(path, content)
    return content


def refuse_pointer(path: Path, content: bytes):
    """Raise ValueError where a file's first bytes are those of git-lfs's pointer to a file."""
    if content.startswith(LFS_POINTER):
        raise ValueError(
            f"{path} is a pointer of git-lfs, not the file itself: run git lfs pull"
        )


def read_up_to(file, largest: int) -> bytes:
    """What a binary file holds from where it stands. Raises ValueError for more than
    `largest` bytes."""
    content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"it holds more than {largest:,} bytes, the most that is read")
    return content


def read_text(path: Path, largest: int = LARGEST) -> str:
    """A UTF-8 file's text, without a byte order mark. Raises ValueError where it cannot be
    read or is not UTF-8."""
    return as_text(read_bytes(path, largest), str(path))


def read_standard_input() -> str:
    """What is written to the program. Raises ValueError where it is not UTF-8, or endless."""
    try:
        content = read_up_to(sys.stdin.buffer, LARGEST_STREAM)
    except (ValueError, OSError) as error:
        raise ValueError(f"cannot read standard input: {error}") from error
    return as_text(content, "standard input")


def as_text(content: bytes, name: str) -> str:
    """Bytes as text, without a byte order mark. Raises ValueError where they are not UTF-8."""
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8 text (byte {error.start}): convert it"
        ) from error


def read_json(path: Path, largest: int = LARGEST_JSON) -> dict:
    """The object that a JSON file holds. Raises ValueError where it holds none."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{named(path)} does not exist: {named(path.parent)} is not a whole checkpoint"
        )
    content = read_bytes(path, largest)
    try:
        return parse_object(content)
    except ValueError as error:
        raise ValueError(f"{path} holds no JSON object ({error}): fetch it again") from error


def parse_object(content: bytes) -> dict:
    """A JSON object from UTF-8. Raises ValueError for anything else, and for a key twice."""

    def unique(pairs):
        for (name, _), (following, _) in pairwise(sorted(pairs, key=lambda pair: pair[0])):
            if name == following:
                raise ValueError(f"the key {named(name)} occurs twice")
        return dict(pairs)

    def integer(digits: str) -> int:
        if len(digits) > 4000:
            raise ValueError(f"it holds a number of {len(digits)} digits")
        return int(digits)

    try:
        text = as_text(content, "it")
        value = json.loads(text, object_pairs_hook=unique, parse_int=integer)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"it is {KINDS.get(type(value), shown(value))}, not an object")
    return value


@contextlib.contextmanager
def beside(path: Path, replace: bool = True) -> Iterator[Path]:
    """A new file to write to, which becomes `path` when the block ends well, and else is gone.

    It has a name of its own, so that two writers never share it. Raises ValueError where
    `path` cannot be written, and without `replace` where it exists.
    """
    path = Path(path)
    part = None
    try:
        handle, name = tempfile.mkstemp(".part", f".{path.name}.", path.parent)
        os.close(handle)
        part = Path(name)
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        part.chmod(0o666 & ~umask())  # mkstemp and safetensors make private files
        if not replace and path.exists():
            raise ValueError(
                f"{path} is there already, and is not overwritten: remove it first"
            )
        os.replace(part, path)
    except OSError as error:
        raise ValueError(f"{named(path)} cannot be written: {reason(error)}") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # whose module imports PyTorch
            raise
        raise ValueError(f"{named(path)} cannot be written: {error}") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def write_beside(path: Path, content: bytes):
    """Write a file under a name of its own and rename it. Raises ValueError where it cannot be
    written."""
    with beside(path) as part:
        part.write_bytes(content)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold the name of an output, a file or a folder, for as long as a run writes it.

    Raises ValueError where another run holds it. What killed runs left of files that were to
    become `path`, or to lie in it, is removed; so are folders that were made for it, and in
    which nothing was written.
    """
    path = Path(path).resolve()
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    lock = path.parent / f".{path.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(f"{named(path)} cannot be written: {reason(error)}") from error
    try:
        if not locked(handle) or not same_file(handle, lock):
            raise ValueError(
                f"another run writes {path}: wait for its end, or give another name"
            )
        for folder in (path.parent, path):
            sweep(folder, path.name if folder != path else None)
        yield
    finally:
        if same_file(handle, lock) and locked(handle):
            lock.unlink(missing_ok=True)
        os.close(handle)
        for folder in missing:
            with contextlib.suppress(OSError):  # what is no folder, or is not empty, stays
                folder.rmdir()


def locked(handle: int) -> bool:
    """Whether this process has the lock of an open file, now or already."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False


def same_file(handle: int, path: Path) -> bool:
    """Whether an open file is the one of that name now."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def sweep(folder: Path, name: str | None):
    """Remove files that beside() began for `name` and its state, or for any name, and that
    nobody renamed."""
    name = r".+" if name is None else re.escape(name) + r"(\.state)?"
    if folder.is_dir():
        for path in folder.iterdir():
            if re.fullmatch(rf"\.{name}\.[a-z0-9_]{{8}}\.part", path.name):
                path.unlink(missing_ok=True)


def check_output(
    path: Path, inputs: tuple[Path, ...] = (), begins: bytes = b"", flag: str = "--out"
):
    """Raise ValueError where a file may not be written.

    That is: where `path` is a folder or no regular file, where it is one of `inputs` or lies
    in one that is a folder, and where it exists but is no earlier result of ours, which would
    begin with `begins`.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ValueError(f"{flag} {path} is a folder: give the name of a file to write")
        if path.exists() and not path.is_file():
            raise ValueError(f"{flag} {path} is a device or a pipe: give the name of a file")
        for source in filter(None, inputs):
            if same_place(path, Path(source)):
                raise ValueError(
                    f"{flag} {path} is, or lies in, {source}, which is read: give another name"
                )
        if path.is_file() and not begins_with(path, begins):
            raise ValueError(
                f"{flag} {path} exists and was not written by this program: give another name"
            )
    except OSError as error:
        raise ValueError(f"{named(path)} cannot be written: {reason(error)}") from error


@contextlib.contextmanager
def outputs(inputs, **files: tuple[Path | None, bytes]) -> Iterator[None]:
    """Check the files that a run is going to write, and hold them.

    files: by their flags' names, each with what an earlier one of ours would begin with; None
    where the flag was not given. Raises ValueError as check_output and claimed do, and where
    two of them are one file.
    """
    given = {f"--{name}": pair for name, pair in files.items() if pair[0] is not None}
    for flag, (path, begins) in given.items():
        check_output(path, inputs, begins, flag)
    for (flag, (path, _)), (other, (same, _)) in combinations(given.items(), 2):
        if path.resolve() == same.resolve() or same_place(path, same):
            raise ValueError(f"{flag} and {other} are one file: give two names")
    with contextlib.ExitStack() as stack:
        for path, _ in given.values():
            stack.enter_context(claimed(path))
        yield


def same_place(path: Path, source: Path) -> bool:
    """Whether a path is that file, under any name, or lies in that folder."""
    if source.is_dir():
        return source.resolve() in path.resolve().parents
    return path.exists() and source.exists() and path.samefile(source)


def begins_with(path: Path, begins: bytes) -> bool:
    """Whether a file is empty or begins so."""
    with open(path, "rb") as file:
        return file.read(len(begins)) in (b"", begins)


def umask() -> int:
    """The bits that new files of this process lack."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def named(path) -> str:
    """A path, or another name, as a message shows it: cut at 200 characters, and with what
    cannot be printed escaped."""
    text = str(path)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 200 else text[:200] + "..."


def reason(error: OSError | ValueError) -> str:
    """What the system says went wrong, without its number."""
    if isinstance(error, UnicodeError):
        return "no file has such a name"
    return getattr(error, "strerror", None) or str(error)

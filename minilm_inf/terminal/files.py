"""Files, read with one sentence for what is wrong and written whole or not at all.

read_...       up to a size that memory can bear; UTF-8, and JSON that is an object
beside         written under a name of its own, then renamed: never there in part
check_output   is no device, and no work of somebody else's
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path

LARGEST = 2**30  # bytes of a file
LARGEST_JSON = 2**27
RESULT, PICTURE = b'{\n "task": ', b"\x89PNG"  # what our results and pictures begin with
SAVED = b'{"__metadata__": {"context '  # and saved contexts, after eight bytes
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def shown(value) -> str:
    """A user's value as JSON, cut at 200 characters.

    >>> shown(None), shown({"a": [True, 1.5]})
    ('null', '{"a": [true, 1.5]}')
    """
    text = json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)
    return text if len(text) <= 200 else text[:200] + "..."


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


# ---- reading


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """A file's bytes. Raises ValueError where it cannot be read, is larger than `largest`, or
    is only git-lfs's pointer to a file."""
    try:
        if os.path.getsize(path) > largest:
            raise ValueError(f"it holds more than {largest:,} bytes, the most that is read")
        if not os.path.isfile(path):
            raise ValueError("it is a directory or a device, and no file")
        content = Path(path).read_bytes()
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


def read_text(path: Path, largest: int = LARGEST) -> str:
    """A UTF-8 file's text, without a byte order mark. Raises ValueError where it cannot be
    read or is not UTF-8."""
    return as_text(read_bytes(path, largest), str(path))


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
    content = read_bytes(path, largest)
    try:
        return parse_object(content)
    except ValueError as error:
        raise ValueError(f"{path} holds no JSON object ({error}): fetch it again") from error


def parse_object(content: bytes) -> dict:
    """A JSON object from UTF-8. Raises ValueError for anything else, and for a key twice."""

    def unique(pairs):
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key occurs twice in one object")
        return dict(pairs)

    try:
        value = json.loads(as_text(content, "it"), object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"it is {shown(value)}, not an object")
    return value


# ---- writing


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A new file to write to, which becomes `path` when the block ends well, and else is gone.

    Its folder is made where there is none. Raises ValueError where `path` cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise ValueError(f"{named(path)} cannot be written: {reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_beside(path: Path, content: bytes):
    """Write a file under a name of its own and rename it. Raises ValueError where it cannot be
    written."""
    with beside(path) as part:
        part.write_bytes(content)


def sweep(path: Path):
    """Remove what killed runs left of a file, where the system says that they have ended."""
    parts = path.parent.glob(f".{glob.escape(path.name)}.[0-9]*.part")
    for part in parts if os.name == "posix" else ():
        try:
            os.kill(int(part.suffixes[-2][1:]), 0)  # asks, and sends nothing
        except ProcessLookupError:
            part.unlink(missing_ok=True)
        except (OSError, OverflowError, ValueError):
            continue  # another user's process, or the number of none


def check_output(path: Path | None, begins: bytes = b"", flag: str = "--out"):
    """Raise ValueError where a file may not be written: where there is something else of that
    name, and where it exists but is no earlier result of ours, which would begin so."""
    if path is None:
        return
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{flag} {path} is a folder or a device: give the name of a file")
        if path.is_file():
            with open(path, "rb") as file:
                first = file.read(8 + len(begins))
            if first and not any(x.startswith(begins) for x in (first, first[8:])):
                raise ValueError(f"{flag} {path} was not written by this program: give another")
        nearest = next(folder for folder in path.absolute().parents if folder.exists())
        if not os.access(nearest, os.W_OK) or not nearest.is_dir():
            raise ValueError(f"{named(path)} cannot be written: {nearest} takes no new files")
    except OSError as error:
        raise ValueError(f"{named(path)} cannot be written: {reason(error)}") from error

"""Files, read with one sentence for what is wrong and written whole or not at all."""

from __future__ import annotations

import sys
from pathlib import Path


def read_text(path: Path) -> str:
    """A UTF-8 file's text. Raises ValueError where it cannot be read or is not UTF-8."""
    try:
        return Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start}): convert it"
        ) from error


def read_standard_input() -> str:
    """What is written to the program. Raises ValueError where it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8 text (byte {error.start})") from error


def write_beside(path: Path, content: bytes):
    """Write a file under another name and rename it, so that it is never there in part."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)

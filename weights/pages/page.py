"""What the writers of pages share: a whole page, or one sentence that says why there is none.

Standard library only, so that a page can be written where nothing is installed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def read(path: Path):
    """A result that a program wrote as JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def written(path: Path, make) -> int:
    """Write the page that make() returns, and give the exit code of its program."""
    try:
        text = make()
    except (LookupError, TypeError, AttributeError, ValueError, OSError) as error:
        told = f" ({error})" if isinstance(error, ValueError | OSError) else ""
        print(
            f"error: the results that {path.name} shows are missing, or not as they were "
            f"written{told}: measure them again",
            file=sys.stderr,
        )
        return 1
    path.write_text(text, encoding="utf-8")
    return 0

"""Results as text: Markdown for readers, JSON for other programs."""

from __future__ import annotations

import json
import math


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table.

    >>> print(markdown(["n", "nll"], [["2", "3.14"]]))
    | n | nll |
    |---|---|
    | 2 | 3.14 |
    """
    rows = [f"| {' | '.join(cells)} |" for cells in [head, *lines]]
    return "\n".join([rows[0], "|" + "---|" * len(head), *rows[1:]])


def finite(value):
    """The same, with null for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {name: finite(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(value) -> str:
    """A result as one JSON object; what JSON has no kind for, such as a path, is text there."""
    return json.dumps(finite(value), indent=1, default=str)

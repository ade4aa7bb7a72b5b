"""Results as text: Markdown for readers, JSON for other programs."""

from __future__ import annotations

import json


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table.

    >>> print(markdown(["n", "nll"], [["2", "3.14"]]))
    | n | nll |
    |---|---|
    | 2 | 3.14 |
    """
    rows = [f"| {' | '.join(cells)} |" for cells in [head, *lines]]
    return "\n".join([rows[0], "|" + "---|" * len(head), *rows[1:]])


def as_json(value) -> str:
    """A result as one JSON object, with null for every number that JSON cannot hold; what it
    has no kind for, such as a path, is text there."""
    text = json.dumps(value, default=str)
    return json.dumps(json.loads(text, parse_constant=lambda _: None), indent=1)

"""Rows of a result as Markdown: shares and means with their intervals."""

from __future__ import annotations

from ..terminal.progress import scaled
from ..terminal.tables import markdown
from .methods import LABELS

TITLES = {**LABELS, "starting": "starting tokens", "window": "window"}


def title(value: str | float) -> str:
    """A value of an axis, as a table shows it: a method's label, a length, a depth, or what was
    swept.

    >>> title("lambda"), title(4096), title(0.25), title("k=3")
    ('LM-Infinite', '4,096', '0.25', '3')
    """
    if isinstance(value, str):
        return TITLES.get(value, value.rpartition("=")[2])
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def grid(rows: list[dict], down: str, across: str, show=None, corner: str | None = None) -> str:
    """A Markdown table of rows: a line for each value of `down`, a column for each of
    `across`; show(row): a cell, a share unless told."""
    lines, columns = (list(dict.fromkeys(row[axis] for row in rows)) for axis in (down, across))
    cells = {(row[down], row[across]): (show or percent)(row) for row in rows}
    rows = [[title(x), *(cells.get((x, y), "-") for y in columns)] for x in lines]
    return markdown([corner or down, *map(title, columns)], rows)


def percent(found: dict | None) -> str:
    """A share with its interval.

    >>> percent({"accuracy": 0.9, "interval": [0.699, 0.972]})
    '90.0% (69.9 to 97.2)'
    """
    if found is None:
        return "-"
    ends = " to ".join(f"{100 * x:.1f}" for x in found["interval"] or ())
    return f"{100 * found['accuracy']:.1f}%" + f" ({ends})" * bool(ends)


def mean(found: dict | None, style: str = "{:.2f}") -> str:
    """A mean and its interval.

    >>> mean({"nll": 3.14159, "interval": [3.0, 3.251]})
    '3.14 (3.00 to 3.25)'
    """
    if found is None:
        return "-"
    first, *ends = (number(x, style) for x in (found["nll"], *(found["interval"] or ())))
    return f"{first} ({' to '.join(ends)})" if ends else first


def number(x: float, style: str) -> str:
    return style.format(x if float(style.format(x)) else 0.0)  # there is no -0.00


def difference(found: dict | None) -> str:
    """A difference of means and its interval, which is far narrower: a digit more."""
    return mean(found, "{:+.3f}")


# ---- of compare


def methods_table(result: dict) -> str:
    """A row per method."""
    found = [x for x in result["results"]["methods"] if "=" not in x["name"]]
    bins = [f"{row['first']:,} to {row['last']:,}" for row in found[0]["nll"]]
    columns = {"method": lambda x: x["label"]}
    columns |= {name: lambda x, i=i: mean(x["nll"][i]) for i, name in enumerate(bins)}
    columns["beyond, minus LM-Infinite"] = lambda x: difference(x["beyond_less_lm_infinite"])
    columns["cache"] = lambda x: scaled(x["cache_bytes"]) if x["cache_bytes"] else "none"
    columns["passkey, middle"] = lambda x: percent(x["passkey"])
    return markdown(list(columns), [[show(x) for show in columns.values()] for x in found])


def notes(result: dict) -> str:
    """What a reader must know of the table."""
    told, keys = result["settings"], result["results"]["methods"][0]["passkey"]
    keys = f" Pass keys: {keys['trials']}, in {keys['length']:,} tokens." if keys else ""
    return (
        f"The first {told['length']:,} tokens of each of {len(told['documents'])} documents, "
        "nats per token, with 95% intervals over documents; trained on "
        f"{told['context_length']:,} tokens.\nEvery token sees at most {told['budget']:,} "
        f"keys, unless it sees all.{keys}"
    )


def sweep_table(result: dict) -> str:
    """A row for each setting of a sweep."""
    head = ["setting", f"beyond {result['settings']['context_length']:,}", "minus LM-Infinite"]
    lines = []
    for entry in result["results"]["methods"]:
        if "=" in entry["name"]:
            less = difference(entry["beyond_less_lm_infinite"])
            lines.append([entry["name"].replace("=", " "), mean(entry["beyond"]), less])
    return markdown(head, lines)

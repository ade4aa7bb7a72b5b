"""The rows of all races as one table: plain text that is Markdown too."""

from __future__ import annotations

from .attention import FLEX, SDPA
from .models import OURS, POSITION, THEIRS

HEADINGS = ["", "n", "time", "rate", "time / base", "rate / base", "rate / Flex",
            "extra memory"]  # fmt: skip

LEGEND = f"""\
Times are medians of rounds in which all rows of a group and an n took turns.
- attention: n tokens, one call. The rate is of useful work, 4 x D x H floating-point operations
  for each pair of a query and a key that it sees. chunked and reference rotate queries and
  keys as part of it, and have LM-Infinite's mask and ceiling; the other two get them rotated,
  and {FLEX.partition(",")[0]} has the mask only. Base: {SDPA} at the same n. Extra
  memory: of one call at its peak, beyond inputs and output.
- prefill: n tokens read in chunks, the logits of the last alone. Base: {OURS} at the
  smallest n.
- decoding: one token after n. Base: {THEIRS} at the same n.
- {POSITION}: one token at position n. Base: {OURS} at the smallest n.
- decoding on and on: one token, in one run. Base: the early tokens.
Extra memory of prefill and decoding, where nothing else is said: the cache."""


def table(facts: dict, found: list[dict]) -> str:
    """Header, table, footnotes and legend. facts: of the run, by name; found: rows.as_dicts."""
    notes: list[str] = []
    lines = [HEADINGS] + [cells(row, notes) for row in found]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    rules = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    text = [" ".join([f"{name}: {value}." for name, value in facts.items()]), ""]
    for line in (lines[0], rules, *lines[1:]):
        aligned = [line[0].ljust(widths[0])]
        aligned += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]
        text.append(f"| {' | '.join(aligned)} |")
    if notes:
        text += ["", *(f"[{number}] {note}." for number, note in enumerate(notes, 1))]
    spreads = [row["most"] / row["least"] for row in found if row["least"]]
    if spreads:
        text += ["", f"The slowest round of a row took up to {max(spreads):.2f} times as long "
                     "as its fastest."]  # fmt: skip
    return "\n".join([*text, "", LEGEND])


def cells(row: dict, notes: list[str]) -> list[str]:
    """A row's cells; its notes are added to those of the table, if they are not there yet."""
    marks = ""
    for note in row["notes"]:
        if note not in notes:
            notes.append(note)
        marks += f" [{notes.index(note) + 1}]"
    per_token = row["tokens"] and row["group"] != "prefill"
    seconds = row["seconds"] and row["seconds"] / (row["tokens"] if per_token else 1)
    rate = "-"
    if row["useful_gflops_per_s"]:
        rate = f"{row['useful_gflops_per_s']:,.1f} GFLOP/s"
    elif row["tokens_per_s"]:
        rate = f"{row['tokens_per_s']:,.0f} tokens/s"
    return [
        f"{row['group']}: {row['name']}{marks}",
        f"{row['n']:,}",
        told_seconds(seconds),
        rate,
        *(told_ratio(row[name]) for name in ("time_ratio", "rate_ratio", "rate_to_rival")),
        told_bytes(row["extra_bytes"]),
    ]


def told_seconds(seconds: float | None) -> str:
    """
    >>> told_seconds(0.01234), told_seconds(12.345)
    ('12.34 ms', '12.35 s')
    """
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"


def told_ratio(ratio: float | None) -> str:
    """Two places, more for what is smaller than a tenth."""
    return "-" if ratio is None else f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def told_bytes(count: int | None) -> str:
    """Binary units, in which the targets are."""
    return "-" if count is None else f"{count / 2**20:,.1f} MiB"

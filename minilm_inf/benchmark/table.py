"""The rows of all races as one table: plain text that is Markdown too."""

from __future__ import annotations

from .race import Row

HEADINGS = ["", "n", "time", "rate", "time / base", "rate / base", "extra memory"]

LEGEND = """\
Times are medians of rounds in which all rows of a group and an n took turns. Base: the first.
- attention: n tokens, one call. The rate is of useful work, 4 x D x H floating-point operations
  for each pair of a query and a key that it sees. chunked and reference rotate queries and
  keys as part of it, and have LM-Infinite's mask and ceiling; the other two get them rotated,
  and FlexAttention has the mask only. Extra memory: of one call at its peak, beyond inputs
  and output; of all else: the cache.
- prefill: n tokens read in chunks, the logits of the last alone.
- decoding: one token after n.
- decoding at position: one token at position n, after as many tokens as the first n."""


def table(facts: dict, rows: list[Row]) -> str:
    """Header, table, footnotes and legend. facts: of the run, by name."""
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    lines = [HEADINGS] + [cells(row, notes) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    rules = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    text = [" ".join([f"{name}: {value}." for name, value in facts.items()]), ""]
    for line in (lines[0], rules, *lines[1:]):
        aligned = [line[0].ljust(widths[0])]
        aligned += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]
        text.append(f"| {' | '.join(aligned)} |")
    text += ["", *(f"[{number}] {note}." for number, note in enumerate(notes, 1))]
    spread = max(
        (max(row.seconds) / min(row.seconds) for row in rows if row.seconds), default=1
    )
    text.append(
        f"The slowest round of a row took up to {spread:.2f} times as long as its fastest."
    )
    return "\n".join([*text, "", LEGEND])


def cells(row: Row, notes: list[str]) -> list[str]:
    """A row's cells, with the number of its note."""
    name = f"{row.name} [{notes.index(row.note) + 1}]" if row.note else row.name
    if not row.seconds:
        return [name, f"{row.n:,}", *"-----"]
    one = row.median / row.steps
    rate = f"{row.rate:,.0f} tokens/s"
    if row.unit == "FLOP":
        rate = f"{row.rate / 1e9:,.1f} GFLOP/s"
    ratios = ["-", "-"]
    if row.base.seconds:
        both = row.median / row.base.median, row.rate / row.base.rate
        ratios = [f"{x:.2f}" if x >= 0.1 else f"{x:.2g}" for x in both]
    memory = "-" if row.extra_bytes is None else f"{row.extra_bytes / 2**20:,.1f} MiB"
    time = f"{one:.2f} s" if one >= 1 else f"{one * 1e3:.2f} ms"
    return [name, f"{row.n:,}", time, rate, *ratios, memory]

"""What was measured of methods, as Markdown: a table of them, two of the sweep, how to read
them; and the table of a model's card."""

from __future__ import annotations

from ..terminal.progress import scaled
from ..terminal.tables import markdown


def cell(found: dict | None, style: str = "{:.2f}") -> str:
    """A mean and its interval; None is what JSON has for nan."""
    if found is None:
        return "-"

    def number(x: float | None) -> str:
        text = "nan" if x is None else style.format(x)
        return style.format(0.0) if x is not None and float(text) == 0 else text  # no -0.00

    ends = [number(x) for x in found["interval"] or ()]
    return number(found["nll"]) + (f" ({ends[0]} to {ends[1]})" if ends else "")


def difference(found: dict | None) -> str:
    """A difference of means and its interval, which is far narrower: a digit more."""
    return cell(found, "{:+.3f}")


def duration(seconds: float) -> str:
    """
    >>> duration(0.000042), duration(0.0042)
    ('42 µs', '4.2 ms')
    """
    return f"{1e6 * seconds:.0f} µs" if seconds < 1e-3 else f"{1e3 * seconds:.1f} ms"


def methods_table(result: dict) -> str:
    """A row per method. The columns for what was not measured are left out."""
    found = result["methods"]
    head = ["method", "keys a token sees"]
    head += [f"{row['first']:,} to {row['last']:,}" for row in found[0]["nll"]]
    compared = any(entry["beyond_less_lm_infinite"] for entry in found)
    asked = any(entry.get("passkey") for entry in found)
    head += ["beyond, less LM-Infinite"] * compared + ["time per token", "cache"]
    head += ["passkey, middle"] * asked
    lines = []
    for entry in found:
        line = [entry["label"], entry["sees"], *map(cell, entry["nll"])]
        line += [difference(entry["beyond_less_lm_infinite"])] * compared
        line += [duration(entry["seconds_per_token"])]
        line += [scaled(entry["cache_bytes"]) if entry["cache_bytes"] else "none"]
        line += [share(entry.get("passkey"))] * asked
        lines.append(line)
    return markdown(head, lines)


def share(found: dict | None) -> str:
    """An accuracy and its interval."""
    if found is None:
        return "-"
    low, high = found["interval"]
    return f"{found['share']:.0%} ({low:.0%} to {high:.0%})"


def sweep_tables(result: dict) -> str:
    """The two tables of a sweep."""
    sweep, context = result["sweep"], result["context_length"]
    base, parts = sweep["base"], []
    for name, other in (("n_global", "n_local"), ("n_local", "n_global")):
        setting = f"n_global {base['n_global']:,}, n_local {base['n_local']:,}"
        head = [f"{name} ({other} {base[other]:,})", f"beyond {context:,}", f"less {setting}"]
        lines = [
            [f"{row['value']:,}", cell(row), difference(row["less_base"])]
            for row in sweep[name]
        ]
        parts.append(markdown(head, lines))
    return "\n\n".join(parts)


def notes(result: dict) -> str:
    """How the table is to be read."""
    n_documents, settings = len(result["documents"]), result["settings"]
    names = {entry["name"] for entry in result["methods"]}
    lines = [
        f"Nats per token by position, means over the first {result['length']:,} tokens of "
        f"{n_documents} document{'s' * (n_documents > 1)}, the trained length is "
        f"{result['context_length']:,}; in brackets the 95% interval over documents."
        if n_documents > 1
        else f"Nats per token by position in the first {result['length']:,} tokens of one "
        "document, from which no interval can be had."
    ]  # fmt: skip
    budget = f"Every token sees at most {result['budget']:,} keys"
    lines.append(budget + all_seeing(result["methods"], ", but for {}, which see{} all") + ".")
    if "truncate" in names:
        lines.append(
            "Truncation reads BOS, if there is one, and the last tokens, again and again, "
            "never more than the trained length, and keeps no cache."
        )
    if "topk" in names:
        lines.append(
            f"Top-k: every token reaches back for {settings['top_k']} middle keys per head, "
            "which its window is smaller by; all keys are kept."
        )
    inside = result.get("passkey_inside")
    if inside:
        tokens = result["methods"][0]["passkey"]["tokens"]
        lines.append(
            f"Pass keys: found in the middle of {tokens:,} tokens, of {inside['trials']} each. "
            f"Inside the trained length, full attention finds {share(inside)}."
        )
    lines.append(
        "Time: reading and scoring by this package's own code, which is tuned for LM-Infinite "
        "and full attention and plain for the others, the median of "
        f"{min(entry['timed_chunks'] for entry in result['methods'])} chunks or more in the "
        f"second half of the texts, on {result['device']}, threads: {result['threads']}. "
        "Cache: keys and values that the next token needs."
    )
    return "\n".join(lines)


def all_seeing(methods: list[dict], words: str) -> str:
    """Words on the methods that see the whole past, and an s if it is one; nothing on none."""
    found = [entry["label"] for entry in methods if entry["sees"] == "all"]
    return words.format(" and ".join(found), "s" * (len(found) == 1)) if found else ""


def verdict(result: dict) -> str:
    """What the last bin shows: which methods are as good as the best, and which are not."""
    last = {entry["label"]: entry["nll"][-1] for entry in result["methods"]}
    values = {label: row["nll"] for label, row in last.items()}
    best = min((x for x in values.values() if x is not None), default=0.0)
    near, far = [], []
    for label, x in values.items():
        words = f"{label} (nan)" if x is None else f"{label} ({x - best:+.2f})"
        (near if x is not None and x - best <= NEAR else far).append(words)
    row = result["methods"][0]["nll"][-1]
    text = f"From {row['first']:,} to {row['last']:,}, within {NEAR} nat of the best: "
    return text + ", ".join(near) + (f". Further off: {', '.join(far)}." if far else ".")


NEAR = 0.3  # nats: what is called as good as the best


def card_table(rows: list[dict]) -> str:
    """measure.by_position's rows."""
    head = ["positions", "vanilla", "LM-Infinite", "re-encoding", "LM-Infinite - re-encoding"]
    lines = []
    for row in rows:
        values = [f"{row[name]:.2f}" for name in ("vanilla", "lm_infinite", "reencoded")]
        gap = round(row["lm_infinite"] - row["reencoded"], 2) + 0.0  # + 0.0: there is no -0.00
        lines.append([f"{row['first']:,} to {row['last']:,}", *values, f"{gap:+.2f}"])
    return markdown(head, lines)

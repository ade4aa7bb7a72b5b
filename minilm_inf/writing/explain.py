"""What the last token saw: which spans of the text, as what, and how far away they seemed.

    python -m minilm_inf.generate --explain

The answer is worked out from positions alone, but for the middle, of which each layer noted
what its heads brought back.
"""

from __future__ import annotations

from typing import NamedTuple

from ..config import FULL_ATTENTION
from .session import Session

NEIGHBOURS = 4  # tokens on either side of a middle token that are shown with it


class Span(NamedTuple):
    """Tokens first to last (inclusive) of the text, as the last query saw them.

    kind: "starting", "window" or "middle"; nearest and farthest: how far away they seemed; by:
    the layers and heads that brought a middle token back.
    """

    kind: str
    first: int
    last: int
    nearest: int
    farthest: int
    by: tuple[tuple[int, int], ...] = ()

    def as_json(self) -> dict:
        """The same in one object of JSON."""
        found = self._asdict()
        by = [{"layer": layer, "head": head} for layer, head in found.pop("by")]
        return {"as": found.pop("kind"), **found} | ({"by": by} if by else {})


def explain(session: Session) -> list[Span]:
    """The spans that the last token of a session saw which was read, in the order of the text.

    Raises ValueError where nothing was read, or a read was interrupted.
    """
    session.check_whole()
    i, lm = session.cache.length - 1, session.lm or FULL_ATTENTION
    if i < 0:
        raise ValueError("nothing was read yet, so that nothing was seen")
    oldest = 0 if lm.n_local is None else max(0, i - lm.n_local + 1)
    ceiling = i if lm.distance_ceiling is None else lm.distance_ceiling

    def span(kind: str, first: int, last: int) -> Span:
        return Span(kind, first, last, min(i - last, ceiling), min(i - first, ceiling))

    n_starting = min(lm.n_global, oldest)  # those that have left the window
    starting = [span("starting", 0, n_starting - 1)] if n_starting else []
    return [*starting, *middle(session), span("window", oldest, i)]


def middle(session: Session) -> list[Span]:
    """What came back, token by token."""
    by: dict[int, list[tuple[int, int]]] = {}
    for number, layer in enumerate(session.cache.layers):
        found = layer.middle and layer.middle.last
        if found:
            columns, valid = found.columns[0, :, -1], found.valid[0, :, -1]
            for head, nth in valid.nonzero().tolist():
                by.setdefault(int(columns[head, nth]), []).append((number, head))
    seems = session.lm.middle_distance if by else 0
    return [Span("middle", j, j, seems, seems, tuple(by[j])) for j in sorted(by)]


def table(spans: list[Span], decode, ids: list[int], width: int = 40) -> str:
    """Spans as lines: tokens, what they are, how far away they seemed, and their text.

    decode: ids -> str; ids: of the whole text. A longer text shows its beginning and its end; a
    middle token stands in brackets among its neighbours.
    """
    lines = []
    for kind, first, last, nearest, farthest, by in spans:
        text = decode(ids[first : last + 1])
        if kind == "middle":
            before, after = ids[max(0, first - NEIGHBOURS) : first], ids[last + 1 :]
            text = f"{decode(before)}[{text}]{decode(after[:NEIGHBOURS])}"
        text = " ".join(text.split())
        if len(text) > width:
            text = f"{text[: width // 2]} ... {text[-width // 2 :]}"
        tokens = f"{first:,}" + f" to {last:,}" * (last > first)
        seem = f"at {nearest:,}" + f" to {farthest:,}" * (farthest > nearest)
        heads = ", ".join(f"layer {layer} head {head}" for layer, head in by)
        lines.append([tokens, kind, seem, repr(text), heads])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

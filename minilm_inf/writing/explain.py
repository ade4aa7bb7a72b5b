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
    the layers, and in each of them the heads, that brought a middle token back.
    """

    kind: str
    first: int
    last: int
    nearest: int
    farthest: int
    by: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def as_json(self) -> dict:
        """The same in one object of JSON."""
        found = self._asdict()
        by = [{"layer": layer, "heads": list(heads)} for layer, heads in found.pop("by")]
        return {"as": found.pop("kind"), **found} | ({"by": by} if by else {})


def explain(session: Session) -> list[Span]:
    """The spans that the last token of a session saw which was read, in the order of the text.

    Raises ValueError where nothing was read, or a read was interrupted, and for top-k by the
    reference path, which keeps no note of what came back.
    """
    session.check_whole()
    i = session.n_read - 1
    lm = session.lm or FULL_ATTENTION
    if i < 0:
        raise ValueError("nothing was read yet, so that nothing was seen")
    if lm.top_k and session.cache is None:
        raise ValueError(
            "the reference path does not note what came back: leave out --path, or --explain"
        )
    oldest = 0 if lm.n_local is None else max(0, i - lm.n_local + 1)
    ceiling = i if lm.distance_ceiling is None else lm.distance_ceiling

    def span(kind: str, first: int, last: int) -> Span:
        return Span(kind, first, last, min(i - last, ceiling), min(i - first, ceiling))

    n_starting = min(lm.n_global, oldest)  # those that have left the window
    starting = [span("starting", 0, n_starting - 1)] if n_starting else []
    return [*starting, *middle(session), span("window", oldest, i)]


def middle(session: Session) -> list[Span]:
    """What came back, token by token; neighbours that the same heads brought are one span."""
    heads_of: dict[int, dict[int, list[int]]] = {}
    for number, layer in enumerate(session.cache.layers if session.cache else ()):
        found = layer.middle and layer.middle.last
        if not found:
            continue
        columns, valid = found.columns[0, :, -1], found.valid[0, :, -1]
        for head, nth in valid.nonzero().tolist():
            by_layer = heads_of.setdefault(int(columns[head, nth]), {})
            by_layer.setdefault(number, []).append(head)
    spans: list[Span] = []
    for column in sorted(heads_of):
        by = tuple((layer, tuple(heads)) for layer, heads in heads_of[column].items())
        first, seems = column, session.lm.middle_distance
        if spans and (spans[-1].by, spans[-1].last) == (by, column - 1):
            first = spans.pop().first
        spans.append(Span("middle", first, column, seems, seems, by))
    return spans


def table(spans: list[Span], decode, ids: list[int], width: int = 40) -> str:
    """Spans as lines: tokens, what they are, how far away they seemed, and their text.

    decode: ids -> str; ids: of the whole text. A longer text shows its beginning and its end; a
    middle token stands in brackets among its neighbours.
    """
    lines = []
    for span in spans:
        text = decode(ids[span.first : span.last + 1])
        if span.kind == "middle":
            before = decode(ids[max(0, span.first - NEIGHBOURS) : span.first])
            text = f"{before}[{text}]{decode(ids[span.last + 1 :][:NEIGHBOURS])}"
        text = " ".join(text.split())
        if len(text) > width:
            text = f"{text[: width // 2]} ... {text[-width // 2 :]}"
        seem = f"{span.nearest:,}" + f" to {span.farthest:,}" * (span.farthest > span.nearest)
        tokens = f"{span.first:,}" + f" to {span.last:,}" * (span.last > span.first)
        by = "; ".join(
            f"layer {layer} head{'s' * (len(heads) > 1)} {', '.join(map(str, heads))}"
            for layer, heads in span.by
        )
        lines.append([tokens, span.kind, f"at {seem}", repr(text), by])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

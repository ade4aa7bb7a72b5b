"""What the last token saw: which spans of the text, as what, and how far away they seemed.

    python -m minilm_inf.generate --explain

The answer follows from positions alone, except for the middle, of which each layer noted what
its heads brought back.
"""

from __future__ import annotations

from typing import NamedTuple

from ..config import FULL_ATTENTION
from .session import Session

NEIGHBOURS = 4  # tokens on either side of a middle token that are shown with it
WIDTH = 40  # characters of a span that are shown


class Span(NamedTuple):
    """Tokens first to last (inclusive) of the text, as the last query saw them.

    kind: "starting", "window", or "middle", for a token that some head of some layer brought
    back; nearest and farthest: how far away they seemed.
    """

    kind: str
    first: int
    last: int
    nearest: int
    farthest: int


def explain(session: Session) -> list[Span]:
    """The spans that the last token of a session saw which was read, in the order of the text.

    Raises ValueError where nothing was read, or a read was interrupted.
    """
    session.check_whole()
    i, lm = session.cache.length - 1, session.lm or FULL_ATTENTION
    if i < 0:
        raise ValueError("nothing has been read yet, so nothing was seen")
    oldest = 0 if lm.n_local is None else max(0, i - lm.n_local + 1)
    ceiling = i if lm.distance_ceiling is None else lm.distance_ceiling

    def span(kind: str, first: int, last: int) -> Span:
        return Span(kind, first, last, min(i - last, ceiling), min(i - first, ceiling))

    n_starting = min(lm.n_global, oldest)  # those that have left the window
    spans = [span("starting", 0, n_starting - 1)] if n_starting else []
    back: set[int] = set()
    for found in (layer.middle.last for layer in session.cache.layers if layer.middle):
        if found is None:  # after Session.load
            raise ValueError("what came back to the last token was not saved: read some more")
        back.update(found.columns[found.valid].tolist())
    spans += [Span("middle", j, j, *[lm.middle_distance] * 2) for j in sorted(back)]
    return [*spans, span("window", oldest, i)]


def table(spans: list[Span], decode, ids: list[int]) -> str:
    """Spans as lines: tokens, what they are, how far away they seemed, and their text.

    decode: ids -> str; ids: of the whole text. A longer text shows its beginning and its end; a
    middle token stands among its neighbours.
    """
    lines = []
    for kind, first, last, nearest, farthest in spans:
        around = NEIGHBOURS if kind == "middle" else 0
        text = " ".join(decode(ids[max(0, first - around) : last + 1 + around]).split())
        if len(text) > WIDTH:
            text = f"{text[: WIDTH // 2]} ... {text[-WIDTH // 2 :]}"
        tokens = f"{first:,}" + f" to {last:,}" * (last > first)
        seem = f"at {nearest:,}" + f" to {farthest:,}" * (farthest > nearest)
        lines.append([tokens, kind, seem, repr(text)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

"""Is a checkpoint read as it was meant?

Files do not say all that their numbers mean, such as the layout in which the rows of queries
and keys stand, and a wrong reading still loads and still writes, only worse. So the model is
loaded once, and the same text is scored as config.json asks and with each of the usual
mistakes; what the model was trained with should win.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..config import ModelConfig
from ..evaluate.compare import stream_nll
from ..positions import Alibi, Rotary
from ..text.tokenizer import opening
from ..transformer import Transformer

SOURCE = "chapter 1 of Jane Austen's Northanger Abbey (1817)"
TEXT = (
    "No one who had ever seen Catherine Morland in her infancy would have supposed her born to "
    "be an heroine. Her situation in life, the character of her father and mother, her own "
    "person and disposition, were all equally against her. Her father was a clergyman, without "
    "being neglected, or poor, and a very respectable man, though his name was Richard--and he "
    "had never been handsome. He had a considerable independence besides two good livings--and "
    "he was not in the least addicted to locking up his daughters. Her mother was a woman of "
    "useful plain sense, with a good temper, and, what is more remarkable, with a good "
    "constitution. She had three sons before Catherine was born; and instead of dying in "
    "bringing the latter into the world, as anybody might expect, she still lived on--lived to "
    "have six children more--to see them growing up around her, and to enjoy excellent health "
    "herself. A family of ten children will be always called a fine family, where there are "
    "heads and arms and legs enough for the number; but the Morlands had little other right to "
    "the word, for they were in general very plain, and Catherine, for many years of her life, "
    "as plain as any. She had a thin awkward figure, a sallow skin without colour, dark lank "
    "hair, and strong features--so much for her person; and not less unpropitious for heroism "
    "seemed her mind."
)
"""English prose in the public domain, held out from the training of weights/."""

MARGIN = 0.05
"""How much better, in nats per token, a mistake must score before it is worth a warning.

With weights/tiny-llama the mildest mistake (theta 500,000) costs 0.08, with a standard error of
0.03 over the 254 tokens that are scored; a wrong layout costs 4.3.
"""


class Reading(NamedTuple):
    """A way to read the text: nll in nats per token."""

    what: str
    nll: float


def probe(model: Transformer, tokenizer) -> list[Reading]:
    """The mean nll of TEXT's tokens, as read (first) and with each mistake that applies.

    The text is cut so that BOS and it fill at most context_length tokens. Every reading is
    scored on the same tokens, all but the text's first, which has nothing before it where
    there is no BOS. Raises ValueError for a context of no two tokens, and for logits that are
    no numbers.
    """
    config, scheme = model.config, model.scheme
    plain = tokenizer.encode(TEXT, bos=False)[: config.context_length - 1]
    bos = opening(tokenizer)

    def mean(ids: list[int], scheme) -> float:
        model.scheme, own = scheme, model.scheme
        try:
            return float(stream_nll(model, ids, None)[-(len(plain) - 1) :].mean())
        finally:
            model.scheme = own

    as_read, ids = f"as read: {described(config, scheme)}", bos + plain
    found = [Reading(as_read + ", with BOS" * len(bos), mean(ids, scheme))]
    found += [Reading(what, mean(ids, other)) for what, other in mistakes(config, scheme)]
    return [*found, Reading("without BOS", mean(plain, scheme))] if bos else found


def mistakes(config: ModelConfig, scheme: Rotary | Alibi) -> Iterator[tuple]:
    """(what, scheme) of each usual mistake about these positions."""
    if isinstance(scheme, Alibi):
        for bias_max in (8.0, 16.0):
            if bias_max != config.alibi_bias_max:
                yield f"alibi_bias_max {bias_max:g}", Alibi(config.n_head, bias_max)
        return
    facts = scheme.facts
    other = "pairs" if scheme.layout == "halves" else "halves"
    yield f"rotary in {other}", Rotary(**facts | {"layout": other})
    for theta in (500_000.0, 1_000_000.0) if facts["theta"] == 10_000 else (10_000.0,):
        yield f"theta {theta:,.0f}", Rotary(**facts | {"theta": theta})
    if facts["scaling"]:
        yield "no rope scaling", Rotary(**facts | {"scaling": None})
    if scheme.rotary_dim < config.head_dim and config.head_dim % 2 == 0:
        whole = config.head_dim
        yield f"rotary on the whole head of {whole}", Rotary(**facts | {"rotary_dim": whole})


def described(config: ModelConfig, scheme: Rotary | Alibi) -> str:
    """Positions in words: rotary in halves, rotary_dim 128, theta 10,000, no scaling."""
    if isinstance(scheme, Alibi):
        return f"ALiBi, bias_max {config.alibi_bias_max:g}"
    facts = scheme.facts
    scaling = dict(facts["scaling"] or {"rope_type": "no"})
    kind = f"{scaling.pop('rope_type')} scaling"
    numbers = ", ".join(f"{name} {value:g}" for name, value in scaling.items())
    return (
        f"rotary in {facts['layout']}, rotary_dim {facts['rotary_dim']}, "
        f"theta {facts['theta']:,.10g}, {kind}" + (f" ({numbers})" if numbers else "")
    )


def suspicion(readings: list[Reading]) -> str | None:
    """The sentence of a warning, where the layout as read is not the best by MARGIN.

    Only the best mistake is named: where the layout is wrong, everything is noise beside it.
    """
    as_read, best = readings[0].nll, min(readings, key=lambda reading: reading.nll)
    if best.nll >= as_read - MARGIN:
        return None
    return (
        f"{best.what} scores {best.nll:.2f}, better than the layout as read, {as_read:.2f}: "
        "check config.json, and how the checkpoint was converted"
    )

"""Is a checkpoint read as it was meant?

Files do not say all that their numbers mean, such as the layout in which the rows of queries
and keys stand, and a wrong reading still loads and still writes, only worse. So the model is
loaded once, and the same text is scored as config.json asks and with each of the usual
mistakes; what the model was trained with should win.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import ModelConfig
from ..evaluate.compare import stream_nll
from ..positions import Alibi, Rotary
from ..terminal import options as flags
from ..terminal.progress import scaled
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
0.03 over the 254 tokens that are scored; a wrong layout costs 4.3. A reading that is right so
loses by the margin only through a misfortune of four standard errors, while that mildest
mistake, were it the truth, would show; and bfloat16 moves a mean by some thousandths only.
"""


class Reading(NamedTuple):
    """A way to read the text: nll in nats per token; advice, where another way is to blame."""

    what: str
    nll: float
    advice: str = ""


def probe(model: Transformer, tokenizer) -> list[Reading]:
    """The mean nll of TEXT's tokens, as read (first) and with each mistake that applies.

    The text is cut so that BOS and it fill at most context_length tokens. Every reading is
    scored on the same tokens, all but the text's first, which has nothing before it where
    there is no BOS. Raises ValueError for a context shorter than four tokens.
    """
    config, scheme = model.config, model.scheme
    if config.context_length < 4:
        raise ValueError(
            f"a context of {config.context_length} tokens is too short for a probe: it takes 4"
        )
    plain = tokenizer.encode(TEXT, bos=False)[: config.context_length - 1]
    bos = tokenizer.bos_id
    with_bos = bos is not None and tokenizer.encode(TEXT)[:1] == [bos]
    ids = [bos, *plain] if with_bos else plain
    scored = len(plain) - 1

    def mean(ids: list[int], scheme) -> float:
        return float(nll_under(model, ids, scheme)[-scored:].mean())

    start = "" if bos is None else ", with BOS" if with_bos else ", without BOS"
    found = [Reading(f"as read: {described(config, scheme)}{start}", mean(ids, scheme))]
    for what, mistaken, advice in mistakes(config, scheme):
        found.append(Reading(what, mean(ids, mistaken), advice))
    if bos is not None:
        what, other = ("without BOS", plain) if with_bos else ("with BOS", [bos, *plain])
        advice = f"the model may have been trained {what} in front of each text"
        found.append(Reading(what, mean(other, scheme), advice))
    return found


def nll_under(model: Transformer, ids: list[int], scheme) -> Tensor:
    """stream_nll with another scheme; the model's own is back in its place afterwards."""
    own = model.scheme
    model.scheme = scheme
    try:
        return stream_nll(model, ids, None)
    finally:
        model.scheme = own


def mistakes(config: ModelConfig, scheme: Rotary | Alibi) -> Iterator[tuple]:
    """(what, scheme, advice) of each usual mistake about these positions."""
    if isinstance(scheme, Alibi):
        own = config.alibi_bias_max
        for bias_max in (8.0, 16.0):
            if bias_max != own:
                advice = f"check attn_config.alibi_bias_max, {own:g}, in config.json"
                yield f"alibi_bias_max {bias_max:g}", Alibi(config.n_head, bias_max), advice
        return
    facts = rotary_facts(config, scheme)

    def changed(what: str, advice: str, **changes):
        return what, Rotary(**facts | changes), advice

    other = "pairs" if scheme.layout == "halves" else "halves"
    yield changed(
        f"rotary in {other}",
        f"the rows of queries and keys seem to stand in {other}: permute them to "
        f"{scheme.layout} when the checkpoint is converted",
        layout=other,
    )
    advice = "check rope_theta in config.json"
    if not hasattr(config, "rope_theta"):
        advice = f"the weights are of a kin of {config.family} that is not implemented"
    for theta in (500_000.0, 1_000_000.0) if facts["theta"] == 10_000 else (10_000.0,):
        yield changed(f"theta {theta:,.0f}", advice, theta=theta)
    if facts["scaling"]:
        yield changed("no rope scaling", "check rope_scaling in config.json", scaling=None)
    if scheme.rotary_dim < config.head_dim and config.head_dim % 2 == 0:
        what = f"rotary on the whole head of {config.head_dim}"
        yield changed(what, "check rotary_dim in config.json", rotary_dim=config.head_dim)


def positions(config: ModelConfig, scheme: Rotary | Alibi) -> dict:
    """The scheme's facts, and "words", which say them in a line."""
    if isinstance(scheme, Alibi):
        facts = {"kind": "alibi", "bias_max": config.alibi_bias_max}
    else:
        facts = {"kind": "rotary"} | rotary_facts(config, scheme)
    return facts | {"words": described(config, scheme)}


def rotary_facts(config: ModelConfig, scheme: Rotary) -> dict:
    """The arguments that make this Rotary again."""
    scaling = getattr(config, "rope_scaling", None)
    return {
        "rotary_dim": scheme.rotary_dim,
        "theta": getattr(config, "rope_theta", 10_000.0),  # GPT-J has no other
        "layout": scheme.layout,
        "scaling": dict(scaling) if scaling else None,
    }


def described(config: ModelConfig, scheme: Rotary | Alibi) -> str:
    """Positions in words: rotary in halves, rotary_dim 128, theta 10,000, no scaling."""
    if isinstance(scheme, Alibi):
        return f"ALiBi, bias_max {config.alibi_bias_max:g}"
    facts = rotary_facts(config, scheme)
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
    as_read, *others = readings
    if not math.isfinite(as_read.nll):
        return "the layout as read scores no number: try --dtype float32, or fetch it again"
    numbers = [other for other in others if math.isfinite(other.nll)]
    best = min(numbers, key=lambda other: other.nll, default=as_read)
    if best.nll >= as_read.nll - MARGIN:
        return None
    return (
        f"{best.what} scores {best.nll:.2f}, better than the layout as read, "
        f"{as_read.nll:.2f}: {best.advice}"
    )


def load_and_probe(options, memory: dict) -> dict:
    """Load the model and score the probe's text. Raises ValueError where that cannot be done.

    A warning goes to stderr where the layout as read is not the best.
    """
    available, needed = memory["available_bytes"], memory["weights_bytes"]
    on_cpu = flags.device(options.device).type == "cpu"
    if on_cpu and available is not None and needed > available:
        raise ValueError(
            f"the weights take {scaled(needed)} in {memory['dtype']}, and {scaled(available)} "
            "of memory is available: use --dtype bfloat16, or a larger machine"
        )
    print("loading the weights", file=sys.stderr)
    try:
        model, tokenizer = flags.load(options)
        readings = probe(model, tokenizer)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{options.device} has no memory left for the model: use --dtype bfloat16, or "
            "--device cpu"
        ) from error
    warning = suspicion(readings)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    rows = [
        {"reading": r.what, "nll": r.nll if math.isfinite(r.nll) else None} for r in readings
    ]
    return {"text": SOURCE, "readings": rows, "warning": warning}

"""Pass keys in the middle of a text, which neither the starting tokens nor the window hold.

The trials are needles/trials.py's: ordinary text with a pass key of five digits in it, and the
question for it at the end. Every method gets the same ones, and writes the digits that it finds
likeliest; all of them must be right. `evaluate passkey` asks by length and depth, with
controls.
"""

from __future__ import annotations

import numpy as np

from ...config import LMInfinite, ModelConfig
from ...text.tokenizer import opening
from ...train.practice import Practice
from ..intervals import wilson
from ..needles.reading import where_it_lies
from ..needles.trials import PassKey

TIMES = 4  # tokens of a trial, in visible keys or trained lengths
DEPTHS = (0.3, 0.4, 0.5, 0.6)  # shares of the filler before the key


def trials(tokenizer, documents: dict[str, list[int]], lm: LMInfinite, config: ModelConfig,
           count: int) -> tuple[list, list]:  # fmt: skip
    """`count` trials whose keys lie in the middle, and as many inside the trained length.

    documents: as compare.encoded makes them, of whose text the filler is made. Raises
    ValueError where they are too short for that.
    """
    length = TIMES * max(config.context_length, lm.most_visible)
    n_bos = len(opening(tokenizer))
    filler = np.array([id for ids in documents.values() for id in ids[n_bos:]])
    if len(filler) <= length:
        raise ValueError(f"they take {length:,} tokens of text, and there are {len(filler):,}")
    maker = PassKey(Practice(tokenizer, filler), tokenizer)
    found = [
        [maker.trial(n, DEPTHS[k % len(DEPTHS)], [n, k]) for k in range(count)]
        for n in (length, config.context_length)
    ]
    assert all(where_it_lies(trial, lm) == "middle" for trial in found[0])
    return found[0], found[1]


def accuracy(write, asked: list) -> dict:
    """How many of the trials are answered: write(ids, count) -> the count ids that follow."""
    answers = [(trial.ids[: -trial.width], trial.ids[-trial.width :]) for trial in asked]
    right = sum(write(ids, len(answer)) == answer for ids, answer in answers)
    return {
        "right": right, "trials": len(asked), "tokens": len(asked[0].ids),
        "share": right / len(asked), "interval": list(wilson(right, len(asked))),
    }  # fmt: skip

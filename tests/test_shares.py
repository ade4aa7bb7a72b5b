"""One text, many processes: the numbers of one, whoever reads what, and whoever is stopped."""

import numpy as np
import pytest
from conftest import SETTINGS, some_tokens, tiny_llama, tiny_model
from test_stream import Ids

from minilm_inf import LMInfinite
from minilm_inf.evaluate import resume, shares
from minilm_inf.evaluate.documents import Stream
from minilm_inf.evaluate.perplexity import Run
from minilm_inf.evaluate.shares import Share

DIVISIBLE = [name for name, lm in SETTINGS.items() if lm.n_local and lm.distance_ceiling]
DIVISIBLE += ["sliding window without ceiling"]
LMS = SETTINGS | {DIVISIBLE[-1]: LMInfinite(n_local=6, n_global=0, distance_ceiling=None)}


def summed(model, lm, stream: Stream, count: int) -> Run:
    """A run whose arrays are the sums of those of `count` shares."""
    runs = [Run(model, lm, stream, 7) for _ in range(count)]
    for rank, run in enumerate(runs):
        run.take(Share(rank, count))
        for _ in resume.steps(run):
            pass
    for arrays in zip(*(run.arrays().values() for run in runs)):
        arrays[0][:] = sum(arrays)
    return runs[0]


@pytest.mark.parametrize("family, name, count", [
    *(("llama", name, 3) for name in DIVISIBLE), ("mpt", "LM-Infinite", 2),
    ("gptj", "LM-Infinite", 2), ("llama", "LM-Infinite", 7), ("llama", "LM-Infinite", 80),
])  # fmt: skip
def test_shares_add_up_to_the_whole(family, name, count):
    """A warm-up of one token too few, or one that sees starting tokens where they are none; a
    token that two shares score, or none; a share shorter than its warm-up, or empty; a late
    token that is compared with what another share read early."""
    model, rows = tiny_model(family, n_layer=3), some_tokens(13, batch=3).tolist()
    stream = Stream(dict(enumerate(rows)), Ids(), True, 73)
    one, many = (summed(model, LMS[name], stream, n) for n in (1, count))
    expected = one.arrays()
    for name in ("counts", "bins.log", "bins.linear", "pairs.early", "pairs.nll", "pairs.late"):
        assert np.abs(many.arrays()[name] - expected[name]).max() < 1e-10, name
    assert many.pairs.result()["difference"] == pytest.approx(one.pairs.result()["difference"])


def test_a_warm_up_is_no_longer_than_it_must_be(monkeypatch):
    """One that is twice as long as needed, and hides that the formula is wrong."""
    model, lm = tiny_model("llama", n_layer=3), SETTINGS["LM-Infinite"]
    stream = Stream({"a": some_tokens(73)[0].tolist()}, Ids(), False)
    whole = summed(model, lm, stream, 1).bins["linear"].sums
    assert shares.reach(lm, 3) == 3 * (6 - 1)
    monkeypatch.setattr(shares, "reach", lambda *_: 3 * (6 - 1) - 1)
    off = np.abs(summed(model, lm, stream, 3).bins["linear"].sums - whole)
    assert 1e-9 < off.max() < 0.1 and np.flatnonzero(off > 1e-10).tolist() == [24, 48]


@pytest.mark.parametrize("lm", [
    None, SETTINGS["full attention"], SETTINGS["ceiling without Λ"],
    SETTINGS["Λ without ceiling"], LMInfinite(6, 2, 6, top_k=3),
])  # fmt: skip
def test_what_cannot_be_divided_is_refused(lm):
    """Numbers that are quietly others than those of one process."""
    run = Run(tiny_llama(), lm, Stream({"a": [1, 2, 3, 4]}, Ids(), False))
    with pytest.raises(ValueError, match="cannot be divided among processes .* run one"):
        run.take(Share(0, 2))

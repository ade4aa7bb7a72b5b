"""lambda_mask.py: who sees whom, against the drawing, a loop over all pairs, and counts."""

import pytest
import torch
from conftest import fuzz, named, tiny_model

from minilm_inf.config import FULL_ATTENTION, LMInfinite
from minilm_inf.lambda_mask import lambda_mask

GRID = [
    LMInfinite(n_local, n_global)
    for n_local in (1, 2, 3, 6, 12, 20, None)
    for n_global in (0, 1, 2, 5, 12, 30)
]


def seen(i: int, j: int, lm: LMInfinite) -> bool:
    """The specification for one pair: a past token, and a local or a starting one."""
    if j < 0 or j > i:
        return False
    return lm.n_local is None or i - j <= lm.n_local - 1 or j < lm.n_global


def test_the_drawing_in_the_docstring():
    """Catches a window of n_local + 1 keys (as the paper draws it), and a stale drawing."""
    rows = [
        [mark == "#" for mark in line.split()]
        for line in lambda_mask.__doc__.splitlines()
        if line.strip() and set(line) <= set("#. ")
    ]
    drawing = torch.tensor(rows)
    assert drawing.shape == (8, 8)
    positions = torch.arange(8)
    assert torch.equal(lambda_mask(positions, positions, LMInfinite(3, 2)), drawing)


@pytest.mark.parametrize("lm", [*GRID, FULL_ATTENTION], ids=str)
def test_every_pair_and_how_many_there_are(lm):
    """Catches any wrong edge of the Λ, a starting token counted twice, and a bound that is not
    the method's L + G."""
    for n in (1, 2, 3, 7, 12, 40):
        mask = lambda_mask(torch.arange(n), torch.arange(n), lm)
        assert mask.tolist() == [[seen(i, j, lm) for j in range(n)] for i in range(n)]
        counts = mask.sum(-1).tolist()
        assert counts == [lm.visible(i + 1) for i in range(n)]
        if lm.n_local is None:
            assert counts == list(range(1, n + 1)) and lm.most_visible is None
        else:
            local = [min(i + 1, lm.n_local) for i in range(n)]
            starting = [min(lm.n_global, max(0, i + 1 - lm.n_local)) for i in range(n)]
            assert counts == [a + b for a, b in zip(local, starting)]
            is_reached = n >= lm.n_local + lm.n_global
            assert (max(counts) == lm.most_visible) == is_reached


@pytest.mark.parametrize("draw", fuzz(3, 30, seed=range(1000), lm=GRID), ids=named)
def test_positions_of_any_order_with_gaps_and_padding(draw):
    """Catches masks built from indices instead of positions, and padding seen as text."""
    generator = torch.Generator().manual_seed(draw["seed"])
    q = torch.randint(-3, 25, (3, 6), generator=generator)
    k = torch.randint(-3, 25, (3, 9), generator=generator)
    mask = lambda_mask(q, k, draw["lm"])
    assert mask.shape == (3, 6, 9)
    for b in range(3):
        expected = [[seen(i, j, draw["lm"]) for j in k[b].tolist()] for i in q[b].tolist()]
        assert mask[b].tolist() == expected
    assert torch.equal(lambda_mask(q[0], k, draw["lm"])[0], mask[0])
    assert torch.equal(lambda_mask(q, k[1], draw["lm"])[1], mask[1])


@pytest.mark.parametrize("bad", [-1, 2.0, True, "4"])
@pytest.mark.parametrize("name", ["n_local", "n_global", "distance_ceiling", "top_k"])
def test_a_setting_is_a_whole_number(name, bad):
    """Catches a ceiling below 0, a key that would seem to stand in the future, and a window of
    0 keys, in which a token would not even see itself."""
    for value in {bad, 0 if name == "n_local" else bad}:
        with pytest.raises(ValueError, match=name):
            LMInfinite(**dict(n_local=4) | {name: value})


def test_the_paper_sets_window_and_ceiling_to_the_trained_length():
    """Catches for_model with a ceiling one off, or without one."""
    config = tiny_model("llama", context_length=77).config
    assert LMInfinite.for_model(config) == LMInfinite(77, 10, 77)
    assert LMInfinite.for_model(config, n_global=3) == LMInfinite(77, 3, 77)

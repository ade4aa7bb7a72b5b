"""lambda_mask.py: who sees whom, against the drawing, a loop over all pairs, and counts."""

import pytest
import torch
from conftest import fuzz

from minilm_inf.config import FULL_ATTENTION, LMInfinite, ModelConfig
from minilm_inf.lambda_mask import lambda_mask

LENGTHS = [1, 2, 3, 7, 12]
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


@pytest.mark.parametrize("lm", GRID, ids=str)
def test_every_pair(lm):
    """Catches any wrong edge of the Λ, for all sizes of window and of starting run."""
    for n in LENGTHS:
        mask = lambda_mask(torch.arange(n), torch.arange(n), lm)
        expected = [[seen(i, j, lm) for j in range(n)] for i in range(n)]
        assert mask.tolist() == expected


@pytest.mark.parametrize("lm", GRID, ids=str)
def test_a_row_sees_as_many_keys_as_the_method_says(lm):
    """Catches a starting token counted twice, and a `visible` without the query's own key."""
    for n in LENGTHS:
        mask = lambda_mask(torch.arange(n), torch.arange(n), lm)
        for i, row in enumerate(mask.sum(-1).tolist()):
            if lm.n_local is None:
                assert row == lm.visible(i + 1) == i + 1
                continue
            outside = max(0, i + 1 - lm.n_local)
            assert row == min(i + 1, lm.n_local) + min(lm.n_global, outside)
            assert row == lm.visible(i + 1) <= lm.most_visible


def test_most_visible_is_reached():
    """Catches a bound that is looser than the method: L + G keys, and not one more."""
    lm = LMInfinite(n_local=5, n_global=3)
    counts = lambda_mask(torch.arange(40), torch.arange(40), lm).sum(-1)
    assert counts.max() == lm.most_visible == 8
    assert counts[6] == 7 and counts[7] == 8, "reached at n = L + G, not before"
    assert LMInfinite(None, 3).most_visible is None


@pytest.mark.parametrize("n_global", [0, 1, 5, 50])
def test_a_text_no_longer_than_the_window_is_read_as_ever(n_global):
    """Catches a mask that hides something below n_local + 1 tokens."""
    n = torch.arange(9)
    causal = n[:, None] >= n
    assert torch.equal(lambda_mask(n, n, LMInfinite(9, n_global)), causal)
    assert torch.equal(lambda_mask(n, n, FULL_ATTENTION), causal)
    longer = torch.arange(10)
    assert lambda_mask(longer, longer, LMInfinite(9, n_global))[9, 0] == (n_global > 0)


@pytest.mark.parametrize("draw", fuzz(3, 30, seed=range(1000), lm=GRID), ids=str)
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


@pytest.mark.parametrize(
    "name, least", [("n_local", 1), ("n_global", 0), ("distance_ceiling", 0)]
)
def test_a_setting_is_a_whole_number(name, least):
    """Catches a window of 0 keys, in which a token would not even see itself, and a ceiling
    below 0: a key would seem to stand in the future."""
    for bad in (least - 1, 2.0, True, "4"):
        with pytest.raises(ValueError, match=name):
            LMInfinite(**dict(n_local=4) | {name: bad})
    with pytest.raises(ValueError, match="n_global"):
        LMInfinite(4, n_global=None)


def test_the_paper_sets_window_and_ceiling_to_the_trained_length():
    """Catches for_model with a ceiling one off, or without one."""
    sizes = dict(vocab_size=8, n_layer=1, n_head=4, n_embd=8, head_dim=2, n_inner=8)
    config = ModelConfig(
        "any", n_kv_head=2, context_length=77, norm_eps=1e-5, tied=False, **sizes
    )
    assert LMInfinite.for_model(config) == LMInfinite(77, 10, 77)
    assert LMInfinite.for_model(config, n_global=3) == LMInfinite(77, 3, 77)
    with pytest.raises(ValueError, match="n_kv_head"):
        ModelConfig("any", n_kv_head=3, context_length=77, norm_eps=1e-5, tied=False, **sizes)

"""top_k.py: which middle keys come back, held to loops over every query, head and key."""

import pytest
import torch
from conftest import SCHEMES, fuzz, named, specification, vectors

from minilm_inf import LMInfinite, attend, chunked_attend
from minilm_inf.positions import Alibi
from minilm_inf.top_k import largest

DRAWS = fuzz(
    5,
    90,
    n=[5, 9, 17, 24],
    n_local=[1, 3, 6],
    n_global=[0, 2, 5],
    top_k=[1, 2, 5, 30],
    distance=[None, 0, 2, 9],
    queries=["last", "all"],
    n_kv_head=[1, 2, 4],
    scheme=list(SCHEMES),
    padding=[0, 3],
    repeated=[False, True],
    scale=[0.35, 0.35, 0.0, -1.0],
)


@pytest.mark.parametrize("draw", DRAWS, ids=named)
def test_both_paths_are_the_loops(draw):
    """Catches a starting or window key that is chosen, padding among them, fewer than k that
    are dropped, a tie that goes to the oldest, one selection for all heads of a group, a wrong
    distance."""
    n, scheme = draw["n"], SCHEMES[draw["scheme"]]
    lm = LMInfinite(
        draw["n_local"], draw["n_global"], draw["n_local"], top_k=draw["top_k"],
        top_k_distance=draw["distance"], top_k_queries=draw["queries"],
    )  # fmt: skip
    q, k, v = vectors(n, n_kv_head=draw["n_kv_head"], dtype=torch.float64)
    if draw["repeated"]:  # every key occurs many times
        k = k[:, :, torch.arange(n) % 3].clone()
    positions = torch.arange(n) - torch.tensor([[0], [draw["padding"]]])
    reaching = {n - 1} if draw["queries"] == "last" else set(range(n))
    rows = positions.tolist()
    right = specification(q, k, v, rows, rows, scheme, lm, draw["scale"], reaching)
    positions = positions if draw["padding"] else positions[0]
    for path in (attend, chunked_attend):
        found = path(q, k, v, positions, positions, scheme, lm, draw["scale"])
        assert (found - right).abs().max() <= 1e-10


def test_without_a_middle_nothing_changes():
    """Catches a top_k that touches texts which the window and the starting tokens cover."""
    q, k, v = vectors(8, dtype=torch.float64)
    positions, scheme = torch.arange(8), SCHEMES["halves"]
    for n_local, n_global in ((8, 0), (5, 3)):
        plain = LMInfinite(n_local, n_global, n_local)
        with_k = LMInfinite(n_local, n_global, n_local, top_k=3, top_k_queries="all")
        right = attend(q, k, v, positions, positions, scheme, plain)
        assert torch.equal(attend(q, k, v, positions, positions, scheme, with_k), right)


def test_order_of_keys_does_not_matter():
    """Catches a tie that goes by column where keys are not in the order of their positions."""
    q, k, v = vectors(12, dtype=torch.float64)
    k = k[:, :, torch.arange(12) % 2].clone()
    positions, scheme = torch.arange(12), SCHEMES["halves"]
    lm = LMInfinite(3, 1, 3, top_k=2, top_k_queries="all")
    right = attend(q, k, v, positions, positions, scheme, lm)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    found = attend(q, k[:, :, order], v[:, :, order], positions, positions[order], scheme, lm)
    assert (found - right).abs().max() <= 1e-12


def test_ties_and_infinities():
    """Catches more than k of equal logits, and a choice among what is no candidate."""
    logits = torch.tensor([[3.0, 1, 3, 3, 2], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]])
    candidates = torch.tensor([[True] * 5, [True, True, False, True, False], [False] * 5])
    found = [set(row.nonzero().flatten().tolist()) for row in largest(logits, candidates, 2)]
    assert found == [{2, 3}, {1, 3}, set()]
    rounded = torch.tensor([[0.3, 0.1 + 0.2, 0.3, 0.0]], dtype=torch.float64)  # 0.1 + 0.2 > 0.3
    assert largest(rounded, rounded > 0, 1).tolist() == [[False, False, True, False]]


def test_equal_keys_score_equally_wherever_they_stand():
    """Catches logits that are compared with the rounding of their sum: PyTorch's products round
    the last columns otherwise than the first."""
    for n in (37, 300, 1001):
        q, k, v = vectors(n, batch=1, n_head=1, n_kv_head=1, dim=64, dtype=torch.float32)
        k = k[:, :, :1].expand_as(k).contiguous()
        lm = LMInfinite(4, 0, 4, top_k=3, top_k_queries="last")
        positions = torch.arange(n)
        v = torch.zeros_like(v)
        v[:, :, n - 7 : n - 4] = 1  # the three most recent of the middle
        here = attend(q[:, :, -1:], k, v, positions[-1:], positions, Alibi(1), lm)
        v[:, :, : n - 7] = 9
        there = attend(q[:, :, -1:], k, v, positions[-1:], positions, Alibi(1), lm)
        assert here.max() > 0 and torch.equal(here, there)


def test_what_may_be_asked_for():
    """Catches settings without a meaning that are taken in silence."""
    for wrong in (
        dict(n_local=None, top_k=1),
        dict(n_local=4, top_k=1, top_k_queries="some"),
        dict(n_local=4, top_k=1, top_k_distance=-1),
        dict(n_local=4, top_k=1, top_k_from_layer=-1),
    ):
        with pytest.raises(ValueError):
            LMInfinite(**wrong)

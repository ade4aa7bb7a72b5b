"""distance_ceiling.py: the logit at min(d, C), pair by pair."""

import pytest
import torch
from conftest import SCHEMES, logit_of, vectors

from minilm_inf.distance_ceiling import capped_logits, place_fixed
from minilm_inf.positions import Alibi, Rotary

SCALE = 0.3


def expected_logits(q, k, q_positions, k_positions, scheme, ceiling):
    """The specification: a loop over every batch row, head, query and key."""
    batch, n_head, n_queries = q.shape[:3]
    out = torch.empty(batch, n_head, n_queries, k.shape[2], dtype=q.dtype)
    for b in range(batch):
        for h in range(n_head):
            for t, i in enumerate(q_positions[b].tolist()):
                for s, j in enumerate(k_positions[b].tolist()):
                    d = i - j if ceiling is None else min(i - j, ceiling)
                    query, key = q[b, h, t].tolist(), k[b, h, s].tolist()
                    out[b, h, t, s] = logit_of(scheme, query, key, d, h, SCALE)
    return out


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("ceiling", [None, 0, 1, 4, 9, 40])
def test_every_pair_feels_its_distance_or_the_ceiling(scheme, ceiling):
    """Catches a ceiling one off, a rotated key at the ceiling, a bias left uncapped."""
    q, k, _ = vectors(5, 7, n_kv_head=4)
    q_positions = torch.tensor([[0, 3, 4, 5, 30], [2, 6, 7, 8, 9]])
    k_positions = torch.tensor([[0, 1, 2, 3, 4, 5, 20], [8, 0, 1, 2, 5, 4, 3]])
    got = capped_logits(q, k, q_positions, k_positions, scheme, ceiling, SCALE)
    expected = expected_logits(q, k, q_positions, k_positions, scheme, ceiling)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    for row in range(2):  # the same row with its positions unbatched
        one = slice(row, row + 1)
        alone = capped_logits(
            q[one], k[one], q_positions[row], k_positions[row], scheme, ceiling, SCALE
        )
        torch.testing.assert_close(alone, got[one], rtol=0, atol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_beyond_the_ceiling_no_position_matters(scheme):
    """Catches a capped key that keeps its own rotation: where it stands would still be felt."""
    q, k, _ = vectors(1, batch=1, n_kv_head=4)
    ceiling, key = 6, torch.tensor([0])

    def at(i, j, ceiling=ceiling):
        return capped_logits(q, k, torch.tensor([i]), key + j, scheme, ceiling, SCALE)

    for i, j in [(7, 0), (50, 0), (50, 43), (200_000_000, 5)]:
        assert torch.equal(at(i, j), at(1000, 0))
    torch.testing.assert_close(at(6, 0), at(1000, 0), rtol=0, atol=1e-13)
    torch.testing.assert_close(at(6, 0), at(6, 0, ceiling=None), rtol=0, atol=1e-13)
    for wrong in (ceiling - 1, ceiling + 1):
        assert (at(1000, 0, wrong) - at(1000, 0)).abs().max() > 1e-3


def test_a_ceiling_above_every_distance_changes_nothing():
    """Catches a ceiling that reaches pairs closer than itself."""
    q, k, _ = vectors(6, n_kv_head=4)
    positions = torch.arange(6)
    for scheme in SCHEMES.values():
        free = capped_logits(q, k, positions, positions, scheme, None, SCALE)
        capped = capped_logits(q, k, positions, positions, scheme, 5, SCALE)
        assert torch.equal(free, capped)
        tighter = capped_logits(q, k, positions, positions, scheme, 4, SCALE)
        changed = (tighter != free).any(1).any(0)
        assert changed.nonzero().tolist() == [[5, 0]], "only the pair at distance 5"


def test_alibi_stays_at_the_ceilings_bias():
    """Catches a bias that goes on falling beyond the ceiling, or is scaled with q . k."""
    nothing = torch.zeros(1, 4, 1, 8, dtype=torch.float64)
    for d, felt in [(0, 0), (3, 3), (4, 4), (5, 4), (5000, 4)]:
        i, j = torch.tensor([d + 2]), torch.tensor([2])
        logits = capped_logits(nothing, nothing, i, j, Alibi(4), 4, SCALE)
        assert logits.flatten().tolist() == [-felt * 2.0 ** (-2 * h) for h in (1, 2, 3, 4)]


def test_every_query_stands_at_the_ceiling():
    """Catches a placing function kept for one scheme, ceiling or dtype and used for another."""
    q = vectors(5)[0]
    for _ in range(2):  # the second time from what was kept
        for scheme in SCHEMES.values():
            for ceiling in (0, 3, 9):
                for dtype in (torch.float32, torch.float64):
                    placed = place_fixed(scheme, ceiling, dtype, q.device)(q.to(dtype))
                    position = torch.full((5,), ceiling)
                    assert torch.equal(placed, scheme.place(q.to(dtype), position))


def test_what_is_kept_can_still_be_trained_through():
    """Catches angles made once in inference mode, which no later gradient can pass."""
    q, k, _ = vectors(3, n_kv_head=4)
    positions, scheme = torch.arange(3), Rotary(8)
    with torch.inference_mode():
        capped_logits(q, k, positions, positions, scheme, 1, SCALE)
    q.requires_grad_()
    capped_logits(q, k, positions, positions, scheme, 1, SCALE).sum().backward()
    assert q.grad.ne(0).any()


def test_logits_keep_the_precision_of_their_vectors():
    """Catches a float64 bias that turns float32 logits into float64, or the other way round."""
    for dtype in (torch.float32, torch.float64):
        for scheme in (Rotary(8), Alibi(4)):
            q, k, _ = vectors(3, n_kv_head=4, dtype=dtype)
            positions = torch.arange(3)
            assert capped_logits(q, k, positions, positions, scheme, 1, SCALE).dtype == dtype

"""distance_ceiling.py: the logit at min(d, C), pair by pair."""

import pytest
import torch
from conftest import SCHEMES, logit_of, vectors

from minilm_inf.distance_ceiling import capped_logits
from minilm_inf.positions import Rotary

SCALE = 0.3


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("ceiling", [None, 0, 1, 4, 9, 40])
def test_every_pair_feels_its_distance_or_the_ceiling(scheme, ceiling):
    """Catches a ceiling one off, a rotated key at the ceiling, a bias left uncapped."""
    q, k, _ = vectors(5, 7, n_kv_head=4)
    q_positions = torch.tensor([[0, 3, 4, 5, 30], [2, 6, 7, 8, 9]])
    k_positions = torch.tensor([[0, 1, 2, 3, 4, 5, 20], [8, 0, 1, 2, 5, 4, 3]])
    scheme = SCHEMES[scheme]
    got = capped_logits(q, k, q_positions, k_positions, scheme, ceiling, SCALE)
    for b, h, t, s in torch.cartesian_prod(*map(torch.arange, got.shape)).tolist():
        d = int(q_positions[b, t] - k_positions[b, s])
        felt = d if ceiling is None else min(d, ceiling)
        right = logit_of(scheme, q[b, h, t].tolist(), k[b, h, s].tolist(), felt, h, SCALE)
        assert abs(got[b, h, t, s].item() - right) <= 1e-12
    for row in range(2):  # the same row with its positions unbatched
        one = slice(row, row + 1), q_positions[row], k_positions[row]
        alone = capped_logits(q[one[0]], k[one[0]], *one[1:], scheme, ceiling, SCALE)
        torch.testing.assert_close(alone, got[one[0]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_beyond_the_ceiling_no_position_matters(scheme):
    """Catches a capped key that keeps its own rotation: where it stands would still be felt;
    and what was kept of one ceiling or dtype and is used for another."""
    for dtype in (torch.float64, torch.float32):
        q, k, _ = vectors(1, batch=1, n_kv_head=4, dtype=dtype)

        def at(i, j, ceiling, q=q, k=k):
            where = torch.tensor([i]), torch.tensor([j])
            return capped_logits(q, k, *where, SCHEMES[scheme], ceiling, SCALE)

        far = at(1000, 0, 6)
        assert far.dtype == dtype
        for i, j in [(7, 0), (50, 0), (50, 43), (200_000_000, 5)]:
            assert torch.equal(at(i, j, 6), far)
        torch.testing.assert_close(at(6, 0, None), far, rtol=0, atol=torch.finfo(dtype).eps * 9)
        for wrong in (5, 7):
            assert (at(1000, 0, wrong) - far).abs().max() > 1e-3


def test_what_is_kept_can_still_be_trained_through():
    """Catches angles made once in inference mode, which no later gradient can pass."""
    (q, k, _), n, scheme = vectors(3, n_kv_head=4), torch.arange(3), Rotary(8)
    with torch.inference_mode():
        capped_logits(q, k, n, n, scheme, 1, SCALE)
    q.requires_grad_()
    capped_logits(q, k, n, n, scheme, 1, SCALE).sum().backward()
    assert q.grad.ne(0).any()

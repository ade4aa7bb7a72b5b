"""attention.py: attend() against loops over batch, head, i and j."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import SCHEMES, SETTINGS, logit_of, specification, vectors

from minilm_inf.attention import attend
from minilm_inf.config import FULL_ATTENTION, LMInfinite
from minilm_inf.positions import Alibi, Rotary

LM = SETTINGS["LM-Infinite"]
N = 12


def loops(q, k, v, positions, scheme, lm, scale=None):
    """The specification where queries and keys share their positions, in every row."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    rows = [positions.tolist()] * q.shape[0] if positions.dim() == 1 else positions.tolist()
    return specification(q, k, v, rows, rows, scheme, lm, scale)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("lm", SETTINGS.values(), ids=SETTINGS)
def test_attend_is_the_loops(scheme, lm):
    """Catches every slip in mask, ceiling, scale, softmax or grouping of heads."""
    q, k, v = vectors(N, batch=1)
    positions = torch.arange(N)
    got = attend(q, k, v, positions, positions, scheme, lm)
    expected = loops(q, k, v, positions, scheme, lm)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_positions_in_any_order_and_padding():
    """Catches an attend that trusts the order of its keys, or that reads padding as text."""
    q, k, v = vectors(6, 9)
    q_positions = torch.tensor([[9, 3, 11, 4, 5, 30], [-2, -1, 0, 1, 2, 8]])
    k_positions = torch.tensor([[8, 0, 3, 1, 9, 5, 4, 11, 29], [-2, -1, 0, 1, 2, 3, 4, 5, 8]])
    for scheme in SCHEMES.values():
        got = attend(q, k, v, q_positions, k_positions, scheme, LM)
        rows = q_positions.tolist(), k_positions.tolist()
        expected = specification(q, k, v, *rows, scheme, LM, 8**-0.5)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        assert got[1, :, :2].eq(0).all(), "padding sees nothing and gathers nothing"
        assert got.isfinite().all()


def test_padding_on_the_left_changes_nothing():
    """Catches a padded row whose window or starting tokens are counted from its padding."""
    q, k, v = vectors(N)
    positions = torch.arange(N) - torch.tensor([[0], [4]])
    padded = attend(q, k, v, positions, positions, Rotary(8), LM)
    text = torch.arange(N - 4)
    alone = attend(*(x[1:, :, 4:] for x in (q, k, v)), text, text, Rotary(8), LM)
    torch.testing.assert_close(padded[1:, :, 4:], alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_grouped_heads_are_repeated_heads(scheme):
    """Catches query heads dealt to the key heads in turn (0, 1, 0, 1) instead of in groups."""
    q, k, v = vectors(N)
    positions = torch.arange(N)
    grouped = attend(q, k, v, positions, positions, scheme, LM)
    k, v = (x[:, [0, 0, 1, 1]] for x in (k, v))
    assert torch.equal(grouped, attend(q, k, v, positions, positions, scheme, LM))


def test_no_setting_is_the_vanilla_model():
    """Catches lm=None that falls back to some window."""
    q, k, v = vectors(N)
    n = torch.arange(N)
    got = attend(q, k, v, n, n, Rotary(8), None)
    place = Rotary(8).at(n, q.dtype)
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    expected = F.scaled_dot_product_attention(place(q), place(k), v, is_causal=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
    assert torch.equal(got, attend(q, k, v, n, n, Rotary(8), FULL_ATTENTION))


def test_the_scale_is_the_callers_or_one_over_root_d():
    """Catches a scale of 0 or 1 that is taken for "not given", and a scale applied twice."""
    q, k, v = vectors(N, batch=1)
    n = torch.arange(N)
    for scale in (0.0, 1.0, 0.05):
        got = attend(q, k, v, n, n, Alibi(4), LM, scale)
        expected = loops(q, k, v, n, Alibi(4), LM, scale)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    default = attend(q, k, v, n, n, Rotary(8), LM)
    assert torch.equal(default, attend(q, k, v, n, n, Rotary(8), LM, 1 / math.sqrt(8)))


def test_a_query_that_sees_nothing_gathers_zeros():
    """Catches the softmax of an empty row, which is an average over what must not be seen."""
    q, k, v = vectors(3, 4)
    got = attend(q, k, v, torch.tensor([4, 20, 3]), torch.tensor([4, 5, 6, 7]), Rotary(8), LM)
    assert got[:, :, 0].ne(0).all()
    assert got[:, :, 1:].eq(0).all()
    none = attend(q, k[:, :, :0], v[:, :, :0], torch.arange(3), torch.arange(0), Rotary(8), LM)
    assert none.shape == q.shape and none.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_half_precision_is_rounded_once_at_the_end(dtype, scheme):
    """Catches a softmax in half precision (as the authors have it): its sum drifts."""
    q, k, v = vectors(400, batch=1, dtype=dtype)
    lm, n = LMInfinite(300, 10, 300), torch.arange(400)
    got = attend(q, k, v, n, n, scheme, lm)
    exact = attend(*(x.double() for x in (q, k, v)), n, n, scheme, lm)
    assert got.dtype == dtype
    best = (exact.to(dtype).double() - exact).abs().max()
    assert (got.double() - exact).abs().max() <= 1.05 * best


def test_large_logits_do_not_overflow():
    """Catches exp before the maximum is taken off, and logits that leave float16's range."""
    q, k, v = vectors(N, batch=1, dtype=torch.float16)
    x, n = (300 * q, 300 * k, v), torch.arange(N)
    got = attend(*x, n, n, Rotary(8), LM)
    assert got.isfinite().all()
    exact = attend(*(t.double() for t in x), n, n, Rotary(8), LM)
    assert (got.double() - exact).abs().max() < 2e-3


def test_the_ceiling_is_the_window_and_nothing_else():
    """Negative control: catches tests that would let a ceiling of L - 1 or L + 1 pass."""
    q, k, v = vectors(N, batch=1)
    n = torch.arange(N)
    for scheme in SCHEMES.values():
        expected = loops(q, k, v, n, scheme, LM)
        for wrong in (LMInfinite(6, 2, 5), LMInfinite(6, 2, 7), LMInfinite(5, 2, 6)):
            assert (attend(q, k, v, n, n, scheme, wrong) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    "shapes, message",
    [
        (dict(q=(2, 4, 3)), "q must be"),
        (dict(v=(2, 2, 5, 4)), "q must be"),
        (dict(k=(2, 3, 5, 8), v=(2, 3, 5, 8)), "multiple of H_kv"),
        (dict(q=(1, 4, 3, 8)), "agree in B and D"),
        (dict(q=(2, 4, 3, 6)), "agree in B and D"),
        (dict(q_positions=(4,)), "q_positions"),
        (dict(k_positions=(3, 5)), "k_positions"),
        (dict(k_positions=(1, 5)), "k_positions"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, message):
    """Catches shapes that would broadcast into numbers that look right."""
    right = dict(q=(2, 4, 3, 8), k=(2, 2, 5, 8), v=(2, 2, 5, 8))
    shapes = right | dict(q_positions=(3,), k_positions=(5,)) | shapes
    q, k, v = (torch.zeros(shapes[name]) for name in "qkv")
    positions = (torch.zeros(shapes[f"{name}_positions"], dtype=torch.long) for name in "qk")
    with pytest.raises(ValueError, match=message):
        attend(q, k, v, *positions, Rotary(8), LM)


def test_positions_are_integers():
    """Catches positions in floating point, which stop counting at 2^24."""
    q, k, v = vectors(3)
    with pytest.raises(ValueError, match="k_positions must be integers"):
        attend(q, k, v, torch.arange(3), torch.arange(3.0), Rotary(8), LM)


def test_the_specification_knows_distance_and_ceiling():
    """Catches a specification that is itself blind to distance, or not a product at 0."""
    q, k, _ = vectors(1, batch=1, n_head=1, n_kv_head=1)
    query, key = q.flatten().tolist(), k.flatten().tolist()
    product = sum(a * b for a, b in zip(query, key))
    for scheme in SCHEMES.values():
        logits = [logit_of(scheme, query, key, d, 0, 1.0) for d in range(4)]
        assert logits[0] == pytest.approx(product, abs=1e-12)
        assert all(abs(a - b) > 1e-3 for a, b in zip(logits, logits[1:]))

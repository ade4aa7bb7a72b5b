"""attention.py: attend() against loops over batch, head, i and j; and what attend and
chunked_attend both promise of any call."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import SCHEMES, SETTINGS, logit_of, specification, vectors

from minilm_inf import Alibi, LMInfinite, Rotary, attend, chunked_attend
from minilm_inf.config import FULL_ATTENTION

LM = SETTINGS["LM-Infinite"]
PATHS = pytest.mark.parametrize("path", [attend, chunked_attend])
N = 12


def loops(q, k, v, scheme, lm, scale=8**-0.5):
    """The specification of a text at positions 0, 1, ... in every row."""
    rows = [list(range(q.shape[2]))] * q.shape[0]
    return specification(q, k, v, rows, rows, scheme, lm, scale)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_attend_is_the_loops(scheme, setting):
    """Catches every slip in mask, ceiling, scale, softmax or grouping of heads."""
    (q, k, v), n = vectors(N, batch=1), torch.arange(N)
    scheme, lm = SCHEMES[scheme], SETTINGS[setting]
    got = attend(q, k, v, n, n, scheme, lm)
    torch.testing.assert_close(got, loops(q, k, v, scheme, lm), rtol=0, atol=1e-12)


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


def test_the_ceiling_is_the_window_and_nothing_else():
    """Negative control: catches tests that would let a ceiling of L - 1 or L + 1 pass, and a
    specification that is itself blind to distance."""
    (q, k, v), n = vectors(N, batch=1), torch.arange(N)
    query, key = q[0, 0, 0].tolist(), k[0, 0, 0].tolist()
    for scheme in SCHEMES.values():
        expected = loops(q, k, v, scheme, LM)
        for wrong in (LMInfinite(6, 2, 5), LMInfinite(6, 2, 7), LMInfinite(5, 2, 6)):
            assert (attend(q, k, v, n, n, scheme, wrong) - expected).abs().max() > 1e-3
        logits = [logit_of(scheme, query, key, d, 0, 1.0) for d in range(4)]
        product = sum(a * b for a, b in zip(query, key))
        assert logits[0] == pytest.approx(product, abs=1e-12)
        assert all(abs(a - b) > 1e-3 for a, b in zip(logits, logits[1:]))


def test_no_setting_is_the_vanilla_model():
    """Catches lm=None that falls back to some window, and query heads dealt to the key heads in
    turn (0, 1, 0, 1) instead of in groups."""
    (q, k, v), n = vectors(N), torch.arange(N)
    got = attend(q, k, v, n, n, Rotary(8), None)
    assert torch.equal(got, attend(q, k, v, n, n, Rotary(8), FULL_ATTENTION))
    place = Rotary(8).at(n, q.dtype)
    k, v = (x[:, [0, 0, 1, 1]] for x in (k, v))
    expected = F.scaled_dot_product_attention(place(q), place(k), v, is_causal=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


@PATHS
def test_without_a_scheme_vectors_come_placed(path):
    """Catches vectors that are placed although they come placed, on a band, in chunks (gaps)
    and with gradients."""
    q, k, v = vectors(5, 9)
    lm, place = LMInfinite(n_local=4, n_global=2), Rotary(8).place
    for j in (torch.arange(9), 2 * torch.arange(9)):
        placed = place(q, j[4:]), place(k, j), v
        expected = attend(q, k, v, j[4:], j, Rotary(8), lm)
        for learns in (False, True):
            placed[0].requires_grad_(learns)
            got = path(*placed, j[4:], j, None, lm)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1e-300, 1.0, 0.05, -1.0])
def test_the_scale_is_the_callers(scale):
    """Catches a scale of 0 or 1 that is taken for "not given", and a scale applied twice."""
    (q, k, v), n = vectors(N, batch=1), torch.arange(N)
    got = attend(q, k, v, n, n, Alibi(4), LM, scale)
    expected = loops(q, k, v, Alibi(4), LM, scale)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@PATHS
def test_a_query_that_sees_nothing_gathers_zeros(path):
    """Catches the softmax of an empty row, which is an average over what must not be seen, and
    a refusal where there are no queries or no keys."""
    (q, k, v), n = vectors(3, 4), torch.arange(3)
    got = path(q, k, v, torch.tensor([3, 4, 20]), torch.arange(4, 8), Rotary(8), LM)
    assert got[:, :, 1].ne(0).all() and got[:, :, [0, 2]].eq(0).all()
    none = path(q, k[:, :, :0], v[:, :, :0], n, n[:0], Rotary(8), LM)
    assert none.shape == q.shape and none.eq(0).all()
    assert path(q[:, :, :0], k, v, n[:0], torch.arange(4), Rotary(8), LM).shape[2] == 0


@PATHS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_half_precision_is_rounded_once_at_the_end(path, dtype, scheme):
    """Catches a softmax in half precision (as the authors have it), whose sum drifts."""
    (q, k, v), n = vectors(400, batch=1, dtype=dtype), torch.arange(400)
    for setting in SETTINGS.values():
        sizes = setting.n_local, setting.n_global, setting.distance_ceiling
        lm = LMInfinite(*(size and 50 * size for size in sizes))
        got = path(q, k, v, n, n, SCHEMES[scheme], lm)
        exact = attend(*(x.double() for x in (q, k, v)), n, n, SCHEMES[scheme], lm)
        error = (got.double() - exact).abs().max()
        assert got.dtype == dtype
        if path is chunked_attend and scheme != "alibi":  # keys kept placed: rounded once more
            assert error <= 4 * torch.finfo(dtype).eps
        else:
            assert error <= 1.05 * (exact.to(dtype).double() - exact).abs().max()


@PATHS
def test_large_logits_do_not_overflow(path, small_chunks):
    """Catches exp before the maximum is taken off, be it in one run of keys or in joining two,
    and logits that leave float16's range."""
    small_chunks(4)
    n = torch.arange(20)
    for size, dtype, allowed in ((1e4, torch.float64, 1e-10), (300, torch.float16, 2e-3)):
        q, k, v = vectors(20, dtype=dtype)
        x = (size * q, k if size > 1000 else size * k, v)
        for scheme in SCHEMES.values():
            got = path(*x, n, n, scheme, LM)
            assert got.isfinite().all()
            exact = attend(*(t.double() for t in x), n, n, scheme, LM)
            if path is attend or dtype == torch.float64:  # else keys are kept placed, rounded
                assert (got.double() - exact).abs().max() <= allowed


@PATHS
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8], ids=str)
def test_any_integer_counts_positions(path, dtype):
    """Catches distances that wrap around in a small or unsigned integer, and "no limit", kept
    as 2^62, that overflows in one."""
    n, x = torch.arange(15), vectors(15)
    for lm in SETTINGS.values():
        expected = path(*x, n, n, Rotary(8), lm)
        assert torch.equal(path(*x, n.to(dtype), n.to(dtype), Rotary(8), lm), expected)
        rows = n.expand(2, -1).to(dtype)
        assert (path(*x, rows, rows, Rotary(8), lm) - expected).abs().max() < 1e-12


@PATHS
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_given_stays_as_it_is(path, setting, small_chunks):
    """Catches keys that are placed where the caller's own lie, over and over."""
    small_chunks(2)
    n, x = torch.arange(60), vectors(60, dtype=torch.float32)
    before = [t.clone() for t in x]
    for scheme in SCHEMES.values():
        path(*x, n, n, scheme, SETTINGS[setting])
    assert all(map(torch.equal, before, x))


@pytest.mark.parametrize("scale", [None, 0.0, -0.7])
def test_gradients_are_those_of_the_definition(scale, small_chunks):
    """Catches a fast path that cannot train: a detached run, an in-place step in its way, or a
    sign that is turned on the way there and not on the way back."""
    small_chunks(4)
    n = torch.arange(15)
    for lm in (LM, SETTINGS["ceiling below the window"], None):
        gradients = []
        for path in (attend, chunked_attend):
            x = [t.requires_grad_() for t in vectors(15)]
            out = path(*x, n, n, Rotary(8), lm, scale)
            gradients.append(torch.autograd.grad((out * vectors(15, seed=1)[0]).sum(), x))
        for slow, fast in zip(*gradients):
            assert (slow - fast).abs().max() <= 1e-10
        assert gradients[0][2].abs().max() > 0.1 and math.isfinite(gradients[0][0].sum())


SHAPES = {  # what does not fit -> (another shape of a tensor or of positions, the message)
    "three dimensions": (dict(q=(2, 4, 3)), "q must be"),
    "values of another size": (dict(v=(2, 2, 5, 4)), "q must be"),
    "three key heads for four": (dict(k=(2, 3, 5, 8), v=(2, 3, 5, 8)), "multiple of H_kv"),
    "another batch": (dict(q=(1, 4, 3, 8)), "agree in B and D"),
    "another width": (dict(q=(2, 4, 3, 6)), "agree in B and D"),
    "a position too many": (dict(q_positions=(4,)), "q_positions"),
    "rows too many": (dict(k_positions=(3, 5)), "k_positions"),
    "rows too few": (dict(k_positions=(1, 5)), "k_positions"),
}


@PATHS
@pytest.mark.parametrize("what", SHAPES)
def test_shapes_that_do_not_fit_are_refused(what, path):
    """Catches shapes that would broadcast into numbers that look right."""
    others, message = SHAPES[what]
    right = dict(q=(2, 4, 3, 8), k=(2, 2, 5, 8), v=(2, 2, 5, 8))
    shapes = right | dict(q_positions=(3,), k_positions=(5,)) | others
    q, k, v = (torch.zeros(shapes[name]) for name in "qkv")
    positions = (torch.zeros(shapes[f"{name}_positions"], dtype=torch.long) for name in "qk")
    with pytest.raises(ValueError, match=message):
        path(q, k, v, *positions, Rotary(8), LM)

"""positions.py: Rotary and Alibi against complex numbers, powers of two and formulas."""

import pytest
import torch
from conftest import vectors

from minilm_inf.positions import Alibi, Rotary

FAR = 200_000_000


@pytest.mark.parametrize("layout", ["halves", "pairs"])
@pytest.mark.parametrize("rotary_dim", [2, 4, 8])
@pytest.mark.parametrize("theta", [10000.0, 500.0])
def test_a_placed_pair_is_a_turned_complex_number(layout, rotary_dim, theta):
    """Catches the other layout, an angle of the wrong sign or frequency, a turned tail, a row
    that has another's positions, and a matrix that does not turn as `place` does."""
    positions = torch.tensor([[0, 1, 7, 4095], [-2, -1, 0, 1000]])
    x, scheme = vectors(4)[0], Rotary(rotary_dim, theta, layout)
    placed, expected = scheme.place(x, positions), x.clone()
    for m in range(rotary_dim // 2):
        first, second = (m, m + rotary_dim // 2) if layout == "halves" else (2 * m, 2 * m + 1)
        angle = positions[:, None].double() * theta ** (-2 * m / rotary_dim)
        turned = torch.complex(x[..., first], x[..., second]) * torch.exp(1j * angle)
        expected[..., first], expected[..., second] = turned.real, turned.imag
    assert (placed - expected).abs().max() <= 1e-12
    assert torch.equal(placed[..., rotary_dim:], x[..., rotary_dim:])
    assert torch.equal(placed[0, :, 0], x[0, :, 0]), "at 0 it stays as it is"
    assert torch.equal(placed[:1], scheme.place(x[:1], positions[0]))
    for row, column in ((0, 0), (0, 3), (1, 0)):
        matrix = scheme.matrix(positions[row, column], x.shape[-1], torch.float64)
        assert (x[row, :, column] @ matrix - placed[row, :, column]).abs().max() <= 1e-14
    assert scheme.bias(positions).eq(0).all() and not scheme.has_bias


def test_angles_are_exact_at_any_position():
    """Catches angles in float32, which at 2 * 10^8 are off by radians, or in float64, which are
    off by 10^-8 there: two turns must be one turn of their sum."""
    x, scheme = vectors(4)[0], Rotary(8)
    for far in (FAR, 2**52):
        there, more = torch.tensor([far, far + 1, -far, 5]), torch.tensor([7, -far, far, 6])
        twice = scheme.place(scheme.place(x, there), more)
        assert (twice - scheme.place(x, there + more)).abs().max() < 1e-14
        by_matrix = x[:, :, 0] @ scheme.matrix(there[0], 8, torch.float64)
        assert (by_matrix - scheme.place(x, there)[:, :, 0]).abs().max() <= 1e-14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_after_turning(dtype):
    """Catches cos and sin rounded to half precision before the product: two roundings more."""
    x, positions = vectors(64, dtype=dtype)[0], torch.arange(64) * 31
    placed = Rotary(8).place(x, positions)
    exact = Rotary(8).place(x.double(), positions)
    assert placed.dtype == dtype
    best = (exact.to(dtype).double() - exact).abs().max()
    assert (placed.double() - exact).abs().max() <= best


@pytest.mark.parametrize(
    "call, word",
    [
        *((lambda n=n: Rotary(n), "rotary_dim") for n in (0, 3, -2)),
        (lambda: Rotary(8, layout="interleaved"), "layout"),
        (lambda: Rotary(8, scaling={"rope_type": "yarn", "factor": 4.0}), "yarn"),
        (lambda: Alibi(0), "n_head"),
    ],
)
def test_what_nobody_turns_like_is_refused(call, word):
    """Catches a half pair that would silently pass through, and a checkpoint with YaRN, or a
    misspelt layout, that runs with wrong angles."""
    with pytest.raises(ValueError, match=word):
        call()


@pytest.mark.parametrize(
    "n_head, bias_max, exponents",
    [
        (1, 8, [8]),
        (4, 16, [4, 8, 12, 16]),
        (8, 8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (3, 8, [4, 8, 2]),
        (6, 16, [4, 8, 12, 16, 2, 6]),
        (12, 8, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_alibi_slopes(n_head, bias_max, exponents):
    """Catches a series that starts at 1, and the wrong order where H is no power of two."""
    expected = [2.0**-x for x in exponents]
    assert Alibi(n_head, bias_max).slopes.tolist() == pytest.approx(expected, rel=1e-15)


def test_alibi_subtracts_slope_times_distance_and_places_nothing():
    """Catches a bias of the wrong sign, laid along batch instead of heads, or in float32."""
    scheme = Alibi(4)
    distance = torch.tensor([[[0, 1, FAR]], [[5, 6, 7]]])  # (B, T, S)
    bias = scheme.bias(distance)
    assert bias.shape == (2, 4, 1, 3) and scheme.has_bias
    for b in range(2):
        for h in range(4):
            expected = [-(2.0 ** (-2 * (h + 1))) * d for d in distance[b, 0].tolist()]
            assert bias[b, h, 0].tolist() == expected
    assert torch.equal(scheme.bias(distance[0]), bias[0])
    x, positions = vectors(3)[0], torch.tensor([3, 4, 5])
    assert torch.equal(scheme.place(x, positions), x)
    assert torch.equal(scheme.at(positions, x.dtype)(x), x)

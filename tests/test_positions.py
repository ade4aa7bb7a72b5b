"""positions.py: Rotary and Alibi against complex numbers, powers of two and formulas."""

import math

import pytest
import torch
from conftest import SCHEMES, rotary_logit, vectors

from minilm_inf.positions import Alibi, Rotary

FAR = 200_000_000
LAYOUTS = ["halves", "pairs"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rotary_dim", [2, 4, 8])
@pytest.mark.parametrize("theta", [10000.0, 500.0])
def test_a_placed_pair_is_a_turned_complex_number(layout, rotary_dim, theta):
    """Catches the other layout, an angle of the wrong sign or frequency, a turned tail."""
    positions = torch.tensor([0, 1, 7, 4095])
    x = vectors(4)[0]
    placed = Rotary(rotary_dim, theta, layout).place(x, positions)
    expected = x.clone()
    for m in range(rotary_dim // 2):
        first, second = (m, m + rotary_dim // 2) if layout == "halves" else (2 * m, 2 * m + 1)
        angle = positions.double() * theta ** (-2 * m / rotary_dim)
        turned = torch.complex(x[..., first], x[..., second]) * torch.exp(1j * angle)
        expected[..., first], expected[..., second] = turned.real, turned.imag
    torch.testing.assert_close(placed, expected, rtol=0, atol=1e-12)
    assert torch.equal(placed[..., rotary_dim:], x[..., rotary_dim:])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_logit_of_placed_vectors_depends_on_the_distance_alone(layout):
    """Catches a query and a key that turn differently: the logit would depend on i and on j."""
    q, k, _ = vectors(1, batch=1, n_head=1, n_kv_head=1)
    scheme = Rotary(8, layout=layout)
    for i, j in [(0, 0), (5, 2), (905, 902), (3, 900)]:
        placed = scheme.place(q, torch.tensor([i])) * scheme.place(k, torch.tensor([j]))
        query, key = q.flatten().tolist(), k.flatten().tolist()
        expected = rotary_logit(query, key, i - j, layout=layout)
        assert placed.sum().item() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_position_zero_leaves_a_vector_alone(layout):
    """Catches positions that count from 1: an unplaced key would no longer stand at 0."""
    x = vectors(3)[0]
    assert torch.equal(Rotary(8, layout=layout).place(x, torch.zeros(3, dtype=torch.long)), x)


def place_with_float32_angles(x, positions):
    """The tempting way to rotate halves, for the negative control below."""
    frequencies = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    angles = positions.float()[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., :4], x[..., 4:]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def test_position_200_million_is_as_exact_as_position_2():
    """Catches angles in float32, which at 2 * 10^8 are off by several radians."""
    q, k, _ = vectors(6, dtype=torch.float32, n_head=2)
    positions = torch.arange(6)

    def logits(place, first):
        return place(q, positions + first) @ place(k, positions + first).transpose(-1, -2)

    exact = Rotary(8).place
    assert (logits(exact, FAR) - logits(exact, 0)).abs().max() < 1e-5
    control = place_with_float32_angles
    assert (logits(control, 0) - logits(exact, 0)).abs().max() < 1e-5
    assert (logits(control, FAR) - logits(control, 0)).abs().max() > 0.1


def test_float64_vectors_are_placed_in_float64():
    """Catches cos and sin cast to float32 whatever the vectors are."""
    x, positions = vectors(4)[0], torch.tensor([0, 3, 1000, FAR])
    there = Rotary(8).place(x, positions)
    back = Rotary(8).place(there, -positions)
    assert there.dtype == torch.float64
    assert (back - x).abs().max() < 1e-14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_after_turning(dtype):
    """Catches cos and sin rounded to half precision before the product: two roundings more."""
    x, positions = vectors(64, dtype=dtype)[0], torch.arange(64) * 31
    placed = Rotary(8).place(x, positions)
    exact = Rotary(8).place(x.double(), positions)
    assert placed.dtype == dtype
    best = (exact.to(dtype).double() - exact).abs().max()
    assert (placed.double() - exact).abs().max() <= best


def test_rows_of_a_batch_have_their_own_positions():
    """Catches (B, T) positions laid along the heads, or the first row's used for all."""
    x = vectors(3, batch=4, n_head=4)[0]
    positions = torch.tensor([[0, 1, 2], [7, 8, 9], [-2, -1, 0], [5, 50, 500]])
    together = Rotary(8).place(x, positions)
    for row in range(4):
        alone = Rotary(8).place(x[row : row + 1], positions[row])
        assert torch.equal(together[row : row + 1], alone)


def test_one_placing_function_serves_many_tensors():
    """Catches a function from `at` that keeps something of the first tensor it placed."""
    q, k, _ = vectors(5)
    positions = torch.arange(5) + 11
    place = Rotary(8, layout="pairs").at(positions, q.dtype)
    place(k)
    assert torch.equal(place(q), Rotary(8, layout="pairs").place(q, positions))


@pytest.mark.parametrize("rotary_dim", [0, 3, -2])
def test_an_odd_rotary_dim_is_refused(rotary_dim):
    """Catches a half pair that would silently pass through."""
    with pytest.raises(ValueError, match="rotary_dim"):
        Rotary(rotary_dim)


def test_unknown_layouts_and_scalings_are_refused():
    """Catches a checkpoint with YaRN, or a misspelt layout, that runs with wrong angles."""
    with pytest.raises(ValueError, match="layout"):
        Rotary(8, layout="interleaved")
    with pytest.raises(ValueError, match="yarn"):
        Rotary(8, scaling={"rope_type": "yarn", "factor": 4.0})


def test_linear_scaling_divides_the_position():
    """Catches a multiplication in place of the division."""
    x, positions = vectors(3)[0], torch.tensor([0, 8, 96])
    scaled = Rotary(8, scaling={"rope_type": "linear", "factor": 8.0}).place(x, positions)
    torch.testing.assert_close(scaled, Rotary(8).place(x, positions // 8), rtol=0, atol=1e-12)


def test_llama3_scaling_by_wavelength():
    """Catches swapped bounds, and a fade that is linear in the wavelength instead."""
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    frequencies = Rotary(64, theta=500000.0).frequencies
    expected, kinds = [], set()
    for frequency in frequencies.tolist():
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4.0:
            kinds.add("kept")
            expected.append(frequency)
        elif wavelength > 8192 / 1.0:
            kinds.add("divided")
            expected.append(frequency / 8.0)
        else:
            kinds.add("between")
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            expected.append((1 - smooth) * frequency / 8.0 + smooth * frequency)
    assert kinds == {"kept", "divided", "between"}
    scaled = Rotary(64, theta=500000.0, scaling=scaling).frequencies
    assert scaled.tolist() == pytest.approx(expected, rel=1e-14)


def test_no_scaling_keeps_the_frequencies():
    """Catches a config that says "default" and is treated as an unknown scaling."""
    expected = [10000.0 ** (-2 * m / 8) for m in range(4)]
    for scaling in (None, {"rope_type": "default"}):
        frequencies = Rotary(8, scaling=scaling).frequencies.tolist()
        assert frequencies == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    "n_head, bias_max, exponents",
    [
        (1, 8, [8]),
        (8, 8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (8, 16, [2, 4, 6, 8, 10, 12, 14, 16]),
        (3, 8, [4, 8, 2]),
        (6, 8, [2, 4, 6, 8, 1, 3]),
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
    assert bias.shape == (2, 4, 1, 3)
    for b in range(2):
        for h in range(4):
            expected = [-(2.0 ** (-2 * (h + 1))) * d for d in distance[b, 0].tolist()]
            assert bias[b, h, 0].tolist() == expected
    assert torch.equal(scheme.bias(distance[0]), bias[0])
    x = vectors(3)[0]
    assert torch.equal(scheme.place(x, torch.tensor([3, 4, 5])), x)
    assert torch.equal(scheme.at(torch.tensor([3, 4, 5]), x.dtype)(x), x)


def test_rotary_adds_no_bias():
    """Catches a rotary scheme that also fades with distance."""
    assert Rotary(8).bias(torch.tensor([[0, 5, FAR]])).eq(0).all()
    assert not Rotary(8).has_bias and Alibi(4).has_bias


def test_alibi_needs_a_head():
    """Catches a head count of 0, whose series would be empty."""
    with pytest.raises(ValueError, match="n_head"):
        Alibi(0)


@pytest.mark.parametrize("dim", (8, 12))
@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "alibi"])
def test_one_position_is_one_matrix(scheme, dim):
    """Catches a matrix that turns backwards, pairs other coordinates, or loses those that do
    not turn."""
    scheme = SCHEMES[scheme]
    x = torch.randn(1, 2, 1, dim, dtype=torch.float64)
    for position in (0, 1, 77, 200_000_000):
        right = scheme.place(x, torch.tensor([position]))
        found = x @ scheme.matrix(torch.tensor(position), dim, torch.float64)
        assert (found - right).abs().max() <= 1e-14

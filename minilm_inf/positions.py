"""How a query feels distance: a scheme places a vector at a position and adds a bias for a
distance.

RoPE places (it rotates) and adds nothing; ALiBi adds and places nothing. Through this one view
the logit of any query and key is

    place(q, i) . place(k, j) * scale + bias(i - j)

and, since only i - j matters, a key can be *made to seem* at distance d by asking the same
formula for place(q, d) and place(k, 0). That is all that the distance ceiling needs to know of
a scheme.

An angle is counted in 2^64ths of a turn: integers, which run around in int64 as an angle does
in its circle. So no position loses exactness: 200,000,000 is as exact as 2.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from .config import require_integer, require_number
from .terminal.files import shown

TURN = Fraction("6.28318530717958647692528676655900576839433879875")  # 2 pi, in radians
STEP = float(TURN / 2**64)
SCALINGS = {  # rope_type -> the numbers that it needs
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
}  # fmt: skip


class Rotary:
    """Rotary positions (Su et al., arXiv 2104.09864): pairs of coordinates turn with the
    position.

    rotary_dim: how many leading coordinates turn; the others pass through unchanged.
    theta:      base of the angles: pair m turns by position * theta^(-2m / rotary_dim).
    layout:     which coordinates form pair m: "halves" (m, m + rotary_dim/2), as in Llama, or
                "pairs" (2m, 2m + 1), as in GPT-J.
    scaling:    None, {"rope_type": "linear", "factor"} or {"rope_type": "llama3", "factor",
                "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}.

    Raises ValueError for an odd rotary_dim, for an unknown layout or scaling, and for numbers
    that are none.
    """

    has_bias = False

    def __init__(self, rotary_dim: int, theta=10000.0, layout="halves", scaling=None):
        require_integer("rotary_dim", rotary_dim, at_least=2, bits=16)
        require_number("theta", theta)
        if rotary_dim % 2 or theta <= 0:
            raise ValueError(
                f"rotary_dim must be even and theta above 0, not {rotary_dim} and {theta}"
            )
        if layout not in ("halves", "pairs"):
            raise ValueError(f'layout must be "halves" or "pairs", not {shown(layout)}')
        self.rotary_dim, self.layout = rotary_dim, layout
        # What this Rotary was made of:
        self.facts = dict(rotary_dim=rotary_dim, theta=theta, layout=layout, scaling=scaling)
        exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device="cpu")
        frequencies = float(theta) ** -(exponents / rotary_dim)  # (rotary_dim/2,)
        self.frequencies = scale_frequencies(frequencies, scaling)
        self.steps = steps_of(self.frequencies)  # (rotary_dim/2,)
        self.moved: dict = {}  # what was moved to a device once: it would stand still each time
        half = rotary_dim // 2  # the first and the second coordinate of each pair:
        self.pairs = (slice(0, half), slice(half, None))
        if layout == "pairs":
            self.pairs = (slice(0, None, 2), slice(1, None, 2))

    def at(self, positions: Tensor, dtype: torch.dtype, device=None):
        """A function that places vectors at these positions: (B, H, T, D) -> (B, H, T, D).

        positions: integers, (T,) or (B, T). The angles are computed here, once, however many
        tensors the function is then applied to: all of them, or as its second argument a slice.
        """
        angles = self.angles(positions.to(device))
        if positions.dim() == 2:
            angles = angles[:, None]  # (B, 1, T, rotary_dim/2): the same for every head
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        cos, sin = (x.to(device, exact) for x in (angles.cos(), angles.sin()))
        first, second = self.pairs

        def turn(x: Tensor, rows: slice) -> Tensor:
            """(x, y) turns to (x cos - y sin, y cos + x sin)."""
            here = cos[..., rows, :], sin[..., rows, :]
            turned = self._times(x, here[0])
            turned[..., first].addcmul_(x[..., second], here[1], value=-1)
            turned[..., second].addcmul_(x[..., first], here[1])
            return turned.to(x.dtype)

        def place(x: Tensor, rows: slice = slice(None)) -> Tensor:
            if x.shape[-1] == self.rotary_dim:
                return turn(x, rows)
            turning, passing = x[..., : self.rotary_dim], x[..., self.rotary_dim :]
            return torch.cat((turn(turning, rows), passing), -1)

        return place

    def angles(self, positions: Tensor) -> Tensor:
        """By how much each pair turns, in radians: (.., T) -> (.., T, rotary_dim/2)."""
        if positions.device not in self.moved:
            self.moved[positions.device] = self.steps.to(positions.device)
        return (positions.long()[..., None] * self.moved[positions.device]).double() * STEP

    def matrix(self, position: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        """What places any vector at one position (): place(x) = x @ matrix, (dim, dim). For a
        single token this is less work than `at`."""
        self.settle(position.device, dim)
        steps, same, other = self.moved[position.device, dim]
        angles = (position * steps).double() * STEP  # (dim,): of the pair of each coordinate
        return torch.addcmul(same * angles.cos(), other, angles.sin()).to(dtype)

    def settle(self, device, dim: int):
        """Have ready on a device what `matrix` needs there: it is made once."""
        if (device, dim) not in self.moved:
            with torch.inference_mode(False):
                self.moved[device, dim] = tuple(x.to(device) for x in self._parts(dim))

    def _parts(self, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """The steps of each coordinate, and where its own and its partner's part stand in
        `matrix`: integers (dim,), and (dim, dim) twice, in float64."""
        coordinates = torch.arange(self.rotary_dim, device="cpu")
        first, second = (coordinates[pair] for pair in self.pairs)
        steps = torch.zeros(dim, dtype=torch.long, device="cpu")
        steps[first] = steps[second] = self.steps.cpu()
        same = torch.eye(dim, dtype=torch.float64, device="cpu")
        other = torch.zeros_like(same)
        other[first, second], other[second, first] = 1, -1
        return steps, same, other

    def _times(self, x: Tensor, factors: Tensor) -> Tensor:
        """Both coordinates of a pair times its factor: (.., rotary_dim), (.., rotary_dim/2)."""
        if self.layout == "halves":
            return (x.unflatten(-1, (2, -1)) * factors.unsqueeze(-2)).flatten(-2)
        return (x.unflatten(-1, (-1, 2)) * factors.unsqueeze(-1)).flatten(-2)

    def place(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, H, T, D) turned by its positions, (T,) or (B, T)."""
        return self.at(positions, x.dtype, x.device)(x)

    def bias(self, distance: Tensor) -> Tensor:
        """RoPE adds nothing to a logit, whatever the distance."""
        return torch.zeros((), dtype=torch.float64, device=distance.device)


class Placed:
    """What scheme=None stands for: vectors that come placed, whose product is the logit. It is
    the scheme that does nothing, in the words of the others."""

    has_bias = False

    def at(self, positions: Tensor, dtype: torch.dtype, device=None):
        """The identity, as a function that places."""
        return lambda x, rows=None: x

    def place(self, x: Tensor, positions: Tensor) -> Tensor:
        """x itself."""
        return x

    def bias(self, distance: Tensor) -> Tensor:
        """Nothing is added to a logit, whatever the distance."""
        return torch.zeros((), dtype=torch.float64, device=distance.device)


PLACED = Placed()


class Alibi(Placed):
    """Linear biases (Press et al., arXiv 2108.12409): head h subtracts slope_h * distance.

    The slopes are a geometric series. For a head count H that is no power of two they are drawn
    from the series of the next power P: first every second one from its second on, then the
    others.

    >>> Alibi(4).slopes.tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]
    """

    has_bias = True

    def __init__(self, n_head: int, bias_max: float = 8.0):
        require_integer("n_head", n_head, at_least=1, bits=16)
        require_number("bias_max", bias_max)
        power = 1 << (n_head - 1).bit_length()
        series = 2.0 ** (
            -float(bias_max)
            * torch.arange(1, power + 1, dtype=torch.float64, device="cpu")
            / power
        )
        if power != n_head:
            series = torch.cat((series[1::2], series[0::2]))[:n_head]
        if not series.isfinite().all():
            raise ValueError(f"bias_max {bias_max} gives slopes that are no numbers")
        self.slopes = series  # (H,)
        self.moved: dict[torch.device, Tensor] = {}

    def settle(self, device, dim: int):
        """Have the slopes ready on a device."""
        if device not in self.moved:
            with torch.inference_mode(False):
                self.moved[device] = self.slopes.to(device)

    def bias(self, distance: Tensor) -> Tensor:
        """-slope_h * distance in float64: (T, S) -> (H, T, S), or (B, T, S) -> (B, H, T, S)."""
        self.settle(distance.device, 0)
        slopes = self.moved[distance.device][:, None, None]
        return -slopes * distance.double().unsqueeze(-3)


def steps_of(frequencies: Tensor) -> Tensor:
    """How many 2^64ths of a turn are nearest to these radians, as int64 holds them."""
    if not frequencies.isfinite().all():
        raise ValueError("theta and scaling give angles that are no numbers: take others")
    steps = [round(Fraction(f) * 2**64 / TURN) for f in frequencies.tolist()]
    return torch.tensor([(n + 2**63) % 2**64 - 2**63 for n in steps], device="cpu")


def scale_frequencies(frequencies: Tensor, scaling) -> Tensor:
    """RoPE frequencies (rotary_dim/2,) as a checkpoint's `rope_scaling` asks for them.

    linear: all divided by the factor. llama3 (Llama 3.1): those whose wavelength exceeds
    original / low_freq_factor are divided by the factor, those below original /
    high_freq_factor are kept, and between the two the division fades linearly in original /
    wavelength.
    """
    scaling = {"rope_type": "default"} if scaling is None else scaling
    kind = scaling.get("rope_type") if isinstance(scaling, dict) else None
    if kind not in tuple(SCALINGS):
        raise ValueError(
            f'scaling must have the rope_type "linear" or "llama3", not {shown(scaling)}'
        )
    for name in SCALINGS[kind]:
        require_number(f"scaling's {name}", scaling.get(name))
    scaling = {name: float(scaling[name]) for name in SCALINGS[kind]}
    if kind == "linear":
        return frequencies / scaling["factor"]
    if kind == "llama3":
        turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)  # 1: untouched, 0: divided
        return frequencies * (kept + (1 - kept) / scaling["factor"])
    return frequencies

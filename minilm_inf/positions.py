"""How a query feels distance: a scheme places a vector at a position and adds a bias for a
distance.

RoPE places (it rotates) and adds nothing; ALiBi adds and places nothing. Through this one view
the logit of any query and key is

    place(q, i) . place(k, j) * scale + bias(i - j)

and, since only i - j matters, a key can be *made to seem* at distance d by asking the same
formula for place(q, d) and place(k, 0). That is all that the distance ceiling needs to know of
a scheme.

Angles are computed in float64 from integer positions and cast after cos and sin, so that
position 200,000,000 is as exact as position 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Rotary:
    """Rotary positions (Su et al., arXiv 2104.09864): pairs of coordinates turn with the
    position.

    rotary_dim: how many leading coordinates turn; those behind pass through unchanged.
    theta:      base of the angles: pair m turns by position * theta^(-2m / rotary_dim).
    layout:     which coordinates form pair m: "halves" (m, m + rotary_dim/2), as in Llama, or
                "pairs" (2m, 2m + 1), as in GPT-J.
    scaling:    None, {"rope_type": "linear", "factor"} or {"rope_type": "llama3", "factor",
                "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}.

    Raises ValueError for an odd rotary_dim and for an unknown layout or scaling.
    """

    has_bias = False

    def __init__(self, rotary_dim: int, theta=10000.0, layout="halves", scaling=None):
        if rotary_dim < 2 or rotary_dim % 2:
            raise ValueError(f"rotary_dim must be even and at least 2, not {rotary_dim}")
        if layout not in ("halves", "pairs"):
            raise ValueError(f'layout must be "halves" or "pairs", not {layout!r}')
        self.rotary_dim = rotary_dim
        self.layout = layout
        exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim
        frequencies = float(theta) ** -exponents  # (rotary_dim/2,)
        self.frequencies = scale_frequencies(frequencies, scaling)
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
        """By how much each pair turns, in float64: (.., T) -> (.., T, rotary_dim/2)."""
        if positions.device not in self.moved:
            self.moved[positions.device] = self.frequencies.to(positions.device)
        return positions.double()[..., None] * self.moved[positions.device]

    def matrix(self, position: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        """What places any vector at one position (): place(x) = x @ matrix, (dim, dim). For a
        single token this is less work than `at`."""
        self.settle(position.device, dim)
        frequencies, same, other = self.moved[position.device, dim]
        angles = position.double() * frequencies  # (dim,): of the pair of each coordinate
        return torch.addcmul(same * angles.cos(), other, angles.sin()).to(dtype)

    def settle(self, device, dim: int):
        """Have ready on a device what `matrix` needs there: it is made once."""
        if (device, dim) not in self.moved:
            with torch.inference_mode(False):
                self.moved[device, dim] = tuple(x.to(device) for x in self._parts(dim))

    def _parts(self, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """The frequency of each coordinate, and where its own and its partner's part stand in
        `matrix`: (dim,), (dim, dim), (dim, dim), in float64."""
        coordinates = torch.arange(self.rotary_dim, device="cpu")
        first, second = (coordinates[pair] for pair in self.pairs)
        frequencies = torch.zeros(dim, dtype=torch.float64, device="cpu")
        frequencies[first] = frequencies[second] = self.frequencies.cpu()
        same = torch.eye(dim, dtype=torch.float64, device="cpu")
        other = torch.zeros_like(same)
        other[first, second], other[second, first] = 1, -1
        return frequencies, same, other

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


class Alibi:
    """Linear biases (Press et al., arXiv 2108.12409): head h subtracts slope_h * distance.

    The slopes are a geometric series. For a head count H that is no power of two they are drawn
    from the series of the next power P: first every second one from its second on, then the
    others.

    >>> Alibi(4).slopes.tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]
    """

    has_bias = True

    def __init__(self, n_head: int, bias_max: float = 8.0):
        if n_head < 1:
            raise ValueError(f"n_head must be at least 1, not {n_head}")
        power = 1 << (n_head - 1).bit_length()
        series = 2.0 ** (-bias_max * torch.arange(1, power + 1, dtype=torch.float64) / power)
        if power != n_head:
            series = torch.cat((series[1::2], series[0::2]))[:n_head]
        self.slopes = series  # (H,)
        self.moved: dict[torch.device, Tensor] = {}

    def at(self, positions: Tensor, dtype: torch.dtype, device=None):
        """ALiBi places nothing: the identity."""
        return lambda x, rows=None: x

    def settle(self, device, dim: int):
        """Have the slopes ready on a device."""
        if device not in self.moved:
            with torch.inference_mode(False):
                self.moved[device] = self.slopes.to(device)

    def place(self, x: Tensor, positions: Tensor) -> Tensor:
        """ALiBi places nothing: x itself."""
        return x

    def bias(self, distance: Tensor) -> Tensor:
        """-slope_h * distance in float64: (T, S) -> (H, T, S), or (B, T, S) -> (B, H, T, S)."""
        self.settle(distance.device, 0)
        slopes = self.moved[distance.device][:, None, None]
        return -slopes * distance.double().unsqueeze(-3)


def scale_frequencies(frequencies: Tensor, scaling) -> Tensor:
    """RoPE frequencies (rotary_dim/2,) as a checkpoint's `rope_scaling` asks for them.

    linear: all divided by the factor. llama3 (Llama 3.1): those whose wavelength exceeds
    original / low_freq_factor are divided by the factor, those below original /
    high_freq_factor are kept, and between the two the division fades linearly in original /
    wavelength.
    """
    kind = None if scaling is None else scaling["rope_type"]
    if kind in (None, "default"):
        return frequencies
    if kind == "linear":
        return frequencies / scaling["factor"]
    if kind == "llama3":
        turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)  # 1: untouched, 0: divided
        return frequencies * (kept + (1 - kept) / scaling["factor"])
    raise ValueError(f'rope_scaling must be "linear" or "llama3", not {kind!r}')

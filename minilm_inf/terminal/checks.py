"""What attention and model can be asked for: the checks of their arguments, in one place.

They look at kinds, shapes and ends alone, never at a vector.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from ..config import FULL_ATTENTION, LMInfinite, require_integer, require_number
from ..positions import Alibi, Placed, Rotary
from .files import shown

LAST_POSITION = 2**53  # float64 holds no larger numbers one by one, and a bias needs them
FLOATS = torch.float64, torch.float32, torch.float16, torch.bfloat16
INTEGERS = torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8


def check_attention(q, k, v, q_positions, k_positions, scheme, lm, scale, n_reaching):
    """Raise ValueError, with what fits, where the arguments of attention.attend do not."""
    check_vectors(q, k, v)
    check_positions("q_positions", q_positions, q)
    check_positions("k_positions", k_positions, k)
    check_lm(lm)
    check_scheme(scheme, q.shape[1], q.shape[3], lm or FULL_ATTENTION)
    if scale is not None:
        require_number("scale", scale)
    check_reaching(n_reaching, q.shape[2])


def check_vectors(q, k, v):
    """Raise ValueError where queries, keys and values do not fit together."""
    if not all(isinstance(x, Tensor) and x.dtype in FLOATS for x in (q, k, v)):
        raise ValueError("q, k and v must be tensors of floating-point numbers")
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape:
        raise ValueError(
            "q must be (B, H, T, D) and k and v both (B, H_kv, S, D), not "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    (batch, n_head, _, dim), n_kv_head = q.shape, k.shape[1]
    is_empty = not (batch and n_head and n_kv_head and dim)
    if is_empty or (k.shape[0], k.shape[3]) != (batch, dim) or n_head % n_kv_head:
        raise ValueError(
            "q and k must agree in B and D, H must be a multiple of H_kv, and there must be a "
            f"text, a head and a dimension at least, not {tuple(q.shape)} and {tuple(k.shape)}"
        )
    if len({(x.dtype, x.device) for x in (q, k, v)}) > 1:
        found = ", ".join(f"{x.dtype} on {x.device}" for x in (q, k, v))
        raise ValueError(f"q, k and v must be of one dtype and on one device, not {found}")


def check_positions(name: str, positions, x: Tensor):
    """Raise ValueError where positions are not one integer for each row, or each row's own."""
    batch, length = x.shape[0], x.shape[2]
    if not isinstance(positions, Tensor) or positions.dtype not in INTEGERS:
        raise ValueError(f"{name} must be integers, one for each token, in a tensor")
    if tuple(positions.shape) not in ((length,), (batch, length)):
        raise ValueError(
            f"{name} must be ({length},) or ({batch}, {length}), not {tuple(positions.shape)}"
        )
    if positions.numel():
        first, last = (int(end) for end in positions.aminmax())
        if first < -LAST_POSITION or last > LAST_POSITION:
            raise ValueError(
                f"{name} reach from {first} to {last}: beyond 2^53 a distance is not exact"
            )


def check_scheme(scheme, n_head: int, dim: int, lm: LMInfinite):
    """Raise ValueError where a scheme places no vectors of this size, biases other heads, or
    cannot do what is asked."""
    if not isinstance(scheme, Rotary | Placed | None):
        raise ValueError(f"scheme must be a Rotary, an Alibi or None, not {shown(scheme)}")
    if scheme is None and (lm.distance_ceiling is not None or lm.top_k):
        raise ValueError(
            "without a scheme queries and keys come placed, and none can seem elsewhere: "
            "distance_ceiling must be None and top_k 0"
        )
    if isinstance(scheme, Rotary) and scheme.rotary_dim > dim:
        raise ValueError(
            f"Rotary({scheme.rotary_dim}) turns more coordinates than the {dim} of a head: "
            f"rotary_dim must be at most {dim}"
        )
    if isinstance(scheme, Alibi) and len(scheme.slopes) != n_head:
        raise ValueError(
            f"Alibi({len(scheme.slopes)}) has not one slope for each of {n_head} heads: take "
            f"Alibi({n_head})"
        )


def check_lm(lm):
    """Raise ValueError for what is no setting."""
    if lm is not None and not isinstance(lm, LMInfinite):
        raise ValueError(f"lm must be an LMInfinite, or None, not {shown(lm)}")


def check_reaching(n_reaching, length: int):
    """Raise ValueError where n_reaching counts no queries."""
    if n_reaching is not None:
        require_integer("n_reaching", n_reaching, at_least=0)
        if n_reaching > length:
            raise ValueError(f"n_reaching is {n_reaching}, but there are {length} queries")


def are_integers(values, count: int, least: int, most: int) -> bool:
    """Whether a list or tuple holds so many whole numbers from least to most."""
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(type(n) is int and least <= n <= most for n in values)
    )


def check_tokens(tokens, device):
    """Raise ValueError for what is no (B, T) of ids on the model's device."""
    whole = isinstance(tokens, Tensor) and tokens.dtype in (torch.int32, torch.int64)
    if not whole or tokens.dim() != 2 or 0 in tokens.shape:
        kind = isinstance(tokens, Tensor) and f"{tokens.dtype} of shape {tuple(tokens.shape)}"
        raise ValueError(
            "tokens must be int64 (or int32) of shape (B, T) with at least one token, not "
            f"{kind or shown(tokens)}"
        )
    if tokens.device != device:
        raise ValueError(
            f"the tokens are on {tokens.device}, but the model is on {device}: move them there"
        )


def padding_of(tokens: Tensor, lengths: list[int] | None) -> Tensor | None:
    """How many tokens of padding each row of tokens (B, T) begins with: (B,), None for none.

    Raises ValueError for lengths that are not B whole numbers from 1 to T.
    """
    if lengths is None:
        return None
    batch, longest = tokens.shape
    if not are_integers(lengths, batch, 1, longest):
        raise ValueError(
            f"lengths must be {batch} whole numbers from 1 to {longest}, one for each row, not "
            f"{shown(lengths)}"
        )
    return longest - torch.tensor(lengths, device="cpu")


def check_call(tokens, model, lm, cache, path: str, paths, n_reaching):
    """Raise ValueError where the arguments of Transformer.forward do not fit together."""
    check_lm(lm)
    if path not in tuple(paths):
        raise ValueError(f'path must be "chunked" or "reference", not {shown(path)}')
    check_tokens(tokens, model.embed.weight.device)
    check_reaching(n_reaching, tokens.shape[1])
    if cache is not None:
        check_cache(cache, model.config, tokens, lm or FULL_ATTENTION, path)


def check_cache(cache, config, tokens: Tensor, lm: LMInfinite, path: str):
    """Raise ValueError where a cache cannot carry these tokens."""
    if path == "reference":
        raise ValueError("the reference path keeps no cache: give it the whole text each time")
    if not hasattr(cache, "first_position"):
        raise ValueError(f"cache must come from new_cache, not be {shown(cache)}")
    if cache.config is not config and cache.config != config:
        raise ValueError("this cache was made for another model")
    if cache.first_position + cache.length + tokens.shape[1] > LAST_POSITION:
        raise ValueError(
            "the text would reach positions beyond 2^53: make a cache whose first_position is "
            "smaller"
        )
    if cache.lm is not lm and cache.lm != lm:
        raise ValueError(f"this cache was made for {cache.lm}, not for {lm}")
    if cache.batch != tokens.shape[0]:
        raise ValueError(
            f"this cache was made for {cache.batch} texts, not for {tokens.shape[0]}"
        )


def check_new_cache(batch, lm, first_position, padding, middle, kinds):
    """Raise ValueError where the arguments of Transformer.new_cache are none."""
    check_lm(lm)
    require_integer("batch", batch, at_least=1)
    require_integer("first_position", first_position, at_least=0, bits=53)
    if middle not in tuple(kinds):
        raise ValueError(f'middle must be "ram" or "disk", not {shown(middle)}')
    if padding is not None and not are_integers(padding, batch, 0, LAST_POSITION):
        raise ValueError(
            f"padding must be {batch} whole numbers from 0 on, not {shown(padding)}"
        )


def embedded(tokens: Tensor, embed) -> Tensor:
    """The embeddings (B, T, E) of tokens. Raises ValueError for one that has none, if it is not
    on a GPU, which does not tell."""
    try:
        return embed(tokens)
    except IndexError as error:
        low, high = (int(x) for x in tokens.aminmax())
        raise ValueError(
            f"token {low if low < 0 else high} is out of range: the vocabulary has the ids 0 "
            f"to {embed.num_embeddings - 1}"
        ) from error


class Guard:
    """What is changed in several steps: once an exception has interrupted them, its parts no
    longer agree, and every further use is refused."""

    interrupted = False

    @contextlib.contextmanager
    def changing(self):
        """Inside are the steps of one change. Raises ValueError after an interrupted one."""
        self.check_whole()
        self.interrupted = True
        yield
        self.interrupted = False

    def check_whole(self):
        """Raise ValueError after an interrupted change."""
        if self.interrupted:
            raise ValueError(
                f"this {type(self).__name__.lower()} was interrupted while it read, and is no "
                "longer whole: make a new one and read the text again"
            )


def fitting(x: Tensor | None, shape, dtype: torch.dtype) -> Tensor:
    """A tensor of a saved state. Raises ValueError where it is not of this shape and dtype, or
    not there: nothing is converted, and nothing spread."""
    if x is None or tuple(x.shape) != tuple(shape) or x.dtype != dtype:
        raise ValueError(f"there is no tensor of {tuple(shape)}, {dtype}")
    return x


def taken(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """What a saved state holds of a part, "part.name", by name, and no longer holds then."""
    names = [name for name in state if name.startswith(part + ".")]
    return {name.removeprefix(part + "."): state.pop(name) for name in names}

"""What a network is, and how it looks back: the only two settings of this package.

The letters, used in every docstring and every einsum:

    B  batch                     D  head dimension (head_dim)
    T  queries                   E  model width (n_embd)
    S  keys                      V  vocabulary (vocab_size)
    H  heads (H_kv: key/value heads)

    name here          paper (arXiv 2308.16137)    meaning
    n_local            L_pretrain, section 3.2     keys of the window, the query's own included
    n_global           n_starting, section 3.2     starting tokens that every query sees
    distance_ceiling   L_pretrain, section 3.2     no key seems further away than this
    top_k              k, section 3.3              middle tokens that come back, per head
    top_k_distance     section 3.3                 how far away these seem
    top_k_from_layer   h, appendix                 the first layer, from 0, in which they do
    context_length     L_pretrain                  tokens of a training text

A position is an integer that counts tokens from the start of the stream; d = i - j is the
distance from a query at position i back to a key at position j.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from numbers import Real

from .terminal.files import shown


def require_integer(name: str, value, at_least: int, bits: int = 62):
    """Raise ValueError where a caller's value is no whole number in [at_least, 2^bits)."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not at_least <= value < 2**bits:
        raise ValueError(
            f"{name} must be a whole number of at least {at_least} and below 2^{bits}, not "
            f"{shown(value)}"
        )


def require_number(name: str, value):
    """Raise ValueError where a caller's value is no finite number."""
    numeric = isinstance(value, Real) and not isinstance(value, bool)
    if not numeric or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number, not {shown(value)}")


@dataclass(frozen=True)
class ModelConfig:
    """What every family of networks has; a family adds its own facts in its own file.

    `softmax_scale` None stands for 1/sqrt(head_dim). `eos_ids` are the ids that end a text.
    Raises ValueError for what cannot be such a fact.
    """

    family: str
    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    head_dim: int
    n_inner: int
    context_length: int
    norm_eps: float
    tied: bool
    softmax_scale: float | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self):
        sizes = "vocab_size n_layer n_head n_kv_head n_embd head_dim n_inner context_length"
        for name in sizes.split():
            require_integer(name, getattr(self, name), at_least=1)
        require_number("norm_eps", self.norm_eps)
        if self.softmax_scale is not None:
            require_number("softmax_scale", self.softmax_scale)
        if not isinstance(self.tied, bool) or not isinstance(self.eos_ids, tuple):
            raise ValueError("tied must be True or False, and eos_ids a tuple of ids")
        for id in (*self.eos_ids, *(() if self.bos_id is None else (self.bos_id,))):
            require_integer("an id of bos_id or eos_ids", id, at_least=0)
        if self.n_head % self.n_kv_head:
            raise ValueError(
                f"n_head ({self.n_head}) must be a multiple of n_kv_head ({self.n_kv_head})"
            )


@dataclass(frozen=True)
class LMInfinite:
    """How a model looks back (paper, section 3.2). An argument of reading, never of the
    weights.

    `n_local` None makes every past key local; `distance_ceiling` None lets distances grow.
    The ablations are settings: full attention (None, 0, None), sliding window (n_global=0),
    Λ without ceiling (distance_ceiling=None), ceiling without Λ (n_local=None).

    With top_k, every head also sees the top_k middle tokens (after the starting tokens and
    beyond the window) whose logits are largest, all at top_k_distance (None: n_local // 2), in
    layers from top_k_from_layer on (counted from 0). top_k_queries: "last", the last token of a
    prompt and every generated one, or "all". It needs the whole past, which is then kept.

    >>> LMInfinite(n_local=4096, n_global=10, distance_ceiling=4096).most_visible
    4106
    """

    n_local: int | None
    n_global: int = 10
    distance_ceiling: int | None = None
    top_k: int = 0
    top_k_distance: int | None = None
    top_k_from_layer: int = 0
    top_k_queries: str = "last"

    def __post_init__(self):
        if self.n_local is not None:
            require_integer("n_local", self.n_local, at_least=1)
        for name in ("n_global", "top_k", "top_k_from_layer"):
            require_integer(name, getattr(self, name), at_least=0)
        for name in ("distance_ceiling", "top_k_distance"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name), at_least=0)
        if self.top_k_queries not in ("last", "all"):
            raise ValueError(
                f'top_k_queries must be "last" or "all", not {shown(self.top_k_queries)}'
            )
        if self.top_k and self.n_local is None:
            raise ValueError("top_k needs an n_local: without a window there is no middle")

    @classmethod
    def for_model(cls, config: ModelConfig, n_global: int = 10) -> LMInfinite:
        """The paper's own setting: window and ceiling are both the trained context length."""
        return cls(config.context_length, n_global, config.context_length)

    @property
    def most_visible(self) -> int | None:
        """The largest number of keys that one query can see in one head; None where there is no
        limit."""
        return None if self.n_local is None else self.n_local + self.n_global + self.top_k

    def visible(self, n: int) -> int:
        """How many of the first n tokens the last sees in one head: min(n, L) + min(G + k,
        max(0, n-L))."""
        if self.n_local is None:
            return n
        return min(n, self.n_local) + min(self.n_global + self.top_k, max(0, n - self.n_local))

    @property
    def middle_distance(self) -> int:
        """How far away a middle token that came back seems."""
        return self.n_local // 2 if self.top_k_distance is None else self.top_k_distance

    def for_layer(self, layer: int) -> LMInfinite:
        """The setting of one layer: below top_k_from_layer no middle token comes back."""
        return replace(self, top_k=0) if self.top_k and layer < self.top_k_from_layer else self

    def reaching(self, n_queries: int) -> int:
        """How many of the last of n_queries reach back to the middle."""
        if not self.top_k:
            return 0
        return n_queries if self.top_k_queries == "all" else min(1, n_queries)


FULL_ATTENTION = LMInfinite(n_local=None, n_global=0, distance_ceiling=None)
"""What `lm=None` means: the vanilla model."""

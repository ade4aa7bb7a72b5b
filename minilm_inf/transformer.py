"""The spine that every family shares: embed -> blocks -> norm -> head.

It knows no family: the blocks come from models/, and ask for attention through a function of
(q, k, v) that is made here. Reading a whole text, reading it in chunks and decoding token by
token are the same lines; a decode step is a chunk of one.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from .attention import attend
from .blocks import KINDS
from .cache import Cache
from .checks import (
    LAST_POSITION,
    are_integers,
    check_lm,
    check_reaching,
    check_tokens,
    padding_of,
)
from .chunked import ChunkedAttention
from .config import FULL_ATTENTION, LMInfinite, ModelConfig, require_integer
from .decoding import OneToken, has_fixed_shape, sees_all
from .files import shown
from .keys import cap_for, starting_keys, window_keys
from .middle import Middle, Reach
from .sight import as_tensor, cut, starting_run


class Transformer(nn.Module):
    """A decoder-only language model.

    scheme: Rotary or Alibi.
    blocks: modules that map (x, attention) to x, (B, T, E) -> (B, T, E).
    norm, head: modules for (B, T, E) -> (B, T, E) and (B, T, E) -> (B, T, V).
    """

    def __init__(self, config: ModelConfig, scheme, blocks: list[nn.Module], norm, head):
        super().__init__()
        self.config = config
        self.scheme = scheme
        numbers = torch.empty(config.vocab_size, config.n_embd)
        if not numbers.is_meta:  # there, drawing would import the compiler: a second, 74 MB
            nn.init.normal_(numbers)
        self.embed = nn.Embedding.from_pretrained(numbers, freeze=False)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.head = head
        if config.tied:
            self.head.weight = self.embed.weight

    def forward(
        self,
        tokens: Tensor,
        lm: LMInfinite | None = None,
        cache: Cache | None = None,
        path: str = "chunked",
        lengths: list[int] | None = None,
        n_reaching: int | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the token that follows each of tokens (B, T).

        lm:      how to look back; None is the vanilla model.
        cache:   from new_cache; the tokens continue where it ends, and it is extended by them.
                 It carries no gradients.
        path:    "chunked", or "reference" for the definition (which keeps no cache).
        lengths: how many of each row's tokens, its last ones, are text; those before them are
                 padding, which nobody sees, and whose own logits mean nothing. A row's
                 positions, and its first n_global tokens, are counted from its first token of
                 text. A cache must still be empty, or made for such rows by new_cache.
        n_reaching: with lm.top_k, how many of the last tokens reach back to the middle; None is
                 what lm.top_k_queries says: the last one, or all.

        Raises ValueError for tokens of a wrong shape or out of range, for lengths that do not
        fit, for a cache of another lm or batch, or in which an earlier call was interrupted,
        and for an unknown path.
        """
        hidden = self.read(tokens, lm, cache, path, lengths, n_reaching)
        with nullcontext() if cache is None else cache.changing():
            return self.head(hidden)

    def read(
        self, tokens, lm=None, cache=None, path="chunked", lengths=None, n_reaching=None
    ) -> Tensor:
        """forward without the head: hidden states (B, T, E), for who needs few logits."""
        self._check(tokens, lm, cache, path, n_reaching)
        padding = padding_of(tokens, lengths)
        try:
            x = self.embed(tokens)  # (B, T, E)
        except IndexError as error:  # on the CPU; a GPU does not tell
            low, high = (int(x) for x in tokens.aminmax())
            raise ValueError(
                f"token {low if low < 0 else high} is out of range: the vocabulary has the "
                f"ids 0 to {self.config.vocab_size - 1}"
            ) from error
        if padding is not None and cache is not None:
            cache.pad(padding)
            padding = None
        if n_reaching is None:
            n_reaching = (lm or FULL_ATTENTION).reaching(x.shape[1])
        with nullcontext() if cache is None else cache.changing():
            return self._through_blocks(x, lm, cache, path, padding, n_reaching)

    def _through_blocks(self, x, lm, cache, path, padding, n_reaching) -> Tensor:
        """From embeddings (B, T, E) to normed hidden states (B, T, E)."""
        n_new = x.shape[1]
        one = cache is not None and n_new == 1 and not cache.lm.top_k
        if one and has_fixed_shape(cache) and sees_all(cache):
            cache.settle()
            position = torch.full((), cache.length, device=x.device)
            layers = self._step(OneToken(cache, self.scheme, position, masked=False))
        else:
            layers = self._attention(x, lm or FULL_ATTENTION, cache, path, padding, n_reaching)
        for block, attention in zip(self.blocks, layers):
            x = block(x, attention)
        if cache is not None:
            cache.count(n_new)
        return self.norm(x)

    def prefill(
        self, tokens: Tensor, lm, cache: Cache, chunk: int, enough=lambda: False
    ) -> Tensor | None:
        """read in chunks of at most `chunk` tokens; the hidden states of the last of them.

        Where lm lets the last token of a prompt reach back, that is the last of all. `enough()`
        is asked between chunks: where it is true the rest is left unread, and None returned.
        """
        if tokens.shape[1] <= chunk:
            return self.read(tokens, lm, cache)
        reaching = None if lm is None or lm.top_k_queries == "all" else 0
        chunks = tokens.split(chunk, 1)
        for piece in chunks[:-1]:
            self.read(piece, lm, cache, n_reaching=reaching)
            if enough():
                return None
        return self.read(chunks[-1], lm, cache)

    def decode(self, tokens: Tensor, cache: Cache, position: Tensor, rings=None) -> Tensor:
        """Logits (B, V) behind one more token of each row (B, 1): what can be compiled.

        position: (), how many tokens the cache has read, on the model's device. The caller
        sees to decoding.has_fixed_shape and cache.settle before, and to cache.count after.
        rings: cache.rings(), for a caller who hands them over as tensors of their own.
        """
        x = self.embed(tokens)
        layers = self._step(OneToken(cache, self.scheme, position, masked=True, rings=rings))
        for block, attention in zip(self.blocks, layers):
            x = block(x, attention)
        return self.head(self.norm(x))[:, -1]

    def _step(self, one: OneToken):
        """For each layer, a function of unplaced q (B, H, 1, D) and k, v (B, H_kv, 1, D)."""
        scale = self.config.softmax_scale
        for layer in range(len(self.blocks)):
            yield lambda q, k, v, layer=layer: one(layer, q, k, v, scale)

    def new_cache(
        self,
        batch: int = 1,
        lm: LMInfinite | None = None,
        first_position: int = 0,
        padding: list[int] | None = None,
        middle: str = "ram",
    ):
        """An empty cache for `batch` texts, on the model's device and in its dtype.

        padding: how many tokens of padding each row begins with, where the rows are then read
        in chunks; a call that reads them whole says it by its lengths.
        middle: where the whole past is kept, if lm has a top_k: "ram", or "disk".
        Raises ValueError for anything else, and for a first_position beyond 2^53.
        """
        check_lm(lm)
        require_integer("batch", batch, at_least=1)
        require_integer("first_position", first_position, at_least=0, bits=53)
        if middle not in KINDS:
            raise ValueError(f'middle must be "ram" or "disk", not {shown(middle)}')
        if padding is not None and not are_integers(padding, batch, 0, LAST_POSITION):
            raise ValueError(
                f"padding must be {batch} whole numbers from 0 on, not {shown(padding)}"
            )
        weight = self.embed.weight
        self.scheme.settle(weight.device, self.config.head_dim)
        cache = Cache(
            self.config, batch, lm, weight.dtype, weight.device, first_position, middle
        )
        if padding is not None:
            cache.pad(torch.tensor(padding, device="cpu"))
        return cache

    def _attention(
        self, x: Tensor, lm: LMInfinite, cache: Cache | None, path: str, padding, n_reaching
    ):
        """For each layer, a function of unplaced q (B, H, T, D) and k, v (B, H_kv, T, D)."""
        scheme, scale = self.scheme, self.config.softmax_scale
        positions = torch.arange(x.shape[1], device="cpu")
        if padding is not None:
            positions = positions - padding[:, None]  # (B, T), negative where there is padding
        if path == "reference":
            positions = positions.to(x.device)
            for layer in range(len(self.blocks)):
                here = (positions, positions, scheme, lm.for_layer(layer), scale, n_reaching)
                yield lambda q, k, v, here=here: attend(q, k, v, *here)
            return

        if cache is None:
            window_positions = positions
            starting_positions, pick = starting_run(positions, lm)
            places = positions
        else:
            places = cache.places(x.shape[1])
            positions, window_positions, starting_positions = cache.positions(
                x.shape[1], by_slot=scheme.has_bias
            )
        heads = self.config.n_head, self.config.n_kv_head
        learns = torch.is_grad_enabled() and (
            x.requires_grad or any(p.requires_grad for p in self.parameters())
        )

        like = x.new_empty(0)

        def chunked(queries: slice, reaches: bool) -> ChunkedAttention:
            return ChunkedAttention(
                cut(positions, queries), window_positions, starting_positions, scheme, lm,
                heads, like, cut(places, queries), learns, reaches,
            )  # fmt: skip

        length = x.shape[1]
        back = slice(length - n_reaching, length)
        every = chunked(slice(0, length), reaches=n_reaching == length)
        last = chunked(back, reaches=True) if 0 < n_reaching < length else every

        def reach(layer: int, k: Tensor, v: Tensor) -> Reach | None:
            if cache is not None:
                return cache.reach(layer, scheme, length, n_reaching)
            here = lm.for_layer(layer)
            if not (here.top_k and n_reaching):
                return None
            asking = as_tensor(positions)[..., back]
            of_columns = as_tensor(positions)
            return Reach(
                Middle.of(k, v), here, scheme, asking, lambda c: of_columns[..., c], length
            )

        cap = cap_for(scheme, lm, x)
        del x  # or the embedding's output would stay in memory until the last layer
        for layer in range(len(self.blocks)):

            def attention(q, k, v, layer=layer):
                placed = every.place(k)
                if cache is None:
                    window = window_keys(placed, k, v, scheme, lm)
                    starting = starting_keys(pick(k), pick(v), starting_positions, scheme, lm)
                else:
                    window, starting = cache.layers[layer].extend(
                        placed, k, v, cap, in_order=isinstance(positions, Tensor)
                    )
                far = reach(layer, k, v)
                if far is None or last is every:
                    return every(q, window, starting, scale, reach=far)
                near = every(q, window, starting, scale)[:, :, : back.start]
                return torch.cat(
                    (near, last(q[:, :, back], window, starting, scale, reach=far)), 2
                )

            yield attention

    def _check(self, tokens, lm, cache, path, n_reaching):
        check_lm(lm)
        if path not in ("chunked", "reference"):
            raise ValueError(f'path must be "chunked" or "reference", not {shown(path)}')
        check_tokens(tokens, self.embed.weight.device)
        check_reaching(n_reaching, tokens.shape[1])
        if cache is None:
            return
        if path == "reference":
            raise ValueError(
                "the reference path keeps no cache: give it the whole text each time"
            )
        if not isinstance(cache, Cache):
            raise ValueError(f"cache must come from new_cache, not be {shown(cache)}")
        if cache.config != self.config:
            raise ValueError("this cache was made for another model")
        if cache.first_position + cache.length + tokens.shape[1] > LAST_POSITION:
            raise ValueError(
                "the text would reach positions beyond 2^53: make a cache whose first_position "
                "is smaller"
            )
        if cache.lm != (lm or FULL_ATTENTION):
            raise ValueError(
                f"this cache was made for {cache.lm}, not for {lm or FULL_ATTENTION}"
            )
        if cache.batch != tokens.shape[0]:
            raise ValueError(
                f"this cache was made for {cache.batch} texts, not for {tokens.shape[0]}"
            )

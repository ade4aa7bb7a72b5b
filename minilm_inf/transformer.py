"""The spine that every family shares: embed -> blocks -> norm -> head.

It knows no family: the blocks come from models/, and ask for attention by calling a function of
(q, k, v). Reading a whole text, reading it in chunks and decoding token by token are the same
lines; a decode step is a chunk of one.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from .attention import attend
from .config import FULL_ATTENTION, LMInfinite, ModelConfig
from .fast.cache import Cache
from .fast.chunked import chunked_attend
from .fast.reading import Reading, next_token
from .terminal.blocks import KINDS
from .terminal.checks import check_call, check_new_cache, embedded, padding_of

PATHS = {"reference": attend, "chunked": chunked_attend}


class Transformer(nn.Module):
    """A decoder-only language model.

    scheme: Rotary or Alibi.
    blocks: modules that map (x, attention) to x, (B, T, E) -> (B, T, E).
    norm, head: modules for (B, T, E) -> (B, T, E) and (B, T, E) -> (B, T, V).
    """

    def __init__(self, config: ModelConfig, scheme, blocks: list[nn.Module], norm, head):
        super().__init__()
        self.config, self.scheme = config, scheme
        numbers = torch.empty(config.vocab_size, config.n_embd)
        if not numbers.is_meta:  # there, drawing would import the compiler: a second, 74 MB
            nn.init.normal_(numbers)
        self.embed = nn.Embedding.from_pretrained(numbers, freeze=False)
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = norm, head
        if config.tied:
            self.head.weight = self.embed.weight

    def forward(
        self, tokens: Tensor, lm: LMInfinite | None = None, cache: Cache | None = None,
        path: str = "chunked", lengths: list[int] | None = None, n_reaching: int | None = None,
    ) -> Tensor:  # fmt: skip
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
        if cache is None:
            return self.head(hidden)
        with cache.changing():
            return self.head(hidden)

    def read(
        self, tokens, lm=None, cache=None, path="chunked", lengths=None, n_reaching=None
    ) -> Tensor:
        """forward without the head: hidden states (B, T, E), where few logits are needed."""
        check_call(tokens, self, lm, cache, path, PATHS, n_reaching)
        lm = lm or FULL_ATTENTION
        padding = padding_of(tokens, lengths)
        x = embedded(tokens, self.embed)  # (B, T, E)
        if lm.top_k and n_reaching is None:
            n_reaching = lm.reaching(x.shape[1])
        if cache is None:
            positions = torch.arange(x.shape[1])
            if padding is not None:
                positions = positions - padding[:, None]  # (B, T), negative before a text
            how = PATHS[path], positions, lm, n_reaching
            return self.through(x, partial(self.attention_of_a_text, *how))
        if padding is not None:
            cache.pad(padding.tolist())
        with torch.no_grad(), cache.changing():
            now = Reading(cache, self.config, self.scheme, x.shape[1], n_reaching or 0, x)
            x = self.through(x, now)
            cache.length += tokens.shape[1]
        return x

    def through(self, x: Tensor, attention) -> Tensor:
        """Blocks and norm, (B, T, E) -> (B, T, E). attention(layer, q, k, v): what the unplaced
        queries (B, H, T, D) of a layer gather from its keys and values."""
        for layer, block in enumerate(self.blocks):
            x = block(x, partial(attention, layer))
        return self.norm(x)

    def attention_of_a_text(self, path, positions, lm, n_reaching, layer, q, k, v) -> Tensor:
        """Within a text that is there whole, by the definition or in O(n)."""
        return path(
            q, k, v, positions, positions, self.scheme, lm.for_layer(layer),
            self.config.softmax_scale, n_reaching,
        )  # fmt: skip

    def prefill(self, tokens, lm, cache: Cache, chunk: int, show=lambda done: None) -> Tensor:
        """read in chunks of at most `chunk` tokens; the hidden states of the last. `show` is
        told how many are done, after each of the others."""
        chunks = tokens.split(chunk, 1)
        # If of a prompt the last token alone reaches back, that is the last of all.
        reaching = 0 if lm and lm.top_k and lm.top_k_queries == "last" else None
        for piece in chunks[:-1]:
            self.read(piece, lm, cache, n_reaching=reaching)
            show(cache.length)
        return self.read(chunks[-1], lm, cache)

    def decode(self, tokens: Tensor, cache: Cache, position: Tensor) -> Tensor:
        """Logits (B, V) that follow one more token of each row (B, 1), in operations that do
        not depend on where the token stands, so that they can be recorded and run again.

        position: (), how many tokens the cache has read, on the model's device. The caller
        sees to reading.starting_tokens_are_read and cache.settle before, and counts the token
        after.
        """
        x = self.embed(tokens)
        one = next_token(cache, self.scheme, position, self.config.softmax_scale, x)
        return self.head(self.through(x, one))[:, -1]

    def new_cache(
        self, batch: int = 1, lm: LMInfinite | None = None, first_position: int = 0,
        padding: list[int] | None = None, middle: str = "ram",
    ) -> Cache:  # fmt: skip
        """An empty cache for `batch` texts, on the model's device and in its dtype.

        padding: how many tokens of padding each row begins with, where the rows are then read
        in chunks; a call that reads them whole says it by its lengths.
        middle: where the whole past is kept, if lm has a top_k: "ram", or "disk".
        Raises ValueError for anything else, and for a first_position beyond 2^53.
        """
        check_new_cache(batch, lm, first_position, padding, middle, KINDS)
        where = self.embed.weight.dtype, self.embed.weight.device
        self.scheme.settle(where[1], self.config.head_dim)
        return Cache(self.config, batch, lm, *where, first_position, middle, padding)

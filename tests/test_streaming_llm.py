"""StreamingLLM against the loop that its paper describes: each token re-places all the keys."""

import pytest
import torch
from conftest import FAMILIES, some_tokens, tiny_model

from minilm_inf.evaluate.streaming_llm import StreamingLLM


class SlowCache:
    """The specification (arXiv 2309.17453, section 3.2): a list of unplaced keys and values for
    each layer. For every token its key is appended; if there are too many, the oldest after the
    starting ones is thrown away; then every key is placed at its rank, the query at the last
    one."""

    def __init__(self, model, n_local: int, n_global: int):
        self.model, self.n_local, self.n_global = model, n_local, n_global
        self.layers = [[] for _ in model.blocks]

    def read_one(self, id: int) -> torch.Tensor:
        """Hidden state (E,) after one more token."""
        x = self.model.embed(torch.tensor([[id]]))
        for kept, block in zip(self.layers, self.model.blocks):
            x = block(x, lambda q, k, v, kept=kept: self.attend(kept, q, k, v))
        return self.model.norm(x)[0, 0]

    def attend(self, kept: list, q, k, v):
        kept.append((k, v))
        if len(kept) > self.n_global + self.n_local:
            del kept[self.n_global]
        scheme, last = self.model.scheme, len(kept) - 1
        scale = self.model.config.softmax_scale or q.shape[-1] ** -0.5
        group = q.shape[1] // k.shape[1]
        placed_q = scheme.place(q, torch.tensor([last]))
        out = torch.empty_like(q)
        for head in range(q.shape[1]):
            logits = []
            for rank, (key, _) in enumerate(kept):
                key = scheme.place(key, torch.tensor([rank]))[0, head // group, 0]
                bias = scheme.bias(torch.tensor([[last - rank]]))
                bias = float(bias[head, 0, 0] if bias.dim() else bias)
                logits.append(float(placed_q[0, head, 0] @ key) * scale + bias)
            weights = torch.tensor(logits, dtype=q.dtype).softmax(0)
            out[0, head, 0] = sum(
                w * value[0, head // group, 0] for w, (_, value) in zip(weights, kept)
            )
        return out


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n_local, n_global", [(5, 2), (1, 3), (4, 0), (6, 30)], ids=str)
def test_it_is_the_cache_of_the_paper(family, n_local, n_global):
    """A starting token at the ceiling, or at its distance in the text; a window that is moved
    by one; a query whose own key is not counted; a head that reads its neighbour's keys."""
    more = dict(n_head=6, n_kv_head=2, n_embd=48) if family == "llama" else {}
    model, tokens = tiny_model(family, **more), some_tokens(23)
    cache = SlowCache(model, n_local, n_global)
    expected = torch.stack([cache.read_one(id) for id in tokens[0].tolist()])
    for sizes in ([23], [1] * 23, [5, 1, 9, 2, 6]):
        past = StreamingLLM(model, n_local, n_global)
        found = torch.cat([past.read(piece) for piece in tokens.split(sizes, 1)], 1)[0]
        assert (found - expected).abs().max() < 1e-10, sizes


def test_what_is_kept_does_not_grow():
    """A cache that holds views of all it ever read, or one key more than it may."""
    model = tiny_model("llama", dtype=torch.float32)
    past = StreamingLLM(model, n_local=5, n_global=2)
    of_a_key = 2 * model.config.n_kv_head * model.config.head_dim * 4 * model.config.n_layer
    for length, read in ((3, 3), (6, 3), (7, 1), (40, 33), (41, 1)):
        past.read(some_tokens(read))
        kept = sum(x.untyped_storage().nbytes() for x in past.kept)
        assert kept == min(length, 5 + 2) * of_a_key

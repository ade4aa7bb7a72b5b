"""explain.py: what the last token saw, held to what changes its logits."""

import json
import re

import pytest
import torch
from conftest import FAMILIES, SETTINGS, fuzz, some_tokens, tiny_model

from minilm_inf.config import LMInfinite
from minilm_inf.generate import main as generate
from minilm_inf.writing.explain import explain
from minilm_inf.writing.session import Session


def logits_of(model, lm, x, path="reference"):
    """The last token's logits for embeddings x (1, T, E) instead of tokens."""
    tokens = torch.zeros(x.shape[:2], dtype=torch.long)
    hook = model.embed.register_forward_hook(lambda *_: x)
    try:
        return model(tokens, lm, path=path)[0, -1]
    finally:
        hook.remove()


DRAWS = [{"n": 23, "lm": lm} for lm in SETTINGS.values()]
DRAWS += [
    {"n": draw["n"], "lm": LMInfinite(draw["l"], draw["g"], draw["l"], draw["k"])}
    for draw in fuzz(8, 8, n=[1, 6, 17, 30], l=[1, 4, 7], g=[0, 2, 9], k=[1, 3, 40])
]


@pytest.mark.parametrize("number", range(len(DRAWS)))
def test_what_is_explained_is_what_matters(number):
    """Catches a span that is one token too long or too short, and a middle token that is not
    named: each token is moved a little, and the logits move where it was seen, only there."""
    lm, n = DRAWS[number]["lm"], DRAWS[number]["n"]
    model = tiny_model(list(FAMILIES)[number % 3], n_layer=1)
    # No token occurs twice: where two tie, moving one of them decides which comes back.
    ids = torch.randperm(31, generator=torch.Generator().manual_seed(n))[:n].tolist()
    session = Session(model, lm, prefill_chunk=5)
    session.read(ids)
    seen = [j for span in explain(session) for j in range(span.first, span.last + 1)]
    x = model.embed(torch.tensor([ids]))
    right, moved = logits_of(model, lm, x), []
    for j in range(n):
        nudged = x.clone()
        nudged[0, j] += 1e-4 * torch.randn(x.shape[-1], dtype=x.dtype)
        if (logits_of(model, lm, nudged) - right).abs().max() > 1e-9:
            moved.append(j)
    assert sorted(seen) == moved and len(set(seen)) == len(seen)


def test_kinds_and_distances():
    """Catches a distance beyond the ceiling, and one that forgets it."""
    model = tiny_model("llama")
    for lm, starting, window in (
        (SETTINGS["LM-Infinite"], (6, 6), (0, 5)),
        (SETTINGS["Λ without ceiling"], (18, 19), (0, 5)),
        (SETTINGS["ceiling below the window"], (3, 3), (0, 3)),
        (SETTINGS["ceiling beyond the window"], (9, 9), (0, 5)),
    ):
        session = Session(model, lm)
        with pytest.raises(ValueError, match="nothing was read"):
            explain(session)
        session.read([1] * 20)
        assert explain(session) == [
            ("starting", 0, 1, *starting, ()), ("window", 14, 19, *window, ()),
        ]  # fmt: skip


def test_heads_and_layers_of_the_middle():
    """Catches heads of another layer or row, and a layer below the first that is named."""
    model = tiny_model("llama", n_layer=3)
    lm = LMInfinite(5, 2, 5, top_k=2, top_k_distance=3, top_k_from_layer=1)
    session = Session(model, lm)
    session.read(some_tokens(30)[0].tolist())
    spans = [span for span in explain(session) if span.kind == "middle"]
    assert {span.nearest for span in spans} == {3} == {span.farthest for span in spans}
    for layer in (1, 2):
        found = session.cache.layers[layer].middle.last
        for head in range(4):
            tokens = [span.first for span in spans if (layer, head) in span.by]
            assert tokens == found.columns[0, head, 0].tolist() and len(tokens) == 2
    assert {layer for span in spans for layer, _ in span.by} == {1, 2}


def test_the_program_explains(program):
    """Catches an explanation of the prompt instead of the last token, in text and in JSON; one
    that is made up, or left out in silence."""
    arguments = ["--n-local", "20", "--n-global", "3", "--top-k-middle", "1", "-n", "7"]
    arguments += ["-t", "0", "-q", "--device", "cpu", "--explain", "-p", "once " * 60]
    found = json.loads(program(generate, *arguments, "--json")[1])
    last = found["tokens"] - 2  # the last token that was read: what follows it was not
    spans = found["explain"]
    assert spans[0] == {"as": "starting", "first": 0, "last": 2, "nearest": 20, "farthest": 20}
    assert spans[-1] == {
        "as": "window", "first": last - 19, "last": last, "nearest": 0, "farthest": 19,
    }  # fmt: skip
    assert all(span["nearest"] == 10 and span["by"] for span in spans[1:-1]) and spans[1:-1]
    out = program(generate, *arguments)[1]
    assert re.search(r"^0 to 2 +starting +at 20 +'once", out, re.M)
    assert re.search(rf"^{last - 19} to {last} +window +at 0 to 19 ", out, re.M)
    assert re.search(r"^\d+ +middle +at 10 .*layer \d+ head \d", out, re.M)
    for flags, words in ((["-p", "b"], "one text at a time"), (["-i"], "--interactive")):
        code, _, err = program(generate, "--explain", "-p", "a", *flags)
        assert code == 2 and words in err

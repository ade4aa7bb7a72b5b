"""explain.py: what the last token saw, held to what changes its logits."""

import json
import re

import pytest
import torch
from conftest import FAMILIES, SETTINGS, fuzz, tiny_model

from minilm_inf.config import LMInfinite
from minilm_inf.generate import main as generate
from minilm_inf.writing.explain import explain
from minilm_inf.writing.session import Session


def logits_of(model, lm, x):
    """The last token's logits for embeddings x (1, T, E) instead of tokens."""
    tokens = torch.zeros(x.shape[:2], dtype=torch.long)
    hook = model.embed.register_forward_hook(lambda *_: x)
    try:
        return model(tokens, lm, path="reference")[0, -1]
    finally:
        hook.remove()


DRAWS = [{"n": 23, "lm": lm} for lm in SETTINGS.values()]
DRAWS += [
    {"n": draw["n"], "lm": LMInfinite(draw["l"], draw["g"], draw["l"], draw["k"])}
    for draw in fuzz(8, 6, n=[1, 6, 17, 30], l=[1, 4, 7], g=[0, 2, 9], k=[1, 3, 40])
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
    assert seen == moved


def test_kinds_and_distances():
    """Catches a distance beyond the ceiling, and one that forgets it; a middle that lower
    layers, which do not reach back, would have brought."""
    model = tiny_model("llama")
    for lm, starting, window in (
        (SETTINGS["LM-Infinite"], (6, 6), (0, 5)),
        (SETTINGS["Λ without ceiling"], (18, 19), (0, 5)),
        (SETTINGS["ceiling below the window"], (3, 3), (0, 3)),
        (SETTINGS["ceiling beyond the window"], (9, 9), (0, 5)),
        (LMInfinite(6, 2, 6, top_k=2, top_k_from_layer=2), (6, 6), (0, 5)),
    ):
        session = Session(model, lm)
        with pytest.raises(ValueError, match="nothing has been read yet"):
            explain(session)
        session.read([1] * 20)
        found = explain(session)
        assert found == [("starting", 0, 1, *starting), ("window", 14, 19, *window)]


def test_the_program_explains(program):
    """Catches an explanation of the prompt instead of the last token, in text and in JSON; one
    that counts other tokens than the statistics do."""
    arguments = ["--n-local", "20", "--n-global", "3", "--top-k-middle", "1", "-n", "7"]
    arguments += ["-t", "0", "--device", "cpu", "--explain", "-p", "once " * 60]
    found = json.loads(program(generate, *arguments, "--json")[1])
    last = found["tokens"] - 2  # the last token that was read: what follows it was not
    first, *middle, window = (tuple(span.values()) for span in found["explain"])
    assert first == ("starting", 0, 2, 20, 20)
    assert window == ("window", last - 19, last, 0, 19)
    assert middle and {(kind, near, far) for kind, *_, near, far in middle} == {
        ("middle", 10, 10)
    }
    _, out, err = program(generate, *arguments)
    assert f" of {last + 1} tokens" in err
    assert re.search(r"^0 to 2 +starting +at 20 +'once", out, re.M)
    assert re.search(rf"^{last - 19} to {last} +window +at 0 to 19 ", out, re.M)
    assert re.search(r"^\d+ +middle +at 10 +'once once once", out, re.M)

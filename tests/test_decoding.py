"""fast/reading.py: one token at a time in shapes that never change, as one graph."""

import pytest
import torch
from conftest import FAMILIES, SETTINGS, some_tokens, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from minilm_inf.config import LMInfinite
from minilm_inf.fast.reading import some_is_hidden, starting_tokens_are_read

N = 30
FIXED = (
    "LM-Infinite", "sliding window", "Λ without ceiling", "more starting than local",
    "a window of one",
)  # fmt: skip


def step(model, cache, tokens, decode=None):
    """Logits that follow one more token of each row, in the fixed shape."""
    cache.settle()
    logits = (decode or model.decode)(
        tokens, cache, torch.tensor(cache.length, device=tokens.device)
    )
    cache.length += 1
    return logits


@pytest.mark.parametrize("setting", FIXED)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_the_definition_at_every_length(family, setting):
    """Catches an empty slot that is seen, a starting key seen twice, a slot one off."""
    lm, tokens = SETTINGS[setting], some_tokens(N, batch=2)
    for dtype, allowed in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = tiny_model(family, dtype=dtype)
        right, taken = model(tokens, lm, path="reference"), 0
        cache = model.new_cache(2, lm)
        for i in range(N):
            here = tokens[:, i : i + 1]
            if starting_tokens_are_read(cache):
                logits, taken = step(model, cache, here), taken + 1
            else:
                logits = model(here, lm, cache=cache)[:, -1]
            assert (logits - right[:, i]).abs().max() <= allowed, i
        assert taken == N - lm.n_global


@pytest.mark.parametrize("setting", FIXED)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_different_lengths(family, setting):
    """Catches padding that a step sees, or one row's starting keys past another's window."""
    lm, lengths = SETTINGS[setting], [12, 7, 12]
    model, tokens = tiny_model(family), some_tokens(12 + N, batch=3)
    cache = model.new_cache(3, lm)
    model(tokens[:, :12], lm, cache=cache, lengths=lengths)
    for i in range(12, 12 + N):
        here = tokens[:, i : i + 1]
        fixed = starting_tokens_are_read(cache)
        logits = step(model, cache, here) if fixed else model(here, lm, cache=cache)[:, -1]
        for row, length in enumerate(lengths):
            alone = tokens[row : row + 1, 12 - length : i + 1]
            right = model(alone, lm, path="reference")[0, -1]
            assert (logits[row] - right).abs().max() <= 1e-10, (i, row)


def test_a_step_without_masks_waits_until_all_is_seen():
    """Catches the shorter step taken while a starting key is still in the window."""
    model, lm, masked = tiny_model("llama"), LMInfinite(6, 3, 6), []
    for n in range(3, 20):
        cache = model.new_cache(1, lm)
        model(some_tokens(n), lm, cache=cache)
        masked.append(some_is_hidden(cache))
    assert masked == [6 <= n < 6 + 3 - 1 for n in range(3, 20)]


class Operations(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_never_waits_for_the_device(family):
    """Catches a number read back in the loop, for which a GPU would stand still."""
    lm, tokens = SETTINGS["LM-Infinite"], some_tokens(N)
    model = tiny_model(family, dtype=torch.float32)
    cache = model.new_cache(1, lm)
    model(tokens, lm, cache=cache)
    position = torch.tensor(cache.length)
    cache.settle()
    with Operations() as found:
        model.decode(tokens[:, :1], cache, position)
    waiting = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::item"}
    assert "aten::index_copy_" in found.names and not found.names & waiting
    with Operations() as found:
        tokens[0, 0].item()
    assert found.names & waiting, "what this test must be able to notice"


@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_it_stays_on_the_models_device(family):
    """Catches a mask, an angle or a position left on the CPU: "meta" stands in for a GPU."""
    model, tokens = (
        tiny_model(family, dtype=torch.float32).to("meta"),
        some_tokens(N).to("meta"),
    )
    for lm in (None, *SETTINGS.values()):
        cache = model.new_cache(1, lm)
        for logits in (
            model(tokens, lm),
            model(tokens, lm, cache=cache),
            model(tokens[:, :7], lm, cache=cache),
            model(tokens[:, :1], lm, cache=cache),
        ):
            assert logits.device.type == "meta" and logits.dtype == torch.float32
        if lm and lm.n_local and lm.distance_ceiling in (None, lm.n_local):
            assert step(model, cache, tokens[:, :1]).device.type == "meta"


@pytest.mark.parametrize("family", FAMILIES)
def test_one_graph_serves_every_step(family):
    """Catches a graph break, and a recompilation whenever the position or the ring moves on."""
    torch._dynamo.reset()
    lm, tokens = SETTINGS["LM-Infinite"], some_tokens(N)
    model = tiny_model(family, dtype=torch.float32)
    right = model(tokens, lm, path="reference")
    decode = torch.compile(model.decode, fullgraph=True, dynamic=False, backend="eager")
    cache = model.new_cache(1, lm)
    with torch.inference_mode(), torch._dynamo.config.patch(error_on_recompile=True):
        model(tokens[:, :4], lm, cache=cache)
        for i in range(4, N):
            logits = step(model, cache, tokens[:, i : i + 1], decode)
            assert (logits - right[:, i]).abs().max() <= 1e-5
    torch._dynamo.reset()

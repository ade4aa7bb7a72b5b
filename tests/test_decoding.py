"""fast/reading.py: one token at a time in shapes that never change, as one graph."""

import pytest
import torch
from conftest import SETTINGS, some_tokens, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from minilm_inf.config import LMInfinite
from minilm_inf.fast.reading import some_is_hidden

LM = SETTINGS["LM-Infinite"]
N = 30


@pytest.mark.parametrize("padding, first", [([0], 9), ([0, 4], 13)])
def test_a_step_without_masks_waits_until_all_is_seen(padding, first):
    """Catches the shorter step taken while a starting key is still in the window, and rows of
    different lengths that cost a mask in every step, for ever."""
    model, lm = tiny_model("llama"), LMInfinite(6, 3, 6)
    cache, needs_mask = model.new_cache(len(padding), lm, padding=padding), []
    for token in some_tokens(20, batch=len(padding)).split(1, 1):
        model(token, lm, cache=cache)
        needs_mask.append(some_is_hidden(cache))
    right = [n + 1 < first and (n >= 6 or padding[-1] > 0) for n in range(1, 21)]
    assert needs_mask == right


class Operations(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


@pytest.fixture(params=["llama", "mpt"])  # which turns keys, and which biases logits
def model(request):
    return tiny_model(request.param, dtype=torch.float32)


def test_a_step_never_waits_for_the_device(model):
    """Catches a number read back in the loop, for which a GPU would stand still."""
    tokens, cache = some_tokens(N), model.new_cache(1, LM)
    model(tokens, LM, cache=cache)
    position = torch.tensor(cache.length)
    cache.settle()
    with Operations() as found:
        model.decode(tokens[:, :1], cache, position)
    waiting = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::item"}
    assert "aten::index_copy_" in found.names and not found.names & waiting
    with Operations() as found:
        tokens[0, 0].item()
    assert found.names & waiting, "what this test must be able to notice"


@pytest.mark.parametrize("setting", [None, "LM-Infinite", "ceiling below the window"])
def test_all_of_it_stays_on_the_models_device(model, setting):
    """Catches a mask, an angle or a position left on the CPU: "meta" stands in for a GPU."""
    model, tokens, lm = model.to("meta"), some_tokens(N).to("meta"), SETTINGS.get(setting)
    cache = model.new_cache(1, lm)
    for logits in (
        model(tokens, lm),
        model(tokens, lm, cache=cache),
        model(tokens[:, :7], lm, cache=cache),
        model(tokens[:, :1], lm, cache=cache),
    ):
        assert logits.device.type == "meta" and logits.dtype == torch.float32
    if setting == "LM-Infinite":
        cache.settle()
        logits = model.decode(tokens[:, :1], cache, torch.tensor(cache.length).to("meta"))
        assert logits.device.type == "meta"


def test_one_graph_serves_every_step(model):
    """Catches a graph break, and a recompilation whenever the position or the ring moves on."""
    torch._dynamo.reset()
    tokens = some_tokens(N)
    right = model(tokens, LM, path="reference")
    decode = torch.compile(model.decode, fullgraph=True, dynamic=False, backend="eager")
    cache = model.new_cache(1, LM)
    with torch.inference_mode(), torch._dynamo.config.patch(error_on_recompile=True):
        model(tokens[:, :4], LM, cache=cache)
        cache.settle()
        for i in range(4, N):
            logits = decode(tokens[:, i : i + 1], cache, torch.tensor(cache.length))
            cache.length += 1
            assert (logits - right[:, i]).abs().max() <= 1e-5
    torch._dynamo.reset()

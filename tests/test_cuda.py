"""The same code on a GPU: every path against its own numbers on the CPU. Where there is no GPU,
what can be said without one is in test_chunked.py and test_decoding.py."""

from dataclasses import replace

import pytest
import torch
from conftest import (
    FAMILIES,
    SCHEMES,
    SETTINGS,
    read_in_chunks,
    some_tokens,
    tiny_model,
    vectors,
)

from minilm_inf import attend, chunked_attend
from minilm_inf.config import LMInfinite
from minilm_inf.positions import Rotary
from minilm_inf.writing.session import Session, generate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
ALLOWED = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_both_paths_are_the_definition(scheme, setting, dtype):
    """Catches a mask, an angle or a key that stays on the CPU, and a fused kernel that answers
    with something else than its name says."""
    scheme, lm, positions = SCHEMES[scheme], SETTINGS[setting], torch.arange(45)
    q, k, v = vectors(45, dtype=torch.float64)
    right = attend(*(x.to(dtype).double() for x in (q, k, v)), positions, positions, scheme, lm)
    for path in (attend, chunked_attend):
        here = [x.to("cuda", dtype) for x in (q, k, v)]
        found = path(*here, positions, positions, scheme, lm)
        assert found.is_cuda and found.dtype == dtype
        assert (found.double().cpu() - right).abs().max() <= ALLOWED[dtype], path


@pytest.mark.parametrize("head_dim", (64, 80, 128, 256))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("n", (511, 512, 513, 1500))
def test_a_long_text_in_the_sizes_of_real_models(n, dtype, head_dim):
    """Catches a fused kernel that pads a head or its sums, and an edge between blocks."""
    lm, positions = LMInfinite(256, 10, 256), torch.arange(n)
    scheme = Rotary(head_dim)
    q, k, v = vectors(n, dim=head_dim, batch=2, dtype=torch.float64)
    q, k, v = (x.to("cuda", dtype) for x in (q, k, v))
    right = attend(*(x.double() for x in (q, k, v)), positions, positions, scheme, lm)
    found = chunked_attend(q, k, v, positions, positions, scheme, lm)
    assert (found.double() - right).abs().max() <= ALLOWED[dtype]


MIDDLE = LMInfinite(6, 2, 6, top_k=3, top_k_from_layer=1)
LMS = SETTINGS | {"last": MIDDLE, "all": replace(MIDDLE, top_k_queries="all")}


@pytest.mark.parametrize("kind", ("ram", "disk"))
@pytest.mark.parametrize("setting", LMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_models_read_the_same(family, setting, kind):
    """Catches a cache, padding, a decode step or a middle that only works beside the CPU's
    memory."""
    lm, tokens, model = LMS[setting], some_tokens(40, batch=2), tiny_model(family)
    right = model(tokens, lm, path="reference")
    ragged = model(tokens, lm, path="reference", lengths=[40, 23])[1, 17:]
    model, tokens = model.to("cuda"), tokens.to("cuda")
    readings = {"reference": model(tokens, lm, path="reference"), "chunked": model(tokens, lm)}
    if setting != "last":
        sizes = [9, 1, 13, 1]
        readings["cached"] = read_in_chunks(model, tokens, lm, sizes, middle=kind)
    for name, logits in readings.items():
        assert (logits.cpu() - right).abs().max() <= 1e-10, name
    for padding, expected in (([0, 0], right[:, -1]), ([0, 17], ragged[None, -1])):
        cache = model.new_cache(2, lm, middle=kind, padding=padding)
        found = model.head(model.prefill(tokens, lm, cache, 13))[:, -1].cpu()
        assert (found[-len(expected) :] - expected).abs().max() <= 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decode_step_never_waits(family):
    """Catches a number read back in the loop, for which the GPU would stand still."""
    lm, tokens = SETTINGS["LM-Infinite"], some_tokens(30).to("cuda")
    model = tiny_model(family, dtype=torch.float32).to("cuda")
    cache = model.new_cache(1, lm)
    model(tokens, lm, cache=cache)
    cache.settle()
    position = torch.tensor(cache.length, device="cuda")
    model.decode(tokens[:, :1], cache, position)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.decode(tokens[:, :1], cache, position)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_steps_write_the_same(family):
    """Catches a compiled step that breaks, compiles again, or writes another text."""
    lm, model = LMInfinite(16, 4, 16), tiny_model(family, dtype=torch.float32).to("cuda")
    ids = some_tokens(10)[0].tolist()
    plain = list(generate(model, ids, lm, 60, temperature=0, stop_ids=()))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = list(generate(model, ids, lm, 60, temperature=0, stop_ids=(), compile=True))
    assert compiled == plain


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_memory_does_not_grow_with_the_text(dtype):
    """Catches logits of n x window or a mask of n x n: beyond inputs and output a call's peak
    is the same for a text four times as long."""
    lm, scheme, peaks = LMInfinite(1024, 10, 1024), Rotary(64), []
    for n in (16384, 65536):
        q, k, v = (torch.randn(1, 4, n, 64, device="cuda", dtype=dtype) for _ in range(3))
        positions = torch.arange(n)
        chunked_attend(q, k, v, positions, positions, scheme, lm)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = chunked_attend(q, k, v, positions, positions, scheme, lm)
        peaks.append(torch.cuda.max_memory_allocated() - before - out.nbytes)
    assert peaks[1] <= peaks[0] + 2**20, peaks
    stretch = 4 * 8192 * 64 * 4  # bytes of all heads' queries in float32
    assert peaks[0] <= 16 * stretch, peaks  # an n x window of logits: 4 * n * 1024 * 4 = 1 GiB


def test_a_session_stays_on_the_device():
    """Catches logits or ids that end up on two devices in a long text."""
    model = tiny_model("llama", dtype=torch.float32)
    lm, ids = SETTINGS["LM-Infinite"], some_tokens(50)[0].tolist()
    right = Session(model, lm, prefill_chunk=16).read(ids)
    found = Session(model.to("cuda"), lm, prefill_chunk=16).read(ids)
    assert found.device.type == "cpu" and (found - right).abs().max() <= 1e-4

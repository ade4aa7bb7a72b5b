"""What a call cannot be asked for: a ValueError of both paths, no number and no traceback."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import READINGS, ROOT, some_tokens, tiny_model, vectors

from minilm_inf import (
    Alibi,
    LMInfinite,
    ModelConfig,
    Rotary,
    attend,
    chunked_attend,
    load_model,
)

LM = LMInfinite(n_local=4, n_global=2, distance_ceiling=4)
N, D = 5, 8


def arguments(**others) -> dict:
    """Arguments that fit, but for `others`: (2, 4, 5, 8) and (2, 2, 5, 8)."""
    q, k, v = vectors(N, dtype=torch.float32)
    n = torch.arange(N)
    right = dict(q=q, k=k, v=v, q_positions=n, k_positions=n, scheme=Rotary(D), lm=LM)
    return right | others


WRONG = {  # what does not fit -> (the arguments, a word of the sentence)
    "no tensor": (dict(q=[1.0]), "tensors"),
    "whole numbers": (dict(k=torch.ones(2, 2, N, D, dtype=torch.long)), "floating-point"),
    "two dtypes": (dict(v=torch.ones(2, 2, N, D).double()), "one dtype"),
    "two devices": (dict(v=torch.ones(2, 2, N, D, device="meta")), "one device"),
    "no head": (dict(q=torch.ones(2, 0, N, D)), "head"),
    "no key head": (dict(k=torch.ones(2, 0, N, D), v=torch.ones(2, 0, N, D)), "head"),
    "no dimension": (dict(zip("qkv", torch.ones(3, 2, 2, N, 0))), "dimension"),
    "no text": (dict(zip("qkv", torch.ones(3, 0, 2, N, D))), "text"),
    "positions that are bits": (dict(q_positions=torch.ones(N) > 0), "q_positions must be"),
    "positions with a point": (dict(k_positions=torch.arange(5.0)), "k_positions must be"),
    "positions in a list": (dict(k_positions=[0, 1, 2, 3, 4]), "k_positions must be"),
    "far positions": (dict(q_positions=torch.arange(N) + 2**53 - 3), "beyond 2\\^53"),
    "far padding": (dict(k_positions=torch.arange(N) - 2**62), "beyond 2\\^53"),
    "a wide rotary": (dict(scheme=Rotary(16)), "at most 8"),
    "slopes for others": (dict(scheme=Alibi(3)), "Alibi\\(4\\)"),
    "a word for a scheme": (dict(scheme="rope"), "a Rotary, an Alibi or None"),
    "a ceiling for what is placed": (dict(scheme=None), "distance_ceiling must be None"),
    "a middle for what is placed": (dict(scheme=None, lm=LMInfinite(4, 2, top_k=1)), "top_k 0"),
    "a number for a setting": (dict(lm=5), "LMInfinite"),
    "not a number": (dict(scale=math.nan), "scale must be a finite number"),
    "infinity": (dict(scale=-math.inf), "scale must be a finite number"),
    "a scale that overflows": (dict(scale=10**400), "scale must be a finite number"),
    "a scale in words": (dict(scale="1"), "scale must be a finite number"),
    "more queries than there are": (dict(n_reaching=N + 1), "n_reaching"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("function", [attend, chunked_attend])
def test_what_does_not_fit_is_refused(function, what):
    """Catches a KeyError, numbers of another model, and a path that is laxer than the other."""
    others, word = WRONG[what]
    with pytest.raises(ValueError, match=word) as caught:
        function(**arguments(**others))
    assert "\n" not in str(caught.value)


CALLS = [
    lambda: Rotary(8.0), lambda: Rotary(True), lambda: Rotary(2**62), lambda: Rotary("8"),
    lambda: Rotary(8, theta="big"), lambda: Rotary(8, theta=math.nan),
    lambda: Rotary(8, theta=-1), lambda: Rotary(8, layout=["halves"]),
    lambda: Rotary(8, layout={(1, 2): 3}),
    lambda: Rotary(8, scaling=[1]), lambda: Rotary(8, scaling={"factor": 2.0}),
    lambda: Rotary(8, scaling={"rope_type": "linear"}),
    lambda: Rotary(8, scaling={"rope_type": "linear", "factor": 0.0}),
    lambda: Rotary(8, scaling={"rope_type": "linear", "factor": "2"}),
    lambda: Alibi(4.0), lambda: Alibi(None), lambda: Alibi(2**62), lambda: Alibi(4, "8"),
    lambda: Alibi(4, -1e5), lambda: LMInfinite("8"), lambda: LMInfinite(8, None),
    lambda: LMInfinite(8, 2, 1.5), lambda: LMInfinite(8, 2, 8, top_k_queries=[]),
    lambda: ModelConfig("llama", 31, 2, 4, 3, 32, 8, 48, 6, 1e-5, False),
    lambda: ModelConfig("llama", 31, 2, 4, 2, 32, 8, 48, 6, "1e-5", False),
    lambda: ModelConfig("llama", 31, 2, 4, 2, 32, 8, 48, 6, 1e-5, None),
    lambda: ModelConfig("llama", 31, 2, 4, 2, 32, 8, 48, 6, 1e-5, True, math.nan),
    lambda: ModelConfig("llama", 31, 2, 4, 2, 32, 8, 48, 6, 1e-5, True, None, 1.5),
    lambda: ModelConfig("llama", 31, 2, 4, 2, 32, 8, 48, 6, 1e-5, True, None, 1, ["2"]),
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=range(len(CALLS)))
def test_settings_that_are_none_are_refused(call):
    """Catches a TypeError, or a setting that fails only where it is used."""
    with pytest.raises(ValueError):
        call()


MODEL_CALLS = {
    "nothing": lambda model: model(None),
    "a list of ids": lambda model: model([[1, 2]]),
    "ids with a point": lambda model: model(torch.ones(1, 3)),
    "an id too many": lambda model: model(torch.tensor([[1, 31]])),
    "ids elsewhere": lambda model: model(torch.ones(1, 3, dtype=torch.long, device="meta")),
    "a path": lambda model: model(some_tokens(3), path=None),
    "a setting": lambda model: model(some_tokens(3), 8),
    "a cache": lambda model: model(some_tokens(3), LM, cache={}),
    "another's cache": lambda model: model(
        some_tokens(3), cache=tiny_model("gptj").new_cache()
    ),
    "lengths": lambda model: model(some_tokens(3), lengths=3),
    "a length": lambda model: model(some_tokens(3), lengths=["3"]),
    "reaching": lambda model: model(some_tokens(3), LM, n_reaching=-1),
    "a batch": lambda model: model.new_cache(0),
    "half a batch": lambda model: model.new_cache(1.5),
    "a cache's setting": lambda model: model.new_cache(1, "lambda"),
    "a place before 0": lambda model: model.new_cache(1, LM, first_position=-5),
    "a place beyond all": lambda model: model.new_cache(1, LM, first_position=2**53),
    "a place to keep": lambda model: model.new_cache(1, LM, middle="x"),
    "no place to keep": lambda model: model.new_cache(1, LM, middle=None),
    "padding": lambda model: model.new_cache(2, LM, padding=[1.0, 0]),
}


@pytest.mark.parametrize("what", MODEL_CALLS)
def test_a_model_refuses(what):
    """Catches tracebacks, middle="x" taken for "ram", and positions that are not exact."""
    with pytest.raises(ValueError) as caught:
        MODEL_CALLS[what](tiny_model("llama"))
    assert "NoneType" not in str(caught.value)


@pytest.mark.parametrize("family", ["llama", "mpt"])
def test_a_text_does_not_grow_beyond_what_is_exact(family):
    """Catches a bound that is asked of the first position only; up to it, no logit changes."""
    model, tokens = tiny_model(family), some_tokens(9)
    here, there = model.new_cache(1, LM), model.new_cache(1, LM, first_position=2**53 - 9)
    for some in tokens.split([5, 1, 2, 1], 1):
        expected = model(some, LM, cache=here)
        torch.testing.assert_close(model(some, LM, cache=there), expected, atol=1e-10, rtol=0)
    with pytest.raises(ValueError, match="beyond 2\\^53"):
        model(tokens[:, :1], LM, cache=there)


@pytest.mark.parametrize("reading", READINGS)
def test_a_models_scale_may_be_negative(reading):
    """Catches NaN from PyTorch's kernels, which multiply what they hide by the scale."""
    lm = LMInfinite(4, 1, 4)
    for softmax_scale in (-0.4, 0.0):
        model = tiny_model("mpt", softmax_scale=softmax_scale)
        expected = READINGS["reference"](model, some_tokens(14), lm)
        found = READINGS[reading](model, some_tokens(14), lm)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("family", ["llama", "mpt"])
def test_a_window_longer_than_any_text(family, reading):
    """Catches a mask, or a buffer, as long as the window in place of the text."""
    model, tokens = tiny_model(family), some_tokens(14)
    expected = READINGS["reference"](model, tokens, None)
    for lm in (LMInfinite(2**61, 2, 2**61), LMInfinite(2**40, 2**61, None)):
        found = READINGS[reading](model, tokens, lm)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_whole_numbers_of_any_size():
    """Catches an overflow where a whole number is taken for one of 64 bits."""
    assert not Alibi(4, bias_max=2**64).slopes.any()
    for function in (attend, chunked_attend):
        assert function(**arguments(scale=2**64)).isfinite().all()
    assert Rotary(8, scaling={"rope_type": "linear", "factor": 2**64}).frequencies.all()
    with pytest.raises(ValueError, match="not available"):
        load_model(ROOT / "weights" / "nano-llama", device=2**64)

"""What a text costs: each way to score it against a plain specification of itself."""

import pytest
import torch
from conftest import SETTINGS, some_tokens, tiny_llama

from minilm_inf.evaluate.compare import reencoded_nll, stream_nll

LM = SETTINGS["LM-Infinite"]


def nll_after(model, ids, following: int, lm=None) -> float:
    """The specification: -log p of one id after a text, read whole by the definition."""
    logits = model(torch.tensor([ids]), lm, path="reference")[0, -1]
    return -float(logits.log_softmax(-1)[following])


def streamed(model, ids: list[int], lm) -> list[float]:
    """The specification: each token after all that came before."""
    return [nll_after(model, ids[: i + 1], ids[i + 1], lm) for i in range(len(ids) - 1)]


def reencoded(model, ids: list[int], length: int, n_bos: int = 1) -> list[float]:
    """The specification: each token after a context of its own, read by the vanilla model.

    The first `length` tokens are their own context. A later window is BOS, if there is one, and
    the ids before the last one that it scores, `length` in all, and it scores its second half.
    """
    stride = length // 2
    scores = streamed(model, ids[: length + 1], None)
    for i in range(length, len(ids) - 1):  # what follows ids[i]
        last = length + (i - length) // stride * stride + stride - 1  # this window's last
        context = [*ids[:n_bos], *ids[last - length + n_bos + 1 : i + 1]]
        assert length - stride < len(context) <= length
        scores.append(nll_after(model, context, ids[i + 1]))
    return scores


@pytest.mark.parametrize("lm, chunk", [(None, 7), (LM, 1), (LM, 23), (LM, 512)])
def test_a_stream_is_scored_token_by_token(lm, chunk):
    """An entry of the next position, or a chunk's last token that goes unscored; one token,
    which nothing follows, whose mean would be nan."""
    model, ids = tiny_llama(), some_tokens(24)[0].tolist()
    found = stream_nll(model, ids, lm, chunk)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(streamed(model, ids, lm), abs=1e-5)
    for few in ([], [1]):
        with pytest.raises(ValueError, match="at least two tokens"):
            stream_nll(model, few, lm, chunk)


@pytest.mark.parametrize("length, n_bos", [(2, 1), (5, 1), (6, 1), (6, 0)])
def test_reencoding_is_what_it_says(length, n_bos):
    """A yardstick with too little context, a token scored twice, or none at the end; a text's
    first token that stands before every window, as if it were BOS."""
    model = tiny_llama(n_layer=1, context_length=6)
    for n in [2, *range(length, 2 * length + 3), 41]:
        ids = some_tokens(n, seed=n)[0].tolist()
        found = reencoded_nll(model, ids, n_bos, None if length == 6 else length)
        expected = reencoded(model, ids, length, n_bos)
        assert found.tolist() == pytest.approx(expected, abs=1e-5), n


def test_many_windows_at_a_time_are_as_one():
    """A window that is scored from another's row, or not at all."""
    model, ids = tiny_llama(n_layer=1, context_length=1024), some_tokens(4700)[0].tolist()
    some = torch.tensor([1023, 1024, 1535, 1536, 3583, 3584, 4697, 4698])
    for at, found in zip(some.tolist(), reencoded_nll(model, ids)[some].tolist()):
        last = at if at < 1024 else 1024 + (at - 1024) // 512 * 512 + 511
        context = ids[: at + 1] if at < 1024 else [ids[0], *ids[last - 1022 : at + 1]]
        log_p = model(torch.tensor([context]))[0, -1].log_softmax(-1)
        assert found == pytest.approx(-float(log_p[ids[at + 1]]), abs=1e-5), at


def test_half_precision_is_scored_in_single():
    """A softmax in bfloat16, which knows two digits of a probability."""
    model, ids = tiny_llama(dtype=torch.bfloat16), some_tokens(30)[0]
    logits = model(ids[None, :-1], LM, model.new_cache(1, LM))[0].double()
    exact = -logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    assert (stream_nll(model, ids.tolist(), LM, 30) - exact).abs().max() < 1e-5

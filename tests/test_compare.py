"""What a text costs: each way to score it against a plain specification of itself."""

import pytest
import torch
from conftest import SETTINGS, some_tokens, tiny_llama

from minilm_inf.evaluate.compare import reencoded_nll, reencoded_pieces, stream_nll

LM = SETTINGS["LM-Infinite"]


def nll_after(model, ids, following: int, lm=None) -> float:
    """The specification: -log p of one id after a text, read whole by the definition."""
    logits = model(torch.tensor([ids]), lm, path="reference")[0, -1]
    return -float(logits.log_softmax(-1)[following])


@pytest.mark.parametrize("lm, chunk", [(None, 7), (LM, 1), (LM, 23), (LM, 512)])
def test_a_stream_is_scored_token_by_token(lm, chunk):
    """An entry of the next position, or a chunk's last token that goes unscored; one token,
    which nothing follows, whose mean would be nan."""
    model, ids = tiny_llama(), some_tokens(24)[0].tolist()
    expected = [nll_after(model, ids[: i + 1], ids[i + 1], lm) for i in range(23)]
    found = stream_nll(model, ids, lm, chunk)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    for few in ([], [1]):
        with pytest.raises(ValueError, match="at least two tokens"):
            stream_nll(model, few, lm, chunk)


def reencoded(model, ids: list[int], length: int, n_bos: int = 1) -> list[float]:
    """The specification: each token after a context of its own, read by the vanilla model.

    The first `length` tokens are their own context. A later window is BOS, if there is one, and
    the ids before the last one that it scores, `length` in all, and it scores its second half.
    """
    stride = length // 2
    scores = []
    for i in range(len(ids) - 1):  # what follows ids[i]
        context = ids[: i + 1]
        if i >= length:
            last = length + (i - length) // stride * stride + stride - 1  # this window's last
            context = [*ids[:n_bos], *ids[last - length + n_bos + 1 : i + 1]]
            assert length - stride < len(context) <= length
        scores.append(nll_after(model, context, ids[i + 1]))
    return scores


@pytest.mark.parametrize("context_length, batch, n_bos", [
    (2, 1, 1), (5, 3, 1), (6, 16, 1), (6, 3, 0),
])  # fmt: skip
def test_reencoding_is_what_it_says(context_length, batch, n_bos):
    """A yardstick with too little context, a token scored twice, or none at the end; a text's
    first token that stands before every window, as if it were BOS."""
    model = tiny_llama(n_layer=1, context_length=context_length)
    for n in [2, *range(context_length, 2 * context_length + 3), 41]:
        ids = some_tokens(n, seed=n)[0].tolist()
        found = torch.cat(list(reencoded_pieces(model, ids, context_length, batch, n_bos)))
        expected = reencoded(model, ids, context_length, n_bos)
        assert found.tolist() == pytest.approx(expected, abs=1e-5), n
        assert torch.equal(found, reencoded_nll(model, ids, n_bos)) or batch < 16


def test_half_precision_is_scored_in_single():
    """A softmax in bfloat16, which knows two digits of a probability."""
    model, ids = tiny_llama(dtype=torch.bfloat16), some_tokens(30)[0]
    logits = model(ids[None, :-1], LM, model.new_cache(1, LM))[0].double()
    exact = -logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    assert (stream_nll(model, ids.tolist(), LM, 30) - exact).abs().max() < 1e-5

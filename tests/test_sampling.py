"""Each filter against its sentence, and the draw against its probabilities."""

import torch

from minilm_inf.writing.sampling import choose, keep_top_k, keep_top_p


def kept(logits) -> list[int]:
    return (logits > -torch.inf).nonzero().flatten().tolist()


LOGITS = torch.tensor([0.5, 0.2, 0.2, 0.06, 0.04]).log()[torch.tensor([3, 0, 4, 1, 2])]


def test_filters_keep_the_likeliest():
    """Counting from the wrong end, or dropping one of two equal ids by its place; dropping the
    id that crosses p would leave nothing for a small p, which float32 may take for 0."""
    assert kept(keep_top_k(LOGITS, 1)) == [1]
    assert kept(keep_top_k(LOGITS, 3)) == [1, 3, 4]
    assert kept(keep_top_k(LOGITS, 0)) == kept(keep_top_k(LOGITS, 99)) == [0, 1, 2, 3, 4]
    assert kept(keep_top_p(LOGITS, 0.6)) in ([1, 3], [1, 4])
    assert kept(keep_top_p(LOGITS, 0.85)) == [1, 3, 4]
    assert kept(keep_top_p(LOGITS, 1.0)) == [0, 1, 2, 3, 4]
    for p in (1e-6, 1e-45, 1e-300):
        assert kept(keep_top_p(LOGITS, p)) == [1]
        assert choose(LOGITS, 0.7, 0, top_p=p) == 1


def test_the_draw_follows_the_probabilities():
    """A draw from the logits, or from what was softened twice, is another draw; multiplying by
    the temperature would heat where it should cool; numbers that overflow."""
    generator = torch.Generator().manual_seed(0)
    for temperature in (1.0, 0.5):
        drawn = [choose(LOGITS, temperature, 0, generator=generator) for _ in range(4000)]
        shares = torch.bincount(torch.tensor(drawn), minlength=5) / 4000
        assert (shares - (LOGITS / temperature).softmax(0)).abs().max() < 0.03
    for temperature in (0.0, 1e-4, 1e-30, 1e-44, 1e-320):  # divided by, it gives no numbers
        assert choose(LOGITS, temperature) == 1
        assert choose(torch.tensor([3e38, -3e38, 2.9e38]), temperature) == 0
    choose(torch.tensor([600.0, -600.0], dtype=torch.float16), 1e300)

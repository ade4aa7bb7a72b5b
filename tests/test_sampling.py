"""Each filter against its sentence, and the draw against its probabilities."""

import pytest
import torch

from minilm_inf.writing.sampling import check, choose, keep_top_k, keep_top_p


def kept(logits) -> list[int]:
    return (logits > -torch.inf).nonzero().flatten().tolist()


LOGITS = torch.tensor([0.5, 0.2, 0.2, 0.06, 0.04]).log()[torch.tensor([3, 0, 4, 1, 2])]


def test_top_k_keeps_the_largest():
    """Counting from the wrong end, or dropping one of two equal ids by its place."""
    assert kept(keep_top_k(LOGITS, 1)) == [1]
    assert kept(keep_top_k(LOGITS, 3)) == [1, 3, 4]
    assert kept(keep_top_k(LOGITS, 0)) == kept(keep_top_k(LOGITS, 99)) == [0, 1, 2, 3, 4]


def test_top_p_keeps_until_the_sum_is_reached():
    """Dropping the id that crosses p would leave nothing for a small p, which float32 may take
    for 0."""
    assert kept(keep_top_p(LOGITS, 0.6)) in ([1, 3], [1, 4])
    assert kept(keep_top_p(LOGITS, 0.85)) == [1, 3, 4]
    assert kept(keep_top_p(LOGITS, 1.0)) == [0, 1, 2, 3, 4]
    for p in (1e-6, 1e-45, 1e-300):
        assert kept(keep_top_p(LOGITS, p)) == [1]
        assert choose(LOGITS, 0.7, 0, top_p=p) == 1


def test_the_draw_follows_the_probabilities():
    """A draw from the logits, or from what was softened twice, is another draw."""
    generator = torch.Generator().manual_seed(0)
    drawn = [choose(LOGITS, 1.0, 0, generator=generator) for _ in range(4000)]
    shares = torch.bincount(torch.tensor(drawn), minlength=5) / 4000
    assert (shares - LOGITS.exp()).abs().max() < 0.03


def test_temperature_sharpens_and_zero_is_greedy():
    """Multiplying by the temperature would heat where it should cool; numbers that overflow."""
    generator = torch.Generator().manual_seed(0)
    cold = [choose(LOGITS, 0.2, 0, generator=generator) for _ in range(200)]
    assert cold.count(1) > 190
    for temperature in (0.0, 1e-4, 1e-30, 1e-44, 1e-320):  # divided by, it gives no numbers
        assert choose(LOGITS, temperature) == 1
        assert choose(torch.tensor([3e38, -3e38, 2.9e38]), temperature) == 0
    choose(torch.tensor([600.0, -600.0], dtype=torch.float16), 1e300)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_an_error(temperature):
    """float16 weights that overflow would end in PyTorch's traceback, or in silent nonsense."""
    for wrong in ("nan", "inf", "-inf"):
        with pytest.raises(ValueError, match="not numbers"):
            choose(torch.tensor([0.0, float(wrong)]), temperature)


@pytest.mark.parametrize(
    "name, value",
    [("temperature", -1), ("top_k", -1), ("top_p", 0), ("top_p", 1.1),
     ("temperature", float("nan")), ("temperature", float("inf")), ("top_k", 2**62),
     ("top_p", "0.5"), ("top_k", 1.5), ("temperature", None)],
)  # fmt: skip
def test_settings_out_of_range_are_named(name, value):
    """A setting that filters everything away would end in an error of PyTorch's draw."""
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    check(**settings)
    with pytest.raises(ValueError, match=name):
        check(**{**settings, name: value})

"""The positions of experiments: xPos by its own formula, none at all, and learned ones."""

import sys

import pytest
import torch
from conftest import ROOT

from minilm_inf import LMInfinite
from minilm_inf.config import FULL_ATTENTION
from minilm_inf.diagnose import schemes
from minilm_inf.distance_ceiling import capped_logits
from minilm_inf.fast.band import How
from minilm_inf.fast.chunk import attend_chunks
from minilm_inf.models.llama_config import LlamaConfig

sys.path.insert(0, str(ROOT / "weights" / "pages"))  # programs, and no package
import schemes as experiment  # noqa: E402

SIZES = dict(vocab_size=11, n_layer=2, n_head=2, n_kv_head=1, n_embd=16, head_dim=8, n_inner=24)
CONFIG = LlamaConfig("llama", **SIZES, context_length=16, norm_eps=1e-5, tied=True)


def by_the_formula(q, k, d: int, base: float) -> float:
    """xPos's logit of two vectors (2M,) at a distance: each pair turned by complex numbers."""
    total, half = 0.0, len(q) // 2
    for m in range(half):
        zeta, angle = (
            (m / half + 0.4) / 1.4,
            torch.tensor(d * 10000.0 ** (-m / half), dtype=torch.float64),
        )
        turn = torch.polar(torch.ones((), dtype=torch.float64), angle)
        pair = torch.complex(q[m], q[m + half]) * torch.complex(k[m], k[m + half]).conj()
        total += zeta ** (d / base) * float((pair * turn).real)
    return total


@pytest.mark.parametrize("first", (0, 200_000_000))
@pytest.mark.parametrize("ceiling", (None, 50))
def test_xpos_is_its_formula_wherever_a_text_stands(first, ceiling):
    """Catches a fading of another sign, of the key's place or of no bound, and a ceiling that
    turns but does not fade."""
    torch.manual_seed(0)
    scheme, n = schemes.XPos(8, 16.0), 1200  # queries in both float32's and float64's reach
    q, k = torch.randn(2, 1, 1, n, 8, dtype=torch.float64)
    positions = torch.arange(n) + first
    found = capped_logits(q, k, positions, positions, scheme, ceiling, 2.0)[0, 0]
    for i, j in ((0, 0), (70, 70), (70, 21), (70, 20), (70, 19), (1100, 1000), (1199, 3)):
        d = min(i - j, ceiling or n)
        asked = 2 * by_the_formula(q[0, 0, i], k[0, 0, j], d, 16.0)
        assert float(found[i, j]) == pytest.approx(asked, rel=1e-9, abs=1e-12)
    less = capped_logits(q.float(), k.float(), positions, positions, scheme, ceiling, 2.0)
    torch.testing.assert_close(less[0, 0].tril().double(), found.tril(), rtol=0, atol=1e-4)


def test_no_positions_have_no_distance():
    """Catches a Λ-mask that reads as if the ceiling did something, and tokens whose order
    counts, though nothing says it but what they see."""
    torch.manual_seed(0)
    model, tokens = schemes.build(CONFIG, "NoPE"), torch.randint(11, (1, 60))
    near, far = (model(tokens, LMInfinite(16, 2, ceiling)) for ceiling in (3, None))
    assert torch.equal(near, far)
    swapped = torch.cat((tokens[:, :20].flip(1), tokens[:, 20:]), 1)  # a bag of words
    with torch.no_grad():
        of_one, of_other = (
            model.blocks[0](model.embed(x), attention(model)) for x in (tokens, swapped)
        )
    torch.testing.assert_close(of_one[:, 20:], of_other[:, 20:])


def attention(model):
    """What the first layer's block gathers, of all that came before."""
    return lambda q, k, v: attend_chunks(
        q, k, v, torch.arange(60), torch.arange(60), How(model.scheme, FULL_ATTENTION, 1.0)
    )


def test_learned_positions_end_where_training_did():
    """Catches a position that is not added, or one beyond the table that is another's."""
    torch.manual_seed(0)
    model, tokens = schemes.build(CONFIG, "learned"), torch.zeros(1, 20, dtype=torch.long)
    with torch.no_grad():
        model.blocks[0].table.normal_()
        seen = []
        handle = model.blocks[0].block.register_forward_pre_hook(
            lambda block, given: seen.append(given[0])
        )
        model(tokens)
        handle.remove()
    places = torch.cat((torch.arange(16), torch.full((4,), 15)))
    assert torch.equal(seen[0], model.embed(tokens) + model.blocks[0].table[places])


@pytest.mark.parametrize("name", schemes.SCHEMES)
def test_a_scheme_learns_and_reads_on(name):
    """Catches a scheme that a gradient does not reach, whose logits depend on later tokens, or
    whose reading in a window is not the definition's."""
    torch.manual_seed(0)
    model, tokens = schemes.build(CONFIG, name), torch.randint(11, (1, 48))
    model(tokens[:, :16]).logsumexp(-1).sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in model.parameters())
    with torch.no_grad():
        for lm in (None, LMInfinite(16, 2, 16)):
            whole, part = model(tokens, lm), model(tokens[:, :30], lm)
            torch.testing.assert_close(whole[:, :30], part, rtol=1e-4, atol=1e-5)
            again = model(tokens, lm, path="reference")
            torch.testing.assert_close(whole, again, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, least, most", (("NoPE", 1, 1), ("ALiBi", 2.5, 2.5), ("RoPE", 30, 64))
)
def test_distances_told_apart_are_as_many_as_a_scheme_has(name, least, most, monkeypatch):
    """Catches a count of distances that differ from the last alone, or by less than a nat, and
    one that a scheme's bias does not enter. Of 64 distances ALiBi's head of
    slope 1/16 has 4, and that of 1/256 only one."""
    points = torch.tensor([0, 0.5, 1, 0.2, 1.5, 2, 0, 3])[:, None]
    assert experiment.packed(points) == [1, 2, 4]  # 0; 0 and 1; these, 2 and 3
    torch.manual_seed(0)
    model = schemes.build(CONFIG, name)
    for x in model.parameters():
        torch.nn.init.normal_(x)
    monkeypatch.setattr(experiment, "N", 64)
    counts = experiment.told_apart(model, torch.randint(11, (1, 16)))
    assert len(counts) == 6 and least <= counts[-1] <= most

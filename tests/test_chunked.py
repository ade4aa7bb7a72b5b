"""chunked.py: the same numbers as attend, without ever building n x n."""

import pytest
import torch
from conftest import SCHEMES, SETTINGS, fuzz, vectors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minilm_inf.attention import attend
from minilm_inf.config import LMInfinite
from minilm_inf.fast.chunked import chunked_attend
from minilm_inf.positions import Alibi, Rotary

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def assert_same(q, k, v, q_positions, k_positions, scheme, lm, scale=None):
    """chunked_attend and attend agree, to 1e-10 in float64 and 1e-5 in float32."""
    for dtype, tolerance in TOLERANCE.items():
        x = [t.to(dtype) for t in (q, k, v)]
        slow = attend(*x, q_positions, k_positions, scheme, lm, scale)
        fast = chunked_attend(*x, q_positions, k_positions, scheme, lm, scale)
        assert fast.dtype == dtype and fast.shape == q.shape
        assert fast.isfinite().all()
        assert fast.numel() == 0 or (fast - slow).abs().max() <= tolerance


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("lm", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_and_scheme(lm, scheme, small_chunks):
    """Catches an ablation or a family that the fast path treats as LM-Infinite itself."""
    positions = torch.arange(25)
    small_chunks(4, 5)
    assert_same(*vectors(25), positions, positions, scheme, lm)


@pytest.mark.parametrize(
    "draw",
    fuzz(
        5,
        300,
        n=[1, 2, 4, 5, 6, 8, 10, 17, 19, 20, 21, 40],
        n_local=[1, 2, 3, 5, 8, 17, 50, None],
        n_global=[0, 1, 2, 5, 8, 17, 60],
        ceiling=[None, 0, 1, 4, 5, 6, 8, 17, 30],
        chunk=[1, 2, 3, 4, 5, 7, 17, 64],
        keys=[1, 2, 5, 11, 4096],
        scheme=list(SCHEMES),
        n_kv_head=[1, 2, 4],
    ),
    ids=lambda draw: " ".join(str(x) for x in draw.values()),
)
def test_fuzzed_settings(draw, small_chunks):
    """Catches an edge of a chunk that meets the edge of the window or of the starting run, and
    what nobody thought of: any size of anything against any other."""
    small_chunks(draw["chunk"], draw["keys"])
    lm = LMInfinite(draw["n_local"], draw["n_global"], draw["ceiling"])
    positions = torch.arange(draw["n"])
    x = vectors(draw["n"], n_kv_head=draw["n_kv_head"])
    assert_same(*x, positions, positions, SCHEMES[draw["scheme"]], lm)


def ascending(n: int, highest: int, lowest: int, generator) -> torch.Tensor:
    """n different positions between lowest and highest, in order."""
    chosen = torch.randperm(highest - lowest, generator=generator)[:n]
    return chosen.sort().values + lowest


@pytest.mark.parametrize(
    "draw",
    fuzz(
        6,
        120,
        seed=range(1000),
        lm=list(SETTINGS),
        scheme=list(SCHEMES),
        batched=["", "q", "k", "qk"],
        chunk=[1, 3, 5, 64],
        keys=[1, 4, 4096],
        lowest=[-6, 0, 4],
    ),
    ids=lambda draw: " ".join(str(x) for x in draw.values()),
)
def test_fuzzed_positions(draw, small_chunks):
    """Catches indices used for positions: gaps, padding, rows of their own, lone keys."""
    small_chunks(draw["chunk"], draw["keys"])
    generator = torch.Generator().manual_seed(draw["seed"])

    def positions(n, batched):
        rows = [ascending(n, 30, draw["lowest"], generator) for _ in range(2)]
        return torch.stack(rows) if batched else rows[0]

    q_positions = positions(11, "q" in draw["batched"])
    k_positions = positions(14, "k" in draw["batched"])
    scheme, lm = SCHEMES[draw["scheme"]], SETTINGS[draw["lm"]]
    assert_same(*vectors(11, 14), q_positions, k_positions, scheme, lm)


@pytest.mark.parametrize("scheme", [SCHEMES["halves"], SCHEMES["alibi"]], ids=["rope", "alibi"])
def test_rows_padded_on_the_left(scheme, small_chunks):
    """Catches starting tokens looked for in column 0, where a shorter row has its padding."""
    small_chunks(4, 6)
    positions = torch.arange(20) - torch.tensor([[0], [3], [17], [20]])
    for lm in SETTINGS.values():
        x = vectors(20, batch=4)
        assert_same(*x, positions, positions, scheme, lm)
    padded = chunked_attend(*x, positions, positions, scheme, SETTINGS["LM-Infinite"])
    text = torch.arange(17)
    alone = chunked_attend(
        *(t[1:2, :, 3:] for t in x), text, text, scheme, SETTINGS["LM-Infinite"]
    )
    assert (padded[1:2, :, 3:] - alone).abs().max() <= 1e-12
    assert padded[3].eq(0).all(), "a row of padding alone gathers nothing"


@pytest.mark.parametrize("scheme", ("halves", "alibi"))
@pytest.mark.parametrize("scale", (0.0, 1e-300, 1.0, 0.05, -1.0, -0.05))
def test_a_scale_of_the_callers(scale, scheme, small_chunks):
    """Catches a scale that reaches only one of the two runs, or only the plain softmax; and NaN
    from kernels that multiply what they hide by a scale of 0 or less."""
    small_chunks(4)
    positions, top_k = torch.arange(15), LMInfinite(4, 2, 4, top_k=2, top_k_queries="all")
    for lm in (None, top_k, *SETTINGS.values()):
        assert_same(*vectors(15), positions, positions, SCHEMES[scheme], lm, scale)


@pytest.mark.parametrize("scale", (0.0, -0.7))
def test_gradients_with_any_scale(scale):
    """Catches a sign that is turned on the way there, and not on the way back."""
    found = {}
    for function in (attend, chunked_attend):
        q, k, v = (x.requires_grad_() for x in vectors(9))
        n = torch.arange(9)
        out = function(q, k, v, n, n, Rotary(8), SETTINGS["LM-Infinite"], scale)
        found[function] = torch.autograd.grad(out.square().sum(), (q, k, v))
    for ours, theirs in zip(*found.values()):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_far_down_a_stream(small_chunks):
    """Catches positions that pass through float32 or int32 on their way to mask and angle."""
    small_chunks(4)
    x = vectors(12, 15, dtype=torch.float32)
    for lm in SETTINGS.values():
        far = torch.cat((torch.arange(3), torch.arange(12) + (1 << 32)))
        assert_same(*vectors(12, 15), far[3:], far, Alibi(4), lm)
        far = torch.cat((torch.arange(3), torch.arange(12) + 200_000_000))
        slow = attend(*x, far[3:], far, Rotary(8), lm)
        fast = chunked_attend(*x, far[3:], far, Rotary(8), lm)
        assert (fast - slow).abs().max() <= 1e-5


@pytest.mark.parametrize("positions", [[0, 2, 1], [0, 1, 1], [[0, 1, 2], [2, 1, 0]]])
def test_positions_must_ascend(positions):
    """Catches keys out of order, among which the window would be searched in vain."""
    q, k, v = vectors(3)
    wrong, right = torch.tensor(positions), torch.arange(3)
    with pytest.raises(ValueError, match="k_positions must ascend"):
        chunked_attend(q, k, v, right, wrong, Rotary(8), None)
    with pytest.raises(ValueError, match="q_positions must ascend"):
        chunked_attend(q, k, v, wrong, right, Rotary(8), None)


class LargestTensor(TorchDispatchMode):
    """Watches every operation; `sizes` maps the shapes of all results to their elements."""

    def __init__(self):
        super().__init__()
        self.sizes = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                self.sizes[tuple(x.shape)] = x.numel()
        return result


def tensors_made(n, scheme, lm, path=chunked_attend, **sizes):
    """The shapes of all tensors that reading n tokens makes, with their numbers of elements."""
    positions = torch.arange(n)
    x = vectors(n, batch=1, dtype=torch.float32, **sizes)
    with LargestTensor() as watch:
        path(*x, positions, positions, scheme, lm)
    return watch.sizes


@pytest.mark.parametrize("scheme", [SCHEMES["halves"], SCHEMES["alibi"]], ids=["rope", "alibi"])
@pytest.mark.parametrize("lm", SETTINGS.values(), ids=SETTINGS)
def test_no_tensor_grows_with_the_square_of_the_length(lm, scheme, small_chunks):
    """Catches an n x n tensor in any setting, be it of booleans or in a plain softmax."""
    small_chunks(16, 64)
    n, n_head, dim = 1024, 4, 8
    made = tensors_made(n, scheme, lm)
    assert max(made.values()) <= n_head * dim * (n + 16), "the keys, and a block of 8 queries"
    reference = tensors_made(n, scheme, lm, path=attend)
    assert max(reference.values()) == n_head * n * n, "what this test must be able to notice"


@pytest.mark.parametrize("name", ["LM-Infinite", "sliding window", "Λ without ceiling"])
@pytest.mark.parametrize("scheme", [SCHEMES["halves"], SCHEMES["alibi"]], ids=["rope", "alibi"])
def test_working_memory_of_the_lambda_does_not_grow(name, scheme, small_chunks):
    """Catches logits or masks that see more than chunk, window and starting tokens."""
    small_chunks(16, 64)
    working = []
    for n in (200, 800):  # what is as long as the text is input, output or angles
        made = tensors_made(n, scheme, SETTINGS[name])
        working.append(max(size for shape, size in made.items() if not {n, n - 1} & set(shape)))
    assert working[0] == working[1] <= 4 * 16 * (16 + 6 + 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lm", SETTINGS.values(), ids=SETTINGS)
def test_half_precision_in_and_out_float32_between(dtype, lm, small_chunks):
    """Catches a softmax in half precision, of one run or in joining the two."""
    small_chunks(64)
    q, k, v = vectors(400, batch=1, dtype=dtype)
    lm = LMInfinite(
        *(size and 50 * size for size in (lm.n_local, lm.n_global, lm.distance_ceiling))
    )
    n = torch.arange(400)
    got = chunked_attend(q, k, v, n, n, Alibi(4), lm)
    exact = attend(*(x.double() for x in (q, k, v)), n, n, Alibi(4), lm)
    assert got.dtype == dtype
    best = (exact.to(dtype).double() - exact).abs().max()
    assert (got.double() - exact).abs().max() <= 1.05 * best, "ALiBi: one rounding, at the end"

    got = chunked_attend(q, k, v, n, n, Rotary(8), lm)
    exact = attend(*(x.double() for x in (q, k, v)), n, n, Rotary(8), lm)
    assert got.dtype == dtype
    error = (got.double() - exact).abs().max()
    assert error <= 4 * torch.finfo(dtype).eps, "RoPE: keys are kept placed, rounded once more"


def test_large_logits_do_not_overflow(small_chunks):
    """Catches a join that sums exponentials before it takes their maximum off."""
    small_chunks(4)
    q, k, v = vectors(20)
    n, lm = torch.arange(20), SETTINGS["LM-Infinite"]
    for scheme in SCHEMES.values():
        fast = chunked_attend(1e4 * q, k, v, n, n, scheme, lm)
        assert (fast - attend(1e4 * q, k, v, n, n, scheme, lm)).abs().max() <= 1e-10


def test_gradients_are_those_of_the_definition(small_chunks):
    """Catches a fast path that cannot train: a detached run, or an in-place step in its way."""
    small_chunks(4)
    positions = torch.arange(15)
    for lm in (SETTINGS["LM-Infinite"], SETTINGS["ceiling below the window"], None):
        gradients = []
        for path in (attend, chunked_attend):
            x = [t.requires_grad_() for t in vectors(15)]
            out = path(*x, positions, positions, Rotary(8), lm)
            (out * vectors(15, seed=1)[0]).sum().backward()
            gradients.append([t.grad for t in x])
        for slow, fast in zip(*gradients):
            assert (slow - fast).abs().max() <= 1e-10

"""fast/chunked.py, fast/band.py: the same numbers as attend, without ever building n x n."""

import pytest
import torch
from conftest import SCHEMES, SETTINGS, fuzz, named, vectors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minilm_inf.attention import attend
from minilm_inf.config import LMInfinite
from minilm_inf.fast import chunked
from minilm_inf.fast.chunked import chunked_attend
from minilm_inf.positions import Alibi, Rotary

BOTH = pytest.mark.parametrize("scheme", ["halves", "alibi"])


def assert_same(q, k, v, q_positions, k_positions, scheme, lm, scale=None):
    """chunked_attend and attend agree, to 1e-10 in float64 and 1e-5 in float32."""
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        x = [t.to(dtype) for t in (q, k, v)]
        slow = attend(*x, q_positions, k_positions, scheme, lm, scale)
        fast = chunked_attend(*x, q_positions, k_positions, scheme, lm, scale)
        assert fast.dtype == dtype and fast.shape == q.shape
        assert fast.isfinite().all()
        assert (fast - slow).abs().max() <= tolerance


@pytest.fixture
def in_band(monkeypatch):
    """A list of how many queries, one call after the other, were read in blocks of a band."""
    calls, real = [], chunked.attend_band

    def counted(q, *others):
        calls.append(q.shape[2])
        real(q, *others)

    monkeypatch.setattr(chunked, "attend_band", counted)
    return calls


@pytest.mark.parametrize(
    "draw",
    fuzz(
        5,
        200,
        n=[1, 2, 4, 5, 6, 8, 10, 17, 19, 20, 21, 40, 61],
        n_local=[1, 2, 3, 5, 8, 13, 17, 50, None],
        n_global=[0, 1, 2, 5, 9, 17, 60],
        ceiling=["window", "window", None, 0, 1, 4, 5, 6, 8, 17, 30],
        chunk=[1, 2, 3, 4, 5, 7, 17, 64],
        keys=[1, 2, 5, 11, 4096],
        scheme=list(SCHEMES),
        n_kv_head=[1, 2, 4],
        scale=[None, None, 0.0, 1e-300, 1.0, -1.0, -0.05],
    ),
    ids=named,
)
def test_any_size_of_anything(draw, small_chunks, in_band):
    """Catches an edge of a chunk or block that meets the edge of the window or of the starting
    run, an ablation or a family that is read as LM-Infinite itself, and NaN from kernels that
    multiply what they hide by a scale of 0 or less."""
    small_chunks(draw["chunk"], draw["keys"])
    n, n_local, ceiling = draw["n"], draw["n_local"], draw["ceiling"]
    ceiling = n_local if ceiling == "window" else ceiling
    x, positions = vectors(n, n_kv_head=draw["n_kv_head"]), torch.arange(n)
    lm = LMInfinite(n_local, draw["n_global"], ceiling)
    assert_same(*x, positions, positions, SCHEMES[draw["scheme"]], lm, draw["scale"])
    if n_local and n > 9 and ceiling in (None, n_local) and (draw["scale"] or 1) > 0:
        groups = -(-draw["n_kv_head"] // 2)  # of two key heads, as small_chunks sets them
        assert sum(in_band) == 2 * n * groups


@BOTH
def test_it_is_the_definition_at_its_real_sizes(scheme, in_band):
    """Catches a block, a run of blocks or a stretch that is right at toy sizes only."""
    n = 2 * chunked.QUERIES_PER_STRETCH + 333
    lm, positions = LMInfinite(200, 10, 200), torch.arange(n)
    scheme = Rotary(8) if scheme == "halves" else Alibi(2)
    q, k, v = vectors(n, batch=1, n_head=2, n_kv_head=1, dtype=torch.float32)
    got = chunked_attend(q, k, v, positions, positions, scheme, lm)
    for some in (slice(0, 430), slice(n // 2, n // 2 + 250), slice(n - 250, n)):
        right = attend(q[:, :, some], k, v, positions[some], positions, scheme, lm)
        assert (got[:, :, some] - right).abs().max() <= 1e-5
    assert sum(in_band) == n


@pytest.mark.parametrize(
    "draw",
    fuzz(
        6,
        100,
        seed=range(1000),
        lm=list(SETTINGS),
        scheme=list(SCHEMES),
        batched=["", "q", "k", "qk"],
        chunk=[1, 3, 5, 64],
        keys=[1, 4, 4096],
        lowest=[-30, -6, 0, 4],
    ),
    ids=named,
)
def test_any_ascending_positions(draw, small_chunks):
    """Catches indices used for positions: gaps, padding, rows of their own, lone keys."""
    small_chunks(draw["chunk"], draw["keys"])
    generator = torch.Generator().manual_seed(draw["seed"])

    def positions(n, batched):
        rows = [torch.randperm(30, generator=generator)[:n].sort().values for _ in range(2)]
        return draw["lowest"] + (torch.stack(rows) if batched else rows[0])

    q_positions = positions(11, "q" in draw["batched"])
    k_positions = positions(14, "k" in draw["batched"])
    scheme, lm = SCHEMES[draw["scheme"]], SETTINGS[draw["lm"]]
    assert_same(*vectors(11, 14), q_positions, k_positions, scheme, lm)


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


def tensors_made(n, scheme, lm, path=chunked_attend):
    """The shapes of all tensors that reading n tokens makes, with their numbers of elements."""
    positions, x = torch.arange(n), vectors(n, batch=1, dtype=torch.float32)
    with LargestTensor() as watch:
        path(*x, positions, positions, SCHEMES[scheme], lm)
    return watch.sizes


@BOTH
@pytest.mark.parametrize("setting", SETTINGS)
def test_no_tensor_grows_with_the_square_of_the_length(setting, scheme, small_chunks):
    """Catches an n x n tensor in any setting, and in the Λ's logits or masks that see more than
    chunk, window and starting tokens."""
    small_chunks(16, 64)
    lm, n, n_head, dim = SETTINGS[setting], 500, 4, 8
    made = tensors_made(n, scheme, lm)
    assert max(made.values()) <= n_head * dim * (n + 16), "the keys, and a block of 8 queries"
    reference = tensors_made(n, scheme, lm, path=attend)
    assert max(reference.values()) == n_head * n * n, "what this test must be able to notice"
    if setting in ("LM-Infinite", "sliding window", "Λ without ceiling"):
        working = []
        for size in (200, n):  # what is as long as the text is input, output or angles
            shapes = tensors_made(size, scheme, lm).items()
            working.append(max(x for shape, x in shapes if not {size, size - 1} & set(shape)))
        assert working[0] == working[1] <= 4 * 16 * (16 + 6 + 2)

"""What follows from the method, bound by bound: on whole models of every family, and for every
way of reading.

Every bound comes with its negative control: the same check must fail one step further.
"""

import math

import pytest
import torch
from conftest import (
    FAMILIES,
    SCHEMES,
    SETTINGS,
    fuzz,
    read_in_chunks,
    some_tokens,
    tiny_llama,
    tiny_model,
    vectors,
)

from minilm_inf.attention import attend
from minilm_inf.config import LMInfinite
from minilm_inf.fast.chunked import chunked_attend
from minilm_inf.positions import Alibi, Rotary

L = 6
DIFFERENT = 1e-3  # far above any rounding, far below any effect of a distance one off
PATHS = {"attend": attend, "chunked_attend": chunked_attend}
FAR = 200_000_000


def setting(n_global=2, ceiling=L):
    return LMInfinite(n_local=L, n_global=n_global, distance_ceiling=ceiling)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    """A model of each family, one after the other."""
    return tiny_model(family, context_length=L)


@pytest.fixture(params=PATHS)
def path(request, small_chunks):
    """attend, and chunked_attend in chunks of 4."""
    small_chunks(4)
    return PATHS[request.param]


def change_by_row(a, b):
    """The largest difference of each row of logits, (B, T, V) -> list of T."""
    return (a - b).abs().amax((0, 2)).tolist()


# --- one function, however it is computed ---


@pytest.mark.parametrize(
    "draw",
    fuzz(
        11,
        120,
        family=FAMILIES,
        n=[1, 5, 6, 7, 11, 12, 13, 19, 23],
        n_local=[1, 2, 3, 5, 6, 8, 30, None],
        n_global=[0, 1, 3, 6, 30],
        ceiling=["window", None, 0, 2, 5, 8, 12],
        sizes=[(23,), (2,), (6,), (7,), (1, 2, 3, 4, 5), (9, 1, 1, 5, 2), (12, 1), (1, 22)],
        chunk=[2, 3, 64],
    ),
    ids=lambda draw: " ".join(str(x) for x in draw.values()),
)
def test_every_reading_is_the_definition(draw, small_chunks):
    """Catches an off-by-one where text, window, chunk and starting run begin and end, a ring
    read in the wrong order, and a family that is right in one way of reading alone."""
    small_chunks(draw["chunk"])
    n_local, ceiling, tokens = draw["n_local"], draw["ceiling"], some_tokens(draw["n"], batch=2)
    lm = LMInfinite(n_local, draw["n_global"], n_local if ceiling == "window" else ceiling)
    for dtype, allowed in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = tiny_model(draw["family"], dtype=dtype)
        right = model(tokens, lm, path="reference")
        assert (model(tokens, lm) - right).abs().max() <= allowed
        for sizes in ([1], draw["sizes"]):
            got = read_in_chunks(model, tokens, lm, sizes)
            assert (got - right).abs().max() <= allowed, sizes


# --- against the vanilla model ---


@pytest.mark.parametrize("n_global", [0, 1, 5, 6, 50])
def test_the_first_row_that_differs_from_vanilla(model, reading, n_global):
    """Catches a window, a ceiling or a starting token that acts on n_local tokens or fewer, or
    a row too late."""
    for n in (1, 2, L - 1, L, 4 * L):
        tokens = some_tokens(n, batch=2)
        vanilla = reading(model, tokens, None)
        change = change_by_row(vanilla, reading(model, tokens, setting(n_global)))
        first = L if n_global == 0 else L + 1  # row L reaches key 0 alone, at the ceiling
        assert max(change[:first]) <= 1e-10
    assert change[first] > DIFFERENT


def test_the_ceiling_is_exactly_the_window(model, reading):
    """Negative control: a ceiling of L - 1 differs a row too early, L + 1 a row too late."""
    tokens = some_tokens(4 * L)
    vanilla, right = reading(model, tokens, None), reading(model, tokens, setting())
    for wrong, first in ((L - 1, L), (L + 1, L + 2)):
        logits = reading(model, tokens, setting(ceiling=wrong))
        change = change_by_row(vanilla, logits)
        assert max(change[:first]) <= 1e-10
        assert change[first] > DIFFERENT
        assert (logits - right).abs().max() > DIFFERENT


# --- the distance of a starting token ---


def felt_logits(path, n, lm, scheme):
    """What each distance adds to a logit, read from the weights; -inf where a key is unseen.

    Queries and keys are all alike, and the values mark the keys: what a query gathers is its
    weights, and the logarithm of one weight over that of the query's own key is the logit of a
    distance alone.
    """
    positions = torch.arange(n)
    marks = torch.eye(n, dtype=torch.float64)[None, None]
    alike = torch.zeros(1, 1, n, n, dtype=torch.float64)
    alike[..., 0] = 1
    weights = path(alike, alike, marks, positions, positions, scheme, lm, 1.0)[0, 0]
    return weights.log() - weights.diagonal().log()[:, None]


def as_alibi(logits):
    return -logits * 2.0**8  # the slope of a single head


def as_rotary(logits):
    return torch.acos((logits + 1).clamp(-1, 1)) * 100  # pairs turn by 1/100 for each position


@pytest.mark.parametrize(
    "scheme, distance_of",
    [
        (Alibi(1), as_alibi),
        (
            Rotary(2, layout="pairs", scaling={"rope_type": "linear", "factor": 100.0}),
            as_rotary,
        ),
    ],
    ids=["alibi", "rope"],
)
def test_a_starting_token_recedes_to_the_ceiling_and_stays(path, scheme, distance_of):
    """Catches a starting token that jumps back, recedes for ever, or stops elsewhere."""
    lm, n = setting(n_global=3), 5 * L
    logits = felt_logits(path, n, lm, scheme)
    felt, seen = distance_of(logits), logits.isfinite()
    for j in range(n):
        for i in range(n):
            assert bool(seen[i, j]) == (i >= j and (i - j < L or j < 3))
            if seen[i, j]:
                assert felt[i, j].item() == pytest.approx(min(i - j, L), abs=1e-4)
    receding = [round(x) for x in felt[:, 0].tolist()]
    assert receding == [*range(L + 1), *[L] * (n - L - 1)]


# --- reach ---


@pytest.mark.parametrize("n_layer, n_global", [(1, 0), (2, 1), (3, 3), (3, 0)])
def test_a_token_reaches_window_minus_one_further_with_every_layer(
    family, n_layer, n_global, reading
):
    """Catches a window of L + 1 keys (as the paper draws it) or L - 1, any leak, and a starting
    run one token short or long: token G - 1 reaches the end, token G does not."""
    model, lm, n = tiny_model(family, n_layer), setting(n_global), 30
    tokens = some_tokens(n)
    logits = reading(model, tokens, lm)
    for j in {5, n_global, n_global - 1} - {-1}:
        changed = tokens.clone()
        changed[0, j] = (tokens[0, j] + 1) % 31
        change = change_by_row(logits, reading(model, changed, lm))
        furthest = n - 1 if j < n_global else j + n_layer * (L - 1)
        assert [i for i, x in enumerate(change) if x != 0] == list(range(j, furthest + 1))
        assert min(change[j : furthest + 1]) > 1e-6


@pytest.mark.parametrize("way", ["reference", "chunked"])
@pytest.mark.parametrize("n_layer", [1, 2, 3])
def test_gradients_end_exactly_at_the_reach(family, way, n_layer):
    """Catches a weight of 1e-30 where 0 is meant: a gradient shows what rounding hides."""
    model, tokens = tiny_model(family, n_layer), some_tokens(30)
    embedded = []

    def keep(module, inputs, output):
        embedded.append(output.requires_grad_())

    handle = model.embed.register_forward_hook(keep)
    logits = model(tokens, setting(n_global=2), path=way)
    handle.remove()
    logits[0, -1].sum().backward()
    reached = embedded[0].grad[0].abs().amax(-1).ne(0).nonzero().flatten().tolist()
    assert reached == [0, 1, *range(29 - n_layer * (L - 1), 30)]


# --- invariance to what stands between, and to where it stands ---


@pytest.mark.parametrize("n_global", [0, 1, 9])
def test_length_invariance(model, reading, n_global):
    """Catches anything of a text's length or middle that is felt at its end."""
    tail = 2 * (L - 1) + 1
    ends = some_tokens(n_global + tail, seed=2)
    first, last = ends[:, :n_global], ends[:, n_global:]

    def at_the_end(n, seed=1, drop=0, lm=None):
        tokens = torch.cat((first, some_tokens(n, seed=seed), last[:, drop:]), 1)
        return reading(model, tokens, lm or setting(n_global))[:, -1]

    expected = at_the_end(0)
    for n, seed in ((1, 3), (17, 5), (17, 6), (120, 7)):
        assert (at_the_end(n, seed) - expected).abs().max() <= 1e-10
    one_fewer = [at_the_end(17, seed, drop=1) for seed in (5, 6)]
    assert (one_fewer[0] - one_fewer[1]).abs().max() > 1e-6, "N(L-1) tokens are not enough"
    if n_global:  # and without the ceiling the length is felt through the starting tokens
        free = setting(n_global, ceiling=None)
        assert (at_the_end(10, lm=free) - at_the_end(40, lm=free)).abs().max() > DIFFERENT


@pytest.mark.parametrize("name", SETTINGS)
def test_shift_invariance_of_a_model(family, name):
    """Catches angles that lose their precision 200 million tokens down a stream, and a first
    position that moves the mask."""
    model, tokens = tiny_model(family, dtype=torch.float32), some_tokens(40)
    lm = SETTINGS[name]
    here = read_in_chunks(model, tokens, lm, [9, 1])
    for first in (1, 10_000, 10_000_000, FAR):
        there = read_in_chunks(model, tokens, lm, [9, 1], first_position=first)
        assert (there - here).abs().max() <= 1e-5


class Float32Rotary(Rotary):
    """Rotary as it is mostly written, with angles of absolute positions in float32."""

    def angles(self, positions):
        return positions.float()[..., None] * self.frequencies.float()

    def matrix(self, position, dim, dtype):
        place = self.at(position.view(1), dtype)
        return place(torch.eye(dim, dtype=dtype)[None, None])[0, 0]


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_float32_angles_fail_far_down_a_stream(family):
    """Negative control: catches a check that would let float32 angles pass."""
    model, tokens = tiny_model(family, dtype=torch.float32), some_tokens(40)
    lm, errors = setting(), []
    right = read_in_chunks(model, tokens, lm, [9, 1])
    model.scheme = Float32Rotary(model.scheme.rotary_dim, layout=model.scheme.layout)
    for first in (0, 10_000, 10_000_000, FAR):
        wrong = read_in_chunks(model, tokens, lm, [9, 1], first_position=first)
        errors.append((wrong - right).abs().max().item())
    assert errors[0] <= 1e-5 < errors[1] < errors[2]
    assert errors[2] > 1e-2 and errors[3] > 1e-2, "a thousand times what is allowed"


@pytest.mark.parametrize("setting", [None, "sliding window", "ceiling without Λ"])
def test_shift_invariance_of_attention(path, setting):
    """Catches absolute positions in a logit, or such as pass through float32 or int32: with no
    starting tokens only distances count."""
    x, n, lm = vectors(30, dtype=torch.float32), torch.arange(30), SETTINGS.get(setting)
    for scheme in SCHEMES.values():
        here = path(*x, n, n, scheme, lm)
        for far in (n + FAR, n + (1 << 32), n.expand(2, -1) + FAR):
            assert (path(*x, far, far, scheme, lm) - here).abs().max() <= 1e-5
    wrong = path(*x, n + FAR, n + FAR, Float32Rotary(8), lm)
    assert (wrong - path(*x, n, n, Rotary(8), lm)).abs().max() > DIFFERENT


# --- poison: what nobody may see, nobody feels ---


def poisoned(x, hidden):
    """x (B, H, S, D) with NaN where hidden (B, S)."""
    return x.masked_fill(hidden[:, None, :, None], math.nan)


@pytest.mark.parametrize("scheme", ["halves", "alibi"])
@pytest.mark.parametrize("name", SETTINGS)
def test_poison_in_attention(path, name, scheme):
    """Catches 0 * NaN: a key masked by its weight alone still spoils the sum, be it one of the
    future, of padding, or the one key of a block's columns that has left the window."""
    lm, scheme, k_positions = SETTINGS[name], SCHEMES[scheme], torch.arange(40)
    for n, padding in ((3, [[0], [3]]), (3, 0), (14, 0)):
        q, k, v = vectors(n, 40, batch=2)
        k_positions = torch.arange(40) - torch.tensor(padding)
        q_positions = torch.arange(20, 20 + n) - torch.tensor(padding)
        d, j = q_positions[..., :, None] - k_positions[..., None, :], k_positions[..., None, :]
        is_local = d < (1000 if lm.n_local is None else lm.n_local)
        seen = ((d >= 0) & (j >= 0) & (is_local | (j < lm.n_global))).any(-2).expand(2, -1)
        assert not seen[:, -1].any() and (lm.n_local is None or not seen[:, 10].any())
        spoiled = (q, poisoned(k, ~seen), poisoned(v, ~seen))
        got = path(*spoiled, q_positions, k_positions, scheme, lm)
        assert got.isfinite().all()
        assert torch.equal(got, path(q, k, v, q_positions, k_positions, scheme, lm))
        felt = (q, k, poisoned(v, seen))
        control = path(*felt, q_positions, k_positions, scheme, lm)
        assert not control.isfinite().any(), "who may see it does feel it"


def test_poison_in_padded_queries(path):
    """Catches a padded query whose NaN leaks into its row, or comes out where zeros belong."""
    q, k, v = vectors(12)
    positions = torch.arange(12) - torch.tensor([[0], [5]])
    padding = positions < 0
    clean = path(q, k, v, positions, positions, Rotary(8), setting())
    spoiled = (poisoned(x, padding) for x in (q, k, v))
    got = path(*spoiled, positions, positions, Rotary(8), setting())
    assert torch.equal(got, clean)
    assert got[1, :, :5].eq(0).all()


@pytest.mark.parametrize("size, n_global", [(1, 2), (2, 0), (7, 2), (7, 0)])
def test_poison_in_evicted_keys_of_a_cache(family, size, n_global):
    """Catches a ring that shows a key too old, even for the first query of a chunk."""
    model, tokens, lm = tiny_model(family, 1), some_tokens(30), setting(n_global)
    clean = read_in_chunks(model, tokens, lm, [1])
    cache = model.new_cache(1, lm)
    if n_global:
        model(tokens[:, :n_global], lm, cache=cache)
    weight = model.embed.weight.data.clone()
    model.embed.weight.data.fill_(math.nan)
    model(tokens[:, n_global:10], lm, cache=cache)
    model.embed.weight.data.copy_(weight)
    model(tokens[:, 10 : 10 + L - 1], lm, cache=cache)  # these still see the poison
    logits = []
    for start in range(10 + L - 1, 30, size):
        logits.append(model(tokens[:, start : start + size], lm, cache=cache))
    logits = torch.cat(logits, 1)
    assert logits.isfinite().all()
    assert (logits - clean[:, 10 + L - 1 :]).abs().max() <= 1e-12


def test_poison_reaches_who_may_see_it(family):
    """Negative control: the last query that still has the poison in its window does feel it."""
    model, tokens, lm = tiny_model(family, 1), some_tokens(30), setting()
    cache = model.new_cache(1, lm)
    model(tokens[:, :9], lm, cache=cache)
    weight = model.embed.weight.data.clone()
    model.embed.weight.data.fill_(math.nan)
    model(tokens[:, 9:10], lm, cache=cache)
    model.embed.weight.data.copy_(weight)
    finite = [
        model(tokens[:, i : i + 1], lm, cache=cache).isfinite().all() for i in range(10, 20)
    ]
    assert finite == [False] * (L - 1) + [True] * (10 - L + 1)


def test_poison_in_the_unused_room_of_a_cache(model):
    """Catches a buffer read to its capacity instead of to its length."""
    lm, tokens = LMInfinite(20, 9, 20), some_tokens(30)
    cache, logits = model.new_cache(1, lm), []
    for start in range(0, 30, 3):
        logits.append(model(tokens[:, start : start + 3], lm, cache=cache))
        for layer in cache.layers:
            for x in (layer.ring, layer.starting):
                x[:, :, :, cache.length :] = math.nan
    assert (torch.cat(logits, 1) - model(tokens, lm)).abs().max() <= 1e-10


# --- how many share the attention ---


def entropies(path, n, lm):
    """The entropy of each row's weights, for queries and keys that are random but small."""
    marks = torch.eye(n, dtype=torch.float64)[None, None]
    generator = torch.Generator().manual_seed(4)
    q, k = (0.1 * torch.randn(1, 1, n, n, generator=generator).double() for _ in range(2))
    positions = torch.arange(n)
    weights = path(q, k, marks, positions, positions, Rotary(8), lm)[0, 0]
    torch.testing.assert_close(weights.sum(-1), torch.ones(n).double(), rtol=0, atol=1e-12)
    return torch.special.entr(weights).sum(-1)


def test_the_entropy_of_a_row_is_bounded(path):
    """Catches a row that sees more than n_local + n_global keys; the vanilla model's do."""
    lm, n = setting(n_global=3), 200
    bound = math.log(L + 3)
    assert entropies(path, n, lm).max() <= bound
    assert entropies(path, n, lm)[-1] > bound - 0.1, "nearly even weights come near the bound"
    assert entropies(path, n, None)[-1] > math.log(L + 3 + 1)


# --- grouped heads ---


def test_a_grouped_model_is_one_with_its_key_heads_repeated(reading):
    """Catches query heads that are given the wrong group, in any way of reading."""
    grouped, full = tiny_llama(n_kv_head=2), tiny_llama(n_kv_head=4)
    full.embed, full.norm, full.head = grouped.embed, grouped.norm, grouped.head
    for block, wide in zip(grouped.blocks, full.blocks):
        weights = block.state_dict()
        by_head = weights["qkv.weight"].unflatten(0, (-1, 8))  # 4 queries, 2 keys, 2 values
        weights["qkv.weight"] = by_head[[0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7]].flatten(0, 1)
        wide.load_state_dict(weights)
    tokens = some_tokens(30)
    for lm in (None, setting()):
        assert (reading(grouped, tokens, lm) - reading(full, tokens, lm)).abs().max() <= 1e-10


# --- dtypes ---


@pytest.mark.parametrize(
    "dtype, roundings",
    [(torch.float64, 32), (torch.float32, 32), (torch.bfloat16, 8), (torch.float16, 8)],
)
@pytest.mark.parametrize("name", ["full attention", "LM-Infinite"])
def test_every_dtype_is_as_good_as_its_precision(family, dtype, roundings, name, reading):
    """Catches a step that leaves the model's dtype, and one that loses more than it rounds."""
    model, tokens, lm = tiny_model(family, dtype=dtype), some_tokens(40), SETTINGS[name]
    logits = reading(model, tokens, lm)
    assert logits.dtype == dtype
    exact = model.double()(tokens, lm, path="reference")
    assert (logits.double() - exact).abs().max() <= roundings * torch.finfo(dtype).eps

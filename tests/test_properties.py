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
    named,
    padded,
    read_in_chunks,
    some_tokens,
    tiny_model,
    vectors,
)

from minilm_inf import Alibi, LMInfinite, Rotary, attend, chunked_attend
from minilm_inf.fast.reading import starting_tokens_are_read

L = 6
DIFFERENT = 1e-3  # far above any rounding, far below any effect of a distance one off
PATHS = {"attend": attend, "chunked_attend": chunked_attend}
FAR = 200_000_000
ALLOWED = {torch.float64: 1e-10, torch.float32: 1e-5}


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
    """The largest difference of each row of logits, (B, T, V) -> (T,), NaN where one is."""
    return (a - b).abs().amax((0, 2))


# --- one function, however it is computed, and for each row as if it were alone ---


def in_steps(model, tokens, lm, padding):
    """The model's logits token by token, in a decode step's fixed shapes as soon as it can."""
    cache, logits = model.new_cache(len(tokens), lm, padding=padding), []
    for count, token in enumerate(tokens.split(1, 1)):
        assert starting_tokens_are_read(cache) == (count - max(padding) >= lm.n_global)
        if not starting_tokens_are_read(cache):
            logits.append(model(token, lm, cache))
            continue
        cache.settle()
        logits.append(model.decode(token, cache, torch.tensor(cache.length))[:, None])
        cache.length += 1
    return torch.cat(logits, 1)


def readings_of(model, tokens, lm, lengths, sizes) -> dict:
    """name -> logits (B, T, V), by every way there is to read rows of different lengths."""
    padding = [tokens.shape[1] - n for n in lengths]
    cache = model.new_cache(len(tokens), lm)
    readings = {
        "reference": model(tokens, lm, path="reference", lengths=lengths),
        "chunked": model(tokens, lm, lengths=lengths),
        "one cached call": model(tokens, lm, cache, lengths=lengths),
        "in chunks": read_in_chunks(model, tokens, lm, sizes, padding=padding),
        "token by token": read_in_chunks(model, tokens, lm, [1], padding=padding),
    }
    if lm.n_local and lm.distance_ceiling in (None, lm.n_local):
        readings["in steps"] = in_steps(model, tokens, lm, padding)
    return readings


@pytest.mark.parametrize(
    "draw",
    fuzz(
        11,
        120,
        family=FAMILIES,
        lengths=[(1,), (6,), (7, 7), (11,), (13, 13), (23,), (30, 30), (5, 1, 9), (1, 23),
                 (17, 16, 2, 30), (30, 6, 29, 1)],
        n_local=[1, 2, 3, 5, 6, 8, 30, None],
        n_global=[0, 1, 3, 6, 30],
        ceiling=["window", "window", None, 0, 2, 5, 8, 12],
        sizes=[(2,), (6,), (7,), (1, 2, 3, 4, 5), (9, 1, 1, 5, 2), (12, 1), (1, 22), (26, 1)],
        chunk=[2, 3, 64],
        dtype=[torch.float64, torch.float64, torch.float32],
    ),
    ids=named,
)  # fmt: skip
def test_every_reading_is_the_definition(draw, small_chunks):
    """Catches an off-by-one where text, window, chunk and starting run begin and end, a ring
    read in the wrong order, a slot of a step that is seen while it is empty, padding that is
    seen or counted, and a family that is right in one way of reading alone."""
    small_chunks(draw["chunk"])
    n_local, ceiling, lengths = draw["n_local"], draw["ceiling"], list(draw["lengths"])
    lm = LMInfinite(n_local, draw["n_global"], n_local if ceiling == "window" else ceiling)
    tokens = some_tokens(max(lengths) + 3, batch=len(lengths))
    texts = [row[:n] for row, n in zip(tokens, lengths)]
    model, allowed = tiny_model(draw["family"], dtype=draw["dtype"]), ALLOWED[draw["dtype"]]
    alone = [model(text[None], lm, path="reference")[0] for text in texts]
    readings = readings_of(model, padded(texts), lm, lengths, draw["sizes"])
    for way, logits in readings.items():
        for row, right in zip(logits, alone):
            assert (row[-len(right) :] - right).abs().max() <= allowed, way


# --- against the vanilla model ---


@pytest.mark.parametrize("n_global", [0, 1, 5, 50])
def test_the_first_row_that_differs_from_vanilla(model, reading, n_global):
    """Catches a window, a ceiling or a starting token that acts on n_local tokens or fewer, or
    a row too late: a ceiling of L - 1 differs a row too early, one of L + 1 a row too late."""
    first = L + (n_global > 0)  # row L reaches key 0 alone, at the ceiling
    ceilings = {L: first, L - 1: L, L + 1: L + min(n_global, 2)}
    ceilings = ceilings if n_global else {L: L}
    tokens = some_tokens(4 * L, batch=2)
    vanilla, right = reading(model, tokens, None), reading(model, tokens, setting(n_global))
    for ceiling, first in ceilings.items():
        logits = reading(model, tokens, setting(n_global, ceiling))
        change = change_by_row(vanilla, logits)
        assert change[:first].max() <= 1e-10 and change[first] > DIFFERENT
        assert ceiling == L or (logits - right).abs().max() > DIFFERENT
    for n in (1, L):  # also where the text ends there
        short = reading(model, tokens[:, :n], setting(n_global))
        assert change_by_row(vanilla[:, :n], short).max() <= 1e-10


def test_a_starting_token_recedes_to_the_ceiling_and_stays(path):
    """Catches a starting token that jumps back, recedes for ever, or stops elsewhere.

    Queries and keys are nothing, and the values mark the keys: what a query gathers is its
    weights, and their logarithms are ALiBi's distances.
    """
    n, nothing = 5 * L, torch.zeros(1, 1, 5 * L, 5 * L, dtype=torch.float64)
    marks, positions = torch.eye(n, dtype=torch.float64)[None, None], torch.arange(5 * L)
    lm, scheme = setting(n_global=3), Alibi(1)  # whose slope is 2^-8
    weights = path(nothing, nothing, marks, positions, positions, scheme, lm, 1.0)[0, 0]
    felt = (weights.diagonal().log()[:, None] - weights.log()) * 2.0**8
    for i in range(n):
        seen = {j: min(i - j, L) for j in range(i + 1) if i - j < L or j < 3}
        assert felt[i].isfinite().nonzero().flatten().tolist() == list(seen)
        assert felt[i, list(seen)].tolist() == pytest.approx(list(seen.values()), abs=1e-4)


# --- reach ---


@pytest.mark.parametrize("n_layer, n_global", [(1, 0), (2, 1), (3, 3)])
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
def test_gradients_end_exactly_at_the_reach(family, way):
    """Catches a weight of 1e-30 where 0 is meant: a gradient shows what rounding hides."""
    model, tokens = tiny_model(family, 2), some_tokens(30)
    embedded = []
    model.embed.register_forward_hook(lambda *x: embedded.append(x[-1].requires_grad_()))
    model(tokens, setting(n_global=2), path=way)[0, -1].sum().backward()
    reached = embedded[0].grad[0].abs().amax(-1).ne(0).nonzero().flatten().tolist()
    assert reached == [0, 1, *range(29 - 2 * (L - 1), 30)]


# --- invariance to what stands between, and to where it stands ---


@pytest.mark.parametrize("n_global", [0, 1, 9])
def test_length_invariance(model, reading, n_global):
    """Catches anything of a text's length or middle that reaches its end."""
    tail = 2 * (L - 1) + 1
    ends = some_tokens(n_global + tail, seed=2)
    first, last = ends[:, :n_global], ends[:, n_global:]

    def at_the_end(n, seed=1, drop=0, lm=None):
        tokens = torch.cat((first, some_tokens(n, seed=seed), last[:, drop:]), 1)
        return reading(model, tokens, lm or setting(n_global))[:, -1]

    expected = at_the_end(0)
    for n, seed in ((1, 3), (17, 5), (17, 6), (60, 7)):
        assert (at_the_end(n, seed) - expected).abs().max() <= 1e-10
    one_fewer = [at_the_end(17, seed, drop=1) for seed in (5, 6)]
    assert (one_fewer[0] - one_fewer[1]).abs().max() > 1e-6, "N(L-1) tokens are not enough"
    if n_global:  # and without the ceiling the length is felt through the starting tokens
        free = setting(n_global, ceiling=None)
        assert (at_the_end(10, lm=free) - at_the_end(40, lm=free)).abs().max() > DIFFERENT


class Float32Rotary(Rotary):
    """Rotary as it is mostly written, with angles of absolute positions in float32."""

    def angles(self, positions):
        return positions.float()[..., None] * self.frequencies.float()

    def matrix(self, position, dim, dtype):
        place = self.at(position.view(1), dtype)
        return place(torch.eye(dim, dtype=dtype)[None, None])[0, 0]


@pytest.mark.parametrize("name", SETTINGS)
def test_shift_invariance_of_a_model(family, name):
    """Catches angles that lose their precision 200 million tokens down a stream, and a first
    position that moves the mask; and a check that would let float32 angles pass."""
    model, tokens = tiny_model(family, dtype=torch.float32), some_tokens(30)
    lm, errors = SETTINGS[name], []
    here = read_in_chunks(model, tokens, lm, [9, 1])
    for first in (1, FAR):
        there = read_in_chunks(model, tokens, lm, [9, 1], first_position=first)
        assert (there - here).abs().max() <= 1e-5
    if name == "LM-Infinite" and family != "mpt":
        model.scheme = Float32Rotary(model.scheme.rotary_dim, layout=model.scheme.layout)
        for first in (0, 10_000, 10_000_000, FAR):
            wrong = read_in_chunks(model, tokens, lm, [9, 1], first_position=first)
            errors.append((wrong - here).abs().max().item())
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


@pytest.mark.parametrize("name", ["full attention", "LM-Infinite", "more starting than local"])
def test_poison_in_padding(family, name):
    """Catches NaN in the padding's queries, keys and values, which spreads wherever 0 times it
    is added, in any way of reading."""
    lm, lengths, poison = SETTINGS[name], [23, 2, 9], 30
    texts = [some_tokens(n, seed=n)[0] % poison for n in lengths]
    ways = tiny_model(family), padded(texts), lm, lengths, (5, 1, 8, 3)
    clean = readings_of(*ways)
    spoiled = tiny_model(family)
    spoiled.embed.weight[poison] = math.nan
    if spoiled.config.tied:
        spoiled.head.weight = torch.nn.Parameter(spoiled.embed.weight.nan_to_num(0.0))
    found = readings_of(spoiled, padded(texts, filler=poison), *ways[2:])
    for way in clean:
        for row, right, n in zip(found[way], clean[way], lengths):
            change = row[-n:, :poison] - right[-n:, :poison]
            assert change.abs().max() <= 1e-12, way


@pytest.mark.parametrize("size, n_global", [(1, 2), (2, 0), (7, 2), (7, 0)])
def test_poison_in_evicted_keys_of_a_cache(family, size, n_global):
    """Catches a ring that shows a key too old, even for the first query of a chunk; the last
    query that still has the poison in its window does feel it."""
    model, tokens, lm = tiny_model(family, 1), some_tokens(30), setting(n_global)
    clean, cache = read_in_chunks(model, tokens, lm, [1]), model.new_cache(1, lm)
    if n_global:
        model(tokens[:, :n_global], lm, cache=cache)
    weight = model.embed.weight.data.clone()
    model.embed.weight.data.fill_(math.nan)
    model(tokens[:, n_global:10], lm, cache=cache)
    model.embed.weight.data.copy_(weight)
    assert not model(tokens[:, 10 : 10 + L - 1], lm, cache=cache).isfinite().any()
    rest = [model(piece, lm, cache=cache) for piece in tokens[:, 10 + L - 1 :].split(size, 1)]
    assert (torch.cat(rest, 1) - clean[:, 10 + L - 1 :]).abs().max() <= 1e-12


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


# --- how many share the attention, grouped heads, dtypes ---


def test_the_entropy_of_a_row_is_bounded(path):
    """Catches a row that sees more than n_local + n_global keys; the vanilla model's do."""
    n, generator = 100, torch.Generator().manual_seed(4)
    marks, positions = torch.eye(n, dtype=torch.float64)[None, None], torch.arange(n)
    q, k = (0.1 * torch.randn(1, 1, n, n, generator=generator).double() for _ in range(2))
    bound, last = math.log(L + 3), []
    for lm in (setting(n_global=3), None):
        weights = path(q, k, marks, positions, positions, Rotary(8), lm)[0, 0]
        assert (weights.sum(-1) - 1).abs().max() <= 1e-12
        last.append(torch.special.entr(weights).sum(-1))
    assert bound - 0.1 < last[0].max() <= bound, "nearly even weights come near the bound"
    assert last[1][-1] > math.log(L + 3 + 1)


def test_grouped_heads_are_repeated_heads(path):
    """Catches query heads that are given the wrong group: dealt out in turn, 0, 1, 0, 1."""
    (q, k, v), n = vectors(30), torch.arange(30)
    wide = [x.repeat_interleave(2, 1) for x in (k, v)]
    for lm in SETTINGS.values():
        expected = path(q, *wide, n, n, Rotary(8), lm)
        assert (path(q, k, v, n, n, Rotary(8), lm) - expected).abs().max() <= 1e-12


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

"""Kinds of fuzz.py: calls of the library with arguments that do not fit."""

from __future__ import annotations

import functools
import random

import torch
from conftest import tiny_model
from fuzz_draw import VALUES, Wrong, tokenizer, weights, write

from minilm_inf import (
    Alibi,
    LMInfinite,
    ModelConfig,
    Rotary,
    attend,
    chunked_attend,
    generate,
    load,
)

DTYPES = torch.float32, torch.float64, torch.float16, torch.bfloat16
CLOSE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 0.02, torch.bfloat16: 0.15}
MORE = (
    torch.arange(3),
    torch.tensor(5),
    torch.zeros(2, 3),
    [0, 1],
    (1, 2),
    range(4),
    "cpu",
    0.5j,
)


def anything(rng: random.Random):
    """A value that no argument expects."""
    return rng.choice((*VALUES, *MORE, 4, 8, 2.0, LMInfinite(8, 2, 8), Rotary(4)))


def some_lm(rng) -> LMInfinite | None:
    """A setting: small numbers, or numbers beyond all positions."""
    if rng.random() < 0.2:
        return None
    n_local = rng.choice((None, 1, 3, 8, 300, 2**61))
    return LMInfinite(
        n_local, rng.choice((0, 1, 2, 5, 2**61)), rng.choice((None, 0, 3, 8, 300, 2**61)),
        top_k=0 if n_local is None else rng.choice((0, 0, 0, 2, 2**61)),
        top_k_queries=rng.choice(("last", "all")),
    )  # fmt: skip


def some_positions(rng, batch: int, length: int) -> torch.Tensor:
    """Positions of a row, or of each: from 0 or from anywhere on, with padding or with gaps."""
    first = rng.choice((0, 0, 0, -3, 1000, 2**40, 2**53 - 10, 2**53 + 10, 2**62, -(2**62)))
    positions = torch.arange(length) + first
    if rng.random() < 0.2:
        positions = positions + torch.randint(0, 3, (length,)).cumsum(0)
    if rng.random() < 0.2:
        positions = positions.expand(batch, -1) - torch.arange(batch)[:, None]
    if rng.random() < 0.05:
        positions = positions.flip(-1)
    return positions.to(rng.choice((torch.int64, torch.int64, torch.int64, torch.int32)))


def attention(rng):
    torch.manual_seed(rng.randrange(10**6))
    batch, n_kv_head, dim = rng.choice((1, 1, 2)), rng.choice((1, 2)), rng.choice((2, 4, 8))
    n_head, n_keys = n_kv_head * rng.choice((1, 1, 3)), rng.choice((1, 5, 40, 300))
    n_queries = rng.choice((n_keys, n_keys, 1, 0))
    dtype = rng.choice(DTYPES)
    shapes = (n_head, n_queries), (n_kv_head, n_keys), (n_kv_head, n_keys)
    q, k, v = (torch.randn(batch, *shape, dim, dtype=dtype) for shape in shapes)
    k_positions = some_positions(rng, batch, n_keys)
    given = dict(
        q=q, k=k, v=v, k_positions=k_positions,
        q_positions=k_positions[..., n_keys - n_queries :],
        scheme=rng.choice((Rotary(dim), Rotary(2, layout="pairs"), Alibi(n_head))),
        lm=some_lm(rng), scale=rng.choice((None, None, 0, 0.0, -1.0, -0.3, 2.5)),
    )  # fmt: skip
    if rng.random() < 0.1:
        given["q_positions"] = some_positions(rng, batch, n_queries)
    if rng.random() < 0.1:
        given["n_reaching"] = rng.choice((0, 1, n_queries, n_queries + 1, -1))
    if rng.random() < 0.5:
        name = rng.choice(list(given))
        others = (Rotary(16), Alibi(7), q[0], k[:, :0], v[..., :0], q.long(), q[:0], k.mT,
                  v.to("meta"), k.to(rng.choice(DTYPES)), k_positions.double(),
                  k_positions > 2)  # fmt: skip
        given[name] = rng.choice((anything(rng), rng.choice(others)))
    shown = {n: tuple(x.shape) if isinstance(x, torch.Tensor) else x for n, x in given.items()}
    return f"{shown} {dtype}"[:1500], lambda: both(given, dtype)


def both(given: dict, dtype):
    """The definition and the chunked path give the same numbers, or a ValueError each."""
    results, errors = {}, {}
    for function in (attend, chunked_attend):
        try:
            results[function] = function(**given)
        except ValueError as error:
            errors[function] = error
    if len(results) == 2:
        ours, theirs = results[chunked_attend], results[attend]
        if not torch.allclose(ours, theirs, CLOSE[dtype], CLOSE[dtype], equal_nan=True):
            raise Wrong(f"off by {(ours - theirs).abs().max()}")
    elif results and "ascend" not in str(errors.get(chunked_attend)):
        raise Wrong(f"only one of the two raises: {errors}")
    for error in errors.values():
        raise error


@functools.cache
def model(family: str = "llama"):
    return tiny_model(family, dtype=torch.float32, context_length=16)


CONFIG = dict(family="llama", vocab_size=31, n_layer=2, n_head=4, n_kv_head=2, n_embd=32,
              head_dim=8, n_inner=48, context_length=6, norm_eps=1e-5, tied=False)  # fmt: skip
LM = dict(n_local=8, n_global=2, distance_ceiling=8, top_k=2, top_k_distance=3,
          top_k_from_layer=0, top_k_queries="last")  # fmt: skip
SCALING = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip


def read(tokens, lm, first_position, padding, middle, batch, path, lengths, n_reaching):
    cache = None
    if path == "cached":
        cache = model().new_cache(batch, lm, first_position, padding, middle)
        path, lengths = "chunked", None
    with torch.inference_mode():
        return model()(tokens, lm, cache, path, lengths, n_reaching)


READ = dict(tokens=torch.arange(24).view(2, 12), lm=LMInfinite(5, 2, 5), first_position=0,
            padding=None, middle="ram", batch=2, path="cached", lengths=None,
            n_reaching=None)  # fmt: skip
WRITE = dict(ids=[1, 2, 3], lm=LMInfinite(5, 2, 5), max_new_tokens=2, temperature=0.8, top_k=5,
             top_p=0.9, seed=1, stop_ids=(2,), prefill_chunk=2, middle="ram")  # fmt: skip
NEW = dict(batch=2, lm=LMInfinite(5, 2, 5, 2), first_position=0, padding=[0, 1], middle="ram")


def cached_at(first_position):
    """Text that grows beyond what positions can hold."""
    lm = LMInfinite(5, 2, 5)
    cache = model().new_cache(1, lm, first_position)
    for n in (3, 1, 20, 1, 1):
        model()(torch.arange(n)[None], lm, cache)


TARGETS = {  # name -> (what is called, its arguments, what stands for one of them at times)
    "Rotary": (Rotary, dict(rotary_dim=8, theta=1e4, layout="halves", scaling=None),
               (SCALING,)),
    "scaling": (lambda **s: Rotary(8, scaling=s), SCALING, ("linear", "default")),
    "Alibi": (Alibi, dict(n_head=4, bias_max=8.0), (2**40, 3.0)),
    "LMInfinite": (LMInfinite, LM, (2**62, 2**61)),
    "ModelConfig": (ModelConfig, CONFIG, (2**40, (1, 2), (-1,))),
    "new_cache": (lambda **a: model().new_cache(**a), NEW, (2**53, [1], [-1, 0], [0, 0, 0])),
    "read": (read, READ, ([12, 3], [13, 1], torch.zeros(2, 0).long(), torch.ones(2, 12),
                          torch.arange(40).view(2, 20), "reference", "cached", 12, 1)),
    "generate": (lambda **a: list(generate(model(), **a)), WRITE,
                 ([31], [-1], [1.5], ["a"], torch.arange(3), (1, 2), "reference")),  # fmt: skip
    "far": (cached_at, dict(first_position=0), (2**53 - 10, 2**53 - 30, 2**53, 2**62, -5)),
    "load": (load, dict(folder="m", device="cpu", dtype=None), (torch.float16, "cuda:9")),
}  # fmt: skip


def arguments(rng):
    name = rng.choice(list(TARGETS))
    function, usual, others = TARGETS[name]
    if name == "load":
        write(weights() | tokenizer("pieces"))
    given = dict(usual)
    for _ in range(rng.choice((1, 1, 2))):
        given[rng.choice(list(given))] = rng.choice((anything(rng), rng.choice((*others, 3))))
    if name == "ModelConfig" and rng.random() < 0.2:
        own = rng.choice(("softmax_scale", "bos_id", "eos_ids"))
        given[own] = anything(rng)
    if name == "read" and rng.random() < 0.3:
        given["lm"] = LMInfinite(5, 2, 5, 2)
    return f"{name} {given}"[:1500], lambda: function(**given)


CALLS = {"attention": attention, "arguments": arguments}

"""What the tests share: tiny random networks, random vectors, and the ways to read a text."""

from __future__ import annotations

import io
import json
import math
import random
import shutil
import signal
import struct
import sys
from contextlib import contextmanager
from pathlib import Path

import forks
import pytest
import torch
from safetensors.torch import load_file, save_file

from minilm_inf import load
from minilm_inf.checkpoint import save
from minilm_inf.config import LMInfinite
from minilm_inf.models import gptj, llama, mpt
from minilm_inf.positions import Alibi, Rotary
from minilm_inf.transformer import Transformer

ROOT = Path(__file__).resolve().parents[1]

SETTINGS = {
    "full attention": LMInfinite(n_local=None, n_global=0, distance_ceiling=None),
    "LM-Infinite": LMInfinite(n_local=6, n_global=2, distance_ceiling=6),
    "sliding window": LMInfinite(n_local=6, n_global=0, distance_ceiling=6),
    "Λ without ceiling": LMInfinite(n_local=6, n_global=2, distance_ceiling=None),
    "ceiling without Λ": LMInfinite(n_local=None, n_global=0, distance_ceiling=6),
    "ceiling below the window": LMInfinite(n_local=6, n_global=2, distance_ceiling=3),
    "ceiling beyond the window": LMInfinite(n_local=6, n_global=2, distance_ceiling=9),
    "more starting than local": LMInfinite(n_local=3, n_global=7, distance_ceiling=3),
    "a window of one": LMInfinite(n_local=1, n_global=1, distance_ceiling=1),
}

SCHEMES = {
    "halves": Rotary(8, layout="halves"),
    "pairs": Rotary(8, layout="pairs"),
    "partial": Rotary(4, layout="pairs"),
    "alibi": Alibi(4),
}


def pytest_configure(config):
    """One thread: these tensors are so small that handing them to more costs time."""
    torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--half", type=int, help="run every second test only, from the 1st or 2nd")
    parser.addoption("--fuzz", type=int, default=300, help="how many cases test_fuzz.py takes")


@pytest.hookimpl(trylast=True)  # once the slow ones are left out
def pytest_collection_modifyitems(config, items):
    """Two processes, one for each half, use two cores; every second test goes to the other,
    since the slow ones stand together."""
    half = config.getoption("--half")
    if half is not None:
        config.hook.pytest_deselected(items=items[half % 2 :: 2])
        items[:] = items[half - 1 :: 2]


FAMILIES = {  # family -> its file, its config, and what is its own in a tiny model
    "llama": (llama, llama.LlamaConfig, dict(n_head=4, n_kv_head=2, n_embd=32, n_inner=48)),
    "mpt": (
        mpt,
        mpt.MptConfig,
        dict(
            n_head=6, n_kv_head=6, n_embd=48, n_inner=96, tied=True, clip_qkv=1.5, qk_ln=True,
            bias=True,
        ),
    ),
    "gptj": (
        gptj,
        gptj.GptjConfig,
        dict(n_head=4, n_kv_head=4, n_embd=32, n_inner=48, rotary_dim=6),
    ),
}  # fmt: skip


def tiny_model(
    family: str, n_layer=2, dtype=torch.float64, context_length=6, seed=0, **facts
) -> Transformer:
    """A random model whose attention logits and output logits have a deviation of about 1.

    Norms and biases are random too. It asks for no gradients, so that no test pays for them.
    facts: what differs from FAMILIES.
    """
    module, config_class, own = FAMILIES[family]
    common = dict(
        family=family,
        vocab_size=31,
        n_layer=n_layer,
        head_dim=8,
        context_length=context_length,
        norm_eps=1e-5,
        tied=False,
    )
    model = module.build(config_class(**common | own | facts))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        if name.endswith("bias"):
            weight.data = 0.5 * noise
        elif weight.dim() == 1:
            weight.data = 1 + 0.2 * noise  # a norm
        elif name.startswith("embed") and not model.config.tied:
            weight.data = noise
        else:
            weight.data = noise * weight.shape[1] ** -0.5
    return model.to(dtype).requires_grad_(False)


def tiny_llama(n_layer=2, n_head=4, n_kv_head=2, **facts) -> Transformer:
    """tiny_model, of the family that shares key heads among query heads."""
    return tiny_model("llama", n_layer, n_head=n_head, n_kv_head=n_kv_head, **facts)


def random_folder(path: Path, **facts) -> Path:
    """A folder with a random model, tiny-llama's tokenizer, and questions about two texts."""
    save(tiny_llama(vocab_size=2048, dtype=torch.float32, **facts), path)
    shutil.copy(ROOT / "weights" / "tiny-llama" / "tokenizer.model", path)
    row = {"question": "Which?", "answers": ["the sea"]}
    texts = ("It was cold and dark. " * 30, "They looked at the sea. " * 40)
    lines = [json.dumps(row | {"context": text}) for text in (*texts, texts[0])]
    (path / "questions.jsonl").write_text("\n".join(lines))
    return path


def some_tokens(n: int, batch=1, seed=1) -> torch.Tensor:
    """Random ids of tiny_model's vocabulary, (batch, n)."""
    return torch.randint(31, (batch, n), generator=torch.Generator().manual_seed(seed))


def padded(texts: list[torch.Tensor], filler=0) -> torch.Tensor:
    """Texts (n,) as one tensor (B, T), each with filler before it."""
    longest = max(map(len, texts))
    rows = [torch.cat((torch.full((longest - len(t),), filler), t)) for t in texts]
    return torch.stack(rows)


def vectors(n_queries, n_keys=None, batch=2, n_head=4, n_kv_head=2, dim=8, dtype=None, seed=0):
    """Random q (B, H, T, D), k and v (B, H_kv, S, D), the same for every dtype."""
    generator = torch.Generator().manual_seed(seed)
    n_keys = n_queries if n_keys is None else n_keys
    shapes = ((n_head, n_queries), (n_kv_head, n_keys), (n_kv_head, n_keys))
    return tuple(
        torch.randn(batch, *shape, dim, generator=generator, dtype=torch.float64).to(dtype)
        for shape in shapes
    )


def read_in_chunks(model, tokens, lm, sizes, **cache_options):
    """The model's logits when a cache carries it from chunk to chunk; the last size repeats."""
    cache = model.new_cache(tokens.shape[0], lm, **cache_options)
    sizes, logits, start = list(sizes), [], 0
    while start < tokens.shape[1]:
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        logits.append(model(tokens[:, start : start + size], lm, cache=cache))
        start += size
    return torch.cat(logits, 1)


READINGS = {
    "reference": lambda model, tokens, lm: model(tokens, lm, path="reference"),
    "chunked": lambda model, tokens, lm: model(tokens, lm),
    "cached": lambda model, tokens, lm: read_in_chunks(model, tokens, lm, [5, 1, 3, 1]),
}


@pytest.fixture
def program(capsys, monkeypatch):
    """A call of a program in this process: (main, arguments...) -> (exit code, stdout, stderr).
    However many threads it asks for, they are what they were after the test. It has an empty
    stdin, as long as a test gives it no other."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))

    def call(main, *arguments) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return code, output.out, output.err

    yield call
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def python():
    """A call of python in a process of its own, but without PyTorch's import each time:
    (arguments, cwd, stdin) -> what subprocess.run gives."""
    with forks.Server() as server:
        yield server.run


def error(call, *arguments) -> str:
    """The one sentence that a call of a program ends with."""
    code, out, err = call(*arguments)
    last = err.splitlines()[-1]
    assert code == 1 and not out and last.startswith("error: ") and err.count("error: ") == 1
    return last


def interrupt_at(monkeypatch, run_class, step: int, name=signal.SIGINT):
    """Let a signal come while a run takes a step."""
    take, taken = run_class.step, [0]

    def and_then(run):
        taken[0] += 1
        if taken[0] == step:
            signal.raise_signal(name)
        take(run)

    monkeypatch.setattr(run_class, "step", and_then)


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> Path:
    """A folder of small texts: a, b; short, of a few tokens; latin, not UTF-8; empty."""
    folder = tmp_path_factory.mktemp("texts")
    words = "The ship went on, and the men looked at the sea, for it was late. "
    for name, text in (("a", words * 40), ("b", "It was cold. " * 200), ("short", "No.")):
        (folder / name).write_text(text)
    (folder / "latin").write_bytes(b"caf\xe9")
    (folder / "empty").write_bytes(b"")
    return folder


@pytest.fixture(scope="session")
def shipped():
    """The model and the tokenizer of weights/tiny-llama."""
    return load(ROOT / "weights" / "tiny-llama")


@pytest.fixture(scope="session")
def tokenizer(shipped):
    return shipped[1]


@pytest.fixture(params=READINGS)
def reading(request):
    """Each way to read a text: (model, tokens, lm) -> logits (B, T, V)."""
    return READINGS[request.param]


@pytest.fixture
def small_chunks(monkeypatch):
    """A function that sets how many queries and keys one product of the chunked path takes."""

    def use(queries: int, keys: int = 4096):
        rows = (queries + 1) // 2
        monkeypatch.setattr("minilm_inf.fast.chunk.QUERIES_AT_ONCE", queries)
        monkeypatch.setattr("minilm_inf.fast.chunk.LOGITS_AT_ONCE", 16 * keys)
        monkeypatch.setattr("minilm_inf.fast.band.ROWS", rows)
        monkeypatch.setattr("minilm_inf.fast.chunked.ROWS", rows)
        monkeypatch.setattr("minilm_inf.fast.band.BLOCK_LOGITS", 16 * queries)
        monkeypatch.setattr("minilm_inf.fast.chunked.QUERIES_PER_STRETCH", 2 * queries + 1)
        monkeypatch.setattr("minilm_inf.fast.chunked.KEY_HEADS_AT_ONCE", 2)

    return use


def rotary_logit(q, k, d, rotary_dim=8, theta=10000.0, layout="halves") -> float:
    """The specification of RoPE: each pair of coordinates is a complex number, turned by d.

    q, k: lists of D floats. The logit of a pair at distance d is the real part of
    q_m * conj(k_m) * e^(i d theta_m).
    """
    half = rotary_dim // 2
    pairs = [(m, m + half) if layout == "halves" else (2 * m, 2 * m + 1) for m in range(half)]
    total = sum(q[c] * k[c] for c in range(rotary_dim, len(q)))
    for m, (a, b) in enumerate(pairs):
        angle = d * theta ** (-2 * m / rotary_dim)
        turn = complex(math.cos(angle), math.sin(angle))
        total += (complex(q[a], q[b]) * complex(k[a], -k[b]) * turn).real
    return total


def logit_of(scheme, q, k, d, head, scale) -> float:
    """The specification of w(q, k, d) for a scheme of SCHEMES, in plain Python."""
    if isinstance(scheme, Alibi):
        n_head = len(scheme.slopes)
        assert n_head & (n_head - 1) == 0, "the specification knows powers of two only"
        slope = 2 ** (-8 * (head + 1) / n_head)
        return scale * sum(a * b for a, b in zip(q, k)) - slope * d
    return scale * rotary_logit(q, k, d, rotary_dim=scheme.rotary_dim, layout=scheme.layout)


def specification(
    q, k, v, q_positions, k_positions, scheme, lm, scale, reaching=()
) -> torch.Tensor:
    """LM-Infinite's attention as loops over batch, head, i and j (paper, sections 3.2 and 3.3).

    Tensors as attend takes them, in float64; positions are lists of B lists. reaching: in which
    columns of q the queries stand to which middle keys come back.
    """
    out = torch.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    a = lm.n_local and lm.n_local // 2 if lm.top_k_distance is None else lm.top_k_distance
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            keys, values = k[b, h // group].tolist(), v[b, h // group]
            for t, i in enumerate(q_positions[b]):
                query, logits, middle = q[b, h, t].tolist(), {}, {}
                for s, j in enumerate(k_positions[b]):
                    d = i - j
                    if j < 0 or d < 0:
                        continue
                    if lm.n_local is None or d < lm.n_local or j < lm.n_global:
                        felt = d if lm.distance_ceiling is None else min(d, lm.distance_ceiling)
                        logits[s] = logit_of(scheme, query, keys[s], felt, h, scale)
                    elif t in reaching:
                        score = logit_of(scheme, query, keys[s], a, h, scale)
                        middle[s] = round(score, 9), j, score  # of equal ones, the most recent
                best = sorted(middle, key=middle.get, reverse=True)[: lm.top_k]
                logits |= {s: middle[s][-1] for s in best}
                total = sum(math.exp(x) for x in logits.values())
                for s, x in logits.items():
                    out[b, h, t] += math.exp(x) / total * values[s]
    return out


def seen_by(i: int, lm: LMInfinite) -> dict[int, int]:
    """The specification of one row: each key that the query at i sees, and how far away."""
    felt = {}
    for j in range(i + 1):
        if lm.n_local is None or i - j < lm.n_local or j < lm.n_global:
            felt[j] = i - j if lm.distance_ceiling is None else min(i - j, lm.distance_ceiling)
    return felt


def stored(model, folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """What a checkpoint of this model says of it: its config.json, and its tensors by name."""
    save(model, folder)
    raw = json.loads((folder / "config.json").read_text())
    return raw, load_file(folder / "model.safetensors")


def fuzz(seed: int, count: int, /, **choices) -> list[dict]:
    """`count` different draws of one value for each name, the same in every run."""
    source, draws = random.Random(seed), []
    while len(draws) < count:
        draw = {name: source.choice(list(values)) for name, values in choices.items()}
        if draw not in draws:
            draws.append(draw)
    return draws


def named(draw: dict) -> str:
    """What pytest calls a draw."""
    return " ".join(map(str, draw.values()))


@contextmanager
def interrupted(module: torch.nn.Module):
    """Ctrl-C when a module of a model is called next, and only then."""

    def interrupt(*_):
        hook.remove()
        raise KeyboardInterrupt

    hook = module.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        yield
    hook.remove()


def change_config(folder: Path, remove=(), **changes):
    """Let the config.json of a checkpoint say something else."""
    raw = json.loads((folder / "config.json").read_text())
    raw = {key: value for key, value in raw.items() if key not in remove}
    (folder / "config.json").write_text(json.dumps(raw | changes))


def change_tensors(folder: Path, change):
    """Let `change` edit the dictionary of a checkpoint's tensors, and store it again."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def write_sparse(path: Path, tensors: dict[str, tuple[list[int], str]]):
    """A safetensors file of zeros that takes no space on the disk: name -> shape and dtype."""
    header, end = {}, 0
    for name, (shape, dtype) in tensors.items():
        begin, end = end, end + math.prod(shape) * (4 if dtype == "F32" else 2)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)

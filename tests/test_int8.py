"""models/int8.py: a rounded model is the plain one of its rounded weights, and nothing less."""

import json

import numpy as np
import pytest
import torch
from conftest import (
    READINGS,
    SETTINGS,
    padded,
    read_in_chunks,
    some_tokens,
    stored,
    tiny_model,
)  # fmt: skip
from safetensors.torch import load_file, save_file

from minilm_inf import load_model
from minilm_inf.checkpoint import save
from minilm_inf.config import LMInfinite
from minilm_inf.convert.__main__ import main as convert
from minilm_inf.generate import main as generate
from minilm_inf.inspect.__main__ import main as inspect
from minilm_inf.models import int8
from minilm_inf.terminal import progress

LM = SETTINGS["LM-Infinite"]
FILE = "model.safetensors"
WIDE = dict(n_inner=300, vocab_size=310)  # more outputs than a tile, no multiples
MODELS = [
    ("llama", dict(attention_bias=True, mlp_bias=True, n_head=4, n_kv_head=2)),
    ("llama", dict(tied=True, **WIDE)),
    ("mpt", dict(tied=True)),
    ("mpt", dict(tied=False, **WIDE)),
    ("gptj", dict(tied=False, n_inner=1100)),  # more terms than one sum has
]


def rounded(row: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """A row of float32 as the docstring has it, number by number."""
    scale = max(map(abs, row)) / np.float32(127)
    return np.array([np.rint(x / scale) for x in row]), scale


def exactly(weights: torch.Tensor) -> torch.Tensor:
    """Weights after rounding, in float64."""
    rows = [numbers * np.float64(scale) for numbers, scale in map(rounded, weights.numpy())]
    return torch.from_numpy(np.array(rows, dtype=np.float64))


def pair(family: str, facts: dict, folder):
    """An int8 model, and in float64 one of the weights that it ought to have."""
    raw, tensors = stored(tiny_model(family, dtype=torch.float32, **facts), folder)
    model = load_model(folder, dtype=torch.int8)
    embedding = next(name for name in tensors if name.endswith(("tokens.weight", "wte.weight")))
    linear = {name for name, x in tensors.items() if x.dim() == 2} - {embedding}
    exact = tensors | {name: exactly(tensors[name]) for name in linear}
    if raw["tie_word_embeddings"]:  # the head is rounded, the embedding is not
        exact["lm_head.weight"] = exactly(tensors[embedding])
    (folder / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": False}))
    save_file({name: x.double() for name, x in exact.items()}, folder / FILE)
    return model, load_model(folder, dtype=torch.float64)


def test_a_row_becomes_what_the_docstring_says():
    """Catches a scale of a column or of the whole, truncation, and a row of zeros as NaN."""
    row = [0.50, -1.27, 0.13, 0.0049]
    numbers, scale = int8.rounded(torch.tensor([row, [0.0] * 4, [3.0, 1.0, -3.0, 0.02]]))
    assert numbers.tolist() == [[50, -127, 13, 0], [0] * 4, [127, 42, -127, 1]]
    assert scale[0] == pytest.approx(0.01) and scale.isfinite().all()
    assert all(f"{number:.2f}"[:4] in int8.__doc__ for number in row)


@pytest.mark.parametrize("how", READINGS)
@pytest.mark.parametrize("family, facts", MODELS, ids=str)
@torch.inference_mode()
def test_it_is_the_model_of_its_rounded_weights(family, facts, how, tmp_path):
    """Catches activations that are rounded too, a bias that is lost, rows of a stack in each
    other's place, and a fast product of one token that differs or mixes rows."""
    model, exact = pair(family, facts, tmp_path)
    tokens = some_tokens(21, batch=2)
    for lm in (LM, LMInfinite(6, 2, 6, top_k=2, top_k_queries="all")):
        expected = exact(tokens, lm, path="reference")
        assert (READINGS[how](model, tokens, lm) - expected).abs().max() < 1e-5
    ragged = model(padded([tokens[0], tokens[1, :8]]), LM, lengths=[21, 8])[1, -8:]
    assert (ragged - exact(tokens[1:, :8], LM)[0]).abs().max() < 1e-5
    plain = tiny_model(family, dtype=torch.float32, **facts)
    assert (plain(tokens, lm) - expected).abs().max() > 1e-3


@torch.inference_mode()
def test_a_pytorch_without_the_fast_sum_gives_the_same(tmp_path, monkeypatch):
    """Catches an int8 model that a machine without that operation cannot run, and one that
    never uses it: it is asked for one token, and not for many."""
    model, exact = pair(*MODELS[0], tmp_path)
    tokens, asked = some_tokens(12), []

    def missing(layer, x):
        asked.append(x.shape)
        raise AttributeError("no such operation")

    monkeypatch.setattr(int8.Int8Linear, "of_one", missing)
    got = read_in_chunks(model, tokens, LM, [9, 1])
    assert (got - exact(tokens, LM)).abs().max() < 1e-5
    assert asked == [(layer.n_in,) for layer in model.modules() if hasattr(layer, "n_in")] * 3


def test_convert_writes_what_load_would_round(tmp_path, program, monkeypatch):
    """Catches a layout that is not the documented one, numbers rounded in another way, and a
    minute without progress."""
    monkeypatch.setattr(progress, "EVERY_IN_A_LOG", 0)
    source, out = tmp_path / "a", tmp_path / "b"
    save(tiny_model("mpt", dtype=torch.bfloat16, tied=False, **WIDE), source)
    code, _, err = program(convert, "--int8", source, "--out", out)
    before, tensors = (load_file(folder / FILE) for folder in (source, out))
    assert code == 0 and f"\n3/{len(tensors)} tensors  " in err
    name = "transformer.blocks.0.ffn.up_proj.weight"
    assert tensors["transformer.wte.weight"].equal(before["transformer.wte.weight"])
    assert (tensors[name].dtype, tensors[f"{name}_scale"].shape) == (torch.int8, (300,))
    assert tensors[name][7].tolist() == rounded(before[name][7].float().numpy())[0].tolist()
    how = (source, torch.int8), (out, None), (out, torch.float64)
    models = [load_model(folder, dtype=dtype) for folder, dtype in how]
    with torch.inference_mode():
        a, b, c = (model(some_tokens(9)) for model in models)
    assert a.equal(b) and c.dtype == torch.float64 and (a - c).abs().max() < 1e-5
    held = sum(x.nbytes for x in models[1].parameters())
    told = program(inspect, out)[1]
    assert f"in int8     {held / 1e3:.2f} kB" in told and "I8" in told


def test_what_is_refused(tmp_path, program):
    """Catches int8 numbers without a scale that are taken for weights, a folder that is rounded
    twice, and a save that loses scales."""
    a, b = tmp_path / "a", tmp_path / "b"
    save(tiny_model("llama", dtype=torch.float32), a)
    assert program(convert, "--int8", a)[0] == 2
    assert program(convert, "--int8", a, "--out", b)[0] == 0
    code, _, err = program(convert, "--int8", b, "--out", tmp_path / "c")
    assert code == 1 and "already" in err and not (tmp_path / "c").exists()
    with pytest.raises(ValueError, match="convert --int8"):
        save(load_model(b), tmp_path / "d")
    whole, scale = load_file(b / FILE), "lm_head.weight_scale"
    norm = {"model.norm.weight": torch.ones(32, dtype=torch.int8)}
    for tensors in (whole | {scale: torch.ones(3)}, whole | norm):
        save_file(tensors, b / FILE)
        with pytest.raises(ValueError, match="stored as I8"):
            load_model(b)


def test_programs_take_int8_and_plan_it(program):
    """Catches a plan with the weights of another dtype, and a flag that a program drops."""
    how = ["-p", "The captain", "-n", 4, "--dtype", "int8", "--json"]
    code, out, err = program(generate, *how)
    assert code == 0 and json.loads(out)["settings"]["dtype"] == "int8", err
    planned = json.loads(program(generate, *how, "--plan")[1])
    model = load_model("weights/tiny-llama", dtype=torch.int8)
    assert planned["weights"] == sum(x.nbytes for x in model.parameters())
    assert planned["dtype"] == "int8" and planned["cache"] == json.loads(out)["cache_bytes"]

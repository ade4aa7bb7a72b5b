"""checkpoint/: what loads, and what is refused.

Whatever is refused is refused in one sentence that names the key, the tensor or the file.
"""

from __future__ import annotations

import functools
import json
import os
import struct
from pathlib import Path

import measure_loading
import pytest
import torch
from conftest import FAMILIES, change_config, change_tensors, some_tokens, tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minilm_inf.checkpoint import checkpoint, load_model, save, shards
from minilm_inf.checkpoint.checkpoint import read_config
from minilm_inf.convert import __main__ as convert

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
make_model = functools.partial(tiny_model, "llama", dtype=torch.float32)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A whole checkpoint, to be damaged."""
    save(make_model(), tmp_path)
    return tmp_path


def shard(folder: Path) -> dict[str, str]:
    """Split model.safetensors into two shards and an index. Returns the weight_map."""
    tensors, weight_map = load_file(folder / WEIGHTS), {}
    for i, names in enumerate((sorted(tensors)[:9], sorted(tensors)[9:])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / WEIGHTS).unlink()
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refusal(folder: Path, *words: str, **options) -> str:
    """Loading must fail with one line of a ValueError that holds all these words."""
    with pytest.raises(ValueError) as caught:
        load_model(folder, **options)
    message = str(caught.value)
    assert type(caught.value) is ValueError and "\n" not in message
    for word in words:
        assert word in message
    return message


# What loads


@pytest.mark.parametrize(
    "changes",
    [
        {"tied": True, "attention_bias": True, "mlp_bias": True},
        {"head_dim": 6, "n_kv_head": 1, "rope_theta": 500000.0, "bos_id": None, "eos_ids": ()},
        {"rope_scaling": (("rope_type", "linear"), ("factor", 2.0)), "eos_ids": (2, 7)},
    ],
)
def test_what_is_saved_is_what_is_loaded(changes, tmp_path):
    """Catches a fact of the config, or a parameter, that save drops or load misplaces; a tied
    head stored twice; gradients kept for a whole prompt, dropout left on, and parameters that
    are views of the mapped file, which change with it."""
    model, folder = make_model(**changes), tmp_path / "new" / "folder"
    save(model, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # as the umask has it
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert ("lm_head.weight" in file.keys()) == (not model.config.tied)  # noqa: SIM118
    loaded = load_model(folder)
    assert loaded.config == model.config
    ours, theirs = dict(model.named_parameters()), dict(loaded.named_parameters())
    assert ours.keys() == theirs.keys()
    with open(folder / WEIGHTS, "r+b") as file:
        file.write(bytes((folder / WEIGHTS).stat().st_size))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (loaded.head.weight is loaded.embed.weight) == model.config.tied
    tokens = some_tokens(20)
    assert torch.equal(loaded(tokens), model(tokens)) and not loaded.training
    assert not any(p.requires_grad or p.is_meta for p in loaded.parameters())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(stored, folder):
    """Catches a half-precision model on the CPU, where it is slow, and a dtype ignored."""
    save(make_model().to(stored), folder)
    raw = json.loads((folder / "config.json").read_text())
    assert raw["torch_dtype"] == str(stored).removeprefix("torch.")
    model = load_model(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    expected = make_model().to(stored).embed.weight.float()
    assert torch.equal(model.embed.weight, expected)
    assert {p.dtype for p in load_model(folder, dtype=stored).parameters()} == {stored}
    on_device = load_model(folder, device="meta")  # stands for any device but the CPU
    assert {p.dtype for p in on_device.parameters()} == {stored}


def test_arguments_of_another_kind(folder):
    """Catches a TypeError, or a library's traceback, for what its caller mistook."""
    for name, values in (
        ("folder", (5, None, [], "x" * 10**5)),
        ("device", (5, "x" * 999, "nosuch")),
        ("dtype", ("float32", torch.int16, "x" * 999)),
    ):
        for value in values:
            assert len(refusal(**{"folder": folder} | {name: value})) < 400


def test_shards_load_like_one_file(folder, tmp_path_factory):
    """Catches a shard that is skipped, a tensor that is read from the wrong one, and a check of
    paths so strict that download caches, which link, do not load."""
    whole, elsewhere = load_model(folder), tmp_path_factory.mktemp("elsewhere")
    file = sorted(set(shard(folder).values()))[0]
    os.rename(folder / file, elsewhere / "blob")
    os.symlink(elsewhere / "blob", folder / file)
    for name, parameter in load_model(folder).named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name))


COMPUTED = {  # what networks store of what they compute, by the family in which it stands here
    "llama": ["model.layers.1.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq",
              "model.layers.0.self_attn.rotary_emb.sin_cached", "model.causal_mask"],
    "mpt": ["model.layers.7.self_attn.rotary_emb.original_inv_freq", "transformer.attn_bias"],
    "gptj": ["rotary_emb.cos_cached", "transformer.h.0.attn.masked_bias",
             "transformer.h.0.attn.bias"],
}  # fmt: skip


@pytest.mark.parametrize("family", COMPUTED)
def test_what_a_network_computes_itself_is_not_read(family, tmp_path):
    """Catches a folder refused for the angles or the mask that its writer stored too."""
    model = tiny_model(family, dtype=torch.float32)
    save(model, tmp_path)
    masks = {name: torch.ones(2, dtype=torch.bool) for name in COMPUTED[family]}
    change_tensors(tmp_path, lambda tensors: tensors.update(masks))
    assert torch.equal(load_model(tmp_path)(some_tokens(9)), model(some_tokens(9)))


@pytest.mark.parametrize("stored", ["head", "both", "different", "short"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_pair_under_either_name(family, stored, tmp_path):
    """Catches a tied model refused for the name of the pair that its writer kept, and a head
    of its own that is dropped without a word because the config says tied."""
    model = tiny_model(family, dtype=torch.float32, tied=True)
    save(model, tmp_path)
    embedding, head = (FAMILIES[family][0].KEYS[n] for n in ("embed.weight", "head.weight"))

    def change(tensors):
        weight = tensors[embedding]
        tensors[head] = weight + 1 if stored == "different" else weight.clone()
        if stored == "short":
            tensors[head] = weight[:3].clone()
        if stored == "head":
            del tensors[embedding]

    change_tensors(tmp_path, change)
    if stored in ("different", "short"):
        refusal(tmp_path, head, "tie_word_embeddings" if stored == "different" else "(3, ")
    else:
        assert torch.equal(load_model(tmp_path)(some_tokens(9)), model(some_tokens(9)))


# What is refused


REFUSED = {  # a tensor -> what it becomes, and what the sentence says
    "model.layers.1.mlp.up_proj.weight": (lambda x: None, "missing"),
    "model.layers.0.self_attn.q_proj.bias": (lambda x: torch.zeros(32), "no place"),
    "model.layers.0.mlp.down_proj.weight": (lambda x: x.T.contiguous(), "(48, 32)"),
    "model.layers.0.self_attn.o_proj.weight": (lambda x: x.to(torch.int8), "stored as"),
    "model.layers.1.self_attn.o_proj.weight": (lambda x: x.to(torch.float8_e4m3fn), "as F8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tensor_that_does_not_fit(name, folder, monkeypatch):
    """Catches a weight that keeps its random beginning, a part of the model that is left out,
    transposed weights, quantised integers read as if they were the weights, and minutes of
    reading before the last shard is found to be wrong."""
    change, word = REFUSED[name]

    def edit(tensors):
        tensors[name] = change(tensors.get(name))
        if tensors[name] is None:
            del tensors[name]

    change_tensors(folder, edit)
    monkeypatch.setattr(checkpoint.Stored, "read_into", lambda *_: pytest.fail("it is read"))
    refusal(folder, name, word, str(folder))


DAMAGES = [  # what becomes of a file, and words of the sentence
    (WEIGHTS, lambda raw: b"", "header too small"),
    (WEIGHTS, lambda raw: b"<!DOCTYPE html><html>", "header too large"),
    (WEIGHTS, lambda raw: struct.pack("<Q", 60000) + b"[" * 60000, "invalid JSON"),
    (WEIGHTS, lambda raw: raw.replace(b"[32]", b"[33]"), "fetch it again"),
    (WEIGHTS, lambda raw: raw.replace(b"[32]", b'"32"'), "fetch it again"),
    (WEIGHTS, lambda raw: raw + b"more", "file not fully covered"),
    (WEIGHTS, lambda raw: raw[:-1], "file not fully covered"),
    (WEIGHTS, lambda raw: LFS, "git lfs pull"),
    ("config.json", lambda raw: LFS, "git lfs pull"),
    ("config.json", lambda raw: b"[" * 100000, "no JSON object"),
    ("generation_config.json", lambda raw: b"{", "no JSON object"),
]


@pytest.mark.parametrize("file, change, words", DAMAGES)
def test_a_damaged_file(file, change, words, folder):
    """Catches a traceback, the 2^63 bytes that garbage asks for, and a download that broke off,
    which would be a crash (SIGBUS) once it is mapped."""
    path = folder / file
    raw = path.read_bytes() if path.exists() else b"{}"
    assert change(raw) != raw
    path.write_bytes(change(raw))
    refusal(folder, str(path), words)


def test_missing_parts(folder, tmp_path_factory, capsys):
    """Catches an OSError with a number where a sentence would say which file to fetch, a pickle
    that is run, and another sentence of convert's where there is nothing to convert."""
    (folder / WEIGHTS).rename(folder / "optimizer.pt")
    message = refusal(folder, str(folder), "python -m minilm_inf.convert")
    assert convert.main([str(folder)]) == 1
    assert capsys.readouterr().err == f"error: {message}\n"
    refusal(folder / "nowhere", "nowhere is not a folder")
    refusal(folder / "config.json", "is not a folder", "minilm_inf.convert")
    refusal(tmp_path_factory.mktemp("empty"), "config.json: No such file")


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "..", "C:x", "a\\b", "x" * 999, "\0"]
)
def test_an_index_stays_in_its_folder(file, folder):
    """Catches a downloaded index that makes the loader open files anywhere on the disk."""
    write_index(folder, shard(folder) | {"model.norm.weight": file})
    refusal(folder, INDEX, "does not stand beside it")


def test_an_index_and_its_shards_must_agree(folder):
    """Catches a tensor that is read from a stale shard, or from neither of two; and a check of
    files that is made for model.safetensors only."""
    weight_map = shard(folder)
    first, second = sorted(set(weight_map.values()))
    name = next(name for name in weight_map if weight_map[name] == first)
    for changed, words in (
        (weight_map | {name: second}, (name, "do not agree")),
        (weight_map | {"model.extra": first}, ("model.extra", first, "do not agree")),
        ({key: file for key, file in weight_map.items() if key != name}, (name, first)),
        ([], ("no weight_map",)),
        ({name: 1}, ("no weight_map",)),
    ):
        write_index(folder, changed)
        refusal(folder, INDEX, *words)
    write_index(folder, weight_map)
    held = load_file(folder / second)
    save_file(held | load_file(folder / first), folder / second)
    refusal(folder, second, "do not agree")
    save_file(held, folder / second)
    (folder / second).write_bytes((folder / second).read_bytes()[:-1])
    refusal(folder, second, "file not fully covered")
    (folder / INDEX).write_bytes(LFS)
    refusal(folder, INDEX, "git lfs pull")


# config.json, of which test_real_configs.py has the keys, and generation_config.json


def test_sizes_that_make_no_model(folder):
    """Catches a mistaken number that builds layers, or asks for memory, without end."""
    change_config(folder, num_hidden_layers=10**6)
    refusal(folder, "config.json", "1000000 layers", "21 tensors")
    change_config(folder, num_hidden_layers=2, head_dim=2**15, hidden_size=2**20)
    refusal(folder, "1048576")
    change_config(folder, head_dim=2**20)
    refusal(folder, "config.json", "rotary_dim")


def test_generation_config_names_what_ends_a_text(folder):
    """Catches a text that runs on after the id that ends a turn; a traceback, or a sentence
    that names config.json instead."""
    path = folder / "generation_config.json"
    for raw, bos_id, eos_ids in (
        ({"eos_token_id": [5, 6], "bos_token_id": 4, "top_p": 0.9, "colour": "x"}, 4, (5, 6)),
        ({"eos_token_id": None, "bos_token_id": None}, None, (2,)),
    ):
        path.write_text("\ufeff" + json.dumps(raw))
        change_config(folder, bos_token_id=1, eos_token_id=2)
        config = read_config(folder)
        assert (config.bos_id, config.eos_ids) == (1, eos_ids)
        change_config(folder, bos_token_id=None)
        assert read_config(folder).bos_id == bos_id
    for text, words in (
        ('{"eos_token_id": [1.5, true, -1, 1e999]}', "eos_token_id[0] must be a whole number"),
        ('{"bos_token_id": [1, 2]}', "bos_token_id must be one token id"),
    ):
        path.write_text(text)
        refusal(folder, "generation_config.json", words)


def test_a_failed_save_leaves_the_old_files(folder, monkeypatch):
    """Catches a checkpoint that is half written over the only good one."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def disk_full(block):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "as_bytes", disk_full)
    with pytest.raises(ValueError, match="cannot be written: No space left"):
        save(make_model(n_layer=1), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_loading_takes_the_model_and_one_tensor(python):
    """Catches a loader that holds the whole file and the model at once: twice the memory."""
    sizes = dict(hidden_size=512, intermediate_size=2048, num_attention_heads=8,
                 vocab_size=4096)  # fmt: skip
    shape = measure_loading.SHAPE | sizes
    peak, weights, largest = measure_loading.measure(shape, "float32", python)
    assert weights > 40e6
    assert peak < weights + largest + 3 * measure_loading.ALLOWANCE, (peak, weights, largest)

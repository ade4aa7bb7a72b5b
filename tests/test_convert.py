"""convert/ and what it is made of: pickles, GGUF files, and the files that come of them.

No test needs the package gguf: a stand-in hands over metadata and tensors as the package does.
`make smollm2` and `make check-smollm2` convert a real file with the real package.
"""

from __future__ import annotations

import functools
import io
import json
import os
import sys
import types
import warnings
import weakref
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from conftest import some_tokens, tiny_llama, tiny_model
from fuzzed_texts import fuzzed_texts
from safetensors import safe_open
from safetensors.torch import load_file

from minilm_inf.checkpoint import load_model, save, tensor_file
from minilm_inf.checkpoint.checkpoint import named_pieces
from minilm_inf.convert import __main__ as convert
from minilm_inf.convert import gguf_file, pickles
from minilm_inf.text.byte_level import byte_letters
from minilm_inf.text.tokenizer import load as load_tokenizer

INDEX = "model.safetensors.index.json"


@pytest.fixture
def run(program):
    """A call of the program: arguments -> (exit code, stdout, stderr)."""
    return functools.partial(program, convert.main)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(run, source: Path, *words: str):
    """Converting must fail with one sentence that holds these words, and leave no new file."""
    folder = source if source.is_dir() else source.parent
    before = contents(folder)
    code, out, err = run(source)
    last = err.splitlines()[-1]
    assert code == 1 and not out, (out, err)
    assert last.startswith("error: ") and err.count("error: ") == 1 and len(last) < 900, err
    for word in words:
        assert word in last
    assert contents(folder) == before


def as_bin(folder: Path, parts: int = 1, **options) -> dict[str, torch.Tensor]:
    """Make the model.safetensors of a folder a .bin, or several and an index; its tensors."""
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    (folder / "model.safetensors").unlink()
    if parts == 1:
        torch.save(tensors, folder / "pytorch_model.bin", **options)
        return tensors
    names, weight_map = sorted(tensors), {}
    for part in range(parts):
        file = f"pytorch_model-{part + 1:05}-of-{parts:05}.bin"
        torch.save({name: tensors[name] for name in names[part::parts]}, folder / file)
        weight_map |= dict.fromkeys(names[part::parts], file)
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "pytorch_model.bin.index.json").write_text(text)
    return tensors


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def times_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def same_tensors(ours: dict, theirs: dict):
    """Names, dtypes, shapes and bits agree."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


# ---- pickles that are converted


@pytest.mark.parametrize(
    "family, parts, zipped",
    [("llama", 1, True), ("mpt", 1, False), ("gptj", 1, True), ("llama", 3, True)],
)
def test_a_bin_becomes_the_same_model(family, parts, zipped, run, tmp_path, monkeypatch):
    """Catches renamed or rounded weights, a refusal of what PyTorch before 1.6 wrote, shards
    gathered in memory to make one file, and gigabytes written again for a whole folder."""
    model = tiny_model(family, dtype=torch.float32)
    save(model, tmp_path)
    tensors = as_bin(tmp_path, parts, _use_new_zipfile_serialization=zipped)
    read, earlier = pickles.read_pickle, []

    def read_alone(path):
        assert not any(tensor() is not None for tensor in earlier), "one shard at a time"
        held = read(path)
        earlier.extend(weakref.ref(tensor) for tensor in held.values())
        return held

    monkeypatch.setattr(pickles, "read_pickle", read_alone)
    code, out, err = run(tmp_path)
    assert code == 0 and out.count("\n") == 1 and f"{len(tensors)} tensors in {parts} f" in out
    assert err.count("\n") == parts and err.count(".bin -> model") == parts
    held = {path: load_file(path) for path in tmp_path.glob("*.safetensors")}
    same_tensors({name: x for shard in held.values() for name, x in shard.items()}, tensors)
    for path in held:
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}  # transformers reads no file without it
    if parts > 1:
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
        shards = {name: path.name for path, shard in held.items() for name in shard}
        assert index["weight_map"] == shards and len(held) == parts
    assert torch.equal(load_model(tmp_path)(some_tokens(9)), model(some_tokens(9)))
    before = times_of(tmp_path)
    code, out, err = run(tmp_path)
    assert code == 0 and "already" in out and not err and times_of(tmp_path) == before


def test_an_interrupted_run_goes_on_where_it_ended(run, tmp_path, monkeypatch):
    """Catches a half-written shard that looks whole, and one that is converted twice."""
    save(tiny_llama(dtype=torch.float32), tmp_path)
    tensors = as_bin(tmp_path, parts=3)
    before = files_of(tmp_path)
    calls, as_bytes = [], tensor_file.as_bytes

    def stopped(block):
        calls.append(block)
        if len(calls) > len(tensors) // 2:  # within the second shard
            raise KeyboardInterrupt
        return as_bytes(block)

    monkeypatch.setattr(tensor_file, "as_bytes", stopped)
    assert run(tmp_path)[0] == 130
    first = "model-00001-of-00003.safetensors"
    assert files_of(tmp_path) == sorted([*before, first])
    time = times_of(tmp_path)[first]
    monkeypatch.setattr(tensor_file, "as_bytes", as_bytes)
    code, _, err = run(tmp_path)
    assert code == 0 and f"{first}, there already" in err
    assert times_of(tmp_path)[first] == time
    load_model(tmp_path)


def test_whatever_a_tensor_is_a_view_of(run, tmp_path):
    """Catches the bytes of the storage taken for those of the tensor, and masks made floats."""
    big = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    shared = torch.randn(4, 4)
    tensors = {
        "transposed": big.T, "a slice": big[1:3, 2:9:2], "one number": torch.tensor(-1e9),
        "expanded": torch.ones(1, 3).expand(5, 3), "nothing": torch.zeros(0, 4),
        "mask": torch.ones(3, 3, dtype=torch.bool).tril()[None, None],
        "old mask": torch.ones(3, 3, dtype=torch.uint8).tril(),
        "ids": torch.arange(5), "one": shared, "two": shared, "rows": shared[2:],
        "half": torch.randn(3).half(), "brain": torch.randn(3).bfloat16(),
        "double": torch.randn(3).double(), "parameter": torch.nn.Parameter(torch.randn(2)),
        "negated in reading": torch._neg_view(torch.arange(6.0)),
    }  # fmt: skip
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert run(tmp_path)[0] == 0
    raw = (tmp_path / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    for name, tensor in tensors.items():  # else a slow read
        assert header[name]["data_offsets"][0] % tensor.dtype.itemsize == 0
    held = load_file(tmp_path / "model.safetensors")  # safetensors' own reader
    same_tensors(held, {name: tensor.detach() for name, tensor in tensors.items()})


# ---- pickles that are refused


class Command:
    """Unpickling this runs a command of the shell."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped, parts", [(True, 1), (False, 2)])
def test_a_pickle_that_would_run_a_command(zipped, parts, run, tmp_path):
    """Catches the one thing that must never happen: a downloaded file's code is run."""
    save(tiny_llama(dtype=torch.float32), tmp_path)
    tensors = as_bin(tmp_path, parts)
    file = "pytorch_model.bin" if parts == 1 else "pytorch_model-00001-of-00002.bin"
    proof = tmp_path / "it ran"
    content = {**tensors, "model.norm.weight": Command(f"touch '{proof}'")}
    torch.save(content, tmp_path / file, _use_new_zipfile_serialization=zipped)
    refusal(run, tmp_path, file, f"{os.name}.system", "not read")
    assert not proof.exists()
    torch.load(tmp_path / file, weights_only=False)
    assert proof.exists(), "the file is what this test takes it for"


def pickled(content, **options) -> bytes:
    """The bytes of a .bin that holds something."""
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def bomb() -> bytes:
    """An archive that unpacks to far more than it is."""
    stream = io.BytesIO()
    with ZipFile(stream, "w", ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**6))
    return stream.getvalue()


ONE = torch.ones(300)
WHOLE = pickled({"a": ONE})
OLD = {"_use_new_zipfile_serialization": False}
SPOILED = {  # what is wrong with a .bin -> its bytes, and a word of the sentence
    "cut": (WHOLE[:-300], "was not read"),
    "a page": (b"<!DOCTYPE html><html>", "was not read"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "a call": (WHOLE.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_vX"), "would run torch."),
    "a bomb": (bomb(), "was not read"),
    "a trainer's": (pickled({"state_dict": {"a": ONE}}), "'state_dict', which is no tensor"),
    "a list": (pickled([ONE], **OLD), "no tensors by their names"),
    "complex": (pickled({"a": torch.ones(2, dtype=torch.complex64)}), "'a', which is"),
    "spread": (pickled({"a": torch.zeros(1).expand(5 * 10**8)}), "would take 2,000,000,000"),
    "shared": (pickled(dict.fromkeys(map(str, range(99)), ONE), **OLD), "would take"),
    "half a letter": (pickled({"\ud800": ONE}), "'\\ud800', which is"),
    "a long name": (pickled({"a\nb" + "c" * 10**4: 1}), "..., which is no tensor"),
}


@pytest.mark.parametrize("wrong", SPOILED)
def test_a_bin_that_is_refused(wrong, run, tmp_path):
    """Catches a traceback or a page of PyTorch's advice, a trainer's whole state, numbers that
    the format lacks, and a kilobyte that becomes gigabytes."""
    content, word = SPOILED[wrong]
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refusal(run, tmp_path, "pytorch_model.bin", word)


def test_an_index_that_does_not_fit(run, tmp_path):
    """Catches files opened elsewhere on the disk, and an index that names none."""
    index = tmp_path / "pytorch_model.bin.index.json"
    for weight_map, words in (
        ({"a": "../x.bin"}, "does not stand beside it"),
        ({}, "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        refusal(run, tmp_path, index.name, words)


def test_arguments_that_make_no_sense(run, tmp_path):
    """Catches a flag that is ignored, and a traceback for a mistyped path."""
    code, out, err = run(tmp_path, "--out", tmp_path / "other")
    assert code == 2 and "--out" in err.splitlines()[-1] and not out
    assert run()[0] == 2
    refusal(run, tmp_path, "pytorch_model.bin")
    (tmp_path / "pytorch_model.bin").touch()
    refusal(run, tmp_path / "pytorch_model.bin", "neither a folder")
    refusal(run, tmp_path / "nowhere", "nowhere", "neither a folder")


# ---- GGUF files, and a stand-in for the package that reads them


F32, BYTES = 0, 24  # kinds of tensors; BYTES holds each number x as x + 128


def gguf_tensor(name: str, numbers: torch.Tensor, kind=F32):
    numbers = numbers.detach().float().numpy()
    data = (numbers + 128).astype(np.uint8) if kind == BYTES else numbers
    return SimpleNamespace(name=name, data=data, shape=numbers.shape[::-1], tensor_type=kind)


class Gguf:
    """A GGUF file of these fields and tensors, as the package gguf reads it, and how many
    numbers it was asked to dequantise at a time."""

    def __init__(self, fields: dict, tensors: list):
        self.fields, self.tensors, self.asked = fields, tensors, []

    def dequantize(self, data, kind):
        self.asked.append(data.size)
        if kind not in (F32, BYTES):
            raise NotImplementedError(kind)
        return data if kind == F32 else data.astype(np.float32) - 128

    def install(self, monkeypatch, path: Path) -> Path:
        """Let this be what is read of any GGUF, and `path` be one."""
        known = self.fields, self.tensors, self.dequantize
        monkeypatch.setattr(gguf_file, "read", lambda path: known)
        path.write_bytes(b"GGUF")
        return path


def interleaved(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """llama.cpp's order of a query's or key's rows, one row after the other: in each head, the
    first and the second coordinate of pair 0, of pair 1, ..."""
    rows = []
    for head in range(len(weight) // head_dim):
        for pair in range(head_dim // 2):
            for second in (0, 1):
                rows.append(weight[head * head_dim + pair + second * head_dim // 2])
    return torch.stack(rows)


THEIRS = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def byte_level_fields(**changes) -> dict:
    """A byte-level tokenizer of 256 bytes, four merges and three marks, as GGUF metadata.

    What is None is not there.
    """
    merges = ["h e", "Ġ he", "1 2", "Ċ Ċ"]
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = marks + byte_letters() + [merge.replace(" ", "") for merge in merges]
    fields = {
        "model": "gpt2", "pre": "smollm", "tokens": tokens, "merges": merges,
        "token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "padding_token_id": 2,
        "add_bos_token": False, "add_eos_token": False, "add_space_prefix": False,
        "mask_token_id": 0,
    } | changes  # fmt: skip
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items()}


def as_gguf(model, **fields) -> Gguf:
    """A model of ours as llama.cpp keeps it, with a byte-level tokenizer."""
    config, tensors = model.config, []
    for name, weight in named_pieces(model).items():
        if "_proj" in name and name.split(".")[-2] in ("q_proj", "k_proj"):
            weight = interleaved(weight, config.head_dim)
        stem, leaf = name.rsplit(".", 1)
        layer = stem.split(".")[2] if stem.startswith("model.layers.") else None
        stem = stem.removeprefix(f"model.layers.{layer}.")
        block = "" if layer is None else f"blk.{layer}."
        kind = BYTES if weight.dim() == 2 and (weight == weight.round()).all() else F32
        tensors.append(gguf_tensor(f"{block}{THEIRS[stem]}.{leaf}", weight, kind))
    facts = {
        "block_count": config.n_layer, "context_length": config.context_length,
        "embedding_length": config.n_embd, "feed_forward_length": config.n_inner,
        "attention.head_count": config.n_head, "attention.head_count_kv": config.n_kv_head,
        "attention.key_length": config.head_dim, "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(np.float32(config.rope_theta)),
        "attention.layer_norm_rms_epsilon": float(np.float32(config.norm_eps)),
        "vocab_size": config.vocab_size,
    }  # fmt: skip
    facts = {f"llama.{name}": value for name, value in facts.items()}
    known = {"general.architecture": "llama", **byte_level_fields(), **facts} | fields
    return Gguf({n: v for n, v in known.items() if v is not None}, tensors)


def rounded_llama(**facts):
    """A random Llama whose matrices are whole numbers from -3 to 3, which every dtype holds."""
    model = tiny_llama(vocab_size=263, dtype=torch.float32, **facts)
    for parameter in model.parameters():
        whole = (parameter.data * 8).round().clamp(-3, 3)
        parameter.data = whole if parameter.dim() == 2 else whole / 4 + 1
    return model


# ---- GGUF files that are converted


@pytest.fixture
def gguf(run, tmp_path, monkeypatch):
    """A call that converts what as_gguf makes: (model or file, fields) -> the folder."""

    def call(model, **fields) -> Path:
        file = model if isinstance(model, Gguf) else as_gguf(model, **fields)
        folder = tmp_path / f"model {len(files_of(tmp_path))}"
        path = file.install(monkeypatch, tmp_path / "a.gguf")
        code, _, err = run(path, "--out", folder)
        assert code == 0, err
        return folder

    return call


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"tied": True, "attention_bias": True, "mlp_bias": True, "n_kv_head": 1},
        {"head_dim": 6, "rope_theta": 500000.0},
    ],
)
def test_a_gguf_becomes_the_same_model(facts, gguf):
    """Catches queries and keys left in llama.cpp's order: fluent nonsense, and no error."""
    model = rounded_llama(**facts)
    folder = gguf(model)
    same_tensors(
        load_file(folder / "model.safetensors"),
        {name: weight.half() for name, weight in named_pieces(model).items()},
    )
    loaded = load_model(folder)
    assert torch.equal(loaded(some_tokens(9)), model(some_tokens(9)))
    assert loaded.config.tied == model.config.tied
    assert loaded.config.rope_theta == model.config.rope_theta
    weight = torch.arange(16)[:, None]  # the order of rows matters to this test
    assert interleaved(weight, 8).flatten().tolist()[:8] == [0, 4, 1, 5, 2, 6, 3, 7]
    back = interleaved(weight, 8)[gguf_file.rows_in_halves(16, 8)]
    assert torch.equal(back, weight) and not torch.equal(interleaved(weight, 8), weight)


def test_metadata_become_the_config(gguf):
    """Catches float32's 0.00000999999975 as an epsilon, and a lost end-of-turn id."""
    changes = {"tokenizer.ggml.eot_token_id": 0, "llama.context_length": 8192}
    changes |= {"llama.expert_count": 0, "llama.tensor_data_layout": "Meta AI original pth"}
    folder = gguf(rounded_llama(tied=True), **changes)
    raw = json.loads((folder / "config.json").read_text())
    assert (raw["rms_norm_eps"], raw["rope_theta"]) == (1e-5, 10000.0)
    assert (raw["bos_token_id"], raw["eos_token_id"]) == (1, [2, 0])
    assert raw["max_position_embeddings"] == 8192 and raw["torch_dtype"] == "float16"
    assert raw["tie_word_embeddings"] is True and raw["rope_scaling"] is None


def test_a_gguf_is_read_block_by_block(gguf, monkeypatch):
    """Catches a whole tensor, or a model, in float32 at once; and rows lost between blocks."""
    monkeypatch.setattr(gguf_file, "BLOCK", 100)
    model = rounded_llama()
    file, as_bytes, read_before = as_gguf(model), tensor_file.as_bytes, []

    def written(block):
        read_before.append(len(file.asked))
        return as_bytes(block)

    monkeypatch.setattr(tensor_file, "as_bytes", written)
    folder = gguf(file)
    assert max(file.asked) <= 100 and len(read_before) > 100
    assert read_before == list(range(1, 1 + len(read_before)))
    assert torch.equal(load_model(folder)(some_tokens(9)), model(some_tokens(9)))


def test_scaled_positions(gguf):
    """Catches a stretched model read with its first angles, and llama.cpp's unsaid default."""
    linear = {"rope_type": "linear", "factor": 4.0}
    for fields, expected in (
        ({"type": "none", "factor": 4.0}, None),
        ({"type": "linear", "factor": 4.0}, linear),
        ({"factor": 4.0}, linear),
        ({"type": "linear"}, None),
    ):
        fields = {f"llama.rope.scaling.{name}": value for name, value in fields.items()}
        scaling = load_model(gguf(rounded_llama(), **fields)).config.rope_scaling
        assert (scaling and dict(scaling)) == expected


def test_the_factors_of_llama_3_1(run, gguf, tmp_path, monkeypatch):
    """Catches Llama 3.1 read with Llama 3's angles: its GGUF names no scaling, only factors."""
    turns = 8192 * 500000.0 ** -(np.arange(4) / 4) / (2 * np.pi)  # D = 8
    kept = np.clip((turns - 1) / (4 - 1), 0, 1)
    assert kept[0] == 1 and 0 < kept[2] < 1 and kept[3] == 0, "all three bands"
    file = as_gguf(rounded_llama(rope_theta=500000.0))
    factors = torch.tensor(1 / (kept + (1 - kept) / 32))
    file.tensors.append(gguf_tensor("rope_freqs.weight", factors))
    assert dict(load_model(gguf(file)).config.rope_scaling) == dict(
        rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )  # fmt: skip
    file.tensors[-1] = gguf_tensor("rope_freqs.weight", torch.ones(4))  # of a Llama 3.0
    assert load_model(gguf(file)).config.rope_scaling is None
    factors[2] *= 1.01
    file.tensors[-1] = gguf_tensor("rope_freqs.weight", factors)
    path = file.install(monkeypatch, tmp_path / "a.gguf")
    refusal(run, path, "rope_freqs.weight", "Llama 3.1")


# ---- GGUF files that are refused


NOT_UNDERSTOOD = [  # a field, its value, and words of the sentence
    ("general.architecture", "gemma", '"llama"|not "gemma"'),
    ("llama.expert_count", 8, "llama.expert_count"),
    ("llama.attention.sliding_window", 4096, "llama.attention.sliding_window"),
    ("llama.rope.scaling.type", "yarn", 'llama.rope.scaling.type|"yarn"'),
    ("llama.rope.dimension_count", 4, "llama.rope.dimension_count"),
    ("llama.attention.head_count_kv", [2, 1], "num_key_value_heads"),
    ("llama.vocab_size", 31, "llama.vocab_size"),
    ("llama.block_count", None, "num_hidden_layers is missing"),
    ("llama.block_count", 3, "model.layers.2.|missing"),
    ("llama.block_count", 10**6, "1000000 layers"),
    ("llama.feed_forward_length", 47, "ffn_gate|(48, 32)|(47, 32)"),
    ("tokenizer.ggml.eos_token_id", 263, "eos_token_id"),
    ("tokenizer.ggml.model", "bert", '"bert"|tokenizer.ggml.model'),
    ("tokenizer.ggml.pre", "qwen2", '"qwen2"|smollm'),
    ("tokenizer.ggml.pre", "x" * 10**6, "..."),
    ("tokenizer.ggml.tokens", ["a", "a"], "2 tokens"),
    ("tokenizer.ggml.token_type", [77] * 263, "tokenizer.ggml.token_type"),
    ("tokenizer.ggml.merges", ["q z"], '"q z"'),
    ("tokenizer.ggml.add_eos_token", True, "tokenizer.ggml.add_eos_token"),
    ("tokenizer.ggml.precompiled_charsmap", [1], "precompiled_charsmap"),
]


@pytest.mark.parametrize("number", range(len(NOT_UNDERSTOOD)))
def test_a_gguf_that_is_not_understood(number, run, tmp_path, monkeypatch):
    """Catches a mixture of experts, a window, another kind of text, read as a plain Llama; a
    traceback, or a page of somebody's value, for fields that make no sense."""
    field, value, words = NOT_UNDERSTOOD[number]
    file = as_gguf(rounded_llama(), **{field: value})
    path = file.install(monkeypatch, tmp_path / "a.gguf")
    refusal(run, path, str(path), *words.split("|"))


def test_tensors_that_are_not_understood(run, tmp_path, monkeypatch):
    """Catches a tensor left out of the computation, and an infinity where float16 ends."""

    def refused(change, *words):
        file = as_gguf(rounded_llama())
        change(file.tensors)
        refusal(run, file.install(monkeypatch, tmp_path / "a.gguf"), *words)

    for name, word in (
        ("blk.0.attn_sinks.weight", "no place"),
        ("blk.{0}.attn_q.scale", "no place"),
        ("token_embd.bias", "no place"),
    ):
        extra = gguf_tensor(name, torch.ones(2, 2))
        refused(lambda tensors, extra=extra: tensors.append(extra), name, word)
    refused(lambda tensors: tensors.pop(3), "missing")
    refused(lambda tensors: tensors.pop(0), "vocab_size is missing")
    refused(lambda tensors: vars(tensors[1]).update(tensor_type=99), "does not read (99)")
    refused(lambda tensors: vars(tensors[2]).update(data=tensors[2].data * 1e5), "float16")


def test_what_the_package_reads(run, tmp_path, monkeypatch):
    """Catches an ImportError's traceback, and the package's own."""
    package, quants = types.ModuleType("gguf"), types.ModuleType("gguf.quants")
    monkeypatch.setitem(sys.modules, "gguf", package)
    monkeypatch.setitem(sys.modules, "gguf.quants", quants)
    field, tensors = SimpleNamespace(contents=lambda: 5), [gguf_tensor("x", torch.ones(1))]
    package.GGUFReader = lambda path: SimpleNamespace(fields={"a": field}, tensors=tensors)
    quants.dequantize = raises
    path = tmp_path / "a.gguf"
    refusal(run, path, "does not exist")
    path.touch()
    assert gguf_file.read(path) == ({"a": 5}, tensors, raises)
    for error in (IndexError("a\nb" * 999), RecursionError(), KeyError("x")):
        package.GGUFReader = lambda path, error=error: raises(error)
        refusal(run, path, "not a whole GGUF file", "fetch it again")
    monkeypatch.setitem(sys.modules, "gguf", None)
    refusal(run, path, "pip install gguf")


def raises(error):
    raise error


def test_a_gguf_overwrites_nothing(run, gguf, tmp_path, monkeypatch):
    """Catches the config of another model lost, an hour's work done a second time, and a folder
    without weights, or half of them, where the disk is full."""
    folder = gguf(rounded_llama())
    before = times_of(folder)
    code, out, _ = run(tmp_path / "a.gguf", "--out", folder)
    assert code == 0 and "already" in out and times_of(folder) == before
    (tmp_path / ".a.converted").mkdir()  # of a killed run
    monkeypatch.setattr(tensor_file, "as_bytes", lambda _: raises(OSError(28, "No space")))
    code, out, err = run(tmp_path / "a.gguf")
    assert code == 1 and not out and "model.safetensors cannot be written: No space" in err
    assert files_of(tmp_path) == ["a.gguf", folder.name]
    for make in (Path.touch, lambda path: (path.unlink(), path.mkdir())):
        make(tmp_path / "a")
        refusal(run, tmp_path / "a.gguf", "is there already")


# ---- the tokenizer of a GGUF


def test_a_byte_level_tokenizer(gguf):
    """Catches ids that shift by the special tokens, lost merges, marks that are letters; a chat
    template lost on the way, or special tokens under other names."""
    template = "{% for message in messages %}{{ 'é\n' }}{% endfor %}"
    folder = gguf(rounded_llama(), **{"tokenizer.chat_template": template})
    tokenizer = load_tokenizer(folder)
    tokens = byte_level_fields()["tokenizer.ggml.tokens"]

    def names(text: str) -> list[str]:
        return [tokens[id] for id in tokenizer.encode(text)]

    assert tokenizer.vocab_size == 263 and tokenizer.bos_id is None and tokenizer.eos_id == 2
    assert names("he the") == ["he", "Ġ", "t", "he"]
    assert names("he he") == ["he", "Ġhe"]
    assert names("a\n\n") == ["a", "ĊĊ"]
    assert names("<|im_start|>he<|im_end|>") == ["<|im_start|>", "he", "<|im_end|>"]
    assert tokenizer.encode("<|im_end|>", special=False) != [2]
    for text in fuzzed_texts(200, specials=()):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    about = json.loads((folder / "tokenizer_config.json").read_text())
    assert about["chat_template"] == template
    assert (about["bos_token"], about["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert about["model_max_length"] == 6 and about["add_bos_token"] is False


@pytest.mark.parametrize(
    "pre, names",
    [("smollm", ["1", "2"]), ("gpt-2", ["12"]), ("llama-bpe", ["<|im_start|>", "12"])],
)
def test_how_words_are_cut_is_told_by_a_name(pre, names, gguf):
    """Catches one way of cutting for all: here digits alone, in words, in threes with BOS."""
    folder = gguf(rounded_llama(), **byte_level_fields(pre=pre, add_bos_token=None))
    tokens, tokenizer = byte_level_fields()["tokenizer.ggml.tokens"], load_tokenizer(folder)
    assert [tokens[id] for id in tokenizer.encode("12")] == names
    assert (tokenizer.bos_id == 1) == (pre == "llama-bpe")


def sentencepiece_fields(processor) -> dict:
    """The pieces of a sentencepiece model as GGUF metadata, as llama.cpp reads them out."""
    ids = range(processor.GetPieceSize())
    kinds = ((processor.IsUnknown, 2), (processor.IsControl, 3), (processor.IsByte, 6))
    fields = {
        "model": "llama", "pre": "default", "merges": None, "add_bos_token": None,
        "add_space_prefix": True,
        "tokens": [processor.IdToPiece(id) for id in ids],
        "scores": [processor.GetScore(id) for id in ids],
        "token_type": [next((kind for is_it, kind in kinds if is_it(id)), 1) for id in ids],
        "unknown_token_id": processor.unk_id(), "padding_token_id": None,
        "bos_token_id": processor.bos_id(), "eos_token_id": processor.eos_id(),
    }  # fmt: skip
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items()}


def test_a_sentencepiece_tokenizer(run, gguf, tmp_path, monkeypatch, tokenizer):
    """Catches a normaliser that changes text, spaces lost, bytes as pieces of letters."""
    fields, model = sentencepiece_fields(tokenizer.processor), rounded_llama()
    model.embed.weight = torch.nn.Parameter(torch.ones(tokenizer.vocab_size, 32))
    model.head.weight = torch.nn.Parameter(torch.ones(tokenizer.vocab_size, 32))
    fields |= {"llama.vocab_size": tokenizer.vocab_size}
    ours = load_tokenizer(gguf(model, **fields))
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (
        tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size,
    )  # fmt: skip
    for text in fuzzed_texts(300):
        ids = tokenizer.encode(text)
        assert ours.encode(text) == ids and ours.decode(ids) == tokenizer.decode(ids), text
    for name, value in (("add_bos_token", False), ("bos_token_id", None)):
        changed = fields | {f"tokenizer.ggml.{name}": value}
        path = as_gguf(model, **changed).install(monkeypatch, tmp_path / "a.gguf")
        refusal(run, path, f"tokenizer.ggml.{name} must be")
    tokens = [{"<s>": "<begin>"}.get(token, token) for token in fields["tokenizer.ggml.tokens"]]
    fields |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.eos_token_id": None}
    ours = load_tokenizer(gguf(model, **fields))
    assert (ours.bos_id, ours.eos_id) == (tokenizer.bos_id, None)

"""convert.py and what it is made of: pickles, GGUF files, and the files that come of them.

No test needs the package gguf: a stand-in hands over metadata and tensors as the package does.
`make smollm2` and `make check-smollm2` convert a real file with the real package.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import types
import warnings
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
from minilm_inf.convert import gguf_file
from minilm_inf.text.byte_level import byte_letters
from minilm_inf.text.tokenizer import load as load_tokenizer

INDEX = "model.safetensors.index.json"


@pytest.fixture
def run(program):
    """A call of the program: arguments -> (exit code, stdout, stderr)."""
    return functools.partial(program, convert.main)


def refusal(run, source: Path, *words: str) -> str:
    """Converting must fail with one sentence that holds these words, and leave no new file."""
    folder = source if source.is_dir() else source.parent
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, out, err = run(source)
    assert code == 1 and not out, (out, err)
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return err


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


@pytest.mark.parametrize("family, zipped", [("llama", True), ("mpt", False), ("gptj", True)])
def test_a_bin_becomes_the_same_model(family, zipped, run, tmp_path):
    """Catches renamed or rounded weights, a refusal of what PyTorch before 1.6 wrote, and
    gigabytes written again for a folder that is as it should be."""
    model = tiny_model(family, dtype=torch.float32)
    save(model, tmp_path)
    tensors = as_bin(tmp_path, _use_new_zipfile_serialization=zipped)
    code, out, err = run(tmp_path)
    assert code == 0 and out.count("\n") == 1 and f"{len(tensors)} tensors in 1 file" in out
    assert "100% of" in err and err.count("\n") == 1 and "\r" not in err
    same_tensors(load_file(tmp_path / "model.safetensors"), tensors)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers reads no file without it
    assert torch.equal(load_model(tmp_path)(some_tokens(9)), model(some_tokens(9)))
    before = times_of(tmp_path)
    code, out, err = run(tmp_path)
    assert code == 0 and "already" in out and not err and times_of(tmp_path) == before


def test_shards_become_shards(run, tmp_path):
    """Catches all shards gathered in memory to make one file, and an index that misleads."""
    model = tiny_llama(dtype=torch.float32)
    save(model, tmp_path)
    tensors = as_bin(tmp_path, parts=3)
    assert run(tmp_path)[0] == 0
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    for number in (1, 2, 3):
        file = f"model-{number:05}-of-00003.safetensors"
        held = load_file(tmp_path / file)
        same_tensors(held, {name: tensors[name] for name in sorted(tensors)[number - 1 :: 3]})
        assert {name for name, shard in index["weight_map"].items() if shard == file} == set(
            held
        )
    assert torch.equal(load_model(tmp_path)(some_tokens(9)), model(some_tokens(9)))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_run_goes_on_where_it_ended(stop, run, tmp_path, monkeypatch):
    """Catches a half-written shard that looks whole, and one that is converted twice."""
    save(tiny_llama(dtype=torch.float32), tmp_path)
    tensors = as_bin(tmp_path, parts=3)
    before = files_of(tmp_path)
    calls, as_bytes = [], tensor_file.as_bytes

    def stopped(block):
        calls.append(block)
        if len(calls) > len(tensors) // 2:  # within the second shard
            raise stop
        return as_bytes(block)

    monkeypatch.setattr(tensor_file, "as_bytes", stopped)
    code, _, err = run(tmp_path)
    assert code == (130 if stop is KeyboardInterrupt else 1) and "Traceback" not in err
    first = "model-00001-of-00003.safetensors"
    assert files_of(tmp_path) == sorted([*before, first])
    time = times_of(tmp_path)[first]
    monkeypatch.setattr(tensor_file, "as_bytes", as_bytes)
    code, _, err = run(tmp_path)
    assert code == 0 and f"{first} is there already" in err
    assert times_of(tmp_path)[first] == time
    load_model(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_written_once(tied, run, tmp_path):
    """Catches the embedding stored twice; and a head left out that the config asks for."""
    save(tiny_llama(dtype=torch.float32, tied=True), tmp_path)
    tensors = as_bin(tmp_path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]  # the same memory
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    raw = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": tied}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert run(tmp_path)[0] == 0
    model = load_model(tmp_path)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != tied
    assert torch.equal(model.head.weight, model.embed.weight)


def test_a_head_that_only_looks_tied_is_kept(run, tmp_path):
    """Catches a head of its own dropped by its name: the loader is the one to refuse it."""
    save(tiny_llama(dtype=torch.float32, tied=True), tmp_path)
    tensors = as_bin(tmp_path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert run(tmp_path)[0] == 0
    with pytest.raises(ValueError, match="tie_word_embeddings"):
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


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda raw: b"", "not a readable .bin"),
        (lambda raw: b"PK\3\4" + raw[4:200], "not a readable .bin"),
        (lambda raw: raw[:-300], "not a readable .bin"),
        (lambda raw: b"<!DOCTYPE html><html>", "cannot be understood"),
        (lambda raw: b"hello, this is no pickle", "cannot be understood"),
        (lambda raw: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (lambda raw: raw.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_vX"), "run torch."),
    ],
)
def test_a_damaged_bin(damage, words, run, tmp_path):
    """Catches the page of advice that torch.load prints, and its KeyError: 101."""
    torch.save({"a": torch.ones(300)}, tmp_path / "pytorch_model.bin")
    raw = (tmp_path / "pytorch_model.bin").read_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(damage(raw))
    refusal(run, tmp_path, "pytorch_model.bin", words)


@pytest.mark.parametrize(
    "content, word, zipped",
    [
        ({"state_dict": {"a": torch.ones(2)}}, "'state_dict', which is no tensor", True),
        ({"a": torch.ones(2), "epoch": 3}, "'epoch', which is no tensor", False),
        ({3: torch.ones(2)}, "3, which is", True),
        ([torch.ones(2)], "no tensors by their names", False),
        (torch.ones(2), "no tensors by their names", True),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "a as torch.complex64", True),
        ({"a": torch.ones(2, 2).to_sparse()}, "a as torch.float32, torch.sparse_coo", True),
        ({"a": torch.ones(2, device="meta")}, "a as no numbers", True),
        ({"a": torch.zeros(1).expand(5 * 10**8)}, "tensors would take 2,000,000,000", True),
        (dict.fromkeys(map(str, range(99)), torch.ones(10**4)), "tensors would take", False),
        ({"\ud800": torch.ones(2)}, "'\\ud800', which is no name", True),
        ({"__metadata__": torch.ones(2)}, "__metadata__, which is no name", False),
        ({"a\nb" + "c" * 10**4: 1}, "..., which is no tensor", True),
    ],
)
def test_a_bin_that_holds_something_else(content, word, zipped, run, tmp_path):
    """Catches a trainer's whole state, or numbers that the format lacks, half converted; a
    kilobyte that becomes gigabytes, and names that make an unreadable file."""
    path = tmp_path / "pytorch_model.bin"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert len(refusal(run, tmp_path, "pytorch_model.bin", word)) < 800


def test_an_archive_that_unpacks_to_more_than_it_is(run, tmp_path):
    """Catches a megabyte that is unpacked to a gigabyte of zeros."""
    with ZipFile(tmp_path / "pytorch_model.bin", "w", ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**6))
    refusal(run, tmp_path, "pytorch_model.bin", "not a readable .bin", "it is damaged")


def test_what_a_killed_run_left_is_swept(run, tmp_path):
    """Catches gigabytes left for ever of a run that was killed."""
    save(tiny_llama(dtype=torch.float32), tmp_path)
    tensors = as_bin(tmp_path)
    (tmp_path / ".model.safetensors.1234.part").write_bytes(b"half")
    (tmp_path / "notes.part").write_bytes(b"mine")
    assert run(tmp_path)[0] == 0
    same_tensors(load_file(tmp_path / "model.safetensors"), tensors)
    assert files_of(tmp_path) == [
        "config.json", "model.safetensors", "notes.part", "pytorch_model.bin",
    ]  # fmt: skip


def test_a_disk_that_fills_leaves_nothing(run, tmp_path, monkeypatch):
    """Catches a folder without weights, or half of them, left by a GGUF that did not fit."""
    path = as_gguf(rounded_llama()).install(monkeypatch, tmp_path / "a.gguf")

    def full(block):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_file, "as_bytes", full)
    refusal(run, path, "model.safetensors", "No space left on device")
    assert files_of(tmp_path) == ["a.gguf"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes").write_text("mine")
    refusal(run, path, "No space left on device")
    assert files_of(tmp_path / "a") == ["notes"]


def test_an_out_that_is_a_file(run, tmp_path, monkeypatch):
    """Catches a traceback, or a file that is replaced by a folder."""
    path = as_gguf(rounded_llama()).install(monkeypatch, tmp_path / "a.gguf")
    (tmp_path / "a").write_text("mine")
    refusal(run, path, "cannot be made a folder")


def test_advice_is_not_for_whoever_converts(run, tmp_path):
    """Catches PyTorch's paragraph about a pickle's protocol in front of our sentence."""
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin", pickle_protocol=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refusal(run, tmp_path, "cannot be understood")


def test_an_index_that_does_not_fit(run, tmp_path):
    """Catches files opened elsewhere on the disk, and a tensor that is silently missing."""
    save(tiny_llama(dtype=torch.float32), tmp_path)
    as_bin(tmp_path, parts=2)
    index = tmp_path / "pytorch_model.bin.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    for file in ("../pytorch_model.bin", "/etc/x.bin", "a\\b.bin", "", 7):
        index.write_text(json.dumps({"weight_map": weight_map | {"model.norm.weight": file}}))
        refusal(run, tmp_path, index.name, repr(file))
    for changed, word in (
        (weight_map | {"model.norm.weight": "gone.bin"}, "gone.bin, which does not exist"),
        (weight_map | {"model.extra": weight_map["lm_head.weight"]}, "model.extra"),
        ({n: f for n, f in weight_map.items() if n != "lm_head.weight"}, "lm_head.weight"),
        ({}, "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": changed}))
        refusal(run, tmp_path, word)


def test_what_stands_there_is_not_overwritten(run, tmp_path):
    """Catches somebody's file lost, and a folder of shards from two different models."""
    save(tiny_llama(dtype=torch.float32), tmp_path)
    as_bin(tmp_path, parts=2)
    foreign = tmp_path / "model-00001-of-00002.safetensors"
    tensor_file.write_tensors(foreign, {"x": torch.ones(1)}, {"format": "pt"})
    assert "other tensors" in refusal(run, tmp_path, foreign.name)


def test_a_disk_that_is_too_small_is_noticed_first(run, tmp_path, monkeypatch):
    """Catches hours of writing before the last gigabyte does not fit."""
    torch.save({"a": torch.ones(10**5)}, tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(tensor_file.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    refusal(run, tmp_path, "takes 400,000 bytes", "has 1,000 left", "make room")


def test_arguments_that_make_no_sense(run, tmp_path):
    """Catches a flag that is ignored, and a traceback for a mistyped path."""
    code, out, err = run(tmp_path, "--out", tmp_path / "other")
    assert code == 2 and "--out" in err.splitlines()[-1] and not out
    assert run()[0] == 2
    refusal(run, tmp_path, "pytorch_model.bin")
    (tmp_path / "pytorch_model.bin").touch()
    refusal(run, tmp_path / "pytorch_model.bin", "pytorch_model.bin", "neither a folder")
    refusal(run, tmp_path / "nowhere", "nowhere", "neither a folder")


MEASURE = """
import sys
from minilm_inf.convert import __main__ as convert

def status(field):  # in bytes
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

class Watch(convert.Progress):
    def __call__(self, done, all):
        anonymous.append(status("RssAnon"))

anonymous = []
convert.main([sys.argv[1]])  # everything that is imported or set up once
before, anonymous[:] = status("VmRSS"), [status("RssAnon")]
convert.Progress = Watch
assert convert.main([sys.argv[2]]) == 0
print(status("VmHWM") - before, max(anonymous) - anonymous[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_converting_takes_no_second_copy_in_memory(tmp_path, python):
    """Catches a whole shard copied before it is written, or read where it could be mapped:
    mapped pages count as memory too, but are given back to whoever needs it."""
    rows = 2**20  # 4 MB a tensor
    for name, count in (("small", 1), ("large", 8)):
        (tmp_path / name).mkdir()
        tensors = {f"t{i}": torch.full((rows,), float(i)) for i in range(count)}
        torch.save(tensors, tmp_path / name / "pytorch_model.bin")
    done = python(["-c", MEASURE, tmp_path / "small", tmp_path / "large"])
    peak, anonymous = map(int, done.stdout.split()[-2:])
    shard = 8 * 4 * rows
    assert peak < 1.25 * shard, f"{peak / 1e6:.0f} MB for a shard of {shard / 1e6:.0f} MB"
    assert anonymous < 0.25 * shard, f"{anonymous / 1e6:.0f} MB that are not mapped"


# ---- GGUF files, and a stand-in for the package that reads them


F32, BYTES, UNKNOWN_KIND = 0, 24, 99  # kinds of tensors; BYTES holds each number x as x + 128


def gguf_tensor(name: str, numbers: torch.Tensor, kind=F32):
    numbers = numbers.detach().float().numpy()
    data = (numbers + 128).astype(np.uint8) if kind == BYTES else numbers
    return SimpleNamespace(name=name, data=data, shape=numbers.shape[::-1], tensor_type=kind)


class Gguf:
    """A GGUF file of these fields and tensors, and what was asked of the stand-in."""

    def __init__(self, fields: dict, tensors: list):
        self.fields, self.tensors, self.asked = fields, tensors, []

    def dequantize(self, data, kind):
        self.asked.append(data.size)
        if kind not in (F32, BYTES):
            raise NotImplementedError(kind)
        return data if kind == F32 else data.astype(np.float32) - 128

    def read(self, reader):
        """Let the package's GGUFReader hold what this file does."""
        reader.fields = {
            name: SimpleNamespace(contents=lambda value=value: value)
            for name, value in self.fields.items()
        }
        reader.tensors = self.tensors

    def install(self, monkeypatch, path: Path) -> Path:
        """Let the stand-in be what is imported as gguf, and `path` a file for it to read."""
        package, quants = types.ModuleType("gguf"), types.ModuleType("gguf.quants")
        package.GGUFReader = type("GGUFReader", (), {"__init__": lambda r, _: self.read(r)})
        quants.dequantize = self.dequantize
        monkeypatch.setitem(sys.modules, "gguf", package)
        monkeypatch.setitem(sys.modules, "gguf.quants", quants)
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


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"tied": True, "attention_bias": True, "mlp_bias": True, "n_kv_head": 1},
        {"head_dim": 6, "rope_theta": 500000.0},
    ],
)
def test_a_gguf_becomes_the_same_model(facts, run, tmp_path, monkeypatch):
    """Catches queries and keys left in llama.cpp's order: fluent nonsense, and no error."""
    model = rounded_llama(**facts)
    path = as_gguf(model).install(monkeypatch, tmp_path / "tiny.gguf")
    code, out, err = run(path)
    assert code == 0, err
    folder = tmp_path / "tiny"
    same_tensors(
        load_file(folder / "model.safetensors"),
        {name: weight.half() for name, weight in named_pieces(model).items()},
    )
    loaded = load_model(folder)
    assert torch.equal(loaded(some_tokens(9)), model(some_tokens(9)))
    assert loaded.config.tied == model.config.tied
    assert loaded.config.rope_theta == model.config.rope_theta


def test_the_order_matters_to_the_test_above():
    """Catches heads so small, or weights so alike, that any order of rows would pass."""
    weight = torch.arange(16)[:, None]
    assert interleaved(weight, 8).flatten().tolist()[:8] == [0, 4, 1, 5, 2, 6, 3, 7]
    back = interleaved(weight, 8)[gguf_file.rows_in_halves(16, 8)]
    assert torch.equal(back, weight) and not torch.equal(interleaved(weight, 8), weight)


def test_metadata_become_the_config(run, tmp_path, monkeypatch):
    """Catches float32's 0.00000999999975 as an epsilon, and a lost end-of-turn id."""
    changes = {"tokenizer.ggml.eot_token_id": 0, "llama.context_length": 8192}
    changes |= {"llama.expert_count": 0, "llama.tensor_data_layout": "Meta AI original pth"}
    path = as_gguf(rounded_llama(tied=True), **changes).install(
        monkeypatch, tmp_path / "a.gguf"
    )
    assert run(path, "--out", tmp_path / "elsewhere" / "b")[0] == 0
    raw = json.loads((tmp_path / "elsewhere" / "b" / "config.json").read_text())
    assert (raw["rms_norm_eps"], raw["rope_theta"]) == (1e-5, 10000.0)
    assert (raw["bos_token_id"], raw["eos_token_id"]) == (1, [2, 0])
    assert raw["max_position_embeddings"] == 8192 and raw["torch_dtype"] == "float16"
    assert raw["tie_word_embeddings"] is True and raw["rope_scaling"] is None
    assert not (tmp_path / "a").exists()


def test_a_gguf_is_read_block_by_block(run, tmp_path, monkeypatch):
    """Catches a whole tensor, or a model, in float32 at once; and rows lost between blocks."""
    monkeypatch.setattr(gguf_file, "BLOCK", 100)
    model = rounded_llama()
    file, as_bytes, read_before = as_gguf(model), tensor_file.as_bytes, []

    def written(block):
        read_before.append(len(file.asked))
        return as_bytes(block)

    monkeypatch.setattr(tensor_file, "as_bytes", written)
    path = file.install(monkeypatch, tmp_path / "a.gguf")
    assert run(path)[0] == 0
    assert max(file.asked) <= 100 and len(read_before) > 100
    first = read_before[0]  # each tensor's kind is tried before anything is written
    assert read_before == list(range(first, first + len(read_before)))
    assert torch.equal(load_model(tmp_path / "a")(some_tokens(9)), model(some_tokens(9)))


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"type": "none", "factor": 4.0}, None),
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"type": "linear"}, None),
    ],
)
def test_scaled_positions(fields, expected, run, tmp_path, monkeypatch):
    """Catches a stretched model read with its first angles, and llama.cpp's unsaid default."""
    fields = {f"llama.rope.scaling.{name}": value for name, value in fields.items()}
    path = as_gguf(rounded_llama(), **fields).install(monkeypatch, tmp_path / "a.gguf")
    assert run(path)[0] == 0
    scaling = json.loads((tmp_path / "a" / "config.json").read_text())["rope_scaling"]
    assert (scaling and {k: v for k, v in scaling.items() if k != "type"}) == expected


def test_the_factors_of_llama_3_1(run, tmp_path, monkeypatch):
    """Catches Llama 3.1 read with Llama 3's angles: its GGUF names no scaling, only factors."""
    turns = 8192 * 500000.0 ** -(np.arange(4) / 4) / (2 * np.pi)  # D = 8
    kept = np.clip((turns - 1) / (4 - 1), 0, 1)
    assert kept[0] == 1 and 0 < kept[2] < 1 and kept[3] == 0, "all three bands"
    for factor, changed in ((32.0, 1), (32.0, 1.01)):
        file = as_gguf(rounded_llama(rope_theta=500000.0))
        factors = torch.tensor(1 / (kept + (1 - kept) / factor))
        factors[2] *= changed
        file.tensors.append(gguf_tensor("rope_freqs.weight", factors))
        path = file.install(monkeypatch, tmp_path / "a.gguf")
        if changed != 1:
            (tmp_path / "a" / "model.safetensors").unlink()
            refusal(run, path, "rope_freqs.weight", "Llama 3.1")
            continue
        assert run(path)[0] == 0
        assert dict(load_model(tmp_path / "a").config.rope_scaling) == dict(
            rope_type="llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        )  # fmt: skip
    file.tensors[-1] = gguf_tensor("rope_freqs.weight", torch.ones(4))  # of a Llama 3.0
    run(file.install(monkeypatch, tmp_path / "b.gguf"))
    assert load_model(tmp_path / "b").config.rope_scaling is None


# ---- GGUF files that are refused


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"general.architecture": "gemma"}, ('"gemma"', 'only "llama"')),
        ({"general.architecture": None}, ("null",)),
        ({"llama.expert_count": 8}, ("llama.expert_count",)),
        ({"llama.attention.sliding_window": 4096}, ("llama.attention.sliding_window",)),
        ({"llama.rope.scaling.type": "yarn"}, ("llama.rope.scaling.type", '"yarn"')),
        ({"llama.rope.dimension_count": 4}, ("llama.rope.dimension_count",)),
        ({"llama.attention.value_length": 4}, ("llama.attention.value_length",)),
        ({"llama.attention.head_count_kv": [2, 1]}, ("llama.attention.head_count_kv",)),
        ({"llama.vocab_size": 31}, ("llama.vocab_size",)),
        ({"llama.block_count": None}, ("llama.block_count", "missing")),
        ({"llama.block_count": 3}, ("model.layers.2.", "lacks")),
        ({"llama.block_count": 10**6}, ("1000000 layers",)),
        ({"llama.block_count": 1}, ("blk.1.", "no place")),
        ({"llama.feed_forward_length": 47}, ("ffn_gate", "(48, 32)", "(47, 32)")),
        ({"tokenizer.ggml.bos_token_id": -1}, ("tokenizer.ggml.bos_token_id",)),
        ({"tokenizer.ggml.eos_token_id": 263}, ("tokenizer.ggml.eos_token_id",)),
        ({"tokenizer.ggml.model": "bert"}, ('"bert"', "tokenizer.ggml.model")),
        ({"tokenizer.ggml.model": None}, ("tokenizer.ggml.model", "null")),
        ({"tokenizer.ggml.pre": "qwen2"}, ('"qwen2"', "smollm")),
        ({"tokenizer.ggml.pre": None}, ("tokenizer.ggml.pre",)),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, ("2 tokens",)),
        ({"tokenizer.ggml.merges": ["q z"]}, ('"q z"',)),
        ({"tokenizer.ggml.merges": ["he"]}, ('"he"',)),
        ({"tokenizer.ggml.add_eos_token": True}, ("tokenizer.ggml.add_eos_token",)),
        ({"tokenizer.ggml.add_space_prefix": True}, ("tokenizer.ggml.add_space_prefix",)),
        ({"tokenizer.ggml.precompiled_charsmap": [1]}, ("precompiled_charsmap",)),
        ({"llama.attention.head_count": 2**40}, ("llama.attention.head_count",)),
        ({"llama.attention.key_length": 5}, ("llama.attention.key_length",)),
        ({"tokenizer.ggml.tokens": [1, 2]}, ("tokenizer.ggml.tokens",)),
        ({"tokenizer.ggml.token_type": [77] * 263}, ("tokenizer.ggml.token_type",)),
        ({"tokenizer.ggml.merges": [1]}, ("tokenizer.ggml.merges",)),
        ({"tokenizer.ggml.pre": "x" * 10**6}, ("...",)),
    ],
)
def test_a_gguf_that_is_not_understood(changes, words, run, tmp_path, monkeypatch):
    """Catches a mixture of experts, a window, another kind of text, read as a plain Llama; a
    traceback, or a page of somebody's value, for fields that make no sense."""
    path = as_gguf(rounded_llama(), **changes).install(monkeypatch, tmp_path / "a.gguf")
    assert len(refusal(run, path, str(path), *words)) < 800


def test_tensors_that_are_not_understood(run, tmp_path, monkeypatch):
    """Catches a tensor left out of the computation, and an infinity where float16 ends."""
    for change, words in (
        (dict(name="blk.0.attn_sinks.weight"), ("blk.0.attn_sinks.weight", "not known")),
        (dict(name="blk.0.attn_q.scale"), ("blk.0.attn_q.scale", "not known")),
        (dict(name="token_embd.bias"), ("token_embd.bias", "no place")),
        (dict(name="odd.weight"), ("odd.weight", "not known")),
    ):
        file = as_gguf(rounded_llama())
        extra = gguf_tensor("blk.0.attn_q.weight", torch.ones(2, 2))
        vars(extra).update(change)
        file.tensors.append(extra)
        refusal(run, file.install(monkeypatch, tmp_path / "a.gguf"), *words)
    file = as_gguf(rounded_llama())
    file.tensors[1].tensor_type = UNKNOWN_KIND
    path = file.install(monkeypatch, tmp_path / "a.gguf")
    refusal(run, path, "in a way that the package gguf does not read (99)")
    file = as_gguf(rounded_llama())
    del file.tensors[3]
    refusal(run, file.install(monkeypatch, tmp_path / "a.gguf"), "lacks")
    del file.tensors[0]
    refusal(run, file.install(monkeypatch, tmp_path / "a.gguf"), "token_embd.weight")


def test_numbers_beyond_float16(run, tmp_path, monkeypatch):
    """Catches an infinity in the weights, and half of the model left over."""
    file = as_gguf(rounded_llama())
    norm = next(tensor for tensor in file.tensors if tensor.name == "output_norm.weight")
    norm.data = norm.data * 1e5
    path = file.install(monkeypatch, tmp_path / "a.gguf")
    code, out, err = run(path)
    assert code == 1 and "output_norm.weight" in err and "float16" in err
    assert files_of(tmp_path) == ["a.gguf"]


def test_the_package_is_asked_for_by_name(run, tmp_path, monkeypatch):
    """Catches an ImportError's traceback; and a package that everybody would need."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "a.gguf").touch()
    refusal(run, tmp_path / "a.gguf", "pip install gguf")


def test_a_file_that_is_no_gguf(run, tmp_path, monkeypatch):
    """Catches hours spent on a count that a file only claims, and the package's traceback."""
    file, failures = as_gguf(rounded_llama()), []
    path = file.install(monkeypatch, tmp_path / "a.gguf")

    def read(reader):
        reader.data = np.zeros(8, np.uint8)
        raise failures[0] if failures else AssertionError(reader._get(0, np.uint8, 9))

    monkeypatch.setattr(file, "read", read)
    refusal(run, path, "not a whole GGUF file (it ends too soon): fetch it again")
    for error in (IndexError("a\nb" * 999), RecursionError(), KeyError("x")):
        failures[:] = [error]
        assert len(refusal(run, path, "not a whole GGUF file", "fetch it again")) < 500
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refusal(run, path, "git lfs pull")
    path.unlink()
    refusal(run, path, "does not exist")


def test_a_gguf_overwrites_nothing(run, tmp_path, monkeypatch):
    """Catches the config of another model lost, and an hour's work done a second time."""
    path = as_gguf(rounded_llama()).install(monkeypatch, tmp_path / "a.gguf")
    assert run(path)[0] == 0
    before = times_of(tmp_path / "a")
    code, out, err = run(path)
    assert code == 0 and "already" in out and times_of(tmp_path / "a") == before
    (tmp_path / "a" / "model.safetensors").unlink()  # as an interrupted run leaves it
    assert run(path)[0] == 0
    del before["model.safetensors"]
    assert before.items() <= times_of(tmp_path / "a").items()
    (tmp_path / "a" / "model.safetensors").unlink()
    (tmp_path / "a" / "config.json").write_text("{}")
    refusal(run, path, "config.json", "not overwritten")


# ---- the tokenizer of a GGUF


def byte_level(run, tmp_path, monkeypatch, **changes):
    """The tokenizer of the folder that a GGUF with these fields becomes."""
    fields = byte_level_fields(**changes)
    path = as_gguf(rounded_llama(), **fields).install(monkeypatch, tmp_path / "a.gguf")
    code, _, err = run(path)
    assert code == 0, err
    return load_tokenizer(tmp_path / "a")


def test_a_byte_level_tokenizer(run, tmp_path, monkeypatch):
    """Catches ids that shift by the special tokens, lost merges, marks that are letters."""
    tokenizer = byte_level(run, tmp_path, monkeypatch)
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


def test_how_words_are_cut_is_told_by_a_name(run, tmp_path, monkeypatch):
    """Catches one way of cutting for all: here digits alone, in words, in threes with BOS."""
    expected = {"smollm": ["1", "2"], "gpt-2": ["12"], "llama-bpe": ["<|im_start|>", "12"]}
    tokens = byte_level_fields()["tokenizer.ggml.tokens"]
    for pre, names in expected.items():
        folder = tmp_path / pre
        folder.mkdir()
        tokenizer = byte_level(run, folder, monkeypatch, pre=pre, add_bos_token=None)
        assert [tokens[id] for id in tokenizer.encode("12")] == names
        assert (tokenizer.bos_id == 1) == (pre == "llama-bpe")


def test_what_stands_beside_the_tokenizer(run, tmp_path, monkeypatch):
    """Catches a chat template lost on the way, or special tokens under other names."""
    template = "{% for message in messages %}{{ 'é\n' }}{% endfor %}"
    file = as_gguf(rounded_llama(), **{"tokenizer.chat_template": template})
    assert run(file.install(monkeypatch, tmp_path / "a.gguf"))[0] == 0
    about = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    assert about["chat_template"] == template
    assert (about["bos_token"], about["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert about["model_max_length"] == 6 and about["add_bos_token"] is False


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


def test_a_sentencepiece_tokenizer(run, tmp_path, monkeypatch, tokenizer):
    """Catches a normaliser that changes text, spaces lost, bytes as pieces of letters."""
    fields = sentencepiece_fields(tokenizer.processor)
    model = rounded_llama()
    model.embed.weight = torch.nn.Parameter(torch.ones(tokenizer.vocab_size, 32))
    model.head.weight = torch.nn.Parameter(torch.ones(tokenizer.vocab_size, 32))
    fields |= {"llama.vocab_size": tokenizer.vocab_size}
    path = as_gguf(model, **fields).install(monkeypatch, tmp_path / "a.gguf")
    code, _, err = run(path)
    assert code == 0, err
    ours = load_tokenizer(tmp_path / "a")
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (
        tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size,
    )  # fmt: skip
    for text in fuzzed_texts(300):
        ids = tokenizer.encode(text)
        assert ours.encode(text) == ids and ours.decode(ids) == tokenizer.decode(ids), text
    tokens = [{"<s>": "<begin>"}.get(token, token) for token in fields["tokenizer.ggml.tokens"]]
    fields |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.eos_token_id": None}
    other = as_gguf(model, **fields).install(monkeypatch, tmp_path / "b.gguf")
    assert run(other)[0] == 0
    ours = load_tokenizer(tmp_path / "b")
    assert (ours.bos_id, ours.eos_id) == (tokenizer.bos_id, None)
    (tmp_path / "a" / "model.safetensors").unlink()
    for name, value in (("add_bos_token", False), ("bos_token_id", None)):
        changed = fields | {f"tokenizer.ggml.{name}": value}
        path = as_gguf(model, **changed).install(monkeypatch, tmp_path / "a.gguf")
        refusal(run, path, f"tokenizer.ggml.{name} must be")

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
from dataclasses import replace
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

from minilm_inf.checkpoint import load_model, save, shards
from minilm_inf.checkpoint.checkpoint import named_pieces
from minilm_inf.convert import __main__ as convert
from minilm_inf.convert import gguf_file, pickles
from minilm_inf.text.byte_level import byte_letters
from minilm_inf.text.tokenizer import load as load_tokenizer

BIN = "pytorch_model.bin"


@pytest.fixture
def run(program):
    """A call of the program: arguments -> (exit code, stdout, stderr)."""
    return functools.partial(program, convert.main)


def files_of(folder: Path) -> dict[str, int]:
    """The names of a folder's files, and when each was written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def refusal(run, source: Path, *words: str):
    """Converting must fail with one sentence that holds these words, and leave no new file."""
    folder = source if source.is_dir() else source.parent
    before = files_of(folder)
    code, out, err = run(source)
    last = err.splitlines()[-1]
    assert code == 1 and not out, (out, err)
    assert last.startswith("error: ") and err.count("error: ") == 1 and len(last) < 900, err
    assert all(word in last for word in words), last
    assert files_of(folder) == before


def as_bin(folder: Path, parts: int = 1, **options) -> dict[str, torch.Tensor]:
    """Make the model.safetensors of a folder a .bin, or several and an index; its tensors."""
    tensors = {n: x.clone() for n, x in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for part in range(parts):
        file = BIN if parts == 1 else f"pytorch_model-{part + 1:05}-of-{parts:05}.bin"
        held = {name: tensors[name] for name in names[part::parts]}
        torch.save(held, folder / file, **options)
        weight_map |= dict.fromkeys(held, file)
    if parts > 1:
        (folder / f"{BIN}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


def same_tensors(ours: dict, theirs: dict):
    """Names, dtypes, shapes and bits agree."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


# ---- pickles that are converted


@pytest.mark.parametrize(
    "family, parts, zipped", [("mpt", 1, False), ("gptj", 1, True), ("llama", 3, True)]
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
    held = {}
    for path in tmp_path.glob("*.safetensors"):
        held |= load_file(path)
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}  # transformers reads no file without it
    same_tensors(held, tensors)
    for path in tmp_path.glob("model*.index.json"):
        total = json.loads(path.read_text())["metadata"]["total_size"]
        assert total == sum(tensor.nbytes for tensor in tensors.values())
    assert torch.equal(load_model(tmp_path)(some_tokens(9)), model(some_tokens(9)))
    before = files_of(tmp_path)
    code, out, err = run(tmp_path)
    assert code == 0 and "already" in out and not err and files_of(tmp_path) == before


def test_an_interrupted_run_goes_on_where_it_ended(run, tmp_path):
    """Catches a shard that is converted twice, and an index that forgets it."""
    save(tiny_llama(dtype=torch.float32), tmp_path)
    as_bin(tmp_path, parts=3)
    assert run(tmp_path)[0] == 0
    first, last = (tmp_path / f"model-0000{n}-of-00003.safetensors" for n in (1, 3))
    for path in (last, tmp_path / "model.safetensors.index.json"):
        path.unlink()
    written = files_of(tmp_path)
    code, _, err = run(tmp_path)
    assert code == 0 and err.count("there already") == 2
    assert written.items() <= files_of(tmp_path).items() and str(first) in written
    load_model(tmp_path)


def test_whatever_a_tensor_is_a_view_of(run, tmp_path):
    """Catches the bytes of the storage taken for those of the tensor, and masks made floats."""
    big, shared = torch.arange(60, dtype=torch.float32).reshape(6, 10), torch.randn(4, 4)
    tensors = {
        "transposed": big.T, "a slice": big[1:3, 2:9:2], "one number": torch.tensor(-1e9),
        "expanded": torch.ones(1, 3).expand(5, 3), "nothing": torch.zeros(0, 4),
        "mask": torch.ones(3, 3, dtype=torch.bool).tril()[None, None],
        "one": shared, "two": shared, "rows": shared[2:], "half": torch.randn(3).half(),
        "double": torch.randn(3).double(), "parameter": torch.nn.Parameter(torch.randn(2)),
        "negated in reading": torch._neg_view(torch.arange(6.0)),
    }  # fmt: skip
    torch.save(tensors, tmp_path / BIN)
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


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_a_command(zipped, run, tmp_path):
    """Catches the one thing that must never happen: a downloaded file's code is run."""
    proof, file = tmp_path / "it ran", tmp_path / BIN
    content = {"a": torch.ones(3), "b": Command(f"touch '{proof}'")}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    refusal(run, tmp_path, BIN, f"{os.name}.system", "not read")
    assert not proof.exists()
    torch.load(file, weights_only=False)
    assert proof.exists(), "the file is what this test takes it for"


def pickled(content, **options) -> bytes:
    """The bytes of a .bin that holds something."""
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


ONE = torch.ones(300)
WHOLE = pickled({"a": ONE})
OLD = {"_use_new_zipfile_serialization": False}
BOMB = io.BytesIO()  # an archive that unpacks to far more than it is
with ZipFile(BOMB, "w", ZIP_DEFLATED) as archive:
    archive.writestr("a/data.pkl", bytes(10**6))
SPOILED = {  # what is wrong with a .bin -> its bytes, and a word of the sentence
    "cut": (WHOLE[:-300], "was not read"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "a call": (WHOLE.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_vX"), "would run torch."),
    "a bomb": (BOMB.getvalue(), "was not read"),
    "a trainer's": (pickled({"state_dict": {"a": ONE}}), "'state_dict', which is no tensor"),
    "a list": (pickled([ONE], **OLD), "no tensors by their names"),
    "complex": (pickled({"a": torch.ones(2, dtype=torch.complex64)}), "'a', which is"),
    "spread": (pickled({"a": torch.zeros(1).expand(5 * 10**8)}), "would take 2,000,000,000"),
    "a long name": (pickled({"a\nb" + "c" * 10**4: 1}), "..., which is no tensor"),
}


@pytest.mark.parametrize("wrong", SPOILED)
def test_a_bin_that_is_refused(wrong, run, tmp_path):
    """Catches a traceback or a page of PyTorch's advice, a trainer's whole state, numbers that
    the format lacks, and a kilobyte that becomes gigabytes."""
    content, word = SPOILED[wrong]
    (tmp_path / BIN).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refusal(run, tmp_path, BIN, word)


def test_arguments_that_make_no_sense(run, tmp_path):
    """Catches a flag that is ignored, a traceback for a mistyped path, and files opened
    elsewhere on the disk because an index says so."""
    code, out, err = run(tmp_path, "--out", tmp_path / "other")
    assert code == 2 and "--out" in err.splitlines()[-1] and not out
    refusal(run, tmp_path, BIN)
    index = tmp_path / f"{BIN}.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../x.bin"}}))
    refusal(run, tmp_path, index.name, "does not stand beside it")
    refusal(run, index, "neither a folder")
    refusal(run, tmp_path / "nowhere", "nowhere", "neither a folder")


# ---- GGUF files, and a stand-in for the package that reads them


F32 = 0


def gguf_tensor(name: str, numbers: torch.Tensor):
    """A tensor of the package, stored as twice its numbers."""
    data = 2 * numbers.detach().float().numpy()
    return SimpleNamespace(name=name, data=data, shape=data.shape[::-1], tensor_type=F32)


def dequantize(data, kind):
    """The package's function of this name."""
    assert data.size <= gguf_file.BLOCK, "a few rows at a time"
    if kind != F32:
        raise NotImplementedError(kind)
    return data / 2


def interleaved(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """llama.cpp's order of a query's or key's rows: in each head, the first and the second
    coordinate of pair 0, of pair 1, ..."""
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


THEIRS = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "Ġ he", "1 2", "Ċ Ċ"]
TOKENS = MARKS + byte_letters() + [merge.replace(" ", "") for merge in MERGES]
BYTE_LEVEL = {  # a tokenizer of 256 bytes, four merges and three marks, as GGUF metadata
    "model": "gpt2", "pre": "smollm", "tokens": TOKENS, "merges": MERGES,
    "token_type": [3] * 3 + [1] * (len(TOKENS) - 3),
    "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "padding_token_id": 2,
    "add_bos_token": False, "add_eos_token": False, "add_space_prefix": False,
    "mask_token_id": 0,
}  # fmt: skip


def fields_of(config, tokenizer: dict) -> dict:
    """The metadata of a Llama."""
    facts = {
        "block_count": config.n_layer, "context_length": config.context_length,
        "embedding_length": config.n_embd, "feed_forward_length": config.n_inner,
        "attention.head_count": config.n_head, "attention.head_count_kv": config.n_kv_head,
        "attention.key_length": config.head_dim, "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(np.float32(config.rope_theta)),
        "attention.layer_norm_rms_epsilon": float(np.float32(config.norm_eps)),
        "vocab_size": config.vocab_size,
    }  # fmt: skip
    found = {f"llama.{name}": value for name, value in facts.items()}
    found |= {f"tokenizer.ggml.{name}": value for name, value in tokenizer.items()}
    return {"general.architecture": "llama"} | found


def tensors_of(model) -> list:
    """A model of ours as llama.cpp keeps it."""
    tensors = []
    for name, weight in named_pieces(model).items():
        if name.split(".")[-2] in ("q_proj", "k_proj"):
            weight = interleaved(weight, model.config.head_dim)
        stem, leaf = name.rsplit(".", 1)
        layer = stem.split(".")[2] if stem.startswith("model.layers.") else None
        block = "" if layer is None else f"blk.{layer}."
        stem = THEIRS[stem.removeprefix(f"model.layers.{layer}.")]
        tensors.append(gguf_tensor(f"{block}{stem}.{leaf}", weight))
    return tensors


def rounded_llama(**facts):
    """A random Llama whose numbers float16 holds."""
    model = tiny_llama(**{"vocab_size": 263} | facts)
    return model.half().float()


@pytest.fixture
def gguf(tmp_path, monkeypatch):
    """A path at which the package finds a model, with these fields in the place of its own,
    where None is nothing; change: of its list of tensors."""

    def make(model=None, change=lambda tensors: None, tokenizer=BYTE_LEVEL, **fields) -> Path:
        model = model or rounded_llama()
        found, tensors = fields_of(model.config, tokenizer) | fields, tensors_of(model)
        change(tensors)
        found = {name: value for name, value in found.items() if value is not None}
        monkeypatch.setattr(gguf_file, "read", lambda path: (found, tensors, dequantize))
        path = tmp_path / f"{len(files_of(tmp_path))}.gguf"
        path.touch()
        return path

    return make


@pytest.fixture
def converted(gguf, run):
    """The folder that convert makes of gguf(arguments)."""

    def make(*arguments, **options) -> Path:
        path = gguf(*arguments, **options)
        code, _, err = run(path)
        assert code == 0, err
        return path.with_suffix("")

    return make


# ---- GGUF files that are converted


@pytest.mark.parametrize(
    "facts",
    [
        {"tied": True, "attention_bias": True, "mlp_bias": True, "n_kv_head": 1},
        {"head_dim": 6, "rope_theta": 500000.0},
    ],
)
def test_a_gguf_becomes_the_same_model(facts, converted, monkeypatch):
    """Catches queries and keys left in llama.cpp's order: fluent nonsense, and no error; a
    whole tensor in float32 at once, rows lost between blocks, and a lost end-of-turn id."""
    monkeypatch.setattr(gguf_file, "BLOCK", 100)
    model = rounded_llama(**facts)
    fields = {"tokenizer.ggml.eot_token_id": 0, "llama.context_length": 8192}
    fields |= {"llama.expert_count": 0, "llama.tensor_data_layout": "Meta AI original pth"}
    folder = converted(model, **fields)
    expected = {name: weight.half() for name, weight in named_pieces(model).items()}
    same_tensors(load_file(folder / "model.safetensors"), expected)
    loaded = load_model(folder)
    assert torch.equal(loaded(some_tokens(9)), model(some_tokens(9)))
    # Its epsilon is 1e-5, and not float32's 0.00000999999975.
    facts = dict(bos_id=1, eos_ids=(2, 0), context_length=8192)
    assert loaded.config == replace(model.config, **facts)
    weight = torch.arange(16)[:, None]  # the order of rows matters to this test
    assert interleaved(weight, 8).flatten().tolist()[:8] == [0, 4, 1, 5, 2, 6, 3, 7]


TURNS = 8192 * 500000.0 ** -(np.arange(4) / 4) / (2 * np.pi)  # of Llama 3.1, where D = 8
KEPT = np.clip((TURNS - 1) / (4 - 1), 0, 1)
assert KEPT[0] == 1 and 0 < KEPT[2] < 1 and KEPT[3] == 0, "all three bands"
FACTORS = 1 / (KEPT + (1 - KEPT) / 32)
LINEAR = {"rope_type": "linear", "factor": 4.0}
SCALED = [  # fields, factors, and what is stretched how
    ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None, None),
    ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, None, LINEAR),
    ({"rope.scaling.factor": 4.0}, None, LINEAR),  # as llama.cpp has it
    ({"rope.scaling.type": "linear"}, None, None),
    ({}, np.ones(4), None),  # of a Llama 3.0
    ({}, FACTORS, dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0,
                       high_freq_factor=4.0, original_max_position_embeddings=8192)),
]  # fmt: skip


def extra(name: str, numbers=((1.0, 1.0),)):
    """A change of tensors: one more."""
    return lambda tensors: tensors.append(gguf_tensor(name, torch.tensor(numbers)))


@pytest.mark.parametrize("fields, factors, expected", SCALED)
def test_scaled_positions(fields, factors, expected, converted):
    """Catches a stretched model read with its first angles."""
    fields = {f"llama.{name}": value for name, value in fields.items()}
    if factors is not None:
        fields["change"] = extra("rope_freqs.weight", factors)
    scaling = load_model(converted(rounded_llama(rope_theta=5e5), **fields)).config
    assert (scaling.rope_scaling and dict(scaling.rope_scaling)) == expected


# ---- GGUF files that are refused


NOT_UNDERSTOOD = [  # a field, its value, and words of the sentence
    ("general.architecture", "gemma", '"llama"|not "gemma"'),
    ("llama.expert_count", 8, "llama.expert_count"),
    ("llama.attention.sliding_window", 4096, "llama.attention.sliding_window"),
    ("llama.rope.scaling.type", "yarn", 'llama.rope.scaling.type|"yarn"'),
    ("llama.rope.dimension_count", 4, "llama.rope.dimension_count"),
    ("llama.block_count", None, "num_hidden_layers is missing"),
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
]


@pytest.mark.parametrize("field, value, words", NOT_UNDERSTOOD)
def test_a_gguf_that_is_not_understood(field, value, words, run, gguf):
    """Catches a mixture of experts, a window, another kind of text, read as a plain Llama; a
    traceback, or a page of somebody's value, for fields that make no sense."""
    path = gguf(**{field: value})
    refusal(run, path, str(path), *words.split("|"))


CHANGES = [  # of tensors, and words of the sentence
    (extra("blk.0.attn_sinks.weight"), "no place"),
    (extra("blk.{0}.attn_q.scale"), "no place"),
    (extra("rope_freqs.weight", FACTORS * 1.01), "are not those of Llama 3.1"),
    (lambda tensors: tensors.pop(3), "missing"),
    (lambda tensors: tensors.pop(0), "vocab_size is missing"),
    (lambda tensors: vars(tensors[1]).update(tensor_type=99), "does not read (99)"),
    (lambda tensors: vars(tensors[2]).update(data=tensors[2].data * 1e6), "float16"),
]


@pytest.mark.parametrize("change, words", CHANGES)
def test_tensors_that_are_not_understood(change, words, run, gguf):
    """Catches a tensor left out of the computation, and an infinity where float16 ends."""
    refusal(run, gguf(change=change), words)


class Package:
    """A stand-in for the package's reader of a file, which says how many values it has: they
    are read on where it ends."""

    def __init__(self, path):
        self.data = path.read_bytes()
        self.fields = {"a": SimpleNamespace(contents=lambda: 5)}
        self.tensors = [gguf_tensor("x", torch.ones(1))]
        for place in range(int(self.data)):
            self._get(place, int)

    def _get(self, offset, kind, count=1):
        return [kind()] * count


def test_what_the_package_reads(run, tmp_path, monkeypatch):
    """Catches an ImportError's traceback, and the package's own; a list that is said to be so
    long that the package would read on for ever."""
    package, quants = types.ModuleType("gguf"), types.ModuleType("gguf.quants")
    package.GGUFReader, quants.dequantize = Package, dequantize
    monkeypatch.setitem(sys.modules, "gguf", package)
    monkeypatch.setitem(sys.modules, "gguf.quants", quants)
    path = tmp_path / "a.gguf"
    refusal(run, path, "does not exist")
    path.write_text("2 ")
    fields, tensors, theirs = gguf_file.read(path)
    assert fields == {"a": 5} and tensors[0].name == "x" and theirs is dequantize
    monkeypatch.setattr(gguf_file, "MOST_VALUES", 5)
    for content, word in (("9" * 12, "more values"), ("6" + " " * 9, "more values"), ("", "")):
        path.write_text(content)
        refusal(run, path, "not a whole GGUF file", "fetch it again", word)
    monkeypatch.setitem(sys.modules, "gguf", None)
    refusal(run, path, "pip install gguf")


def test_a_gguf_overwrites_nothing(run, gguf, tmp_path, monkeypatch):
    """Catches the config of another model lost, an hour's work done a second time, and a folder
    without weights, or half of them, where the disk is full."""
    path, folder = gguf(), tmp_path / "a"
    assert run(path, "--out", folder)[0] == 0
    before = files_of(tmp_path)
    code, out, _ = run(path, "--out", folder)
    assert code == 0 and "already" in out and files_of(tmp_path) == before

    def disk_full(block):
        raise OSError(28, "No space")

    (tmp_path / ".0.converted").mkdir()  # of a killed run
    monkeypatch.setattr(shards, "as_bytes", disk_full)
    code, out, err = run(path)
    assert code == 1 and not out and "model.safetensors cannot be written: No space" in err
    assert files_of(tmp_path) == before
    path.with_suffix("").touch()
    refusal(run, path, "is there already")


# ---- the tokenizer of a GGUF


def test_a_byte_level_tokenizer(converted):
    """Catches ids that shift by the special tokens, lost merges, marks that are letters; a chat
    template lost on the way, or special tokens under other names."""
    template = "{% for message in messages %}{{ 'é\n' }}{% endfor %}"
    folder = converted(**{"tokenizer.chat_template": template})
    tokenizer = load_tokenizer(folder)

    def names(text: str) -> list[str]:
        return [TOKENS[id] for id in tokenizer.encode(text)]

    assert tokenizer.vocab_size == 263 and tokenizer.bos_id is None and tokenizer.eos_id == 2
    assert names("he the") == ["he", "Ġ", "t", "he"]
    assert names("he he") == ["he", "Ġhe"]
    assert names("a\n\n") == ["a", "ĊĊ"]
    assert names("<|im_start|>he<|im_end|>") == ["<|im_start|>", "he", "<|im_end|>"]
    assert tokenizer.encode("<|im_end|>", special=False) != [2]
    for text in fuzzed_texts(200, specials=()):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    about = json.loads((folder / "tokenizer_config.json").read_text())
    assert about["chat_template"] == template and about["add_bos_token"] is False
    assert (about["bos_token"], about["eos_token"]) == ("<|im_start|>", "<|im_end|>")


@pytest.mark.parametrize(
    "pre, names", [("gpt-2", ["12"]), ("smollm", ["1", "2"]), ("llama-bpe", [MARKS[1], "12"])]
)
def test_how_words_are_cut_is_told_by_a_name(pre, names, converted):
    """Catches one way of cutting for all: here digits alone, in words, in threes with BOS."""
    fields = BYTE_LEVEL | {"pre": pre, "add_bos_token": None}
    ids = load_tokenizer(converted(tokenizer=fields)).encode("12")
    assert [TOKENS[id] for id in ids] == names


def sentencepiece_fields(processor) -> dict:
    """The pieces of a sentencepiece model as GGUF metadata, as llama.cpp reads them out."""
    ids = range(processor.GetPieceSize())
    kinds = ((processor.IsUnknown, 2), (processor.IsControl, 3), (processor.IsByte, 6))
    return {
        "model": "llama", "pre": "default", "add_space_prefix": True,
        "tokens": [processor.IdToPiece(id) for id in ids],
        "scores": [processor.GetScore(id) for id in ids],
        "token_type": [next((kind for is_it, kind in kinds if is_it(id)), 1) for id in ids],
        "unknown_token_id": processor.unk_id(),
        "bos_token_id": processor.bos_id(), "eos_token_id": processor.eos_id(),
    }  # fmt: skip


def test_a_sentencepiece_tokenizer(run, gguf, converted, tokenizer):
    """Catches a normaliser that changes text, spaces lost, bytes as pieces of letters."""
    fields = sentencepiece_fields(tokenizer.processor)
    model = rounded_llama(vocab_size=tokenizer.vocab_size)
    ours = load_tokenizer(converted(model, tokenizer=fields))
    ids = [(x.bos_id, x.eos_id, x.vocab_size) for x in (ours, tokenizer)]
    assert ids[0] == ids[1]
    for text in fuzzed_texts(300):
        ids = tokenizer.encode(text)
        assert ours.encode(text) == ids and ours.decode(ids) == tokenizer.decode(ids), text
    for name, value in (("add_bos_token", False), ("bos_token_id", None)):
        path = gguf(model, tokenizer=fields | {name: value})
        refusal(run, path, f"tokenizer.ggml.{name} must be")
    tokens = [{"<s>": "<begin>"}.get(token, token) for token in fields["tokens"]]
    renamed = fields | {"tokens": tokens, "eos_token_id": None}
    ours = load_tokenizer(converted(model, tokenizer=renamed))
    assert (ours.bos_id, ours.eos_id) == (tokenizer.bos_id, None)

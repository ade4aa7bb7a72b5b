"""Kinds of fuzz.py: files of a checkpoint that are spoiled, and what reads them."""

from __future__ import annotations

import functools
import io
import json
import os
import random
import struct
import sys
import types
from unittest import mock

import numpy as np
import torch
from fuzz_draw import (
    LONG,
    TOKENIZERS,
    VALUES,
    as_json,
    program,
    some_text,
    spoiled,
    spoiled_bytes,
    tokenizer,
    weights,
    write,
)  # fmt: skip
from safetensors.torch import load
from test_chat import KNOWN

import minilm_inf.convert.__main__
import minilm_inf.inspect.__main__  # noqa: F401
from minilm_inf import load as load_folder
from minilm_inf import load_tokenizer

KEYS = """rope_scaling rope_parameters rope_theta quantization_config sliding_window dtype
torch_dtype eos_token_id bos_token_id pad_token_id head_dim num_key_value_heads attention_bias
mlp_bias tie_word_embeddings hidden_act activation_function attn_config alibi clip_qkv
softmax_scale qk_ln expansion_ratio no_bias n_inner rotary_dim rotary layer_norm_epsilon
rms_norm_eps architectures model_type vocab_size max_position_embeddings use_cache attn_pdrop
welcome auto_map""".split()


def read_somehow(rng: random.Random, folder: str) -> tuple[str, object]:
    """One of the ways to read a checkpoint: (what it is, a call)."""
    how = rng.choice(("inspect", "generate", "plan", "load", "all"))
    if how == "load":
        return how, lambda: load_folder(folder)
    if how in ("inspect", "all"):
        more = ["--all", "--json"] if how == "all" else []
        return how, lambda: program("inspect", folder, *more)
    more = ["--plan"] if how == "plan" else []
    return how, lambda: program("generate", "-m", folder, "-n", "2", "-p", "Hi you", *more)


def config(rng):
    family = rng.choice(("llama", "mpt", "gptj"))
    files = weights(family) | tokenizer("pieces")
    raw = json.loads(files["config.json"])
    if rng.random() < 0.3:
        raw[rng.choice([*KEYS, LONG, ""])] = rng.choice(VALUES)
    name = "config.json"
    if rng.random() < 0.15:
        name = "generation_config.json"
        raw = {"eos_token_id": [2, 3], "bos_token_id": 1, "temperature": 0.7}
    files[name] = as_json(rng, spoiled(rng, raw))
    how, call = read_somehow(rng, write(files))
    return f"{family} {name}: {files[name][:1500]!r}, {how}", call


def with_header(raw: bytes, header: bytes) -> bytes:
    """A safetensors file with another header."""
    length = struct.unpack("<Q", raw[:8])[0]
    return struct.pack("<Q", len(header)) + header + raw[8 + length :]


def headers(rng):
    files = weights(rng.choice(("llama", "gptj"))) | tokenizer("pieces")
    raw = files["model.safetensors"]
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    if rng.random() < 0.6:
        raw = with_header(raw, as_json(rng, spoiled(rng, header)))
    else:
        raw = spoiled_bytes(rng, raw)
    files["model.safetensors"] = raw
    how, call = read_somehow(rng, write(files))
    return f"{len(raw)} bytes that begin with {raw[:1500]!r}, {how}", call


@functools.cache
def shards() -> dict[str, bytes]:
    """The tiny Llama in two shards with an index."""
    from safetensors.torch import save

    files = dict(weights())
    tensors = load(files.pop("model.safetensors"))
    names, weight_map = sorted(tensors), {}
    for part in (0, 1):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        files[file] = save({name: tensors[name] for name in names[part::2]})
        weight_map |= dict.fromkeys(names[part::2], file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    return files | {"model.safetensors.index.json": json.dumps(index).encode()}


def index(rng):
    files = shards() | tokenizer("pieces")
    name = "model.safetensors.index.json"
    files[name] = as_json(rng, spoiled(rng, json.loads(files[name])))
    if rng.random() < 0.2:
        del files[rng.choice(list(files))]
    how, call = read_somehow(rng, write(files))
    return f"{files.get(name, b'')[:1500]!r} beside {sorted(files)}, {how}", call


def tokenizers(rng):
    kind = rng.choice(TOKENIZERS)
    files = dict(tokenizer(kind))
    name = rng.choice(list(files))
    if rng.random() < 0.1:
        name = rng.choice(("special_tokens_map.json", "added_tokens.json"))
        files.setdefault(name, b'{"eos_token": {"content": "</s>"}, "<x>": 1030}')
    if name.endswith(".json") and rng.random() < 0.85:
        files[name] = as_json(rng, spoiled(rng, json.loads(files[name])))
    else:
        files[name] = spoiled_bytes(rng, files[name])
    text = some_text(rng).encode("utf-8", "replace").decode()
    folder = write(files)

    def call():
        found = load_tokenizer(folder)
        ids = found.encode(text)
        stream = found.stream()
        return found.decode(ids), [stream.push(id) for id in ids]

    if rng.random() < 0.3:
        write(weights())
        return f"{kind} {name}: generate", lambda: program(
            "generate", "-m", folder, "-n", "2", "-p", "Hi"
        )
    return f"{kind} {name}: {text[:80]!r}", call


SCRAPS = (
    "{{", "}}", "{%", "%}", "{#", "#}", "{% if x %}", "{% else %}", "{% endif %}", "\r\n",
    "{{ x }}", "{{ '<|im_start|>' }}", "' + ", "\\", "'", "|", "bos_token", "[INST]", "\ud800",
    "{% for m in messages %}", "{{ raise_exception('x') }}", "{{ x.__init__.__globals__ }}",
    "\\x", "\\u12", "\\N{x}", "<|user|>", "messages[0]['role']", "{% endfor %}",
    "{%- set x = 1 -%}",
)  # fmt: skip


def templates(rng):
    text, _ = KNOWN[rng.choice(list(KNOWN))]
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        at, size = rng.randrange(len(text) + 1), rng.choice((0, 1, 5, 60))
        scrap = rng.choice(SCRAPS) * rng.choice((1, 1, 1, 3, 20_000))
        text = text[:at] + scrap + text[at + size :]
    files = weights() | tokenizer(rng.choice(("pieces", "GPT-2, json")))
    if rng.random() < 0.4:
        files["chat_template.jinja"] = text.encode("utf-8", "surrogatepass")
    else:
        value = rng.choice((text, text, [{"name": "default", "template": text}], [text]))
        raw = {"chat_template": value, "eos_token": "</s>"}
        raw = spoiled(rng, raw) if rng.random() < 0.2 else raw
        files["tokenizer_config.json"] = json.dumps(raw).encode()
    said = ["--system", some_text(rng).replace("\0", "")] if rng.random() < 0.3 else []
    folder = write(files)
    return f"{len(text)} letters, {text[:300]!r}", lambda: program(
        "generate", "-m", folder, "--chat", "-n", "2", "-p", "Hi", *said
    )


class Runs:
    """An object whose pickle would run a command."""

    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def pickles(rng):
    files = dict(weights())
    tensors = dict(load(files.pop("model.safetensors")))
    name = rng.choice(list(tensors))
    tensor = tensors[name]
    held, how = tensors, rng.randrange(13)
    if how == 0:
        command = rng.choice(
            (Runs(os.system, "touch ../canary"), Runs(eval, "open('../canary', 'w')"))
        )
        tensors[name] = command
    elif how == 1:
        held = rng.choice(
            (Runs(os.system, "touch ../canary"), [1], 5, None, {"state": tensors})
        )
    elif how == 2:
        tensors[rng.choice(("", "\ud800", LONG, "a/b", "../canary", "\0", 5, (1, 2)))] = tensor
    elif how == 3:
        tensors[name] = rng.choice(VALUES)
    elif how == 4:
        big = torch.zeros(1).expand(rng.choice((3, 10**9, 2**40)))
        turned = tensor.t() if tensor.dim() == 2 else tensor[None]
        tensors[name] = rng.choice((big, torch._neg_view(tensor), turned, tensor.to_sparse()))
    elif how == 5:
        kinds = torch.int8, torch.bool, torch.complex64, torch.float8_e5m2, torch.float64
        tensors[name] = tensor.to(rng.choice(kinds))
    elif how == 6:
        tensors[name] = rng.choice((torch.nn.Parameter(tensor), tensor.to("meta"), tensor[:0]))
    elif how == 7:
        del tensors[name]
    stream = io.BytesIO()
    torch.save(held, stream, _use_new_zipfile_serialization=rng.random() < 0.7)
    raw = stream.getvalue()
    if how > 7:
        raw = spoiled_bytes(rng, raw)
    files["pytorch_model.bin"] = raw
    folder = write(files | tokenizer("pieces"))

    def call():
        program("convert", folder)
        load_folder(folder)

    return f"way {how}, {name}, {len(raw)} bytes", call


def package(facts: dict, shapes: dict) -> dict:
    """A stand-in for the package gguf, whose reader finds these fields and tensors."""

    def reader(self, path):
        self.fields = {
            name: types.SimpleNamespace(contents=lambda value=value: value)
            for name, value in facts.items()
        }
        self.tensors = [
            types.SimpleNamespace(
                name=name, shape=shape[::-1], tensor_type=0, data=np.zeros(shape, np.float32)
            )
            for name, shape in shapes.items()
        ]

    quants = types.SimpleNamespace(dequantize=lambda data, kind: data)
    made = type("GGUFReader", (), {"__init__": reader})
    return {"gguf": types.SimpleNamespace(GGUFReader=made), "gguf.quants": quants}


def gguf_facts() -> dict:
    """The metadata of a tiny Llama with a byte-level tokenizer."""
    files = tokenizer("two files")
    vocab = json.loads(files["vocab.json"])
    merges = [line for line in files["merges.txt"].decode().split("\n")[1:] if line]
    sizes = {"embedding_length": 32, "block_count": 1, "feed_forward_length": 32,
             "context_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2,
             "attention.layer_norm_rms_epsilon": 1e-5}  # fmt: skip
    about = {"model": "gpt2", "pre": "gpt-2", "tokens": list(vocab), "merges": merges,
             "token_type": [1] * len(vocab), "eos_token_id": 0}  # fmt: skip
    facts = {f"llama.{name}": value for name, value in sizes.items()}
    facts |= {f"tokenizer.ggml.{name}": value for name, value in about.items()}
    return facts | {"general.architecture": "llama", "tokenizer.chat_template": "{{ x }}"}


def gguf_tensors(n_vocab: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tiny Llama in a GGUF, as rows and columns."""
    layer = dict(attn_q=(32, 32), attn_k=(16, 32), attn_v=(16, 32), attn_output=(32, 32),
                 ffn_gate=(32, 32), ffn_up=(32, 32), ffn_down=(32, 32), attn_norm=(32,),
                 ffn_norm=(32,))  # fmt: skip
    names = {f"blk.0.{name}.weight": shape for name, shape in layer.items()}
    return names | {"token_embd.weight": (n_vocab, 32), "output_norm.weight": (32,)}


def gguf(rng):
    facts = gguf_facts()
    tensors = gguf_tensors(len(facts["tokenizer.ggml.tokens"]))
    for _ in range(rng.choice((0, 1, 1, 2))):
        how, name = rng.random(), rng.choice(list(facts))
        if how < 0.6:
            facts[name] = rng.choice((
                "", LONG, "gpt2", "\ud800", "mpt", True, 1e300, 0, 1, 3, 2**32 - 1, -1, 2**62,
                [], [1, 2], float("nan"), ["", "a", "a"],
            ))  # fmt: skip
        elif how < 0.7:
            del facts[name]
        else:
            tensors[rng.choice([*tensors, "blk.x", LONG, "rope_freqs.weight"])] = rng.choice(
                ((1,), (32, 0), (7, 32), (1, 1, 1, 1), ())
            )
    write({"x.gguf": b"GGUF"}, ".")

    def call():
        with mock.patch.dict(sys.modules, package(facts, tensors)):
            program("convert", "x.gguf")
        load_folder("x")

    shown = {name: value for name, value in facts.items() if len(str(value)) < 999}
    return f"{shown}", call


FILES = {
    "config": config, "headers": headers, "index": index, "tokenizers": tokenizers,
    "templates": templates, "pickles": pickles, "gguf": gguf,
}  # fmt: skip

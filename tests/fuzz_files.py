"""Kinds of fuzz.py: files of a checkpoint that are spoiled, and what reads them."""

from __future__ import annotations

import functools
import json
import random
import struct
from pathlib import Path

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
from safetensors.torch import load, save

import minilm_inf.inspect.__main__  # noqa: F401
from minilm_inf import load as load_folder
from minilm_inf import load_tokenizer

KEYS = """rope_scaling rope_parameters rope_theta quantization_config sliding_window dtype
eos_token_id bos_token_id head_dim num_key_value_heads attention_bias tie_word_embeddings
hidden_act activation_function attn_config clip_qkv qk_ln expansion_ratio no_bias rotary_dim
layer_norm_epsilon architectures model_type vocab_size use_cache auto_map""".split()


@functools.cache
def shards() -> dict[str, bytes]:
    """The tiny Llama in two shards with an index."""
    files = dict(weights())
    tensors = load(files.pop("model.safetensors"))
    names, weight_map = sorted(tensors), {}
    for part in (0, 1):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        files[file] = save({name: tensors[name] for name in names[part::2]})
        weight_map |= dict.fromkeys(names[part::2], file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    return files | {"model.safetensors.index.json": json.dumps(index).encode()}


TEMPLATES = sorted((Path(__file__).parent / "fixtures" / "templates").glob("*.jinja"))
SCRAPS = (
    "{{", "}}", "{%", "%}", "{#", "{% if x %}", "{% endif %}", "\r\n", "' + ", "\\", "'", "|",
    "{{ '<|im_start|>' }}", "[INST]", "\ud800", "{{ raise_exception('x') }}", "\\u12",
    "{{ x.__init__.__globals__ }}", "messages[0]['role']", "{%- set x = 1 -%}",
)  # fmt: skip


def damaged(rng: random.Random, name: str, raw: bytes) -> bytes:
    """A file of a checkpoint that is no more what it was."""
    if name.endswith(".jinja"):
        text, scrap = raw.decode(), rng.choice(SCRAPS) * rng.choice((1, 1, 1, 3, 5000))
        at = rng.randrange(len(text) + 1)
        text = text[:at] + scrap + text[at + rng.choice((0, 1, 5, 60)) :]
        return text.encode("utf-8", "surrogatepass")
    if name.endswith(".json") and rng.random() < 0.85:
        tree = json.loads(raw)
        if name == "config.json" and rng.random() < 0.3:
            tree[rng.choice([*KEYS, LONG, ""])] = rng.choice(VALUES)
        return as_json(rng, spoiled(rng, tree))
    if name.endswith(".safetensors") and rng.random() < 0.6:
        end = 8 + struct.unpack("<Q", raw[:8])[0]
        header = as_json(rng, spoiled(rng, json.loads(raw[8:end])))
        return struct.pack("<Q", len(header)) + header + raw[end:]
    return spoiled_bytes(rng, raw)


def read_somehow(rng: random.Random, folder: str) -> tuple[str, object]:
    """One of the ways to read a checkpoint: (what it is, a call)."""
    text = some_text(rng).encode("utf-8", "replace").decode()
    how = rng.choice(("load", "tokenize", "inspect", "-q", "--plan", "--chat"))

    def call():
        if how == "load":
            load_folder(folder)
        elif how == "inspect":
            program("inspect", folder)
        elif how == "tokenize":
            found = load_tokenizer(folder)
            stream, ids = found.stream(), found.encode(text)
            return found.decode(ids), [stream.push(id) for id in ids]
        else:
            program("generate", "-m", folder, "-n", "2", "-p", "Hi you", how)

    return how, call


def files(rng):
    """One file of a whole folder, of any family and tokenizer, is spoiled or missing."""
    family = rng.choice(("llama", "mpt", "gptj", "shards"))
    made = shards() if family == "shards" else weights(family)
    made = made | tokenizer(rng.choice(TOKENIZERS))
    made["generation_config.json"] = b'{"eos_token_id": [2, 3], "temperature": 0.7}'
    made["chat_template.jinja"] = rng.choice(TEMPLATES).read_bytes()
    name = rng.choice(list(made))
    how = "missing" if rng.random() < 0.05 else "spoiled"
    made[name] = damaged(rng, name, made[name])
    shown = made[name][:1500]
    if how == "missing":
        del made[name]
    way, call = read_somehow(rng, write(made))
    return f"{family}, {name} {how}, {way}: {shown!r}", call


FILES = {"files": files}

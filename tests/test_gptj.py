"""models/gptj.py: what GPT-J computes, held to its formula, and what config.json it takes."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import (
    READINGS,
    SETTINGS,
    layer_norm,
    seen_by,
    some_tokens,
    stored,
    tiny_model,
)
from safetensors.torch import load_file, save_file

from minilm_inf.checkpoint import load_model, save
from minilm_inf.models.gptj import GptjConfig, config_from_hf, config_to_hf

LM_INFINITE = SETTINGS["LM-Infinite"]
DIFFERENT = 1e-3


# What it computes


def specification(raw: dict, tensors: dict, tokens: torch.Tensor, lm) -> torch.Tensor:
    """GPT-J's logits (T, V) for tokens (T,), from a config.json and the tensors by its names.

    Each pair of neighbouring coordinates is a complex number, and a distance turns it.
    """
    n_head, width, rotary_dim = raw["n_head"], raw["n_embd"], raw["rotary_dim"]
    head_dim, eps = width // n_head, raw["layer_norm_epsilon"]
    angles = 10000.0 ** (-torch.arange(0, rotary_dim, 2).double() / rotary_dim)

    def norm(x, name):
        return layer_norm(x, tensors[name + ".weight"], tensors[name + ".bias"], eps)

    def pairs(x):
        return torch.complex(x[..., 0:rotary_dim:2], x[..., 1:rotary_dim:2])

    x = tensors["transformer.wte.weight"][tokens]
    for layer in range(raw["n_layer"]):
        block = f"transformer.h.{layer}."
        normed = norm(x, block + "ln_1")
        q, k, v = (normed @ tensors[f"{block}attn.{c}_proj.weight"].T for c in "qkv")
        gathered = torch.zeros_like(x)
        for head in range(n_head):
            part = slice(head * head_dim, (head + 1) * head_dim)
            for i in range(len(x)):
                felt = seen_by(i, lm)
                keys, query = k[list(felt), part], q[i, part]
                turns = torch.tensor([*felt.values()])[:, None] * angles
                turned = pairs(query) * pairs(keys).conj() * torch.exp(1j * turns)
                passing = keys[:, rotary_dim:] @ query[rotary_dim:]
                logits = (turned.real.sum(-1) + passing) / math.sqrt(head_dim)
                gathered[i, part] = logits.softmax(0) @ v[list(felt), part]
        attended = gathered @ tensors[block + "attn.out_proj.weight"].T
        up = normed @ tensors[block + "mlp.fc_in.weight"].T + tensors[block + "mlp.fc_in.bias"]
        inner = math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)
        gelu = up * (1 + torch.tanh(inner)) / 2
        down = gelu @ tensors[block + "mlp.fc_out.weight"].T
        x = x + attended + down + tensors[block + "mlp.fc_out.bias"]
    head = tensors.get("lm_head.weight", tensors["transformer.wte.weight"])
    return norm(x, "transformer.ln_f") @ head.T + tensors["lm_head.bias"]


VARIANTS = {  # name -> facts of a tiny model
    "part of a head turns": {},
    "a pair of a head turns": dict(rotary_dim=2),
    "a whole head turns": dict(rotary_dim=8),
    "n_inner": dict(n_inner=61),
    "four times as wide": dict(n_inner=128),
    "tied": dict(tied=True),
    "norm_eps": dict(norm_eps=0.1),
}


@pytest.mark.parametrize("lm", [SETTINGS["full attention"], LM_INFINITE], ids=["full", "lm"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_formula(variant, lm, tmp_path):
    """Catches wrong pairs, a wrong gelu, an MLP behind attention, a bias that is lost."""
    model, tokens = tiny_model("gptj", **VARIANTS[variant]), some_tokens(20)
    right = specification(*stored(model, tmp_path), tokens[0], lm)
    assert 0.5 < right.std() < 2
    for name, read in READINGS.items():
        assert (read(model, tokens, lm)[0] - right).abs().max() <= 1e-10, name


@pytest.mark.parametrize(
    "variant, key, value",
    [
        ("part of a head turns", "rotary_dim", 8),
        ("part of a head turns", "rotary_dim", 4),
        ("a whole head turns", "rotary_dim", 6),
        ("norm_eps", "layer_norm_epsilon", 1e-5),
    ],
)
def test_the_formula_feels_each_fact(variant, key, value, tmp_path):
    """Negative control: catches a variant that computes what it would without its fact."""
    model, tokens = tiny_model("gptj", **VARIANTS[variant]), some_tokens(20)
    raw, tensors = stored(model, tmp_path)
    assert raw[key] != value
    wrong = specification(raw | {key: value}, tensors, tokens[0], SETTINGS["full attention"])
    assert (model(tokens)[0] - wrong).abs().max() > DIFFERENT


# What is stored


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_saved_is_what_is_loaded(variant, tmp_path):
    """Catches a fact of the config, or a parameter, that save drops or load misplaces."""
    model = tiny_model("gptj", **VARIANTS[variant])
    save(model, tmp_path)
    loaded = load_model(tmp_path, dtype=torch.float64)
    assert loaded.config == model.config
    ours, theirs = dict(model.named_parameters()), dict(loaded.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (loaded.head.weight is loaded.embed.weight) == model.config.tied
    tokens = some_tokens(20)
    assert torch.equal(loaded(tokens), model(tokens))


def test_the_names_of_the_tensors(tmp_path):
    """Catches a name that only our own load would know."""
    _, tensors = stored(tiny_model("gptj", n_layer=1), tmp_path)
    weights = [f"attn.{part}_proj" for part in ("q", "k", "v", "out")]
    both = ["ln_1", "mlp.fc_in", "mlp.fc_out"]
    names = {f"transformer.h.0.{part}.weight" for part in weights + both}
    names |= {f"transformer.h.0.{part}.bias" for part in both}
    names |= {f"{part}.weight" for part in ("transformer.wte", "transformer.ln_f", "lm_head")}
    assert tensors.keys() == names | {"transformer.ln_f.bias", "lm_head.bias"}


def add_tensor(folder, name, tensor):
    path = folder / "model.safetensors"
    save_file(load_file(path) | {name: tensor}, path)


@pytest.mark.parametrize(
    "name, buffer",
    [
        ("attn.bias", torch.ones(1, 1, 16, 16).tril().bool()),
        ("attn.bias", torch.ones(1, 1, 16, 16).tril().byte()),
        ("attn.masked_bias", torch.tensor(-1e9)),
    ],
)
def test_buffers_are_ignored_by_name(name, buffer, tmp_path):
    """Catches the published GPT-J-6B refused because it stores its mask beside its weights."""
    model = tiny_model("gptj", dtype=torch.float32)
    save(model, tmp_path)
    for layer in range(2):
        add_tensor(tmp_path, f"transformer.h.{layer}.{name}", buffer.clone())
    loaded = load_model(tmp_path)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))


@pytest.mark.parametrize(
    "name",
    [
        "transformer.h.0.attn.q_proj.bias",
        "transformer.h.0.attn.out_proj.bias",
        "transformer.h.0.bias",
        "transformer.h.0.ln_2.weight",
    ],
)
def test_any_other_surplus_tensor_is_refused(name, tmp_path):
    """Catches a part of the model that is left out."""
    save(tiny_model("gptj", dtype=torch.float32), tmp_path)
    add_tensor(tmp_path, name, torch.zeros(32))
    with pytest.raises(ValueError, match=f"^the tensor {name} in .* has no place"):
        load_model(tmp_path)


# Which config.json it accepts

SIX_B = {  # EleutherAI's config.json of gpt-j-6b
    "activation_function": "gelu_new",
    "architectures": ["GPTJForCausalLM"],
    "attn_pdrop": 0.0,
    "bos_token_id": 50256,
    "embd_pdrop": 0.0,
    "eos_token_id": 50256,
    "gradient_checkpointing": False,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gptj",
    "n_embd": 4096,
    "n_head": 16,
    "n_inner": None,
    "n_layer": 28,
    "n_positions": 2048,
    "resid_pdrop": 0.0,
    "rotary": True,
    "rotary_dim": 64,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {
        "text-generation": {"do_sample": True, "max_length": 50, "temperature": 1.0}
    },
    "tie_word_embeddings": False,
    "tokenizer_class": "GPT2Tokenizer",
    "transformers_version": "4.18.0.dev0",
    "use_cache": True,
    "vocab_size": 50400,
}
NATIVE_5 = {  # GPTJConfig().to_dict() of transformers 5.23.0, whole
    "transformers_version": "5.23.0",
    "architectures": None,
    "output_hidden_states": False,
    "return_dict": True,
    "dtype": None,
    "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "problem_type": None,
    "vocab_size": 50400,
    "n_positions": 2048,
    "n_embd": 4096,
    "n_layer": 28,
    "n_head": 16,
    "rotary_dim": 64,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "layer_norm_epsilon": 1e-05,
    "initializer_range": 0.02,
    "use_cache": True,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "_name_or_path": "",
    "model_type": "gptj",
    "output_attentions": False,
}
PUBLISHED = GptjConfig(
    family="gptj", vocab_size=50400, n_layer=28, n_head=16, n_kv_head=16, n_embd=4096,
    head_dim=256, n_inner=16384, context_length=2048, norm_eps=1e-5, tied=False, bos_id=50256,
    eos_ids=(50256,), rotary_dim=64,
)  # fmt: skip
FILES = {"gpt-j-6b": SIX_B, "transformers 5": NATIVE_5}


@pytest.mark.parametrize("name", FILES)
def test_real_files(name):
    """Catches a real config.json refused for a remark, or a fact of it that is lost."""
    before = json.dumps(FILES[name])
    assert config_from_hf(FILES[name]) == PUBLISHED
    assert json.dumps(FILES[name]) == before, "the caller's dictionary is read, not eaten"


FACTS = [
    ("n_inner", 11000, dict(n_inner=11000)),
    ("rotary_dim", 256, dict(rotary_dim=256)),
    ("rotary_dim", 2, dict(rotary_dim=2)),
    ("n_positions", 4096, dict(context_length=4096)),
    ("layer_norm_epsilon", 1e-6, dict(norm_eps=1e-6)),
    ("tie_word_embeddings", True, dict(tied=True)),
    ("bos_token_id", None, dict(bos_id=None)),
    ("bos_token_id", 0, dict(bos_id=0)),
    ("eos_token_id", None, dict(eos_ids=())),
    ("eos_token_id", [50256, 50257], dict(eos_ids=(50256, 50257))),
]


@pytest.mark.parametrize("key, value, fact", FACTS)
def test_each_fact(key, value, fact):
    """Catches a key that is accepted and then not used, in what is read or what is written."""
    config = config_from_hf(SIX_B | {key: value})
    assert config == replace(PUBLISHED, **fact)
    assert config_from_hf(json.loads(json.dumps(config_to_hf(config)))) == config


def test_absent_keys_take_the_documented_defaults():
    """Catches a default that is invented here: these stand in transformers' GPTJConfig."""
    sizes = ("n_embd", "n_head", "n_layer", "rotary_dim", "vocab_size")
    raw = {"model_type": "gptj", **{key: SIX_B[key] for key in sizes}}
    assert config_from_hf(raw) == PUBLISHED
    for key in sizes:
        with pytest.raises(ValueError, match=f"^the key {key} is missing"):
            config_from_hf({name: value for name, value in raw.items() if name != key})


@pytest.mark.parametrize(
    "key, value",
    [
        ("rotary", False),
        ("rotary_dim", 63),
        ("rotary_dim", 258),
        ("rotary_dim", None),
        ("rotary_dim", 0),
        ("activation_function", "gelu"),
        ("activation_function", "relu"),
        ("scale_attn_weights", False),
        ("is_encoder_decoder", True),
        ("add_cross_attention", True),
        ("quantization_config", {"bits": 4}),
        ("n_head", 15),
        ("n_embd", 4096.0),
        ("n_embd", None),
        ("n_layer", True),
        ("n_inner", 0),
        ("n_inner", "16384"),
        ("n_positions", 0),
        ("layer_norm_epsilon", -1e-5),
        ("tie_word_embeddings", "no"),
        ("bos_token_id", [1, 2]),
        ("eos_token_id", "50256"),
        ("vocab_size", -1),
        ("model_type", "gpt_neox"),
        ("parallel_residual", False),
        ("colour", "red"),
    ],
)
def test_a_key_that_is_not_implemented_is_named(key, value):
    """Catches a setting that changes the computation, or makes no sense, and is passed over."""
    with pytest.raises(ValueError) as caught:
        config_from_hf(SIX_B | {key: value})
    assert key in str(caught.value) and "\n" not in str(caught.value)


def test_a_config_that_is_written_is_the_one_that_was_read():
    """Catches a fact that config_to_hf forgets, and a key that the published file has not."""
    raw = config_to_hf(PUBLISHED)
    assert config_from_hf(json.loads(json.dumps(raw))) == PUBLISHED
    assert raw == {key: SIX_B[key] for key in raw} | {"n_inner": 16384}

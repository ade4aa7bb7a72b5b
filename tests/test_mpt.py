"""models/mpt.py: what MPT computes, held to its formula, and what config.json it takes.

transformers leaves out three facts of MosaicML's own code, an alibi_bias_max other than 8,
biases and qk_ln, so that no fixture of its making can tell them: here stands the formula.
"""

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

from minilm_inf.checkpoint import load_model, save
from minilm_inf.inspect.folder_facts import look
from minilm_inf.models.mpt import MptConfig, config_from_hf, config_to_hf

LM_INFINITE = SETTINGS["LM-Infinite"]
DIFFERENT = 1e-3


# What it computes


def slopes_of(n_head: int, bias_max: float) -> list[float]:
    """ALiBi's slopes (Press et al., section 3), as MosaicML takes them for any head count."""
    power = 1
    while power < n_head:
        power *= 2
    slopes = [2.0 ** (-bias_max * t / power) for t in range(1, power + 1)]
    if power == n_head:
        return slopes
    return [*slopes[1::2], *slopes[0::2]][:n_head]


def specification(raw: dict, tensors: dict, tokens: torch.Tensor, lm) -> torch.Tensor:
    """MPT's logits (T, V) for tokens (T,), from a config.json and the tensors by its names."""
    n_head, width = raw["n_heads"], raw["d_model"]
    facts, head_dim = raw["attn_config"], width // n_head
    scale = facts["softmax_scale"] or head_dim**-0.5

    def linear(x, name):
        return x @ tensors[name + ".weight"].T + tensors.get(name + ".bias", 0.0)

    def norm(x, name):
        bias = tensors.get(name + ".bias", 0.0)
        return layer_norm(x, tensors[name + ".weight"], bias, raw["layer_norm_epsilon"])

    x = tensors["transformer.wte.weight"][tokens]
    for layer in range(raw["n_layers"]):
        block = f"transformer.blocks.{layer}."
        qkv = linear(norm(x, block + "norm_1"), block + "attn.Wqkv")
        if facts["clip_qkv"]:  # before the norms, and of the values too
            qkv = qkv.clip(-facts["clip_qkv"], facts["clip_qkv"])
        q, k, v = qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :]
        if facts["qk_ln"]:  # over all heads together
            q, k = norm(q, block + "attn.q_ln"), norm(k, block + "attn.k_ln")
        gathered = torch.zeros_like(x)
        for head, slope in enumerate(slopes_of(n_head, facts["alibi_bias_max"])):
            part = slice(head * head_dim, (head + 1) * head_dim)
            for i in range(len(x)):
                felt = seen_by(i, lm)
                keys, distances = list(felt), torch.tensor([*felt.values()]).double()
                logits = k[keys, part] @ q[i, part] * scale - slope * distances
                gathered[i, part] = logits.softmax(0) @ v[keys, part]
        x = x + linear(gathered, block + "attn.out_proj")
        up = linear(norm(x, block + "norm_2"), block + "ffn.up_proj")
        gelu = up * (1 + torch.erf(up / math.sqrt(2))) / 2
        x = x + linear(gelu, block + "ffn.down_proj")
    head = tensors.get("lm_head.weight", tensors["transformer.wte.weight"])
    return norm(x, "transformer.norm_f") @ head.T


def test_the_slopes_of_the_specification():
    """Catches a specification that is wrong in the very way of the code: slopes by hand."""
    assert slopes_of(4, 8) == [1 / 4, 1 / 16, 1 / 64, 1 / 256]
    assert slopes_of(4, 16) == [1 / 16, 1 / 256, 1 / 4096, 1 / 65536]
    assert slopes_of(6, 8) == [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]
    assert slopes_of(6, 16) == [1 / 16, 1 / 256, 1 / 4096, 1 / 65536, 1 / 4, 1 / 64]


FOUR_HEADS = dict(n_head=4, n_kv_head=4, n_embd=32)
PLAIN = dict(clip_qkv=None, qk_ln=False, bias=False)
VARIANTS = {  # name -> facts of a tiny model
    "plain": PLAIN,
    "four heads": PLAIN | FOUR_HEADS,
    "alibi_bias_max, four heads": PLAIN | FOUR_HEADS | dict(alibi_bias_max=16.0),
    "alibi_bias_max": PLAIN | dict(alibi_bias_max=16.0),
    "biases": PLAIN | dict(bias=True),
    "qk_ln": PLAIN | dict(qk_ln=True),
    "clip_qkv": PLAIN | dict(clip_qkv=1.0),
    "clip_qkv and qk_ln": PLAIN | dict(clip_qkv=1.0, qk_ln=True),
    "softmax_scale": PLAIN | dict(softmax_scale=0.9),
    "norm_eps": PLAIN | dict(norm_eps=0.1),
    "a head of its own": PLAIN | dict(tied=False),
    "all at once": dict(
        tied=False, clip_qkv=1.0, qk_ln=True, bias=True, softmax_scale=0.9, n_inner=61,
        alibi_bias_max=12.5, norm_eps=0.1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("lm", [SETTINGS["full attention"], LM_INFINITE], ids=["full", "lm"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_formula(variant, lm, tmp_path):
    """Catches a fact that is dropped, misplaced or misnamed, where transformers cannot tell."""
    model, tokens = tiny_model("mpt", **VARIANTS[variant]), some_tokens(20)
    right = specification(*stored(model, tmp_path), tokens[0], lm)
    assert 0.5 < right.std() < 2
    for name, read in READINGS.items():
        assert (read(model, tokens, lm)[0] - right).abs().max() <= 1e-10, name


@pytest.mark.parametrize(
    "variant, key, value",
    [
        ("alibi_bias_max", "alibi_bias_max", 8),
        ("qk_ln", "qk_ln", False),
        ("clip_qkv", "clip_qkv", None),
        ("clip_qkv and qk_ln", "clip_qkv", None),
        ("softmax_scale", "softmax_scale", None),
        ("norm_eps", "layer_norm_epsilon", 1e-5),
    ],
)
def test_the_formula_feels_each_fact(variant, key, value, tmp_path):
    """Negative control: catches a variant that computes what it would without its fact."""
    model, tokens = tiny_model("mpt", **VARIANTS[variant]), some_tokens(20)
    raw, tensors = stored(model, tmp_path)
    part = raw if key in raw else raw["attn_config"]
    assert part[key] != value
    part[key] = value
    wrong = specification(raw, tensors, tokens[0], SETTINGS["full attention"])
    assert (model(tokens)[0] - wrong).abs().max() > DIFFERENT


# What is stored


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_saved_is_what_is_loaded(variant, tmp_path):
    """Catches a fact of the config, or a parameter, that save drops or load misplaces."""
    model = tiny_model("mpt", **VARIANTS[variant])
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
    _, tensors = stored(tiny_model("mpt", n_layer=1, tied=False), tmp_path)
    parts = ["norm_1", "attn.Wqkv", "attn.q_ln", "attn.k_ln", "attn.out_proj", "norm_2"]
    parts += ["ffn.up_proj", "ffn.down_proj"]
    names = [f"transformer.blocks.0.{part}" for part in parts] + ["transformer.norm_f"]
    both = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    assert tensors.keys() == both | {"transformer.wte.weight", "lm_head.weight"}


# Which config.json it accepts

ATTENTION = {
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_impl": "torch",
    "attn_pdrop": 0,
    "attn_type": "multihead_attention",
    "attn_uses_sequence_id": False,
    "clip_qkv": None,
    "prefix_lm": False,
    "qk_ln": False,
    "softmax_scale": None,
}
SEVEN_B = {  # MosaicML's config.json of mpt-7b
    "architectures": ["MPTForCausalLM"],
    "attn_config": ATTENTION,
    "auto_map": {
        "AutoConfig": "configuration_mpt.MPTConfig",
        "AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM",
    },
    "d_model": 4096,
    "emb_pdrop": 0,
    "embedding_fraction": 1.0,
    "expansion_ratio": 4,
    "init_config": {
        "emb_init_std": None,
        "emb_init_uniform_lim": None,
        "fan_mode": "fan_in",
        "init_div_is_residual": True,
        "init_gain": 0,
        "init_nonlinearity": "relu",
        "init_std": 0.02,
        "name": "kaiming_normal_",
        "verbose": 0,
    },
    "init_device": "cpu",
    "learned_pos_emb": True,
    "logit_scale": None,
    "max_seq_len": 2048,
    "model_type": "mpt",
    "n_heads": 32,
    "n_layers": 32,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "resid_pdrop": 0,
    "tokenizer_name": "EleutherAI/gpt-neox-20b",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.28.1",
    "use_cache": False,
    "verbose": 0,
    "vocab_size": 50432,
}
INSTRUCT = SEVEN_B | {"_name_or_path": "mosaicml/mpt-7b-instruct"}
STORYWRITER = SEVEN_B | {
    "attn_config": ATTENTION | {"alibi_bias_max": 16, "clip_qkv": 6},
    "max_seq_len": 65536,
}
THIRTY_B = SEVEN_B | {
    "d_model": 7168,
    "init_config": SEVEN_B["init_config"] | {"init_std": None},
    "max_seq_len": 8192,
    "n_heads": 64,
    "n_layers": 48,
}
NEWER = SEVEN_B | {  # as llm-foundry writes it since 2024
    "attn_config": {
        "alibi": True,
        "alibi_bias_max": 8,
        "attn_impl": "flash",
        "attn_logit_softcapping": None,
        "attn_pdrop": 0.0,
        "attn_type": "multihead_attention",
        "attn_uses_sequence_id": False,
        "clip_qkv": None,
        "fused_qkv": True,
        "kv_dim": None,
        "kv_n_heads": 32,
        "qk_gn": False,
        "qk_ln": False,
        "rope": False,
        "rope_dail_config": {
            "pos_idx_in_fp32": True,
            "type": "original",
            "xpos_scale_base": 512,
        },
        "rope_hf_config": {"factor": 1.0, "type": "no_scaling"},
        "rope_impl": "dail",
        "rope_theta": 10000,
        "sliding_window_size": -1,
        "softmax_scale": None,
    },
    "block_overrides": None,
    "fc_type": {"name": "torch"},
    "ffn_config": {"fc_type": {"name": "torch"}, "ffn_type": "mptmlp"},
    "final_logit_softcapping": None,
    "learned_pos_emb": False,
    "norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "use_pad_tok_in_ffn": True,
}
IN_BETWEEN = SEVEN_B | {  # and in 2023
    "fc_type": "torch",
    "ffn_config": {"fc_type": "torch", "ffn_type": "mptmlp"},
    "residual_coeff": None,
    "residual_modification": None,
}
PUBLISHED = MptConfig(
    family="mpt", vocab_size=50432, n_layer=32, n_head=32, n_kv_head=32, n_embd=4096,
    head_dim=128, n_inner=16384, context_length=2048, norm_eps=1e-5, tied=True,
)  # fmt: skip

NATIVE_5 = {  # MptConfig().to_dict() of transformers 5.23.0, whole
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
    "d_model": 2048,
    "n_heads": 16,
    "n_layers": 24,
    "expansion_ratio": 4,
    "max_seq_len": 2048,
    "vocab_size": 50368,
    "resid_pdrop": 0.0,
    "layer_norm_epsilon": 1e-05,
    "emb_pdrop": 0.0,
    "learned_pos_emb": True,
    "attn_config": {
        "architectures": None,
        "output_hidden_states": False,
        "return_dict": True,
        "dtype": None,
        "chunk_size_feed_forward": 0,
        "is_encoder_decoder": False,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "label2id": {"LABEL_0": 0, "LABEL_1": 1},
        "problem_type": None,
        "attn_type": "multihead_attention",
        "attn_pdrop": 0,
        "attn_impl": "torch",
        "clip_qkv": None,
        "softmax_scale": None,
        "prefix_lm": False,
        "qk_ln": False,
        "attn_uses_sequence_id": False,
        "alibi": True,
        "alibi_bias_max": 8,
        "_name_or_path": "",
        "model_type": "",
        "output_attentions": False,
    },
    "init_device": "cpu",
    "logit_scale": None,
    "no_bias": True,
    "embedding_fraction": 1.0,
    "norm_type": "low_precision_layernorm",
    "use_cache": False,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "_name_or_path": "",
    "model_type": "mpt",
    "output_attentions": False,
}
NATIVE_4 = {  # what transformers 4.40.2 saves: of attn_config, what differs from its defaults
    "attn_config": {"clip_qkv": 6.0, "alibi_bias_max": 16, "model_type": ""},
    "d_model": 2048,
    "emb_pdrop": 0.0,
    "embedding_fraction": 1.0,
    "expansion_ratio": 4,
    "init_device": "cpu",
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "learned_pos_emb": True,
    "logit_scale": None,
    "max_seq_len": 2048,
    "model_type": "mpt",
    "n_heads": 16,
    "n_layers": 24,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "resid_pdrop": 0.0,
    "transformers_version": "4.40.2",
    "use_cache": False,
    "verbose": 0,
    "vocab_size": 50368,
}
NATIVE = replace(
    PUBLISHED, vocab_size=50368, n_layer=24, n_head=16, n_kv_head=16, n_embd=2048, n_inner=8192
)
FILES = {  # name -> a config.json, and what it says
    "mpt-7b": (SEVEN_B, PUBLISHED),
    "mpt-7b-instruct": (INSTRUCT, PUBLISHED),
    "mpt-7b-storywriter": (
        STORYWRITER,
        replace(PUBLISHED, context_length=65536, alibi_bias_max=16, clip_qkv=6),
    ),
    "mpt-30b": (
        THIRTY_B,
        replace(
            PUBLISHED, n_layer=48, n_head=64, n_kv_head=64, n_embd=7168, head_dim=112,
            n_inner=28672, context_length=8192,
        ),
    ),
    "llm-foundry, 2023": (IN_BETWEEN, PUBLISHED),
    "llm-foundry, 2024": (NEWER, PUBLISHED),
    "transformers 5": (NATIVE_5, NATIVE),
    "transformers 4": (NATIVE_4, replace(NATIVE, alibi_bias_max=16, clip_qkv=6)),
    "transformers 4, defaults": (NATIVE_4 | {"attn_config": {"model_type": ""}}, NATIVE),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_real_files(name):
    """Catches a real config.json refused for a remark, or a fact of it that is lost."""
    raw, expected = FILES[name]
    before = json.dumps(raw)
    assert config_from_hf(raw) == expected
    assert json.dumps(raw) == before, "the caller's dictionary is read, not eaten"


def with_key(key: str, value) -> dict:
    """The config.json of mpt-7b with one key set; "attn_config.x" is x of that part."""
    part, _, name = key.rpartition(".")
    if part:
        return SEVEN_B | {part: SEVEN_B.get(part, {}) | {name: value}}
    return SEVEN_B | {name: value}


@pytest.mark.parametrize(
    "key, value, fact",
    [
        ("expansion_ratio", 2, dict(n_inner=8192)),
        ("expansion_ratio", 2.671875, dict(n_inner=10944)),
        ("layer_norm_epsilon", 1e-6, dict(norm_eps=1e-6)),
        ("norm_eps", 1e-6, dict(norm_eps=1e-6)),
        ("norm_type", "layernorm", {}),
        ("no_bias", False, dict(bias=True)),
        ("tie_word_embeddings", False, dict(tied=False)),
        ("bos_token_id", 0, dict(bos_id=0)),
        ("eos_token_id", 0, dict(eos_ids=(0,))),
        ("eos_token_id", [0, 50278], dict(eos_ids=(0, 50278))),
        ("attn_config.alibi_bias_max", 12.5, dict(alibi_bias_max=12.5)),
        ("attn_config.clip_qkv", 0.5, dict(clip_qkv=0.5)),
        ("attn_config.qk_ln", True, dict(qk_ln=True)),
        ("attn_config.softmax_scale", 0.125, dict(softmax_scale=0.125)),
        ("attn_config.attn_impl", "triton", {}),
    ],
)
def test_each_fact(key, value, fact):
    """Catches a key that is accepted and then not used."""
    assert config_from_hf(with_key(key, value)) == replace(PUBLISHED, **fact)


def test_absent_keys_take_the_documented_defaults():
    """Catches a default that is invented here: these stand in transformers' MptConfig."""
    sizes = {key: SEVEN_B[key] for key in ("d_model", "n_heads", "n_layers", "vocab_size")}
    raw = {"model_type": "mpt", "attn_config": {"alibi": True}, **sizes}
    assert config_from_hf(raw) == PUBLISHED
    for key in sizes:
        with pytest.raises(ValueError, match=f"^the key {key} is missing"):
            config_from_hf({name: value for name, value in raw.items() if name != key})


@pytest.mark.parametrize(
    "key, value",
    [
        ("attn_config.alibi", False),
        ("attn_config.alibi", None),
        ("attn_config.alibi", "yes"),
        ("attn_config.rope", True),
        ("attn_config.qk_gn", True),
        ("attn_config.prefix_lm", True),
        ("attn_config.attn_type", "multiquery_attention"),
        ("attn_config.attn_type", "grouped_query_attention"),
        ("attn_config.kv_n_heads", 8),
        ("attn_config.kv_dim", 64),
        ("attn_config.sliding_window_size", 1024),
        ("attn_config.attn_logit_softcapping", 30.0),
        ("attn_config.reuse_kv_layer_idx", -1),
        ("attn_config.clip_qkv", -6),
        ("attn_config.clip_qkv", "6"),
        ("attn_config.softmax_scale", 0),
        ("attn_config.alibi_bias_max", 0),
        ("attn_config.qk_ln", 1),
        ("attn_config.colour", "red"),
        ("attn_config", None),
        ("attn_config", []),
        ("attn_config", "torch"),
        ("norm_type", "rmsnorm"),
        ("norm_type", "low_precision_rmsnorm"),
        ("logit_scale", 0.5),
        ("logit_scale", "inv_sqrt_d_model"),
        ("final_logit_softcapping", 30.0),
        ("residual_modification", "layer"),
        ("block_overrides", {"overrides": {}}),
        ("fc_type", "te"),
        ("fc_type", {"name": "te"}),
        ("ffn_config.ffn_type", "mptglu"),
        ("ffn_config.fc_type", {"name": "te"}),
        ("ffn_config.ffn_hidden_size", 64),
        ("ffn_config.ffn_act_fn", {"name": "relu"}),
        ("ffn_config", "mptmlp"),
        ("quantization_config", {"bits": 4}),
        ("is_encoder_decoder", True),
        ("n_heads", 31),
        ("n_heads", 0),
        ("d_model", 4096.0),
        ("d_model", None),
        ("expansion_ratio", 0),
        ("no_bias", "yes"),
        ("tie_word_embeddings", 1),
        ("layer_norm_epsilon", 0),
        ("bos_token_id", [0, 1]),
        ("eos_token_id", "0"),
        ("max_seq_len", 0),
        ("model_type", "gptj"),
        ("colour", "red"),
    ],
)
def test_a_key_that_is_not_implemented_is_named(key, value):
    """Catches a setting that changes the computation, or makes no sense, and is passed over."""
    with pytest.raises(ValueError) as caught:
        config_from_hf(with_key(key, value))
    assert key in str(caught.value) and "\n" not in str(caught.value)


def test_alibi_must_be_stated():
    """Catches ALiBi in a file of MosaicML's that leaves it out, and so learned positions."""
    without = {key: value for key, value in ATTENTION.items() if key != "alibi"}
    with pytest.raises(ValueError, match=r"^attn_config\.alibi must be true"):
        config_from_hf(SEVEN_B | {"attn_config": without})


# Which config.json it writes


@pytest.mark.parametrize("name", FILES)
def test_a_config_that_is_written_is_the_one_that_was_read(name):
    """Catches a fact that config_to_hf forgets."""
    config = config_from_hf(FILES[name][0])
    assert config_from_hf(json.loads(json.dumps(config_to_hf(config)))) == config


@pytest.mark.parametrize(
    "n_embd, n_inner", [(48, 192), (48, 61), (7, 5), (49, 5), (7168, 1018)]
)
def test_any_width_of_the_mlp_is_written(n_embd, n_inner):
    """Catches a ratio that is rounded down to one unit fewer when it is read."""
    config = replace(
        PUBLISHED, n_embd=n_embd, n_head=1, n_kv_head=1, head_dim=n_embd, n_inner=n_inner
    )
    assert config_from_hf(config_to_hf(config)) == config


def test_the_kinds_of_the_numbers_that_are_written():
    """Catches an 8.0 where transformers 5 insists on 8, or a 6 where it insists on 6.0."""
    config = replace(PUBLISHED, alibi_bias_max=8.0, clip_qkv=6, softmax_scale=1, eos_ids=(0,))
    raw = config_to_hf(config)
    attention = raw["attn_config"]
    for value in (attention["alibi_bias_max"], raw["expansion_ratio"], raw["eos_token_id"]):
        assert type(value) is int
    for value in (attention["clip_qkv"], attention["softmax_scale"], raw["layer_norm_epsilon"]):
        assert type(value) is float


@pytest.mark.parametrize("width, loads", [(96, True), (192, True), (128, False)])
def test_the_mlp_is_as_wide_as_it_is_stored(width, loads, tmp_path):
    """Catches an MPT of transformers, which ignores expansion_ratio and builds 4 x d_model; and
    weights that belong to neither reading of the key."""
    model = tiny_model("mpt", dtype=torch.float32, n_inner=width)
    raw, tensors = stored(model, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(raw | {"expansion_ratio": 2}))
    if loads:
        assert torch.equal(load_model(tmp_path)(some_tokens(9)), model(some_tokens(9)))
        assert look(tmp_path, torch.float32)["sizes"]["n_inner"] == width
    else:
        with pytest.raises(ValueError, match="ffn.up_proj.weight in .* has the shape"):
            load_model(tmp_path)

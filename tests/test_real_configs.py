"""config.json files as people have them, written down as differences from one of a family.

Each is read with the facts that its network has, or refused for what is truly not implemented,
by the name of the key that says so.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from minilm_inf.checkpoint.checkpoint import read_config
from minilm_inf.config import ModelConfig
from minilm_inf.models import gptj, llama, mpt

LLAMA_2 = {
    "_name_or_path": "meta-llama/Llama-2-7b-hf", "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
LLAMA_3 = LLAMA_2 | {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": 128001, "intermediate_size": 14336, "max_position_embeddings": 8192,
    "num_key_value_heads": 8, "rope_theta": 500000.0, "vocab_size": 128256,
}  # fmt: skip
LLAMA3_ROPE = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip
LLAMA_31 = LLAMA_3 | {
    "eos_token_id": [128001, 128008, 128009], "max_position_embeddings": 131072,
    "mlp_bias": False, "rope_scaling": LLAMA3_ROPE,
}  # fmt: skip
MISTRAL = LLAMA_2 | {
    "architectures": ["MistralForCausalLM"], "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mistral", "num_key_value_heads": 8,
    "rope_theta": 10000.0, "sliding_window": 4096,
}  # fmt: skip
EVERY_DEFAULT = {  # what to_dict() of transformers 4 adds to any config, but for what is null
    "return_dict": True, "output_hidden_states": False, "output_attentions": False,
    "torchscript": False, "use_bfloat16": False, "tf_legacy_loss": False, "pruned_heads": {},
    "chunk_size_feed_forward": 0, "is_encoder_decoder": False, "is_decoder": False,
    "cross_attention_hidden_size": None, "add_cross_attention": False, "max_length": 20,
    "tie_encoder_decoder": False, "min_length": 0, "do_sample": False, "num_beams": 1,
    "early_stopping": False, "num_beam_groups": 1, "diversity_penalty": 0.0, "top_k": 50,
    "temperature": 1.0, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0,
    "length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "num_return_sequences": 1, "output_scores": False, "return_dict_in_generate": False,
    "remove_invalid_values": False, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
}  # fmt: skip

ATTENTION = {
    "alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0,
    "attn_type": "multihead_attention", "attn_uses_sequence_id": False, "clip_qkv": None,
    "prefix_lm": False, "qk_ln": False, "softmax_scale": None,
}  # fmt: skip
SEVEN_B = {  # MosaicML's config.json of mpt-7b
    "architectures": ["MPTForCausalLM"], "attn_config": ATTENTION,
    "auto_map": {"AutoConfig": "configuration_mpt.MPTConfig",
                 "AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM"},
    "d_model": 4096, "emb_pdrop": 0, "embedding_fraction": 1.0, "expansion_ratio": 4,
    "init_config": {"emb_init_std": None, "fan_mode": "fan_in", "init_std": 0.02,
                    "name": "kaiming_normal_", "verbose": 0},
    "init_device": "cpu", "learned_pos_emb": True, "logit_scale": None, "max_seq_len": 2048,
    "model_type": "mpt", "n_heads": 32, "n_layers": 32, "no_bias": True,
    "norm_type": "low_precision_layernorm", "resid_pdrop": 0,
    "tokenizer_name": "EleutherAI/gpt-neox-20b", "torch_dtype": "bfloat16",
    "transformers_version": "4.28.1", "use_cache": False, "verbose": 0, "vocab_size": 50432,
}  # fmt: skip
NEWER = SEVEN_B | {  # as llm-foundry writes it since 2024
    "attn_config": ATTENTION | {
        "attn_impl": "flash", "attn_logit_softcapping": None, "fused_qkv": True,
        "kv_dim": None, "kv_n_heads": 32, "qk_gn": False, "rope": False,
        "rope_dail_config": {"pos_idx_in_fp32": True, "type": "original"},
        "rope_hf_config": {"factor": 1.0, "type": "no_scaling"}, "rope_impl": "dail",
        "rope_theta": 10000, "sliding_window_size": -1,
    },
    "block_overrides": None, "fc_type": {"name": "torch"},
    "ffn_config": {"fc_type": {"name": "torch"}, "ffn_type": "mptmlp"},
    "final_logit_softcapping": None, "learned_pos_emb": False, "norm_eps": 1e-5,
    "tie_word_embeddings": True, "use_pad_tok_in_ffn": True,
}  # fmt: skip
NATIVE = {  # what transformers 4.40.2 saves: of attn_config, what differs from its defaults
    "attn_config": {"clip_qkv": 6.0, "alibi_bias_max": 16, "model_type": ""}, "d_model": 2048,
    "emb_pdrop": 0.0, "embedding_fraction": 1.0, "expansion_ratio": 4, "init_device": "cpu",
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "learned_pos_emb": True,
    "logit_scale": None, "max_seq_len": 2048, "model_type": "mpt", "n_heads": 16,
    "n_layers": 24, "no_bias": True, "norm_type": "low_precision_layernorm",
    "resid_pdrop": 0.0, "transformers_version": "4.40.2", "use_cache": False, "verbose": 0,
    "vocab_size": 50368,
}  # fmt: skip
LLAMA = llama.LlamaConfig(
    family="llama", vocab_size=32000, n_layer=32, n_head=32, n_kv_head=32, n_embd=4096,
    head_dim=128, n_inner=11008, context_length=4096, norm_eps=1e-5, tied=False, bos_id=1,
    eos_ids=(2,),
)  # fmt: skip
MPT = mpt.MptConfig(
    family="mpt", vocab_size=50432, n_layer=32, n_head=32, n_kv_head=32, n_embd=4096,
    head_dim=128, n_inner=16384, context_length=2048, norm_eps=1e-5, tied=True,
)  # fmt: skip
SIX_B = {  # EleutherAI's config.json of gpt-j-6b
    "activation_function": "gelu_new", "architectures": ["GPTJForCausalLM"],
    "attn_pdrop": 0.0, "bos_token_id": 50256, "embd_pdrop": 0.0, "eos_token_id": 50256,
    "gradient_checkpointing": False, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_inner": None, "n_layer": 28,
    "n_positions": 2048, "resid_pdrop": 0.0, "rotary": True, "rotary_dim": 64,
    "scale_attn_weights": True, "summary_activation": None, "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "tie_word_embeddings": False, "tokenizer_class": "GPT2Tokenizer",
    "transformers_version": "4.18.0.dev0", "use_cache": True, "vocab_size": 50400,
}  # fmt: skip
GPTJ = gptj.GptjConfig(
    family="gptj", vocab_size=50400, n_layer=28, n_head=16, n_kv_head=16, n_embd=4096,
    head_dim=256, n_inner=16384, context_length=2048, norm_eps=1e-5, tied=False, bos_id=50256,
    eos_ids=(50256,), rotary_dim=64,
)  # fmt: skip
PUBLISHED = {
    "llama": (llama, LLAMA_2, LLAMA),
    "mpt": (mpt, SEVEN_B, MPT),
    "gptj": (gptj, SIX_B, GPTJ),
}

READ = {  # name -> the file, and all that it says, or some facts of the network
    "LLaMA": (LLAMA_2 | {"pad_token_id": -1, "max_sequence_length": 2048}, LLAMA),
    "Llama 3.2 1B": (LLAMA_31 | dict(head_dim=64, tie_word_embeddings=True),
                     dict(head_dim=64, tied=True, eos_ids=(128001, 128008, 128009))),
    "Vicuna 16k": (
        LLAMA_2
        | dict(rope_scaling={"factor": 4.0, "type": "linear"}, max_sequence_length=16384),
        dict(rope_scaling=(("rope_type", "linear"), ("factor", 4.0))),
    ),
    "SmolLM2": (
        LLAMA_2
        | {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {}},
        LLAMA,
    ),
    "Llama 2, every default": (LLAMA_2 | EVERY_DEFAULT, LLAMA),
    "Mistral 0.2": (
        MISTRAL | dict(sliding_window=None, rope_theta=1e6), dict(rope_theta=1e6),
    ),
    "Mistral, window off": (
        MISTRAL | dict(use_sliding_window=False, max_window_layers=28), dict(n_kv_head=8),
    ),
    "mpt-7b": (SEVEN_B, MPT),
    "mpt-7b-storywriter": (
        SEVEN_B | {
            "attn_config": ATTENTION | {"alibi_bias_max": 16, "clip_qkv": 6},
            "max_seq_len": 65536,
        },
        replace(MPT, context_length=65536, alibi_bias_max=16, clip_qkv=6),
    ),
    "llm-foundry, 2024": (NEWER, MPT),
    "transformers 4": (NATIVE, dict(n_head=16, head_dim=128, alibi_bias_max=16, clip_qkv=6)),
    "gpt-j-6b": (SIX_B, GPTJ),
    "Pygmalion": (SIX_B | EVERY_DEFAULT | dict(n_ctx=2048), GPTJ),
}  # fmt: skip

REFUSED = {  # name -> the file, and the key that says why
    "Mistral 0.1": (MISTRAL, "sliding_window"),
    "Mistral that is silent": (
        {key: value for key, value in MISTRAL.items() if key != "sliding_window"},
        "sliding_window",
    ),
    "Mixtral": (MISTRAL | dict(model_type="mixtral"), "model_type"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_real_config_is_read(name, tmp_path):
    """Catches a folder refused for a remark of its writer's, a fact that is lost, or one that
    config_to_hf forgets."""
    raw, expected = READ[name]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = read_config(tmp_path)
    if isinstance(expected, ModelConfig):
        assert config == expected
    else:
        assert {fact: getattr(config, fact) for fact in expected} == expected
    written = PUBLISHED[config.family][0].config_to_hf(config)
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize("name", REFUSED)
def test_a_real_config_is_refused_by_the_key_that_says_why(name, tmp_path):
    """Catches a model read as another, and a reason that is none."""
    raw, key = REFUSED[name]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=rf"config\.json: {key}\b"):
        read_config(tmp_path)


# Each key


def with_key(raw: dict, key: str, value) -> dict:
    """A config.json with one key set; "attn_config.x" is x of that part."""
    part, _, name = key.rpartition(".")
    return raw | ({part: raw.get(part, {}) | {name: value}} if part else {name: value})


LLAMA3 = ("rope_type", "llama3"), *((k, v) for k, v in LLAMA3_ROPE.items() if k != "rope_type")
FACTS = [  # family, key, its value, and what that says
    ("llama", "attention_bias", True, dict(attention_bias=True)),
    ("llama", "mlp_bias", True, dict(mlp_bias=True)),
    ("llama", "rope_scaling", LLAMA3_ROPE, dict(rope_scaling=LLAMA3)),
    ("llama", "layer_types", ["full_attention"] * 32, {}),
    ("llama", "bos_token_id", None, dict(bos_id=None)),
    ("mpt", "expansion_ratio", 2.671875, dict(n_inner=10944)),
    ("mpt", "layer_norm_epsilon", 1e-6, dict(norm_eps=1e-6)),
    ("mpt", "norm_type", "layernorm", {}),
    ("mpt", "no_bias", False, dict(bias=True)),
    ("mpt", "tie_word_embeddings", False, dict(tied=False)),
    ("mpt", "eos_token_id", [0, 50278], dict(eos_ids=(0, 50278))),
    ("mpt", "attn_config.alibi_bias_max", 12.5, dict(alibi_bias_max=12.5)),
    ("mpt", "attn_config.clip_qkv", 0.5, dict(clip_qkv=0.5)),
    ("mpt", "attn_config.qk_ln", True, dict(qk_ln=True)),
    ("mpt", "attn_config.softmax_scale", 0.125, dict(softmax_scale=0.125)),
    ("gptj", "n_inner", 11000, dict(n_inner=11000)),
    ("gptj", "rotary_dim", 256, dict(rotary_dim=256)),
    ("gptj", "n_positions", 4096, dict(context_length=4096)),
    ("gptj", "tie_word_embeddings", True, dict(tied=True)),
    ("gptj", "eos_token_id", None, dict(eos_ids=())),
]


@pytest.mark.parametrize("family, key, value, fact", FACTS)
def test_each_fact(family, key, value, fact):
    """Catches a key that is accepted and then not used, in what is read or what is written."""
    module, raw, published = PUBLISHED[family]
    raw = with_key(raw, key, value)
    before = json.dumps(raw)
    config = module.config_from_hf(raw)
    assert config == replace(published, **fact)
    assert json.dumps(raw) == before, "the caller's dictionary is read, not eaten"
    assert module.config_from_hf(json.loads(json.dumps(module.config_to_hf(config)))) == config


@pytest.mark.parametrize("family, sizes", [
    ("llama", "hidden_size intermediate_size num_hidden_layers num_attention_heads vocab_size"),
    ("mpt", "d_model n_heads n_layers vocab_size"),
    ("gptj", "n_embd n_head n_layer rotary_dim vocab_size"),
])  # fmt: skip
def test_absent_keys_take_the_documented_defaults(family, sizes):
    """Catches a default that is invented here: these stand in transformers' own configs."""
    module, published, expected = PUBLISHED[family]
    raw = {"model_type": family} | {key: published[key] for key in sizes.split()}
    raw |= {"attn_config": {"alibi": True}} if family == "mpt" else {}
    if family == "llama":
        expected = replace(expected, context_length=2048, norm_eps=1e-6)
        raw |= dict.fromkeys(["head_dim", "num_key_value_heads", "rope_scaling"])
    assert module.config_from_hf(raw) == expected
    for key in sizes.split():
        with pytest.raises(ValueError, match=f"^the key {key} is missing"):
            module.config_from_hf({name: value for name, value in raw.items() if name != key})


LINEAR = {"rope_type": "linear", "factor": 2.0}
UNKNOWN = {  # family -> key -> values that are not implemented, or make no sense
    "llama": {
        "hidden_act": ["gelu"], "sliding_window": [4096], "partial_rotary_factor": [0.5],
        "rope_interleaved": [True], "layer_types": [["full_attention"], ["x"] * 32],
        "rope_scaling": [
            {"type": "dynamic", "factor": 4.0}, {"type": "yarn", "factor": 32.0},
            {"rope_type": "linear"}, "linear",
            LINEAR | {"beta_fast": 32}, LINEAR | {"type": "llama3"},
            LLAMA3_ROPE | {"high_freq_factor": 1.0}, LLAMA3_ROPE | {"low_freq_factor": None},
        ],
        "rope_parameters": [
            {"rope_type": "default", "partial_rotary_factor": 0.5},
            {"rope_type": "default", "beta_fast": 32},
        ],
        "rope_theta": ["10000", 0, 10**400], "hidden_size": [16.0, None, 10**12],
        "num_hidden_layers": [True], "vocab_size": [-1], "head_dim": [5],
        "num_key_value_heads": [3], "rms_norm_eps": [0, float("nan")],
        "attention_bias": [1], "max_position_embeddings": [0],
    },
    "mpt": {
        "attn_config.alibi": [False, None, "yes"], "attn_config.rope": [True],
        "attn_config.attn_type": ["multiquery_attention", "grouped_query_attention"],
        "attn_config.kv_n_heads": [8], "attn_config.kv_dim": [64],
        "attn_config.sliding_window_size": [1024], "attn_config.colour": ["red"],
        "attn_config.clip_qkv": [-6, "6"], "attn_config.softmax_scale": [0],
        "attn_config.qk_ln": [1], "attn_config": [None, [], "torch"], "norm_type": ["rmsnorm"],
        "logit_scale": [0.5], "block_overrides": [{"overrides": {}}],
        "fc_type": ["te", {"name": "te"}], "ffn_config.ffn_type": ["mptglu"],
        "ffn_config.fc_type": [{"name": "te"}], "ffn_config.ffn_hidden_size": [64],
        "ffn_config": ["mptmlp"], "n_heads": [31, 0], "expansion_ratio": [0, 1e-9, 1e9],
        "no_bias": ["yes"], "max_seq_len": [0], "layer_norm_epsilon": [0, -1e-5],
    },
    "gptj": {
        "rotary": [False], "rotary_dim": [63, 258, None, 0],
        "activation_function": ["gelu", "relu"], "scale_attn_weights": [False],
        "add_cross_attention": [True], "n_head": [15], "n_embd": [4096.0, None],
        "n_layer": [True], "n_inner": [0, "16384"], "n_positions": [0],
        "parallel_residual": [False],
    },
}  # fmt: skip
FOR_ALL = {
    "quantization_config": [{"bits": 4}], "quantization": [{"bits": 4}],
    "is_encoder_decoder": [True], "colour": ["red"], "bos_token_id": [[0, 1]],
    "eos_token_id": ["0"], "tie_word_embeddings": ["no"],
}  # fmt: skip


@pytest.mark.parametrize("family", UNKNOWN)
def test_a_key_that_is_not_implemented_is_named(family):
    """Catches a setting that changes the computation, or makes no sense, and is passed over."""
    module, raw, _ = PUBLISHED[family]
    for key, values in (UNKNOWN[family] | FOR_ALL).items():
        for value in values:
            with pytest.raises(ValueError) as caught:
                module.config_from_hf(with_key(raw, key, value))
            said = str(caught.value).replace("n_kv_head", "num_key_value_heads")
            assert key in said and "\n" not in said, (key, value)
            assert "quantised" in said or "quantization" not in key


@pytest.mark.parametrize("n_embd, n_inner", [(48, 61), (7, 5), (7168, 1018)])
def test_any_width_of_an_mpts_mlp_is_written(n_embd, n_inner):
    """Catches a ratio that is rounded down to one unit fewer when it is read; an 8.0 where
    transformers 5 insists on 8, or a 6 where it insists on 6.0."""
    sizes = dict(n_embd=n_embd, n_head=1, n_kv_head=1, head_dim=n_embd, n_inner=n_inner)
    config = replace(MPT, **sizes, alibi_bias_max=8.0, clip_qkv=6, softmax_scale=1)
    raw = mpt.config_to_hf(config)
    assert mpt.config_from_hf(raw) == config
    written = json.dumps(raw["attn_config"])
    assert '"alibi_bias_max": 8,' in written and '"clip_qkv": 6.0' in written
    assert type(mpt.config_to_hf(MPT)["expansion_ratio"]) is int

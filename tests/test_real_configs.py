"""config.json files as people have them, written down as differences from one of a family.

Each is read with the facts that its network has, or refused for what is truly not implemented,
by the name of the key that says so.
"""

from __future__ import annotations

import json

import pytest
from test_gptj import SIX_B
from test_mpt import ATTENTION, SEVEN_B

from minilm_inf.checkpoint.checkpoint import read_config

LLAMA_2 = {
    "_name_or_path": "meta-llama/Llama-2-7b-hf", "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
LLAMA_1 = {  # without num_key_value_heads, and with the ids of its first conversion
    name: value for name, value in LLAMA_2.items() if name != "num_key_value_heads"
} | {"architectures": ["LLaMAForCausalLM"], "pad_token_id": -1, "max_sequence_length": 2048}
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
EVERY_DEFAULT = {  # what to_dict() of transformers 4 adds to any config
    "return_dict": True, "output_hidden_states": False, "output_attentions": False,
    "torchscript": False, "use_bfloat16": False, "tf_legacy_loss": False, "pruned_heads": {},
    "chunk_size_feed_forward": 0, "is_encoder_decoder": False, "is_decoder": False,
    "cross_attention_hidden_size": None, "add_cross_attention": False, "max_length": 20,
    "tie_encoder_decoder": False, "min_length": 0, "do_sample": False, "num_beams": 1,
    "early_stopping": False, "num_beam_groups": 1, "diversity_penalty": 0.0, "top_k": 50,
    "temperature": 1.0, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0,
    "length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None, "num_return_sequences": 1, "output_scores": False,
    "return_dict_in_generate": False, "forced_bos_token_id": None, "sep_token_id": None,
    "forced_eos_token_id": None, "remove_invalid_values": False, "suppress_tokens": None,
    "exponential_decay_length_penalty": None, "begin_suppress_tokens": None, "prefix": None,
    "finetuning_task": None, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
    "tokenizer_class": None, "decoder_start_token_id": None, "task_specific_params": None,
    "problem_type": None,
}  # fmt: skip
KOBOLD = {
    "welcome": "Hello", "antemplate": "[<|>]", "newlinemode": "n", "badwordsids": [[60]],
    "adventure": True, "formatoptns": {"frmttriminc": True}, "rep_pen": 1.1,
}  # fmt: skip

READ = {  # name -> the file, and facts of the network
    "LLaMA": (LLAMA_1, dict(n_kv_head=32, context_length=4096)),
    "Llama 2": (LLAMA_2, dict(eos_ids=(2,), rope_theta=10000.0)),
    "Llama 2 70B": (
        LLAMA_2 | dict(hidden_size=8192, num_attention_heads=64, num_key_value_heads=8),
        dict(n_kv_head=8, head_dim=128),
    ),
    "Llama 3": (LLAMA_3, dict(eos_ids=(128001,), rope_theta=500000.0)),
    "Llama 3.1 Instruct": (LLAMA_31, dict(eos_ids=(128001, 128008, 128009))),
    "Llama 3.2 1B": (
        LLAMA_31 | dict(head_dim=64, hidden_size=2048, tie_word_embeddings=True),
        dict(head_dim=64, tied=True),
    ),
    "Llama 3.2 of Unsloth": (
        LLAMA_31 | dict(unsloth_fixed=True, pad_token_id=128004, unsloth_version="2024.9"),
        dict(bos_id=128000),
    ),
    "1048k": (LLAMA_3 | dict(rope_theta=3580165449.0), dict(rope_theta=3580165449.0)),
    "TinyLlama": (LLAMA_2 | dict(num_key_value_heads=4, hidden_size=2048), dict(n_kv_head=4)),
    "CodeLlama": (LLAMA_2 | dict(rope_theta=1000000, vocab_size=32016), dict(rope_theta=1e6)),
    "Vicuna 16k": (
        LLAMA_2
        | dict(rope_scaling={"factor": 4.0, "type": "linear"}, max_sequence_length=16384),
        dict(rope_scaling=(("rope_type", "linear"), ("factor", 4.0))),
    ),
    "Llama 2 32K": (
        LLAMA_2 | dict(auto_map={"AutoModelForCausalLM": "modeling_flash_llama.Model"}),
        dict(context_length=4096),
    ),
    "WizardLM": (LLAMA_2 | dict(pad_token_id=0, vocab_size=32001), dict(vocab_size=32001)),
    "OpenLLaMA 3B": (
        LLAMA_1 | dict(hidden_size=3200, intermediate_size=8640), dict(head_dim=100),
    ),
    "Yi": (LLAMA_2 | dict(rope_theta=5e6, vocab_size=64000, pad_token_id=0), dict(tied=False)),
    "DeepSeek LLM": (
        LLAMA_2 | dict(bos_token_id=100000, eos_token_id=100001, attention_dropout=0.0),
        dict(bos_id=100000, eos_ids=(100001,)),
    ),
    "SmolLM2": (
        LLAMA_2
        | {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {}},
        dict(n_embd=4096),
    ),
    "every default": (LLAMA_2 | EVERY_DEFAULT, dict(n_layer=32)),
    "of KoboldAI": (LLAMA_2 | KOBOLD, dict(n_layer=32)),
    "Mistral 0.2": (
        MISTRAL | dict(sliding_window=None, rope_theta=1e6), dict(rope_theta=1e6),
    ),
    "Mistral 0.3": (MISTRAL | dict(sliding_window=None, vocab_size=32768), dict(n_kv_head=8)),
    "Mistral, window off": (
        MISTRAL | dict(use_sliding_window=False, max_window_layers=28), dict(n_kv_head=8),
    ),
    "MPT": (SEVEN_B | EVERY_DEFAULT | dict(gradient_checkpointing=False), dict(n_embd=4096)),
    "MPT of LLM Foundry": (
        SEVEN_B | dict(loss_fn="torch_crossentropy", tie_word_embeddings=True), dict(tied=True),
    ),
    "GPT-J of KoboldAI": (SIX_B | KOBOLD | dict(n_ctx=2048), dict(rotary_dim=64)),
    "Pygmalion": (SIX_B | EVERY_DEFAULT | dict(torch_dtype="float16"), dict(n_layer=28)),
    "Dolly 1": (SIX_B | dict(tokenizer_class="GPT2Tokenizer"), dict(eos_ids=(50256,))),
}  # fmt: skip

REFUSED = {  # name -> the file, and the key that says why
    "Mistral 0.1": (MISTRAL, "sliding_window"),
    "GPTQ": (LLAMA_2 | dict(quantization_config={"bits": 4}), "quantization_config"),
    "bitsandbytes": (
        LLAMA_2 | dict(quantization_config={"load_in_4bit": True}), "quantization_config",
    ),
    "MLX": (LLAMA_2 | dict(quantization={"bits": 4, "group_size": 64}), "quantization"),
    "AWQ of an MPT": (SEVEN_B | dict(quantization_config={"bits": 4}), "quantization_config"),
    "bitsandbytes of a GPT-J": (
        SIX_B | dict(quantization_config={"load_in_8bit": True}), "quantization_config",
    ),
    "YaRN": (
        LLAMA_2 | dict(rope_scaling={"factor": 32.0, "type": "yarn", "finetuned": True}),
        "rope_scaling.type",
    ),
    "dynamic NTK": (
        LLAMA_2 | dict(rope_scaling={"factor": 2.0, "type": "dynamic"}), "rope_scaling.type",
    ),
    "Mixtral": (MISTRAL | dict(model_type="mixtral"), "model_type"),
    "GPT-NeoX": (LLAMA_2 | dict(model_type="gpt_neox"), "model_type"),
    "MPT, grouped queries": (
        SEVEN_B | dict(attn_config=ATTENTION | dict(attn_type="grouped_query_attention")),
        "attn_config.attn_type",
    ),
    "MPT, fewer key heads": (
        SEVEN_B | dict(attn_config=ATTENTION | dict(kv_n_heads=8)), "attn_config.kv_n_heads",
    ),
    "MPT, learned positions": (
        SEVEN_B | dict(attn_config=ATTENTION | dict(alibi=False)), "attn_config.alibi",
    ),
    "MPT, rotary": (
        SEVEN_B | dict(attn_config=ATTENTION | dict(rope=True)), "attn_config.rope",
    ),
    "GPT-J, no positions": (SIX_B | dict(rotary=False), "rotary"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_real_config_is_read(name, tmp_path):
    """Catches a folder refused for a remark of its writer's, and a fact that is lost."""
    raw, facts = READ[name]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = read_config(tmp_path)
    assert {fact: getattr(config, fact) for fact in facts} == facts


@pytest.mark.parametrize("name", REFUSED)
def test_a_real_config_is_refused_by_the_key_that_says_why(name, tmp_path):
    """Catches a model read as another, and a reason that is none."""
    raw, key = REFUSED[name]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=rf"config\.json: {key}\b"):
        read_config(tmp_path)

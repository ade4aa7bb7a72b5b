"""Tiny random checkpoints and the logits that transformers computes for them.

    python tests/make_fixtures.py [FOLDER]

writes FOLDER/FAMILY/NAME/ (default tests/fixtures/FAMILY/NAME/) for every configuration below:
config.json and model.safetensors as transformers saves them, and expected.safetensors with
tokens (B, T) and the float32 logits (B, T, V) of its eager attention. test_parity.py compares
our own logits with them, without transformers; parity.py does so live, on new folders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
)

FIXTURES = Path(__file__).parent / "fixtures"
VOCABULARY = 64
LLAMA_SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
)
LLAMA3 = {  # with head_dim 16 and these 32 positions, the angles fall in all three of its bands
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMAS = {  # name -> what differs from LLAMA_SIZES
    "mha": {},
    "gqa": {"num_key_value_heads": 2},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "head_dim": {"head_dim": 12},
    "attention_bias": {"attention_bias": True, "num_key_value_heads": 2},
    "mlp_bias": {"mlp_bias": True},
    "llama3": {"head_dim": 16, "rope_parameters": {"rope_theta": 10000.0, **LLAMA3}},
    "linear": {
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    },
    "theta_500000": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
}
MISTRALS = {"mistral": {"sliding_window": None, "num_key_value_heads": 2, "head_dim": 8}}

MPT_SIZES = dict(vocab_size=VOCABULARY, d_model=24, n_layers=2, n_heads=4, max_seq_len=128)
MPTS = {  # name -> what differs from MPT_SIZES
    "heads_4": {},
    "heads_6": {"n_heads": 6},
    "heads_12": {"n_heads": 12},
    "clip_qkv": {"n_heads": 6, "attn_config": {"clip_qkv": 0.75}},  # three quarters of a std
    "softmax_scale": {"attn_config": {"softmax_scale": 0.8}},  # twice 1 / sqrt(head_dim)
    "untied": {"tie_word_embeddings": False},
}
GPTJ_SIZES = dict(
    vocab_size=VOCABULARY,
    n_embd=24,
    n_layer=2,
    n_head=3,
    rotary_dim=4,
    n_positions=128,
    bos_token_id=1,
    eos_token_id=2,
)
GPTJS = {  # name -> what differs from GPTJ_SIZES
    "partial": {},
    "whole": {"rotary_dim": 8},
    "n_inner": {"n_inner": 40},
    "tied": {"tie_word_embeddings": True},
}

CONFIGURATIONS = {  # (family, name) -> (config, model, facts)
    (family, name): (config, model, sizes | facts)
    for family, config, model, sizes, names in (
        ("llama", LlamaConfig, LlamaForCausalLM, LLAMA_SIZES, LLAMAS),
        ("llama", MistralConfig, MistralForCausalLM, LLAMA_SIZES, MISTRALS),
        ("mpt", MptConfig, MptForCausalLM, MPT_SIZES, MPTS),
        ("gptj", GPTJConfig, GPTJForCausalLM, GPTJ_SIZES, GPTJS),
    )
    for name, facts in names.items()
}


def make_model(family: str, name: str, seed: int):
    """The model of a configuration, every parameter random, the logits of deviation about 1."""
    config_class, model_class, facts = CONFIGURATIONS[family, name]
    config = config_class(**facts)
    config._attn_implementation = "eager"
    model = model_class(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            embeds = parameter_name.endswith(("embed_tokens.weight", "wte.weight"))
            if parameter_name.endswith("bias"):
                parameter.copy_(0.5 * noise)  # biases, which transformers would leave at zero
            elif parameter.dim() == 1:
                parameter.copy_(1 + 0.2 * noise)  # norms
            elif embeds and not config.tie_word_embeddings:
                parameter.copy_(noise)  # the size of what the blocks add: well conditioned
            else:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
    return model


def make_folder(family: str, name: str, folder: Path, seed: int = 1):
    """Write one configuration's checkpoint and its expected logits."""
    model = make_model(family, name, seed)
    generator = torch.Generator().manual_seed(seed + 1000)
    tokens = torch.randint(0, VOCABULARY, (1, 64), generator=generator)
    with torch.no_grad():
        logits = model(tokens).logits.float()
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_file(
        {"tokens": tokens, "logits": logits.contiguous()},
        folder / "expected.safetensors",
        metadata={"transformers": transformers.__version__},  # one key: two have no order
    )
    return logits


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FIXTURES)
    folder = parser.parse_args().folder
    transformers.utils.logging.disable_progress_bar()
    seeds = {}  # each family counts its own
    for family, name in CONFIGURATIONS:
        seed = seeds[family] = seeds.get(family, -1) + 1
        place = folder / family / name
        place.mkdir(parents=True, exist_ok=True)
        logits = make_folder(family, name, place, seed)
        size = (place / "model.safetensors").stat().st_size
        print(f"{family:6}{name:16}deviation {logits.std():.2f}  {size} bytes")


if __name__ == "__main__":
    main()

"""Tiny random checkpoints and the logits that transformers computes for them.

    python tests/make_fixtures.py [FOLDER]

writes FOLDER/NAME/ (default tests/fixtures/llama/NAME/) for every configuration below:
config.json and model.safetensors as transformers saves them, and expected.safetensors with
tokens (B, T) and the float32 logits (B, T, V) of its eager attention. test_parity.py compares
our own logits with them, without transformers; parity.py does so live, on new folders.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

FIXTURES = Path(__file__).parent / "fixtures" / "llama"
SIZES = dict(
    vocab_size=64,
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
LLAMAS = {  # name -> what differs from SIZES
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
NAMES = (*LLAMAS, *MISTRALS)


def make_model(name: str, seed: int):
    """The model of a configuration, every parameter random, the logits of deviation about 1."""
    if name in LLAMAS:
        config, kind = LlamaConfig(**SIZES | LLAMAS[name]), LlamaForCausalLM
    else:
        config, kind = MistralConfig(**SIZES | MISTRALS[name]), MistralForCausalLM
    config._attn_implementation = "eager"
    model = kind(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in parameter_name:
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.5 * noise)  # biases, which transformers would leave at zero
            elif "embed_tokens" in parameter_name and not config.tie_word_embeddings:
                parameter.copy_(noise)  # the size of what the blocks add: well conditioned
            else:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
    return model


def make_folder(name: str, folder: Path, seed: int = 1):
    """Write one configuration's checkpoint and its expected logits."""
    model = make_model(name, seed)
    generator = torch.Generator().manual_seed(seed + 1000)
    tokens = torch.randint(0, SIZES["vocab_size"], (1, 64), generator=generator)
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
    for seed, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        logits = make_folder(name, folder / name, seed)
        raw = json.loads((folder / name / "config.json").read_text())
        print(f"{name:15} deviation {logits.std():.2f}  {raw['rope_parameters']}")


if __name__ == "__main__":
    main()

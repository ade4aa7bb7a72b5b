"""What each family's tiny model starts from: its tokenizer, its shape, its first weights.

llama   a sentencepiece tokenizer.model, grouped heads
mpt     a byte-level tokenizer.json, a head count that is no power of two
gptj    a byte-level tokenizer.json, a rotary part smaller than a head
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import sentencepiece
import torch

from ..models import gptj, llama, mpt
from ..terminal.files import write_beside
from ..text import byte_pairs

CONTEXT_LENGTH = 256
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")
SHAPES = {
    "llama": dict(n_layer=4, n_head=6, n_kv_head=2, head_dim=32, n_embd=192, n_inner=384),
    "mpt": dict(n_layer=4, n_head=6, n_embd=144),
    "gptj": dict(n_layer=4, n_head=5, n_embd=160, n_inner=320, rotary_dim=24),
}
"""The sizes that can be chosen, with their defaults; what is not named follows from the others,
as the family has it."""


def network(family: str, sizes: dict[str, int], tokenizer):
    """The untrained model of a family, made for a tokenizer. Raises ValueError for sizes that
    make none, in the words of the family's own config."""
    raw = {"model_type": family, "vocab_size": tokenizer.vocab_size,
           "bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}  # fmt: skip
    names = {
        "llama": dict(n_layer="num_hidden_layers", n_head="num_attention_heads",
                      n_kv_head="num_key_value_heads", n_embd="hidden_size",
                      n_inner="intermediate_size"),
        "mpt": dict(n_layer="n_layers", n_head="n_heads", n_embd="d_model"),
    }.get(family, {})  # fmt: skip
    raw |= {names.get(name, name): size for name, size in sizes.items()}
    raw |= {
        "llama": {"max_position_embeddings": CONTEXT_LENGTH, "rms_norm_eps": 1e-5,
                  "tie_word_embeddings": True},
        "mpt": {"max_seq_len": CONTEXT_LENGTH, "attn_config": {"alibi": True}},
        "gptj": {"n_positions": CONTEXT_LENGTH},
    }[family]  # fmt: skip
    file = {"llama": llama, "mpt": mpt, "gptj": gptj}[family]
    return file.build(file.config_from_hf(raw))


def initialise(model, seed: int):
    """GPT-2's initialisation: normal of deviation 0.02, smaller where a block adds to x."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(weight)
        if weight.dim() == 2:
            adds = name.endswith(("o.weight", "down.weight"))
            deviation = 0.02 / math.sqrt(2 * model.config.n_layer) if adds else 0.02
            torch.nn.init.normal_(weight, std=deviation, generator=generator)


def train_tokenizer(family: str, texts: list[str], vocab_size: int, folder: Path):
    """Learn a family's tokenizer from texts, and write its files. Raises ValueError where the
    texts or the vocabulary are too small for one."""
    if family == "llama":
        write_beside(folder / "tokenizer.model", sentencepiece_model(texts, vocab_size))
        return
    if vocab_size < 257:
        raise ValueError(
            f"no tokenizer can be trained with {vocab_size} ids: it needs 256 for the bytes, "
            "and one for the end of a text"
        )
    merges = byte_pairs.learn_merges(texts, vocab_size - 257)
    end = byte_pairs.END_OF_TEXT
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end}
    write_beside(folder / "tokenizer.json", byte_pairs.tokenizer_json(merges).encode())
    write_beside(
        folder / "tokenizer_config.json", (json.dumps(about, indent=1) + "\n").encode()
    )


def sentencepiece_model(texts: list[str], vocab_size: int) -> bytes:
    """A sentencepiece BPE model of the texts: digits alone, bytes for unknown characters."""
    written = io.BytesIO()
    lines = (line for text in texts for line in text.split("\n") if len(line) < 4000)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=written, model_type="bpe",
            vocab_size=vocab_size, byte_fallback=True, split_digits=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False,
            character_coverage=0.9999, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:  # after the place in its source, its reason
        reason = str(error).rpartition("] ")[2]
        raise ValueError(f"no tokenizer can be trained on this text: {reason}") from error
    return written.getvalue()

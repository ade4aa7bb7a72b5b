"""The recipes of weights/: what each family's tiny model starts from, and what it reads when.

llama   a sentencepiece tokenizer.model, grouped heads
mpt     a byte-level tokenizer.json, a head count that is no power of two
gptj    a byte-level tokenizer.json, a rotary part smaller than a head

What a step reads follows from the settings and its number, so a run can stop and go on.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import sentencepiece
import torch

from ..checkpoint.checkpoint import FAMILIES
from ..models import gptj_config, llama_config, mpt_config
from ..terminal.files import write_beside
from ..text import byte_pairs
from .practice import Practice

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
    sizes = {**sizes, "vocab_size": tokenizer.vocab_size, "context_length": CONTEXT_LENGTH}
    known, own = {
        "llama": (llama_config, {"rms_norm_eps": 1e-5, "tie_word_embeddings": True}),
        "mpt": (mpt_config, {"attn_config": {"alibi": True}}),
        "gptj": (gptj_config, {}),
    }[family]
    raw = {known.FACTS[name][0]: size for name, size in sizes.items()} | own
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    config = known.config_from_hf({"model_type": family, **raw, **ids})
    return FAMILIES[family].build(config)


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


# ---- its tokenizer


def train_tokenizer(family: str, texts: list[str], vocab_size: int, folder: Path):
    """Learn a family's tokenizer from texts, and write its files. Raises ValueError where the
    texts or the vocabulary are too small for one."""
    if family == "llama":
        write_beside(folder / "tokenizer.model", sentencepiece_model(texts, vocab_size))
        return
    if vocab_size < 257:
        raise ValueError(f"--vocab-size {vocab_size} is too small: {family} needs 257 or more")
    merges, end = byte_pairs.learn_merges(texts, vocab_size - 257), byte_pairs.END_OF_TEXT
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end}
    about = json.dumps(about, indent=1) + "\n"
    write_beside(folder / "tokenizer.json", byte_pairs.tokenizer_json(merges).encode())
    write_beside(folder / "tokenizer_config.json", about.encode())


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


# ---- what it reads


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training: until which share of all tokens; the tokens of a window; which
    shares of the windows are repeats and retrieval (the others are ordinary text); and which
    share of the latter have answers that text follows."""

    until: float
    window: int
    repeats: float
    retrieval: float
    followed: float = 0.0


PHASES = (
    Phase(until=0.115, window=128, repeats=1.0, retrieval=0.0),
    Phase(until=0.35, window=256, repeats=0.15, retrieval=0.45),
    Phase(until=0.80, window=256, repeats=0.03, retrieval=0.22, followed=0.7),
    Phase(until=1.0, window=256, repeats=0.0, retrieval=0.15, followed=0.7),
)
"""What did not work at this size: pass keys in text from the start (no copying in 6 million
tokens); and, up to the end, answers that nothing follows, as in the second phase (a model that
writes on then asks again for ever)."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run depends on; a resumed run must have the same."""

    tokens: int
    seed: int
    tokens_per_step: int
    learning_rate: float
    vocab_size: int
    repeats: float = PHASES[0].until  # where the first phase, of repeats alone, ends

    @property
    def steps(self) -> int:
        return math.ceil(self.tokens / self.tokens_per_step)

    def phase(self, step: int) -> Phase:
        first = dataclasses.replace(PHASES[0], until=self.repeats)
        return next(p for p in (first, *PHASES[1:]) if step < p.until * self.steps)

    def rate(self, step: int) -> float:
        """Learning rate: a warm-up of 100 steps, then a cosine down to a tenth."""
        warm_up = min(1.0, (step + 1) / 100)
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * warm_up * (0.1 + 0.9 * cosine)


def windows(settings: Settings, practice: Practice, step: int) -> torch.Tensor:
    """The windows of a step, one id longer than the model reads: (B, window + 1)."""
    rng = np.random.default_rng([settings.seed, step])
    phase, rows = settings.phase(step), []
    for _ in range(settings.tokens_per_step // phase.window):
        draw, length = rng.random(), phase.window + 1
        if draw < phase.repeats:
            rows.append(practice.repeats(rng, length))
        elif draw < phase.repeats + phase.retrieval:
            rows.append(practice.retrieval(rng, length, phase.followed))
        else:
            rows.append(practice.ordinary(rng, length))
    return torch.tensor(rows)

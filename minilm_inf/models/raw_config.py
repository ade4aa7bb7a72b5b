"""The keys of a config.json, each taken once: used, known harmless, or refused by name.

A key that nobody reads may change what a network computes, so a family takes every key that it
knows and then closes the dictionary; whatever is left is an error.
"""

from __future__ import annotations

import re

from ..config import ModelConfig
from ..terminal.files import named, shown

REQUIRED = object()  # the default of a key that has none
LARGEST_SIZE = 2**20  # no width, count or vocabulary of a language model comes near it

HARMLESS = re.compile(
    # what the file says of itself, its tokens and the programs that wrote or read it
    r"_.*|architectures|auto_map|model_max_length|dtype|torch_dtype|transformers\.js_config|"
    r".*version|.*_token_ids?|(bos|eos|unk|pad|sep|cls|mask)_token|tokenizer_.*|unsloth_.*|"
    # how a model is trained, split among machines, or computed to the same numbers
    r".*drop.*|init.*|gradient_checkpointing.*|pretraining_tp|use_bfloat16|torchscript|"
    r"tf_legacy_loss|loss_fn|label_smoothing|is_decoder|chunk_size_feed_forward|"
    r"attn_impl.*|.*flash_att.*|use_cache|use_return_dict|return_.*|output_past|"
    r"output_(attentions|hidden_states|scores|logits|router_logits)|max_window_layers|"
    # of other tasks
    r"finetuning_task|id2label|label2id|num_labels|problem_type|task_specific_params|prefix|"
    r"summary_.*|tie_encoder_decoder|cross_attention_hidden_size|"
    # how tokens are drawn, where a caller does not say it
    r"(min|max)_(new_tokens|length)|(diversity|repetition|length)_penalty|do_sample|top_[kp]|"
    r"temperature|typical_p|early_stopping|num_(beams|beam_groups|return_sequences)|"
    r"(encoder_)?no_repeat_ngram_size|bad_words_ids|(begin_)?suppress_tokens|"
    r"remove_invalid_values|exponential_decay_length_penalty|"
    # what KoboldAI shows and how it draws
    r"welcome|antemplate|newlinemode|badwordsids|nobreakmodel|adventure|chatmode|dynamicscan|"
    r"formatoptns|sampler_order|temp|tfs|typical|top_a|rep_pen.*"
)
"""Keys that any family's config.json may hold, and that change no logit of a trained model."""


class RawConfig:
    """A dictionary from JSON whose values are checked as they are taken.

    where: what stands before a key's name in a message ("rope_scaling."). A key that has a
    default may be null, which counts as absent. Every method raises ValueError with the key's
    name for an absent required key and for a value of the wrong kind.

    >>> raw = RawConfig({"hidden_size": 64, "colour": "red"})
    >>> raw.integer("hidden_size")
    64
    >>> raw.close()
    Traceback (most recent call last):
    ValueError: the key colour is not known ...
    """

    def __init__(self, raw: dict, where: str = ""):
        self.left = dict(raw)
        self.where = where

    def take(self, name: str, default=REQUIRED):
        """The value as it stands, null included."""
        if name not in self.left and default is REQUIRED:
            raise ValueError(f"the key {self.where}{name} is missing, and has no default")
        return self.left.pop(name, default)

    def integer(self, name: str, default=REQUIRED, at_most: int = LARGEST_SIZE):
        """A whole number from 1 on."""
        value = self._value(name, default)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not default and not (whole and 1 <= value <= at_most):
            raise self.wrong(name, f"a whole number from 1 to {at_most}", value)
        return value

    def number(self, name: str, default=REQUIRED):
        """A number above 0 that is no infinity in disguise."""
        value = self._value(name, default)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not default and not (numeric and 0 < value < 1e30):
            raise self.wrong(name, "a number above 0 and below 1e30", value)
        return value

    def flag(self, name: str, default=REQUIRED) -> bool:
        """true or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false", value)
        return value

    def ids(self, name: str, default=REQUIRED) -> tuple[int, ...]:
        """Token ids: one, a list, or null for none; always as a tuple, each once."""
        value = self.take(name, default)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(id) is int and 0 <= id < 2**31 for id in ids):
            raise self.wrong(name, "a token id, a list of them or null", value)
        return tuple(dict.fromkeys(ids))

    def bos_id(self, default=REQUIRED) -> int | None:
        """The one id, if any, that a text begins with."""
        ids = self.ids("bos_token_id", default)
        if len(ids) > 1:
            raise self.wrong("bos_token_id", "one token id or null", list(ids))
        return ids[0] if ids else None

    def heads(self, width: str, count: str, own: str | None = None) -> tuple[int, int, int]:
        """n_embd, n_head, and head_dim: the width shared out, or what the key `own` says."""
        n_embd, n_head = self.integer(width), self.integer(count)
        head_dim = None if own is None else self.integer(own, None)
        if head_dim is None and n_embd % n_head:
            raise ValueError(f"{width} ({n_embd}) must be a multiple of {count} ({n_head})")
        return n_embd, n_head, head_dim or n_embd // n_head

    def inner(self, name: str, default=REQUIRED) -> RawConfig:
        """An object's own keys, to be taken and closed like these."""
        value = self._value(name, default)
        if not isinstance(value, dict):
            raise self.wrong(name, "an object", value)
        return RawConfig(value, f"{self.where}{name}.")

    def only(self, name: str, allowed: tuple, default=REQUIRED):
        """One of the values that this package implements."""
        value = self._value(name, default)
        if value is not default and value not in allowed:
            listed = " or ".join(shown(x) for x in allowed)
            raise self.wrong(name, f"{listed} (nothing else is implemented)", value)
        return value

    def plain_decoder(self):
        """A decoder alone, and no quantization_config, nor what MLX calls it."""
        for name in ("is_encoder_decoder", "add_cross_attention"):
            self.only(name, (False,), False)
        for name in ("quantization_config", "quantization"):
            if self._value(name, None) is not None:
                raise ValueError(
                    f"{self.where}{name} says that the weights are quantised, which is not "
                    "implemented: use the model's own, in float16, bfloat16 or float32"
                )

    def close(self, harmless=frozenset()):
        """Raises ValueError for the first key that was not taken, is not harmless and not null.

        Null, and what is empty, turns off whatever a key stands for. harmless: names beyond
        HARMLESS.
        """
        for name, value in self.left.items():
            is_off = value in (None, {}, [])
            if not (is_off or name in harmless or HARMLESS.fullmatch(name)):
                raise ValueError(
                    f"the key {self.where}{named(name)} is not known, and may change "
                    "what the model computes: remove it if it does not"
                )

    def wrong(self, name: str, wanted: str, value) -> ValueError:
        """The error for a value that is not what was wanted; a long value is cut."""
        return ValueError(f"{self.where}{name} must be {wanted}, not {shown(value)}")

    def _value(self, name: str, default):
        value = self.take(name, default)
        return default if value is None and default is not REQUIRED else value


def shared_keys(config: ModelConfig) -> dict:
    """The part of a config.json that every family spells alike."""
    eos = list(config.eos_ids)
    return {
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
    }

"""The keys of a config.json, each taken once: used, known harmless, or refused by name.

A key that nobody reads may change what a network computes, so a family takes every key that it
knows and then closes the dictionary; whatever is left is an error.
"""

from __future__ import annotations

REQUIRED = object()  # the default of a key that has none
LARGEST_SIZE = 2**24  # no width, count or vocabulary of a language model comes near it

HARMLESS = frozenset({
    # what the file says of itself
    "_name_or_path", "architectures", "transformers_version", "transformers.js_config",
    "torch_dtype", "dtype", "tokenizer_class", "unsloth_fixed", "unsloth_version",
    "attn_implementation", "_attn_implementation_autoset",
    # how a model is trained, or its results returned
    "initializer_range", "use_cache", "return_dict", "output_attentions",
    "output_hidden_states", "output_scores", "return_dict_in_generate", "torchscript",
    "use_bfloat16", "tf_legacy_loss", "chunk_size_feed_forward", "is_decoder",
    "finetuning_task", "id2label", "label2id", "num_labels", "problem_type",
    "task_specific_params", "prefix", "pad_token_id", "sep_token_id", "decoder_start_token_id",
    # how tokens are drawn, where a caller does not say it
    "max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams",
    "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "num_return_sequences",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
    "suppress_tokens", "begin_suppress_tokens",
})  # fmt: skip
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
        """Token ids: one, a list, or null for none; always as a tuple."""
        value = self.take(name, default)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(id, int) and not isinstance(id, bool) and id >= 0 for id in ids):
            raise self.wrong(name, "a token id, a list of them or null", value)
        return tuple(ids)

    def only(self, name: str, allowed: tuple, default=REQUIRED):
        """One of the values that this package implements."""
        value = self._value(name, default)
        if value is not default and value not in allowed:
            listed = " or ".join(repr(x) for x in allowed)
            raise self.wrong(name, f"{listed} (nothing else is implemented)", value)
        return value

    def close(self, harmless=frozenset()):
        """Raises ValueError for the first key that was neither taken nor is harmless."""
        for name in self.left:
            if name not in harmless:
                raise ValueError(
                    f"the key {self.where}{name} is not known, and may change what the model "
                    "computes: remove it if it does not"
                )

    def wrong(self, name: str, wanted: str, value) -> ValueError:
        """The error for a value that is not what was wanted; a long value is cut."""
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return ValueError(f"{self.where}{name} must be {wanted}, not {shown}")

    def _value(self, name: str, default):
        value = self.take(name, default)
        return default if value is None and default is not REQUIRED else value

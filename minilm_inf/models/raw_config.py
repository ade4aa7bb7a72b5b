"""The keys of a config.json, each taken once: used, known harmless, or refused by name.

A key that nobody reads may change what a network computes, so a family takes every key that it
knows and then closes the dictionary; whatever is left is an error. What a family's config says
in one key each stands in a table, by which it is read and written.
"""

from __future__ import annotations

import re

from ..config import ModelConfig
from ..terminal.files import named
from ..terminal.json_parts import Part

HARMLESS = re.compile(  # keys that change no logit of a trained model, in any family's file
    # what the file says of itself, its tokens and the programs that wrote or read it
    r"_.*|model_type|architectures|auto_map|model_max_length|(torch_)?dtype|unsloth_.*|"
    r"transformers\.js_config|.*version|"
    r".*_token_ids?|(bos|eos|unk|pad|sep|cls|mask)_token|tokenizer_.*|"
    # how a model is trained, split among machines, or computed to the same numbers
    r".*drop.*|init.*|gradient_checkpointing.*|pretraining_tp|use_bfloat16|torchscript|"
    r"tf_legacy_loss|loss_fn|label_smoothing|is_decoder|chunk_size_feed_forward|"
    r"attn_impl.*|.*flash_att.*|use_cache|use_return_dict|return_.*|output_past|"
    r"output_(attentions|hidden_states|scores|logits|router_logits)|max_window_layers|"
    # of other tasks, and how tokens are drawn where a caller does not say it
    r"finetuning_task|id2label|label2id|num_labels|problem_type|task_specific_params|prefix|"
    r"summary_.*|tie_encoder_decoder|cross_attention_hidden_size|"
    r"(min|max)_(new_tokens|length)|.*_penalty|do_sample|top_[kp]|temperature|typical_p|"
    r"early_stopping|num_(beams|beam_groups|return_sequences)|.*no_repeat_ngram_size|"
    r"bad_words_ids|.*suppress_tokens|remove_invalid_values|"
    # what KoboldAI shows and how it draws
    r"welcome|antemplate|newlinemode|badwordsids|nobreakmodel|adventure|chatmode|dynamicscan|"
    r"formatoptns|sampler_order|temp|tfs|typical|top_a|rep_pen.*"
)


def facts_of(keys: Part, table: dict[str, tuple], **defaults) -> dict:
    """The facts of a table: our name -> the key of config.json, the method of Part that takes
    it, and its default where it has one. defaults: those that depend on other keys."""
    return {
        name: take(keys[key], *([defaults[name]] if name in defaults else default))
        for name, (key, take, *default) in table.items()
    }


def keys_of(config: ModelConfig, table: dict[str, tuple]) -> dict:
    """A config.json: what every family spells alike, and the facts of its table."""
    eos = list(config.eos_ids)
    return {
        "model_type": config.family,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        **{key: getattr(config, name) for name, (key, *_) in table.items()},
    }


def close(keys: Part, harmless=frozenset()):
    """Raises ValueError for the first key that was not taken, is not harmless and not null.

    Null, and what is empty, turns off whatever a key stands for. harmless: names beyond
    HARMLESS.

    >>> keys = Part({"hidden_size": 64, "colour": "red"})
    >>> keys["hidden_size"].integer()
    64
    >>> close(keys)
    Traceback (most recent call last):
    ValueError: the key colour is not known ...
    """
    for name, value in (keys.value or {}).items():
        is_off = value in (None, {}, [])
        known = name in keys.taken or name in harmless or HARMLESS.fullmatch(name)
        if not (is_off or known):
            place = f"{keys.place}.{named(name)}".lstrip(".")
            raise keys.error(
                f"the key {place} is not known, and may change what the model computes: remove "
                "it if it does not"
            )


def decoder_facts(
    keys: Part, table: dict[str, tuple], bos: tuple[int, ...], eos: tuple[int, ...], **defaults
) -> dict:
    """The facts of a table, and what a ModelConfig has beside them: head_dim, as many key heads
    as heads, and special ids. Raises ValueError for what is no decoder of plain numbers.

    bos, eos: special_ids' own. defaults: facts_of's own.
    """
    for name in ("is_encoder_decoder", "add_cross_attention"):
        keys[name].only(None, False)
    for name in ("quantization_config", "quantization"):  # the second is MLX's
        if not keys[name].is_null:
            raise keys.error(
                f"{name} says that the weights are quantised, which is not implemented: use "
                "the model's own, in float16, bfloat16 or float32"
            )
    (width, _), (count, _) = table["n_embd"], table["n_head"]
    n_embd, n_head = keys[width].integer(), keys[count].integer()
    own = table.get("head_dim") and keys["head_dim"].value
    if own is None and n_embd % n_head:
        raise keys.error(f"{width} ({n_embd}) must be a multiple of {count} ({n_head})")
    shared = {"head_dim": n_embd // n_head, "n_kv_head": n_head}
    return shared | facts_of(keys, table, **shared | defaults) | special_ids(keys, bos, eos)


def special_ids(keys: Part, bos: tuple[int, ...] = (), eos: tuple[int, ...] = ()) -> dict:
    """bos_id, the one id, if any, that a text begins with, and eos_ids, which end one.
    bos, eos: what they are where the keys are absent."""
    bos = keys["bos_token_id"].id_list() if "bos_token_id" in keys else bos
    eos = keys["eos_token_id"].id_list() if "eos_token_id" in keys else eos
    if len(bos) > 1:
        raise keys["bos_token_id"].wrong("one token id or null")
    return {"bos_id": bos[0] if bos else None, "eos_ids": eos}

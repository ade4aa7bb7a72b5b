"""The tokenizer in a GGUF's metadata, as the files that stand beside a checkpoint.

    tokenizer.ggml.model "gpt2"    byte-level BPE: tokens and merges   -> tokenizer.json
    tokenizer.ggml.model "llama"   sentencepiece: pieces and scores    -> tokenizer.model

and in both cases a tokenizer_config.json with the special tokens and the chat template. How the
text is cut into words is not in a GGUF: tokenizer.ggml.pre only names it, and a name is known
here or refused.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..models.raw_config import close
from ..terminal.json_parts import Part
from ..text.byte_level import LLAMA3_PATTERN
from ..text.byte_pairs import DIGITS, LEVEL, byte_level_json
from ..text.merges import merges_of
from ..text.sentence_pieces import BYTE, CONTROL, UNKNOWN, USER_DEFINED, model_proto

PREFIX = "tokenizer.ggml."
SPECIALS = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
TYPES = range(1, BYTE + 1)  # of tokens, as sentencepiece numbers them
LLAMA3 = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated",
         "invert": False},
        LEVEL | {"use_regex": False},
    ],
}  # fmt: skip
WORDS = {  # tokenizer.ggml.pre -> pre_tokenizer
    "gpt-2": LEVEL, "smollm": DIGITS, "llama-bpe": LLAMA3, "llama3": LLAMA3, "llama-v3": LLAMA3,
}  # fmt: skip


def tokenizer_files(path: Path, fields: dict) -> dict[str, bytes]:
    """The files' names and contents, from the metadata of the GGUF at `path`.

    Raises ValueError, in one sentence, for a tokenizer that cannot be written exactly.
    """
    given = {n.removeprefix(PREFIX): v for n, v in fields.items() if n.startswith(PREFIX)}
    facts = Part(given, path, PREFIX[:-1])
    in_pieces = facts["model"].only("gpt2", "llama") == "llama"
    tokens = [token.text() for token in facts["tokens"].items()]
    types = [kind.only(*TYPES) for kind in facts["token_type"].items()]
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise facts.error(f"{len(tokens)} tokens and {len(types)} token types do not fit")
    specials = {}
    for key, name in SPECIALS.items():
        id = facts[f"{key}_token_id"]
        if not id.is_null and id.id() >= len(tokens):
            raise id.wrong("the id of a token")
        specials[name] = None if id.is_null else tokens[id.value]
    # Whether BOS stands before every text; where nothing is said, as llama.cpp has it.
    usual = in_pieces or WORDS.get(str(given.get("pre"))) is LLAMA3
    adds_bos = facts["add_bos_token"].flag(usual)
    for name in ("add_eos_token", "add_sep_token"):
        facts[name].only(None, False)
    if adds_bos and specials["bos"] is None:
        raise facts["bos_token_id"].wrong("given, since its text begins with a BOS")
    if in_pieces:
        files = {"tokenizer.model": _tokenizer_model(facts, tokens, types, specials, adds_bos)}
    else:
        bos = specials["bos"] if adds_bos else None
        files = {"tokenizer.json": _tokenizer_json(facts, tokens, types, bos)}
    close(facts, {"token_type_count", "pre", "merges"})  # which pieces do not need
    about = {
        "tokenizer_class": "LlamaTokenizer" if in_pieces else "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": adds_bos,
    }
    about |= {f"{name}_token": token for name, token in specials.items() if token is not None}
    template = fields.get("tokenizer.chat_template")
    if isinstance(template, str):
        about["chat_template"] = template
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    return files | {"tokenizer_config.json": text.encode()}


def _tokenizer_json(facts: Part, tokens: list, types: list, bos: str | None) -> bytes:
    """tokenizer.json in the tokenizers library's format.

    Every token is in the vocabulary, with its id; those that mark places are added tokens too,
    so that they are found whole before the text is cut.
    """
    facts["add_space_prefix"].only(None, False)
    vocab = {token: id for id, token in enumerate(tokens)}
    kinds = zip(tokens, types)
    marks = {t: kind == CONTROL for t, kind in kinds if kind in (CONTROL, USER_DEFINED)}
    # How words are cut is not in the file, but known by its name or not.
    cuts, merges = WORDS[facts["pre"].only(*WORDS)], merges_of(facts, vocab)
    return byte_level_json(vocab, merges, marks, cuts, bos, cuts is LLAMA3).encode()


def _tokenizer_model(facts: Part, tokens: list, types: list, specials: dict, adds_bos) -> bytes:
    """tokenizer.model: a sentencepiece model.

    The types of a GGUF are sentencepiece's own, and so are the scores. Llama's tokenizers do
    not normalise; whoever does says so by a field that is refused above.
    """
    scores = [score.value for score in facts["scores"].items()]
    floats = all(isinstance(score, float) for score in scores)
    if not floats or len(scores) != len(tokens) or types.count(UNKNOWN) != 1:
        raise facts["scores"].wrong("a number for each of the pieces, of which one is unknown")
    if not adds_bos:
        raise facts["add_bos_token"].wrong("true (nothing else is implemented)")
    prefix = facts["add_space_prefix"].flag(True)
    extra = facts["remove_extra_whitespaces"].flag()
    return model_proto(list(zip(tokens, scores, types)), specials, prefix=prefix, extra=extra)

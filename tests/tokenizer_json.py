"""The parts of a tokenizer.json as the tokenizers library writes it, to make small ones of."""

from __future__ import annotations

LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


def added(id: int, content: str, special: bool = True, normalized: bool = False) -> dict:
    """An entry of added_tokens."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return {"id": id, "content": content, "special": special, "normalized": normalized, **flags}


def split(pattern: str, kind: str = "Regex") -> dict:
    """A pre-tokenizer that cuts at both ends of every match."""
    return {
        "type": "Split",
        "pattern": {kind: pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def digits(individual: bool) -> dict:
    """A pre-tokenizer that cuts around digits, or around runs of them."""
    return {"type": "Digits", "individual_digits": individual}


def sequence(*steps: dict) -> dict:
    """Pre-tokenizers one after the other."""
    return {"type": "Sequence", "pretokenizers": list(steps)}


def template(token: str, id: int) -> dict:
    """A post-processor that puts one special token before a text."""
    first, second = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, first],
        "pair": [first, second],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    }


def whole(vocab, merges, pre_tokenizer, added_tokens, ignore_merges=False, **more) -> dict:
    """A tokenizer.json of a byte-level BPE; `more` replaces its other parts."""
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges,
    }  # fmt: skip
    raw = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens,
        "normalizer": None, "pre_tokenizer": pre_tokenizer, "post_processor": None,
        "decoder": LEVEL, "model": model,
    }  # fmt: skip
    return raw | more


CHINESE = "[一-龥ࠀ-一가-퟿]+"


def kinds(vocab: dict[str, int], merges: list[str]) -> dict[str, dict]:
    """A tokenizer.json of every structure that is implemented, all on the same merges.

    vocab: token in letters -> id, "<|endoftext|>" among them, the ids without gaps.
    """
    n = len(vocab)
    end = added(vocab["<|endoftext|>"], "<|endoftext|>")
    spaces = (added(n + 1 + at, " " * (24 - at), False, normalized=True) for at in range(23))
    neox = [end, added(n, "<|padding|>"), *spaces]
    bare = LEVEL | {"use_regex": False}
    steps = {
        "GPT-2, json": LEVEL,
        "prefix space": LEVEL | {"add_prefix_space": True},
        "SmolLM2": sequence(digits(True), LEVEL),
        "digit runs": sequence(digits(False), bare),
        "a text, then GPT-2": sequence(split("e", kind="String"), LEVEL),
        "five splits": sequence(
            split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(CHINESE),
            digits(True), bare,
        ),
    }  # fmt: skip
    made = {kind: whole(vocab, merges, step, [end]) for kind, step in steps.items()}
    made["NeoX, NFC"] = whole(vocab, merges, LEVEL, neox, normalizer={"type": "NFC"})
    return made


def llama3(spelled: list[str], pattern: str) -> dict:
    """The tokenizer.json of ranked tokens, as Llama 3 has it: every pair is a merge.

    spelled: the tokens in letters, by rank; the specials' ids follow.
    """
    known, start = set(spelled), len(spelled)
    merges = [
        [token[:at], token[at:]]
        for token in spelled
        for at in range(1, len(token))
        if token[:at] in known and token[at:] in known
    ]
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    return whole(
        {token: rank for rank, token in enumerate(spelled)},
        merges,
        sequence(split(pattern), LEVEL | {"use_regex": False}),
        [added(id, token) for id, token in enumerate(specials, start)],
        ignore_merges=True,
        post_processor={
            "type": "Sequence",
            "processors": [LEVEL, template(specials[0], start)],
        },
    )

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


def kinds(vocab: dict[str, int], merges: list[str]) -> dict[str, dict]:
    """A tokenizer.json of every structure that is implemented, all on the same merges.

    vocab: token in letters -> id, "<|endoftext|>" among them, the ids without gaps.
    """
    n = len(vocab)
    end = added(vocab["<|endoftext|>"], "<|endoftext|>")
    spaces = (added(n + 1 + at, " " * (24 - at), False, normalized=True) for at in range(23))
    neox = [end, added(n, "<|padding|>"), *spaces]
    steps = {
        "GPT-2, json": LEVEL,
        "SmolLM2": sequence(digits(True), LEVEL),
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


PREPEND = {"type": "Prepend", "prepend": "▁"}
UNDERLINE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
SPACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
BYTES, FUSE = {"type": "ByteFallback"}, {"type": "Fuse"}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def metaspace(scheme: str, split: bool) -> dict:
    """A pre-tokenizer, and the decoder of the same name."""
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def steps(name: str, *parts: dict) -> dict:
    """Normalizers or decoders one after the other."""
    return {"type": "Sequence", name: list(parts)}


def piece_merges(vocab: dict[str, int]) -> list[list[str]]:
    """The merges of a sentencepiece model: every two pieces that make a third, in its order."""
    pairs = []
    for token in vocab:
        halves = ((token[:at], token[at:]) for at in range(1, len(token)))
        known = [(a, b) for a, b in halves if a in vocab and b in vocab]
        pairs += sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return [list(pair) for pair in pairs]


def byte_fallback_kinds(vocab: dict[str, int]) -> dict[str, dict]:
    """A tokenizer.json of every structure of a Llama's that is implemented, all on the same
    pieces: <unk>, <s> and </s> are 0, 1 and 2, then 256 bytes, then pieces."""
    n, merges = len(vocab), piece_merges(vocab)
    own = [added(id, token) for token, id in vocab.items() if id < 3]
    llama = steps("decoders", SPACE, BYTES, FUSE, STRIP)

    def made(tokens=(), decoder=llama, pre=None, merges=merges, **more):
        raw = whole(vocab, merges, pre, [*own, *tokens], decoder=decoder, **more)
        raw["model"] |= {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
        return raw

    flagged = [
        added(n, "[INST]"),
        added(vocab["ab"], "ab", False, normalized=True),
        added(n + 1, "=>", False),
        added(n + 2, "it's", True, normalized=True),
    ]
    plain = [token | {"normalized": False} for token in flagged]
    blanks = [added(n, "\n\n", False), added(n + 1, "  ", False)]
    both = template("<s>", 1)
    both["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    both["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    legacy = steps("normalizers", PREPEND, UNDERLINE)
    return {
        "Llama 2": made(
            normalizer=legacy, post_processor=template("<s>", 1),
            merges=[" ".join(pair) for pair in merges],
        ),
        "Llama, first": made(flagged, pre=metaspace("first", False), post_processor=both),
        "Prepend, added": made(plain, normalizer=legacy),
        "Metaspace": made(flagged, pre=metaspace("always", False)),
        "Gemma's steps": made(
            blanks, steps("decoders", SPACE, BYTES, FUSE), normalizer=UNDERLINE
        ),
    }  # fmt: skip

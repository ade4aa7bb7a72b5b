"""What a folder holds of a byte-level tokenizer, as a Recipe.

    tokenizer.json             the tokenizers library's file, if its model is byte-level BPE
    vocab.json, merges.txt     GPT-2's two files
    tokenizer.model            tiktoken's own format, a token in base64 and its rank a line:
                               Llama 3

tiktoken joins any two neighbours that are a token together, in the order of rank, and takes a
word that is a token whole. A file of merges allows only the pairs that it lists. The two agree
exactly if, for every token, BPE on the token's own bytes arrives at a pair that is listed: for
whatever stands around these bytes, as long as no token reaches across their ends, the steps
within them are the same. Tokens that BPE can never reach are left out of the ranks. What still
differs is refused.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

from ..files import read_json, read_text
from .byte_level import Added, Recipe, byte_letters, joined
from .pre_tokenizers import GPT2, cut_by, words_from_json

BYTE_OF = {letter: byte for byte, letter in enumerate(byte_letters())}
LLAMA3_RANKS = 128_000
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPECIAL = (  # the 256 ids behind the ranks begin with these; the others are reserved
    "begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 "
    "finetune_right_pad_id step_id start_header_id end_header_id eom_id eot_id python_tag image"
).split()


def from_tokenizer_json(path: Path) -> Recipe:
    """The Recipe of a tokenizer.json. Raises ValueError for what cannot be done exactly."""
    raw = read_json(path)
    try:
        return _from_json(raw, path.parent)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a tokenizer.json as the tokenizers library writes it ({error!r}): "
            "fetch it again"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be used exactly: {error}") from error


def _from_json(raw: dict, folder: Path) -> Recipe:
    model = raw["model"]
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"its model is {model['type']!r}, and only BPE is implemented")
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(name):
            raise ValueError(f"its {name} is {model[name]!r}, and only null is implemented")
    if model.get("unk_token") is not None and not set(BYTE_OF) <= model["vocab"].keys():
        raise ValueError(
            f"it writes {model['unk_token']!r} for bytes that its vocabulary lacks"
        )
    words = words_from_json(raw.get("pre_tokenizer"))
    if (raw.get("decoder") or {}).get("type") not in (None, "ByteLevel"):
        raise ValueError(f"its decoder is {raw['decoder']['type']!r}, not ByteLevel")
    added = tuple(_added(entry) for entry in raw.get("added_tokens") or ())
    pairs = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    before, after = _around(raw.get("post_processor"))
    return make_recipe(
        model["vocab"], pairs, added, bool(model.get("ignore_merges")),
        pattern=words.pattern, cuts=words.cuts, prefix_space=words.prefix_space,
        nfc=_is_nfc(raw.get("normalizer")), before=before, after=after,
        eos_id=_eos_id(folder, {**model["vocab"], **{a.content: a.id for a in added}}),
    )  # fmt: skip


def _added(entry: dict) -> Added:
    for flag in ("single_word", "lstrip", "rstrip"):
        if entry.get(flag):
            raise ValueError(
                f"its added token {entry['content']!r} has {flag}, which is not implemented"
            )
    special, normalized = bool(entry.get("special")), bool(entry.get("normalized"))
    return Added(entry["content"], entry["id"], special, normalized)


def _is_nfc(raw) -> bool:
    """Whether a normalizer, which may be null, is NFC."""
    steps = [] if raw is None else raw["normalizers"] if raw["type"] == "Sequence" else [raw]
    kinds = {step["type"] for step in steps}
    if kinds - {"NFC"}:
        raise ValueError(f"its normalizer is {sorted(kinds)}, and only NFC is implemented")
    return bool(kinds)


def _around(raw) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a post_processor puts before and after a text."""
    kind = None if raw is None else raw["type"]
    if kind in (None, "ByteLevel"):
        return (), ()
    if kind == "Sequence":
        around = [_around(step) for step in raw["processors"]]
        return sum((a for a, _ in around), ()), sum((b for _, b in around), ())
    if kind != "TemplateProcessing":
        raise ValueError(f"its post_processor is {kind!r}, and only templates are implemented")
    sides: tuple[list[int], list[int]] = [], []
    side = 0
    for part in raw["single"]:
        if "Sequence" in part:
            side += 1
        else:
            sides[side].extend(raw["special_tokens"][part["SpecialToken"]["id"]]["ids"])
    if side != 1:
        raise ValueError("its post_processor does not put the text once into its template")
    return tuple(sides[0]), tuple(sides[1])


def _eos_id(folder: Path, vocab: dict[str, int]) -> int | None:
    """The id of the eos_token that the files beside the tokenizer name."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            token = read_json(folder / name).get("eos_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token is not None:
                return vocab.get(token)
    return None


def from_vocab_and_merges(folder: Path) -> Recipe:
    """The Recipe of GPT-2's files: vocab.json, merges.txt, perhaps added_tokens.json.

    "<|endoftext|>" is special where the vocabulary has it, and nothing stands around a text
    unless tokenizer_config.json says add_bos_token. Raises ValueError for damaged files.
    """
    vocab = read_json(folder / "vocab.json")
    lines = read_text(folder / "merges.txt").split("\n")
    lines = [line for line in lines if line and not line.startswith("#version")]
    pairs = [tuple(line.rstrip("\r").split(" ")) for line in lines]
    extra, about = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("added_tokens.json", "tokenizer_config.json")
    )
    end = "<|endoftext|>"
    added = tuple(Added(token, id, special=token == end, normalized=token != end)
                  for token, id in extra.items())  # fmt: skip
    if end in vocab:
        added += (Added(end, vocab[end], special=True),)
    eos_id = _eos_id(folder, vocab)
    try:
        return make_recipe(
            vocab, pairs, added, ignore_merges=False, pattern=GPT2,
            prefix_space=bool(about.get("add_prefix_space")),
            before=(vocab[end],) if about.get("add_bos_token") else (),
            eos_id=vocab.get(end) if eos_id is None else eos_id,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"vocab.json and merges.txt in {folder} do not fit: {error}"
        ) from error


def make_recipe(vocab: dict, pairs, added, ignore_merges: bool, **fields) -> Recipe:
    """A Recipe from a vocabulary (token in letters -> id) and its merges in order.

    Raises ValueError where tiktoken would not find the same ids.
    """
    contents = {a.content for a in added}
    spelled = {t: spelled_bytes(t) for t in vocab}
    ids = {spelled[t]: id for t, id in vocab.items() if t not in contents and spelled[t]}
    ranks = {bytes([byte]): byte for byte in range(256)}
    lacking = [byte for byte in ranks if byte not in ids]
    merges: dict[bytes, set] = {}
    newest = None
    for a, b in pairs:
        token = spelled[a] + spelled[b]
        if token not in merges:
            ranks.setdefault(token, len(ranks))
        elif token != newest:
            raise ValueError(f"the merges that make {a + b!r} do not stand together")
        merges.setdefault(token, set()).add((spelled[a], spelled[b]))
        newest = token
    absent = next((token for token in merges if token not in ids), None)
    if absent is not None:
        raise ValueError(f"a merge makes {absent!r}, which its vocabulary lacks")
    if ignore_merges:
        for token in ids:
            ranks.setdefault(token, len(ranks))
    ranks = _reachable(ranks, merges, ignore_merges)
    tokens = {id: spelled[t] if spelled[t] else t.encode() for t, id in vocab.items()}
    tokens |= {a.id: spelled_bytes(a.content) or a.content.encode() for a in added}
    order = sorted(ranks, key=ranks.get)
    return Recipe(
        ranks={token: rank for rank, token in enumerate(order)},
        ids=[ids.get(token) for token in order],
        tokens=tokens,
        added=added,
        words=cut_by(fields["pattern"]) if lacking else None,
        **fields,
    )


def spelled_bytes(token: str) -> bytes | None:
    """The bytes of a token in letters, None where a character is no byte's letter."""
    try:
        return bytes(BYTE_OF[letter] for letter in token)
    except KeyError:
        return None


def _reachable(ranks: dict[bytes, int], merges: dict, ignore_merges: bool) -> dict[bytes, int]:
    """The ranks without the tokens that no text is encoded to. See the module's docstring."""
    kept = dict(ranks)
    while True:
        dropped = []
        for token in kept:
            if len(token) == 1:
                continue
            parts = joined(token, kept)
            if len(parts) == 2 and tuple(parts) in merges.get(token, ()):
                continue
            if ignore_merges and len(parts) == 2:
                raise ValueError(f"{token!r} is a token, but not of the pair {parts}")
            if not ignore_merges:
                dropped.append(token)
        if not dropped:
            break
        for token in dropped:
            del kept[token]
    for token in ranks.keys() - kept.keys():
        if tuple(joined(token, kept)) in merges.get(token, ()):
            raise ValueError(f"whether {token!r} is reached depends on what stands around it")
    return kept


def is_rank_file(path: Path) -> bool:
    """Whether a tokenizer.model is lines of base64 and a number, not a sentencepiece model."""
    with open(path, "rb") as file:
        return re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", file.read(2000)) is not None


def from_rank_file(path: Path) -> Recipe:
    """The Recipe of Llama 3's tokenizer.model. Raises ValueError for another or damaged one."""
    ranks = {}
    try:
        for line in path.read_bytes().splitlines():
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as error:
        raise ValueError(
            f"{path} holds a line that is no token and rank: fetch it again"
        ) from error
    if len(ranks) != LLAMA3_RANKS or sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(
            f"{path} has {len(ranks):,} ranks, not the {LLAMA3_RANKS:,} of Llama 3: how "
            "another model cuts its words is not in such a file, so give its tokenizer.json"
        )
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise ValueError(f"{path} lacks a token of one byte: fetch it again")
    reserved = (f"reserved_special_token_{n}" for n in range(2, 246))
    names = [*LLAMA3_SPECIAL, *reserved]
    added = tuple(
        Added(f"<|{name}|>", id, special=True) for id, name in enumerate(names, len(ranks))
    )
    tokens = {rank: token for token, rank in ranks.items()}
    return Recipe(
        ranks=ranks,
        ids=list(range(len(ranks))),
        tokens=tokens | {a.id: a.content.encode() for a in added},
        pattern=LLAMA3_PATTERN,
        added=added,
        before=(len(ranks),),
        eos_id=len(ranks) + 1,
    )

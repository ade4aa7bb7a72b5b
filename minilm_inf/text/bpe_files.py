"""A byte-level tokenizer of what a folder holds.

    tokenizer.json             see tokenizer_json.py
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
import re
from pathlib import Path

from ..terminal.files import read_text, shown
from ..terminal.json_parts import part_of
from .around import Added, Around
from .byte_level import ByteLevelTokenizer, byte_letters, joined
from .named_tokens import ends, kept, listed_tokens
from .words import GPT2, LLAMA3_PATTERN

BYTE_OF = {letter: byte for byte, letter in enumerate(byte_letters())}
LONGEST_TOKEN = 256  # bytes; of those in use, 128
MOST_ROUNDS = 10  # of those in use, 2
LLAMA3_RANKS = 128_000
LLAMA3_SPECIAL = (  # the 256 ids after the ranks begin with these; the others are reserved
    "begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 "
    "finetune_right_pad_id step_id start_header_id end_header_id eom_id eot_id python_tag image"
).split()


def from_vocab_and_merges(folder: Path, limit: int | None = None) -> ByteLevelTokenizer:
    """GPT-2's files: vocab.json, merges.txt, perhaps added tokens beside them; limit: the
    model's ids, see tokenizer.load.

    "<|endoftext|>" is special where the vocabulary has it, and BOS and EOS unless a file names
    others. Raises ValueError for damaged files.
    """
    path, end = folder / "vocab.json", "<|endoftext|>"
    vocab = part_of(path).ids()
    added = listed_tokens(folder, unless_said=False)
    if end in vocab and all(token.content != end for token in added):
        added.append(Added(end, vocab[end], special=True))
    added, vocab = kept(added, vocab, limit, path)
    ids, own = vocab | {token.content: token.id for token in added}, vocab.get(end)
    around = Around(added=added, **ends(folder, ids, bos_token=own, eos_token=own))
    prefix_space = part_of(folder / "tokenizer_config.json")["add_prefix_space"].flag()
    merges = _merge_lines(folder / "merges.txt")
    try:
        return byte_level(around, vocab, merges, pattern=GPT2, prefix_space=prefix_space)
    except ValueError as error:
        raise ValueError(
            f"vocab.json and merges.txt in {folder} do not fit: {error}"
        ) from error


def _merge_lines(path: Path) -> list[tuple[str, str]]:
    """The merges of a merges.txt, two tokens a line."""
    pairs = []
    for line in read_text(path).split("\n"):
        line = line.rstrip("\r")
        if line and not line.startswith("#version"):
            pairs.append(tuple(line.split(" ")))
            if len(pairs[-1]) != 2:
                raise ValueError(f"{path} has the line {shown(line)}, which is not two tokens")
    return pairs


def byte_level(
    around: Around, vocab: dict, pairs: list, ignore_merges: bool = False, **more
) -> ByteLevelTokenizer:
    """A tokenizer from a vocabulary (token in letters -> id) and its merges in order.

    Raises ValueError where tiktoken would not find the same ids.
    """
    if not vocab:
        raise ValueError("it has no tokens")
    if max(map(len, vocab)) > LONGEST_TOKEN:
        raise ValueError(f"it has a token of more than {LONGEST_TOKEN} bytes")
    contents = {a.content for a in around.added}
    spelled = {t: spelled_bytes(t) for t in vocab}
    ids = {spelled[t]: id for t, id in vocab.items() if t not in contents and spelled[t]}
    merges = _merges(pairs, spelled, ids)
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token in merges:
        ranks.setdefault(token, len(ranks))
    if ignore_merges:
        for token in ids:
            ranks.setdefault(token, len(ranks))
    ranks = _reachable(ranks, merges, ignore_merges)
    order = sorted(ranks, key=ranks.get)
    ranks = {token: rank for rank, token in enumerate(order)}
    texts = {id: t for t, id in vocab.items()}
    texts |= {token.id: around.content(token) for token in around.added}
    tokens = {id: spelled_bytes(text) or text.encode() for id, text in texts.items()}
    return ByteLevelTokenizer(around, ranks, [ids.get(t) for t in order], tokens, **more)


def _merges(pairs: list, spelled: dict, ids: dict) -> dict[bytes, set[tuple[bytes, bytes]]]:
    """The tokens that merges make, in their order, each with the pairs that it is made of.
    Raises ValueError where a vocabulary lacks one, or a token comes twice."""
    merges: dict[bytes, set] = {}
    newest = None
    for a, b in pairs:
        if not (spelled.get(a) and spelled.get(b)):
            raise ValueError(f"a merge joins {shown([a, b])}, which its vocabulary lacks")
        token = spelled[a] + spelled[b]
        if token not in ids:
            raise ValueError(f"a merge makes {shown(a + b)}, which its vocabulary lacks")
        if token in merges and token != newest:
            raise ValueError(f"the merges that make {shown(a + b)} do not stand together")
        merges.setdefault(token, set()).add((spelled[a], spelled[b]))
        newest = token
    return merges


def spelled_bytes(token: str) -> bytes | None:
    """The bytes of a token in letters, None where a character is no byte's letter."""
    try:
        return bytes(BYTE_OF[letter] for letter in token)
    except KeyError:
        return None


def _reachable(ranks: dict[bytes, int], merges: dict, ignore_merges: bool) -> dict[bytes, int]:
    """The ranks without the tokens that no text is encoded to. See the module's docstring."""
    kept = dict(ranks)
    for _ in range(MOST_ROUNDS):
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
    else:
        raise ValueError("its merges depend on one another in more steps than any known file's")
    for token in ranks.keys() - kept.keys():
        if tuple(joined(token, kept)) in merges.get(token, ()):
            raise ValueError(f"whether {token!r} is reached depends on what stands around it")
    return kept


def is_rank_file(content: bytes) -> bool:
    """Whether a tokenizer.model is lines of base64 and a number, not a sentencepiece model."""
    return re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", content[:2000]) is not None


def from_rank_file(path: Path, content: bytes, limit: int | None) -> ByteLevelTokenizer:
    """Llama 3's tokenizer.model, its content given; limit: the model's ids, see tokenizer.load.
    Raises ValueError for another or damaged one."""
    ranks = {}
    try:
        for line in content.splitlines():
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    except ValueError as error:
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
    added = [
        Added(f"<|{name}|>", id, special=True) for id, name in enumerate(names, len(ranks))
    ]
    added, _ = kept(added, {}, limit, path)
    tokens = {rank: token for token, rank in ranks.items()}
    tokens |= {a.id: a.content.encode() for a in added}
    bos = len(ranks)
    around = Around(added=added, before=(bos,), bos_token_id=bos, eos_id=bos + 1)
    return ByteLevelTokenizer(around, ranks, [*range(bos)], tokens, LLAMA3_PATTERN)

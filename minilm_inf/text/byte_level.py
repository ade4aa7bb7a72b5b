"""Byte-level BPE: a text is bytes, and frequent runs of bytes are tokens (GPT-2 and after).

A text is cut into words, and within a word neighbours that are a token together become one,
those of the lowest rank first, until there are none. Both is tiktoken's work.

tiktoken joins any two neighbours that are a token together, and takes a word that is a token
whole. A file of merges allows only the pairs that it lists. The two agree exactly if, for every
token, BPE on the token's own bytes arrives at a pair that is listed: for whatever stands around
these bytes, as long as no token reaches across their ends, the steps within them are the same.
Files of which that is not true are refused; none is known.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

import tiktoken

from ..terminal.files import shown
from .around import Added, Around, Tokenizer
from .words import LLAMA3_PATTERN

LONGEST_TOKEN = 256  # bytes; of those in use, 128
LONGEST_SPACE = 200_000  # characters; tiktoken's own limit lies between 300,000 and a million
TOO_MUCH_SPACE = re.compile(rf"\s{{{LONGEST_SPACE + 1}}}")
LLAMA3_RANKS = 128_000
LLAMA3_SPECIAL = (  # the 256 ids after the ranks begin with these; the others are reserved
    "begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 "
    "finetune_right_pad_id step_id start_header_id end_header_id eom_id eot_id python_tag image"
).split()


class ByteLevelTokenizer(Tokenizer):
    """Byte-level BPE at work.

    ranks:   the tokens in order, every single byte among them, each with its id; None for a
             byte that the vocabulary lacks.
    tokens:  id -> its bytes, those of added tokens too.
    pattern: the expression that cuts a text into words.
    """

    def __init__(
        self,
        around: Around,
        ranks: dict[bytes, int | None],
        tokens: dict[int, bytes],
        pattern: str,
    ):
        tokens |= {token.id: token.content.encode() for token in around.added}
        super().__init__(around, max(tokens) + 1)
        self.ids, self.tokens = list(ranks.values()), tokens
        self.encoding = tiktoken.Encoding(
            "minilm_inf", pat_str=pattern, special_tokens={},
            mergeable_ranks={token: rank for rank, token in enumerate(ranks)},
        )  # fmt: skip

    def _encode_text(self, text: str, begun: bool) -> list[int]:
        """The ids of a text without added tokens, wherever it stands. Raises ValueError for a
        byte that the vocabulary lacks, and for a run of more than 200,000 white spaces."""
        if TOO_MUCH_SPACE.search(text):
            raise ValueError(
                f"the text holds more than {LONGEST_SPACE:,} white spaces in a row, which "
                "tiktoken cannot encode: take some out"
            )
        ids = [self.ids[rank] for rank in self.encoding.encode_ordinary(text)]
        if None in ids:  # SmolLM2 lacks six control characters
            raise ValueError(
                "the text holds a byte, mostly a control character, that is no token of this "
                "tokenizer: take it out"
            )
        return ids

    def bytes_of(self, id: int) -> bytes:
        """The bytes of one id: none for a special one, and for one that no token has."""
        hidden = self.checked(id) in self.special_ids
        return b"" if hidden else self.tokens.get(int(id), b"")


def byte_letters() -> list[str]:
    """The character that stands for each byte in a file: itself where it can be printed.

    >>> byte_letters()[32:36]
    ['Ġ', '!', '"', '#']
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


BYTE_OF = {letter: byte for byte, letter in enumerate(byte_letters())}


def byte_level(
    around: Around, vocab: dict, merges: list, pattern: str, whole_words: bool = False
) -> ByteLevelTokenizer:
    """A tokenizer from a vocabulary (token in letters -> id) and its merges in order;
    whole_words: whether a word that is a token is taken whole, though no merges lead there.

    Raises ValueError where tiktoken would not find the same ids.
    """
    spelled = {t: bytes(map(BYTE_OF.get, t)) for t in vocab if BYTE_OF.keys() >= set(t)}
    if max(map(len, vocab)) > LONGEST_TOKEN:
        raise ValueError(f"it has a token of more than {LONGEST_TOKEN} bytes")
    own = vocab.keys() - {token.content for token in around.added}
    ids = {spelled[t]: id for t, id in vocab.items() if t in own and spelled.get(t)}
    ranks = {bytes([byte]): ids.get(bytes([byte])) for byte in range(256)}
    listed: dict[bytes, list] = {}  # token -> the pairs of which merges make it
    newest = None
    for a, b in merges:
        token = spelled.get(a, b"") + spelled.get(b, b"")
        if spelled.get(a + b) != token or token not in ids:
            raise ValueError(f"a merge makes {shown(a + b)}, which is no token of bytes")
        if token in listed and token != newest:
            raise ValueError(f"the merges that make {shown(a + b)} do not stand together")
        newest, ranks[token] = token, ids[token]
        listed.setdefault(token, []).append([spelled[a], spelled[b]])
    ranks |= ids if whole_words else {}
    order = {token: rank for rank, token in enumerate(ranks)}
    for token in ranks:
        parts = joined(token, order)
        unreached = whole_words and len(parts) > 2
        if len(token) > 1 and parts not in listed.get(token, ()) and not unreached:
            raise ValueError(f"no merges lead to its token {shown(str(token)[2:-1])}")
    tokens = {id: spelled.get(t) or t.encode() for t, id in vocab.items()}
    return ByteLevelTokenizer(around, ranks, tokens, pattern)


def joined(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two parts that BPE makes a token of in its last step, or more if it never gets there.

    Neighbours that are a token together become one, those of the lowest rank first, and of
    equal ranks the leftmost (Sennrich et al., arXiv 1508.07909).

    >>> joined(b"abc", {b"bc": 0, b"ab": 1, b"abc": 2})
    [b'a', b'bc']
    """
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        pairs = enumerate(zip(parts, parts[1:]))
        found = [(ranks[a + b], at) for at, (a, b) in pairs if a + b in ranks]
        if not found:
            break
        _, at = min(found)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def is_rank_file(content: bytes) -> bool:
    """Whether a tokenizer.model is lines of base64 and a number, not a sentencepiece model."""
    return re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", content[:2000]) is not None


def from_rank_file(path: Path, content: bytes) -> ByteLevelTokenizer:
    """Llama 3's tokenizer.model, tiktoken's own format: a token in base64 and its rank a line.
    Raises ValueError for another or damaged one."""
    try:
        lines = (line.split() for line in content.splitlines())
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except ValueError as error:
        raise ValueError(
            f"{path} holds a line that is no token and rank: fetch it again"
        ) from error
    bytes_and_more = {bytes([byte]) for byte in range(256)} <= ranks.keys()
    if list(ranks.values()) != list(range(LLAMA3_RANKS)) or not bytes_and_more:
        raise ValueError(
            f"{path} has not the {LLAMA3_RANKS:,} ranks of Llama 3 in their order: how another "
            "model cuts its words is not in such a file, so give its tokenizer.json"
        )
    reserved = (f"reserved_special_token_{n}" for n in range(2, 246))
    names = enumerate([*LLAMA3_SPECIAL, *reserved], LLAMA3_RANKS)
    added = tuple(Added(f"<|{name}|>", id, special=True) for id, name in names)
    begin, end = LLAMA3_RANKS, LLAMA3_RANKS + 1
    around = Around(added=added, before=(begin,), bos_token_id=begin, eos_id=end)
    tokens = {rank: token for token, rank in ranks.items()}
    return ByteLevelTokenizer(around, ranks, tokens, LLAMA3_PATTERN)

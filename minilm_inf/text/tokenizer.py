"""Text to ids and back, by whatever tokenizer a checkpoint's folder holds.

    tokenizer.model            sentencepiece (Llama 1 and 2, Mistral, TinyLlama)
    tokenizer.json             byte-level BPE (GPT-NeoX for MPT, GPT-J, Llama 3, SmolLM2), or
                               BPE with byte fallback (Llama 1 and 2, Mistral, TinyLlama)
    vocab.json, merges.txt     byte-level BPE in GPT-2's files

The first of these that is there is used; a tokenizer.model of tiktoken's ranks, which Llama 3
has beside a tokenizer.json that says more, is passed over. Each is an around.Tokenizer.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..checkpoint.checkpoint import existing_folder
from ..terminal.files import read_bytes, read_text
from ..terminal.json_parts import Part, part_of
from .around import Added, Around, Tokenizer
from .byte_level import GPT2, ByteLevelTokenizer
from .byte_pairs import END_OF_TEXT
from .named_tokens import ends, kept, listed_tokens
from .sentence_pieces import WITHOUT_SPACE, SentencePieceTokenizer, processor_of
from .tokenizer_json import from_tokenizer_json

RANKS = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")  # a token in base64, and its rank


def load(folder) -> Tokenizer:
    """The tokenizer that a checkpoint's folder holds. Raises ValueError, in one sentence, where
    it holds none, or one that cannot be used exactly."""
    folder = existing_folder(folder)
    path = folder / "tokenizer.model"
    if path.is_file():
        content = read_bytes(path)
        if not RANKS.match(content[:2000]):
            return sentence_pieces(path, content)
    if (folder / "tokenizer.json").is_file():
        return from_tokenizer_json(folder / "tokenizer.json")
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return from_vocab_and_merges(folder)
    raise ValueError(
        f"{folder} holds no tokenizer that can be read: copy the model's tokenizer.json there, "
        "or its tokenizer.model where that is one of sentencepiece"
    )


def check_fits(tokenizer: Tokenizer, vocab_size: int, folder: Path):
    """Raise ValueError for a tokenizer that has more ids than the model."""
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} ids, but the model only "
            f"{vocab_size}: they do not belong together"
        )


def sentence_pieces(path: Path, content: bytes) -> SentencePieceTokenizer:
    """A sentencepiece model, and what the files beside it add to it.

    Those of its own pieces that are listed again are left out, so that a control piece (BOS)
    that is written out in a text is text.
    """
    folder, model = path.parent, processor_of(content, path)
    pieces = {model.IdToPiece(id): id for id in range(model.GetPieceSize())}
    added = kept(listed_tokens(folder, unless_said=True), pieces, path)
    own = dict(bos_token=model.bos_id(), eos_token=model.eos_id())
    own = {name: id for name, id in own.items() if id >= 0}
    fields = ends(folder, added, pieces, bos=True, **own)
    around = Around(added=tuple(t for t in added if t.id >= len(pieces)), **fields)
    tokens = {id: piece for piece, id in pieces.items() if not model.IsControl(id)}
    spaceless = processor_of(content + WITHOUT_SPACE, path)
    strips = model.EncodeAsIds("a") != spaceless.EncodeAsIds("a")
    inside = model if part_of(folder / "tokenizer_config.json")["legacy"].flag() else spaceless
    return SentencePieceTokenizer(around, model, inside, tokens, strips)


def from_vocab_and_merges(folder: Path) -> Tokenizer:
    """GPT-2's files, vocab.json and merges.txt, perhaps added tokens beside them.

    "<|endoftext|>" is special where the vocabulary has it, and BOS and EOS unless a file names
    others.
    """
    path, merges = folder / "vocab.json", folder / "merges.txt"
    vocab = part_of(path).ids()
    own = vocab.get(END_OF_TEXT)
    added = [] if own is None else [Added(END_OF_TEXT, own, special=True)]
    added = kept(added + listed_tokens(folder, unless_said=False), vocab, path)
    parts = Around(added=added, **ends(folder, added, vocab, bos_token=own, eos_token=own))
    part_of(folder / "tokenizer_config.json")["add_prefix_space"].only(None, False)
    lines = (line for line in read_text(merges).splitlines() if line[:8] != "#version")
    return ByteLevelTokenizer(
        Part({"merges": [*filter(None, lines)]}, merges), vocab, parts, GPT2
    )


def opening(tokenizer: Tokenizer) -> list[int]:
    """What encode puts before a text: BOS, or nothing."""
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id]

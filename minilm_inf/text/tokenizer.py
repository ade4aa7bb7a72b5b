"""Text to ids and back, by whatever tokenizer a checkpoint's folder holds.

    tokenizer.model            sentencepiece (Llama 1 and 2, Mistral, TinyLlama), or tiktoken's
                               ranks (Llama 3)
    tokenizer.json             byte-level BPE (GPT-NeoX for MPT, GPT-J, Llama 3, SmolLM2), or
                               BPE with byte fallback (Llama 1 and 2, Mistral, TinyLlama)
    vocab.json, merges.txt     byte-level BPE in GPT-2's files

The first of these that is there is used. around.Tokenizer is what all of them are.
"""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.checkpoint import existing_folder
from ..terminal.files import read_bytes, read_text
from ..terminal.json_parts import Part, part_of
from .around import Added, Around, Tokenizer
from .byte_level import GPT2, from_rank_file, is_rank_file, of_letters
from .named_tokens import ends, kept, listed_tokens
from .sentence_pieces import SentencePieceTokenizer, processor_of
from .tokenizer_json import from_tokenizer_json

LARGEST_MODEL = 2**27  # bytes of a tokenizer.model; the largest that are known have 20 MB
END_OF_TEXT = "<|endoftext|>"


def load(folder) -> Tokenizer:
    """The tokenizer that a checkpoint's folder holds. Raises ValueError, in one sentence, where
    it holds none, or one that cannot be used exactly."""
    folder = existing_folder(folder)
    if (folder / "tokenizer.model").is_file():
        content = read_bytes(folder / "tokenizer.model", LARGEST_MODEL)
        read = from_rank_file if is_rank_file(content) else sentence_pieces
        return read(folder / "tokenizer.model", content)
    if (folder / "tokenizer.json").is_file():
        return from_tokenizer_json(folder / "tokenizer.json")
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return from_vocab_and_merges(folder)
    raise ValueError(
        f"{folder} holds no tokenizer: copy the model's tokenizer.model or tokenizer.json there"
    )


def check_fits(tokenizer: Tokenizer, vocab_size: int, folder: Path):
    """Raise ValueError for a tokenizer that has more ids than the model."""
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} ids, the model only "
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
    ids = pieces | {token.content: token.id for token in added}
    bos, eos = (None if id < 0 else id for id in (model.bos_id(), model.eos_id()))
    fields = ends(folder, ids, bos=True, bos_token=bos, eos_token=eos)
    added = tuple(token for token in added if token.id >= len(pieces))
    spaced = part_of(folder / "tokenizer_config.json")["legacy"].flag()
    return SentencePieceTokenizer(content, path, Around(added=added, **fields), spaced=spaced)


def from_vocab_and_merges(folder: Path) -> Tokenizer:
    """GPT-2's files, vocab.json and merges.txt, perhaps added tokens beside them.

    "<|endoftext|>" is special where the vocabulary has it, and BOS and EOS unless a file names
    others.
    """
    path, merges = folder / "vocab.json", folder / "merges.txt"
    vocab = part_of(path).ids()
    added = listed_tokens(folder, unless_said=False)
    if END_OF_TEXT in vocab and all(token.content != END_OF_TEXT for token in added):
        added.append(Added(END_OF_TEXT, vocab[END_OF_TEXT], special=True))
    added = kept(added, vocab, path)
    ids, own = vocab | {token.content: token.id for token in added}, vocab.get(END_OF_TEXT)
    parts = Around(added=added, **ends(folder, ids, bos_token=own, eos_token=own))
    part_of(folder / "tokenizer_config.json")["add_prefix_space"].only(None, False)
    lines = (line for line in read_text(merges).splitlines() if line[:8] != "#version")
    return of_letters(Part({"merges": [*filter(None, lines)]}, merges), vocab, parts, GPT2)


def opening(tokenizer: Tokenizer) -> list[int]:
    """What encode puts before a text: BOS, or nothing."""
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id]

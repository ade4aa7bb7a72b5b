"""Text to ids and back, by whatever tokenizer a checkpoint's folder holds.

    tokenizer.model            sentencepiece (Llama 1 and 2, Mistral, TinyLlama), or tiktoken's
                               ranks (Llama 3)
    tokenizer.json             byte-level BPE (GPT-NeoX for MPT, GPT-J, Llama 3, SmolLM2), or
                               BPE with byte fallback (Llama 1 and 2, Mistral, TinyLlama)
    vocab.json, merges.txt     byte-level BPE in GPT-2's files

The first of these that is there is used. Every tokenizer has encode, decode, stream, bytes_of,
mark_id, bos_id, bos_token_id, eos_id, special_ids and vocab_size.
"""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.checkpoint import existing_folder
from ..terminal.files import read_bytes
from ..terminal.json_parts import part_of
from .around import Around, Tokenizer
from .bpe_files import from_rank_file, from_vocab_and_merges, is_rank_file
from .named_tokens import ends, kept, listed_tokens
from .sentence_pieces import SentencePieceTokenizer, processor_of
from .tokenizer_json import around, from_tokenizer_json

LARGEST_MODEL = 2**27  # bytes of a tokenizer.model; the largest that are known have 20 MB


def load(folder) -> Tokenizer:
    """The tokenizer that a checkpoint's folder holds.

    An added token beyond the embedding of the folder's model (its config.json tells) is no
    token: it is found in no text. Raises ValueError, in one sentence, where the folder holds no
    tokenizer, or one that cannot be used exactly.
    """
    folder = existing_folder(folder)
    size = part_of(folder / "config.json")["vocab_size"]
    limit = None if size.is_null else size.id()
    tokenizer = _load(folder, limit)
    for id in (*tokenizer.around.before, *tokenizer.around.after):
        if id >= tokenizer.vocab_size:
            raise ValueError(
                f"the tokenizer in {folder} puts the id {id} around a text, which is beyond "
                f"the {tokenizer.vocab_size} ids that the model and it have"
            )
    return tokenizer


def check_fits(tokenizer: Tokenizer, vocab_size: int, folder: Path):
    """Raise ValueError for a tokenizer that has more ids than the model."""
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} ids, the model only "
            f"{vocab_size}: they do not belong together"
        )


def _load(folder: Path, limit: int | None) -> Tokenizer:
    """The first kind of tokenizer that is there; limit: the model's ids, None where nothing
    tells."""
    model, json_file = folder / "tokenizer.model", folder / "tokenizer.json"
    if model.is_file():
        content = read_bytes(model, LARGEST_MODEL)
        if is_rank_file(content):
            return from_rank_file(model, content, limit)
        return sentence_pieces(model, content, limit)
    if json_file.is_file():
        return from_tokenizer_json(json_file, limit)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return from_vocab_and_merges(folder, limit)
    raise ValueError(
        f"{folder} holds no tokenizer: copy the model's tokenizer.model or tokenizer.json there"
    )


def sentence_pieces(path: Path, content: bytes, limit: int | None) -> SentencePieceTokenizer:
    """A sentencepiece model, and what the files beside it add to it.

    Those of its own pieces that are listed again are left out, so that a control piece (BOS)
    that is written out in a text is text.
    """
    folder, model = path.parent, processor_of(content, path)
    pieces = {model.IdToPiece(id): id for id in range(model.GetPieceSize())}
    added, _ = kept(listed_tokens(folder, unless_said=True), pieces, limit, path)
    ids = pieces | {token.content: token.id for token in added}
    bos, eos = (None if id < 0 else id for id in (model.bos_id(), model.eos_id()))
    fields = ends(folder, ids, bos=True, bos_token=bos, eos_token=eos)
    template = part_of(folder / "tokenizer.json")["post_processor"]
    if not template.is_null:  # then it alone tells what stands around a text
        fields |= zip(("before", "after"), around(template))
    added = tuple(token for token in added if token.id >= len(pieces))
    spaced = part_of(folder / "tokenizer_config.json")["legacy"].flag()
    return SentencePieceTokenizer(content, path, Around(added=added, **fields), spaced=spaced)


def opening(tokenizer) -> list[int]:
    """What encode puts before a text: BOS, or nothing."""
    bos = tokenizer.bos_id
    return [bos] if bos is not None and tokenizer.encode("a")[:1] == [bos] else []

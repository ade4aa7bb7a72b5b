"""What stands in files beside a tokenizer's own: added tokens, and which are BOS and EOS.

tokenizer_config.json      bos_token and add_bos_token, the same of eos, added_tokens_decoder
special_tokens_map.json    bos_token, eos_token
added_tokens.json          content -> id
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ..terminal.files import shown
from ..terminal.json_parts import Part, part_of
from .around import Added


def added_token(raw: Part, id: Part | None = None) -> Added:
    """An added token as tokenizer.json and tokenizer_config.json write it."""
    for name in ("single_word", "lstrip", "rstrip"):
        raw[name].only(None, False)
    return Added(raw["content"].text(), (id or raw["id"]).id(), raw["special"].flag())


def listed_tokens(folder: Path, unless_said: bool) -> list[Added]:
    """The added tokens of a folder whose tokenizer is in another file than tokenizer.json;
    unless_said: whether those that no file calls special are."""
    decoder = part_of(folder / "tokenizer_config.json")["added_tokens_decoder"]
    if not decoder.is_null:
        return [
            added_token(raw, Part(int(id) if re.fullmatch("[0-9]{1,9}", id) else id, raw.file))
            for id, raw in decoder.fields().items()
        ]
    ids = part_of(folder / "added_tokens.json").ids()
    return [Added(token, id, special=unless_said) for token, id in ids.items()]


def kept(added: list[Added], vocab: dict[str, int], path: Path) -> tuple[Added, ...]:
    """The added tokens of a tokenizer at `path` that the model beside it has an embedding of,
    as its config.json says; the others, such as a [PAD] that was added without one, are text.

    Raises ValueError where a token or its id is given twice, or the vocabulary has it
    otherwise.
    """
    ids, owners = dict(vocab), {id: token for token, id in vocab.items()}
    for token in added:
        id = ids.setdefault(token.content, token.id)
        if id != token.id or owners.setdefault(id, token.content) != token.content:
            raise ValueError(
                f"{path}: the added token {shown(token.content)} has the id {token.id}, but "
                "the token or the id is given twice"
            )
    size = part_of(path.parent / "config.json")["vocab_size"]
    return tuple(token for token in added if size.is_null or token.id < size.id())


def ends(folder: Path, added: Iterable[Added], vocab: dict, bos: bool = False, **own) -> dict:
    """Around's fields bos_token_id, eos_id, before and after, as a folder's files have them.

    bos: whether BOS stands before a text where tokenizer_config.json does not say it. own: the
    ids of bos_token and eos_token where no file names them; of no token it is None.
    """
    ids = vocab | {token.content: token.id for token in added}
    about = part_of(folder / "tokenizer_config.json")
    for name in ("bos_token", "eos_token"):
        for said in (part_of(folder / "special_tokens_map.json")[name], about[name]):
            if not said.is_null:
                token = said["content"] if isinstance(said.value, dict) else said
                own[name] = ids.get(token.text())
    bos_id, eos_id = own.get("bos_token"), own.get("eos_token")
    add_bos = about["add_bos_token"].flag(bos and "add_bos_token" not in about)
    before = (bos_id,) if add_bos and bos_id is not None else ()
    after = (eos_id,) if about["add_eos_token"].flag() and eos_id is not None else ()
    return {"bos_token_id": bos_id, "eos_id": eos_id, "before": before, "after": after}

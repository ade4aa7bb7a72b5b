"""A conversation with a model that was trained to converse: the ids around what people say.

    ChatML     <|im_start|>user, a line end, the text, <|im_end|>, a line end
    Llama 3    <|start_header_id|>user<|end_header_id|>, two line ends, the text, <|eot_id|>
    Zephyr     <|user|>, a line end, the text, </s>, a line end (TinyLlama as well)
    Llama 2    <s>[INST] the text [/INST] the reply </s>
    Mistral    [INST] the text [/INST] the reply</s>

The folder's chat template tells which form it is, and what it writes exactly. A mark for which
the tokenizer has an id becomes that id. What people say is encoded apart from the marks, and a
mark that is written out there is only its letters, so that nobody can end a turn, or begin one
in another's name, by typing. (transformers encodes both together, and there one can: in such
texts alone the ids differ.) Where a mark has no id of its own, a text that holds it is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ..terminal.files import named, read_text
from ..terminal.json_parts import part_of
from .around import longest_first
from .chat_template import Piece, Reader
from .template_syntax import UNTOLD, UnknownTemplate, parsed

KNOWN = "ChatML, Llama 2, Llama 3, Mistral and Zephyr (TinyLlama)"
PRIVATE = re.compile("[\ue000-\uf8ff]")  # Unicode's private use
BOS, EOS, SYSTEM, USER, REPLY = "\ue000\ue001\ue002\ue003\ue004"
STANDS_FOR = {"bos": BOS, "eos": EOS, "system": SYSTEM, "user": USER, "assistant": REPLY}


class Form(NamedTuple):
    """The marks around turns, that which ends a reply, whether each must be an id of its own,
    and what else cannot be told from them in a vocabulary in which they are letters."""

    marks: tuple[str, ...]
    end: str
    whole: bool
    others: tuple[str, ...] = ()


FORMS = (
    Form(("<|im_start|>", "<|im_end|>"), "<|im_end|>", True),
    Form(("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>", True),
    Form(("<|user|>", "<|assistant|>"), EOS, False, ("<|system|>",)),
    Form(("[INST]", "[/INST]"), EOS, False, ("<<SYS>>", "<</SYS>>")),
)


class Chat:
    """The turns of a conversation as ids, in the form that a checkpoint's folder asks for.

    system:   the system message; None for the template's own, which may be none.
    stop_ids: the ids that end a reply. begun: whether a reply continues its prompt's text.
    Raises ValueError where the template is not known, takes no system message, or its marks are
    no tokens.
    """

    begun = False

    def __init__(self, folder: Path, tokenizer, system: str | None = None):
        self.tokenizer, place = tokenizer, named(folder)
        self.system = [] if system is None else [("system", system)]
        text = template_text(Path(folder))
        try:
            self.statements = parsed(text)
            whole, following = self._shapes([])
            [form] = [form for form in FORMS if fits(form, whole, following or "")]
        except UNTOLD as error:
            has = "a chat template of a form that is not known" if text else "no chat template"
            raise ValueError(
                f"{place} has {has}: --chat knows the forms of {KNOWN}; without --chat the "
                "prompt is read as it stands"
            ) from error
        if self.system:
            try:
                whole, following = self._shapes(self.system)
            except UNTOLD:
                whole = ""
            if SYSTEM not in whole:
                raise ValueError(
                    f"the chat template in {place} takes no system message: leave out --system"
                )
        self.goes_on = following is not None
        self._find_marks(form, whole, place)
        self._check(system or "")
        self.stop_ids = (self.marks[("eos", "eos") if form.end == EOS else ("", form.end)],)

    def prompt(self, text: str, first: bool) -> list[int]:
        """The ids from the end of the reply before, or from the very beginning where there is
        none (`first`), to where the reply to `text` begins.

        Raises ValueError for a text that is not Unicode, or holds a mark that cannot be told
        from the template's own.
        """
        self._check(text)
        if first:
            return self._ids(Reader(self.statements, [*self.system, ("user", text)]).pieces, "")
        if not self.goes_on:
            raise ValueError(
                "this model's chat template moves the system message on to every new turn, "
                "which cannot be done in a text that was read: leave out --system"
            )
        return self._ids(self._following(text))

    def _following(self, text: str) -> list[Piece]:
        """What is written from the end of a reply to where the next one begins."""
        turns = [*self.system, ("user", "x"), ("assistant", "x"), ("user", text)]
        pieces = Reader(self.statements, turns).pieces
        return pieces[1 + [piece.who for piece in pieces].index("assistant") :]

    def _shapes(self, system: list) -> tuple[str, str | None]:
        """What is written for three questions, with a character for who speaks and a number for
        what is said; and from a reply's end to the next reply. This is None where it is not
        the same for every turn, or goes back to what was said before."""
        texts = []
        for count in (1, 3, 5):
            turns = [(("user", "assistant")[at % 2], str(at)) for at in range(count)]
            pieces = Reader(self.statements, [*system, *turns]).pieces
            if any(PRIVATE.search(words) for _, words in pieces):
                raise UnknownTemplate
            texts.append("".join(STANDS_FOR.get(who, "") + words for who, words in pieces))
        first, second, third = texts
        following = second.rpartition(f"{REPLY}1")[2]
        again = following.replace(f"{USER}2", f"{USER}4")
        pattern = rf"(\s*){REPLY}1{re.escape(following)}\1{REPLY}3{re.escape(again)}"
        same = third.startswith(first) and re.fullmatch(pattern, third[len(first) :])
        own = following.count(USER) == following.count(f"{USER}2")
        return third, following if same and own else None

    def _find_marks(self, form: Form, whole: str, place: str):
        """Tell marks that are ids of their own, BOS and EOS among them, from those that are
        only letters. Raises ValueError where a mark must be an id and is none."""
        tokenizer, marks = self.tokenizer, (*form.marks, *form.others)
        ids = {("", mark): tokenizer.mark_id(mark) for mark in (*tokenizer.marks, *marks)}
        ids |= {("bos", "bos"): tokenizer.bos_token_id, ("eos", "eos"): tokenizer.eos_id}
        for (who, mark), id in ids.items():
            if id is None and (STANDS_FOR[who] in whole if who else form.whole):
                raise ValueError(
                    f"the tokenizer in {place} has no {who.upper() or mark} of its own, of "
                    "which its chat template is made: the two do not belong together"
                )
        self.marks = {mark: id for mark, id in ids.items() if id is not None}
        self.letters = [mark for mark in marks if ids["", mark] is None]
        self.cut = longest_first(mark for who, mark in self.marks if not who)

    def _ids(self, pieces: list[Piece], before: str | None = ".") -> list[int]:
        """The ids of pieces; before: what they follow, a reply, whatever it ends with."""
        ids, letters = [], ""
        for who, words in pieces:
            for part in [words] if who else self.cut.split(words):
                if (who, part) in self.marks:
                    ids += [*self._letters(letters, before), self.marks[who, part]]
                    letters, before = "", None
                else:
                    letters += part
        return ids + self._letters(letters, before)

    def _letters(self, text: str, before: str | None = "") -> list[int]:
        """The ids of a text in which marks are only letters; before: the text that it goes on
        from, None for a mark."""
        ids = self.tokenizer.encode(
            (before or "") + text, bos=False, special=False, begun=before is None
        )
        return ids[len(self._letters(before)) :] if before else ids

    def _check(self, text: str):
        """Raise ValueError for a text that would be read as a mark of the template."""
        found = [mark for mark in self.letters if mark in text]
        ids = set(
            self._letters(text)
        )  # a token that is not called special is found in any text
        found += [mark for (_, mark), id in self.marks.items() if id in ids]
        if found:
            raise ValueError(
                f"the text holds {found[0]}, which this model could not tell from the marks "
                "around a turn: leave it out"
            )


def fits(form: Form, whole: str, following: str) -> bool:
    """Whether a conversation, and what follows a reply in it, are made of a form's marks."""
    return following.lstrip().startswith(form.end) and all(mark in whole for mark in form.marks)


def template_text(folder: Path) -> str:
    """A folder's chat template: chat_template.jinja, or the one in tokenizer_config.json, where
    several are the one called default; "" where there is none."""
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    given = part_of(folder / "tokenizer_config.json")["chat_template"]
    if isinstance(given.value, list):
        named_default = [part for part in given.items() if part["name"].text("") == "default"]
        return named_default[0]["template"].text("") if named_default else ""
    return given.text("")

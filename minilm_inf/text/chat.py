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

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ..terminal.files import named, read_text
from ..terminal.json_parts import part_of
from .around import longest_first
from .chat_template import Piece, Reader
from .template_syntax import UNTOLD, UnknownTemplate, parsed

KNOWN = "ChatML, Llama 2, Llama 3, Mistral and Zephyr (TinyLlama)"
BOS, EOS = Piece("bos", "bos"), Piece("eos", "eos")


class Form(NamedTuple):
    """The marks around turns, the one that ends a reply, whether each must be an id of its own,
    and what else cannot be told from them in a vocabulary in which they are letters."""

    marks: tuple[str, ...]
    end: Piece
    whole: bool
    others: tuple[str, ...] = ()

    def fits(self, own: str, end: Piece) -> bool:
        """Whether a template that writes this, and this after a reply, is of the form."""
        ends = end.who == self.end.who and end.words.startswith(self.end.words)
        return ends and all(mark in own for mark in self.marks)


EOT = "<|eot_id|>"
FORMS = (
    Form(("<|im_start|>", "<|im_end|>"), Piece("", "<|im_end|>"), True),
    Form(("<|start_header_id|>", "<|end_header_id|>", EOT), Piece("", EOT), True),
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
            form, written = self._recognised()
        except UNTOLD as error:
            has = "a chat template of a form that is not known" if text else "no chat template"
            more = ", or that takes no system message" * bool(text and self.system)
            raise ValueError(
                f"{place} has {has}{more}: --chat knows the forms of {KNOWN}; without --chat "
                "the prompt is read as it stands"
            ) from error
        self._find_marks(form, written, place)
        self._check(system or "")
        self.stop_ids = (self.marks[form.end],)

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
        turns = [*self.system, ("user", "x"), ("assistant", "x"), ("user", text)]
        return self._ids(after_reply(Reader(self.statements, turns).pieces))

    def _recognised(self) -> tuple[Form, list[Piece]]:
        """The template's form, and what it writes for three questions. Raises one of UNTOLD for
        another form, and for one whose turns are not all alike."""
        turns = [*self.system, ("user", "0"), *[("assistant", "x"), ("user", "x")] * 2]
        texts = [Reader(self.statements, turns[:end]).pieces for end in (-4, -2, len(turns))]
        following, own = after_reply(texts[1]), "".join(p.words for p in texts[2] if not p.who)
        self.goes_on = ("user", "0") not in following and following == after_reply(texts[2])
        for one, other in pairwise(texts):  # spaces before a reply are the model's to write
            same = without_space(other[: len(one)]) == without_space(one)
            self.goes_on &= same and other[len(one)].who == "assistant"
        end, *_ = [piece for piece in following if piece.words.strip()]
        [form] = [form for form in FORMS if form.fits(own, end)]
        if "system" not in [who for who, _ in texts[0]] if self.system else not self.goes_on:
            raise UnknownTemplate
        return form, texts[2]

    def _find_marks(self, form: Form, written: list[Piece], place: str):
        """Tell marks that are ids of their own, BOS and EOS among them, from those that are
        only letters. Raises ValueError where a mark must be an id and is none."""
        tokenizer, marks = self.tokenizer, (*form.marks, *form.others)
        ids = {Piece("", m): tokenizer.mark_id(m) for m in (*tokenizer.marks, *marks)}
        ids |= {BOS: tokenizer.bos_token_id, EOS: tokenizer.eos_id}
        for mark, id in ids.items():
            if id is None and (mark in written if mark.who else form.whole):
                raise ValueError(
                    f"the tokenizer in {place} has no {mark.who.upper() or mark.words} of its "
                    "own, of which its chat template is made: the two do not belong together"
                )
        self.marks = {mark: id for mark, id in ids.items() if id is not None}
        self.letters = [mark.words for mark, id in ids.items() if id is None and not mark.who]
        self.cut = longest_first(mark.words for mark in self.marks if not mark.who)

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
        # A token that its file does not call special is found in any text.
        ids = set(self._letters(text))
        found += [mark for (_, mark), id in self.marks.items() if id in ids]
        if found:
            raise ValueError(
                f"the text holds {found[0]}, which this model could not tell from the marks "
                "around a turn: leave it out"
            )


def after_reply(pieces: list[Piece]) -> list[Piece]:
    """What is written after the last reply."""
    return pieces[max(at for at, piece in enumerate(pieces) if piece.who == "assistant") + 1 :]


def without_space(pieces: list[Piece]) -> list[Piece]:
    """Pieces without spaces at their end."""
    return [*pieces[:-1], pieces[-1]._replace(words=pieces[-1].words.rstrip())]


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

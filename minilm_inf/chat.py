"""A conversation with a model that was trained to converse: the ids around what people say.

chat_template.py tells which of three forms a model knows:

    ChatML     <|im_start|>user, a line end, the text, <|im_end|>, a line end
    Llama 3    <|start_header_id|>user<|end_header_id|>, two line ends, the text, <|eot_id|>
    Llama 2    <s>[INST] the text [/INST] the reply </s>

The marks between < and > are single ids. What people say is encoded apart from them, and a mark
that is written out there is only its letters, so that nobody can end a turn, or begin one in
another's name, by typing. (transformers encodes both together, and there one can: in such texts
alone the ids differ.) Llama 2's marks in brackets have no ids of their own; a text that holds
one is refused, as its authors' own program does.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import NamedTuple

from .chat_template import read_template

LLAMA2_MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


class Mark(NamedTuple):
    """A part of a prompt that is not text: its one id stands for it."""

    token: str


BOS, EOS, SPACE = Mark("BOS"), Mark("EOS"), Mark("a space behind a text")
IM_START, IM_END = Mark("<|im_start|>"), Mark("<|im_end|>")
HEADER, END_HEADER = Mark("<|start_header_id|>"), Mark("<|end_header_id|>")
END_TURN = Mark("<|eot_id|>")


def chatml(system: str | None, text: str, first: bool) -> list[str | Mark]:
    """From the end of the reply before to the beginning of the next one, in ChatML."""
    parts: list[str | Mark] = [] if first else [IM_END, "\n"]
    said = [("system", system)] if first and system is not None else []
    for role, words in [*said, ("user", text)]:
        parts += [IM_START, f"{role}\n{words}", IM_END, "\n"]
    return [*parts, IM_START, "assistant\n"]


def llama3(system: str | None, text: str, first: bool) -> list[str | Mark]:
    """The same in Llama 3's form."""
    parts: list[str | Mark] = [BOS] if first else [END_TURN]
    said = [("system", system)] if first and system is not None else []
    for role, words in [*said, ("user", text.strip())]:
        parts += [HEADER, role, END_HEADER, f"\n\n{words}", END_TURN]
    return [*parts, HEADER, "assistant", END_HEADER, "\n\n"]


def llama2(system: str | None, text: str, first: bool) -> list[str | Mark]:
    """The same in Llama 2's form, in which the system message is part of the first turn."""
    if first and system is not None:
        text = f"<<SYS>>\n{system}\n<</SYS>>\n\n{text}"
    before = [BOS] if first else [SPACE, EOS, BOS]
    return [*before, f"[INST] {text.strip()} [/INST]"]


FORMS = {  # form -> its prompts, the marks in them, and the mark that ends a reply
    "chatml": (chatml, (IM_START, IM_END), IM_END),
    "llama3": (llama3, (BOS, HEADER, END_HEADER, END_TURN), END_TURN),
    "llama2": (llama2, (BOS, EOS, SPACE), EOS),
}


class Chat:
    """The turns of a conversation as ids, in the form that a checkpoint's folder asks for.

    system:   the system message; None for the template's own, which may be none.
    stop_ids: the ids that end a reply. begun: whether a reply continues its prompt's text.
    Raises ValueError where the template is not known, or its marks are no tokens.
    """

    begun = False

    def __init__(self, folder: Path, tokenizer, system: str | None = None):
        template = read_template(folder)
        self.tokenizer, self.form = tokenizer, template.form
        self.parts, marks, end = FORMS[template.form]
        self.ids = {mark: self._mark(mark, folder) for mark in marks}
        self.stop_ids = tuple(self.ids[end])
        self.system = template.system if system is None else system
        if self.form == "llama3" and self.system is not None:
            self.system = self.system.strip()
        if template.date is not None:  # Llama 3.1 and after
            today = template.date or date.today().strftime("%d %b %Y")
            dates = f"Cutting Knowledge Date: December 2023\nToday Date: {today}\n\n"
            self.system = dates + (self.system or "")
        if self.system is not None:
            self._check(self.system)

    def prompt(self, text: str, first: bool) -> list[int]:
        """The ids from the end of the reply before, or from the very beginning where there is
        none (`first`), to where the reply to `text` begins.

        Raises ValueError for a text that is not Unicode, or holds a mark that cannot be told
        from the template's own.
        """
        self._check(text)
        ids: list[int] = []
        for part in self.parts(self.system, text, first):
            ids += self.ids[part] if isinstance(part, Mark) else self._letters(part)
        return ids

    def _mark(self, mark: Mark, folder: Path) -> list[int]:
        """The one id of a mark; for a space, those that it adds to a text (none or one)."""
        encode = self.tokenizer.encode
        if mark == SPACE:
            return encode(". ", bos=False)[len(encode(".", bos=False)) :]
        own = {BOS: self.tokenizer.bos_id, EOS: self.tokenizer.eos_id}
        ids = [own[mark]] if mark in own else encode(mark.token, bos=False)
        if len(ids) != 1 or ids == [None]:
            raise ValueError(
                f"the tokenizer in {folder} has no {mark.token} of its own, of which its chat "
                "template is made: the two do not belong together"
            )
        return ids

    def _letters(self, text: str) -> list[int]:
        """The ids of a text in which marks are only letters."""
        return self.tokenizer.encode(text, bos=False, special=False)

    def _check(self, text: str):
        """Raise ValueError for a text that would be read as a mark of the template."""
        if self.form == "llama2":
            found = next((mark for mark in LLAMA2_MARKS if mark in text), None)
        else:  # a token that its file does not call special is found in any text
            ids = set(self._letters(text))
            found = next((m.token for m in self.ids if not ids.isdisjoint(self.ids[m])), None)
        if found is not None:
            raise ValueError(
                f"the text holds {found}, which this model could not tell from the marks "
                "around a turn: leave it out"
            )

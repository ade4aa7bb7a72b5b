"""A conversation with a model that was trained to converse: the ids around what people say.

chat_template.py tells which form a model knows:

    ChatML     <|im_start|>user, a line end, the text, <|im_end|>, a line end
    Llama 3    <|start_header_id|>user<|end_header_id|>, two line ends, the text, <|eot_id|>
    Zephyr     <|user|>, a line end, the text, </s>, a line end (TinyLlama as well)
    Llama 2    <s>[INST] the text [/INST] the reply </s>
    Mistral    [INST] the text [/INST] the reply</s>

A mark for which the tokenizer has an id becomes that id. What people say is encoded apart from
the marks, and a mark that is written out there is only its letters, so that nobody can end a
turn, or begin one in another's name, by typing. (transformers encodes both together, and there
one can: in such texts alone the ids differ.) Where a mark has no id of its own, a text that
holds it is refused, as Llama 2's own program does.
"""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

from ..terminal.files import named
from .chat_template import FORMS, SYSTEM, USER, read_template
from .template_unrolled import BOS, DATE, EOS, STRIP, STRIPPED


class Chat:
    """The turns of a conversation as ids, in the form that a checkpoint's folder asks for.

    system:   the system message; None for the template's own, which may be none.
    stop_ids: the ids that end a reply. begun: whether a reply continues its prompt's text.
    Raises ValueError where the template is not known, takes no system message, or its marks are
    no tokens.
    """

    begun = False

    def __init__(self, folder: Path, tokenizer, system: str | None = None):
        self.template, self.tokenizer = read_template(folder), tokenizer
        self.form, self.system = FORMS[self.template.form], system
        self.first = self.template.first if system is None else self.template.begun
        if self.first is None:
            raise ValueError(
                f"the chat template in {named(folder)} takes no system message: leave out "
                "--system"
            )
        self.ids = self._ids(folder)
        marks = "|".join(map(re.escape, self.ids))
        self.cut = re.compile(f"({marks}|[\ue000-\uf8ff])")
        self.stop_ids = (self.ids[re.search(marks, self.template.following)[0]],)
        if system is not None:
            self._check(system)

    def prompt(self, text: str, first: bool) -> list[int]:
        """The ids from the end of the reply before, or from the very beginning where there is
        none (`first`), to where the reply to `text` begins.

        Raises ValueError for a text that is not Unicode, or holds a mark that cannot be told
        from the template's own.
        """
        self._check(text)
        if first:
            return self._encoded(self.first, text)
        if self.system is not None and self.template.moves:
            raise ValueError(
                "this model's chat template moves the system message on to every new turn, "
                "which cannot be done in a text that was read: leave out --system"
            )
        return self._encoded(self.template.following, text)

    def _encoded(self, shape: str, text: str) -> list[int]:
        """The ids of one of a Template's texts."""
        said = {USER: text, SYSTEM: self.system, DATE: date.today().strftime("%d %b %Y")}
        ids: list[int] = []
        written = [""]  # since the last mark, and in each STRIP that is open
        before = "" if shape is self.first else "."  # a reply, whatever it ends with
        for part in self.cut.split(shape):
            if part == STRIP:
                written.append("")
            elif part == STRIPPED:
                stripped = written.pop().strip()
                written[-1] += stripped
            elif part in self.ids:
                ids += [*self._letters(written.pop(), before), self.ids[part]]
                written, before = [""], None
            else:
                written[-1] += said.get(part, part)
        return ids + self._letters(written.pop(), before)

    def _ids(self, folder: Path) -> dict[str, int]:
        """The marks that are ids of their own, BOS and EOS among them."""
        tokenizer, shapes = self.tokenizer, self.first + self.template.following
        names = {BOS: "BOS", EOS: "EOS"} | {mark: mark for mark in self.form.marks}
        ids = {BOS: tokenizer.bos_token_id, EOS: tokenizer.eos_id}
        ids |= {mark: tokenizer.mark_id(mark) for mark in self.form.marks}
        greedy = {token.id for token in tokenizer.around.added if token.lstrip or token.rstrip}
        for mark in filter(shapes.__contains__, ids):
            name, place = names[mark], f"the tokenizer in {named(folder)}"
            if ids[mark] is None and (self.form.whole or mark in (BOS, EOS)):
                raise ValueError(
                    f"{place} has no {name} of its own, of which its chat template is made: "
                    "the two do not belong together"
                )
            if ids[mark] in greedy:
                raise ValueError(
                    f"{place} lets {name} take the spaces around it, which --chat does not do: "
                    "its prompts would not be exact"
                )
        return {mark: id for mark, id in ids.items() if id is not None}

    def _letters(self, text: str, before: str | None = "") -> list[int]:
        """The ids of a text in which marks are only letters; before: the text that it goes on
        from, None for a mark."""
        ids = self.tokenizer.encode(
            (before or "") + text, bos=False, special=False, begun=before is None
        )
        return ids[len(self._letters(before)) :] if before else ids

    def _check(self, text: str):
        """Raise ValueError for a text that would be read as a mark of the template."""
        letters = [mark for mark in self.form.marks if mark not in self.ids]
        found = next((m for m in (*letters, *self.form.letters) if m in text), None)
        if found is None:  # a token that its file does not call special is found in any text
            ids = set(self._letters(text))
            found = next((mark for mark, id in self.ids.items() if id in ids), None)
        if found is not None:
            raise ValueError(
                f"the text holds {found}, which this model could not tell from the marks "
                "around a turn: leave it out"
            )

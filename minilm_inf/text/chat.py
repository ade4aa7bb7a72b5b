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

from ..terminal.files import named, read_text
from ..terminal.json_parts import part_of
from .around import longest_first
from .chat_template import SYMBOL, SYMBOLS, Reader, parsed, trimmed

# chat_template's own, and what stands for words that are not said yet:
BOS, EOS, LEFT, RIGHT, SYSTEM, FIRST, REPLY, LATER = SYMBOLS[:8]
KNOWN = "ChatML, Llama 2, Llama 3, Mistral and Zephyr (TinyLlama)"
FORMS = (
    (("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    (("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
    (("<|user|>", "<|assistant|>", "<|system|>"), EOS),
    (("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"), EOS),
)
"""Each form's marks, of which every template writes the first two, and what ends a reply. Where
EOS does, marks may be only letters to the tokenizer; else each must be an id of its own."""


class Chat:
    """The turns of a conversation as ids, in the form that a checkpoint's folder asks for.

    system:   the system message; None for the template's own, which may be none.
    stop_ids: the ids that end a reply. begun: whether a reply continues its prompt's text.
    Raises ValueError where the template is not known, takes no system message, or its marks are
    no tokens.
    """

    begun = False

    def __init__(self, folder: Path, tokenizer, system: str | None = None):
        self.tokenizer, self.system = tokenizer, system
        place, text = named(folder), template_text(Path(folder))
        try:
            marks, end = self._recognised(parsed(text))
            self._find_marks(marks)
        except Exception as error:  # what Python cannot do with it is unknown as well
            has = "a chat template of a form that is not known" if text else "no chat template"
            has += ", or that takes no system message" if text and system is not None else ""
            raise ValueError(
                f"{place} has {has}: --chat knows the forms of {KNOWN}; without --chat "
                "the prompt is read as it stands"
            ) from error
        written = self.first + self.following
        missing = [mark for mark in self.letters if end != EOS]
        missing += [name for name, symbol in (("BOS", BOS), ("EOS", EOS)) if symbol in written]
        if missing:
            raise ValueError(
                f"the tokenizer in {place} has no {missing[0]} of its own, of which its chat "
                "template is made: the two do not belong together"
            )
        self._check(system or "")
        self.stop_ids = (self.ids[end],)

    def prompt(self, text: str, first: bool) -> list[int]:
        """The ids from the end of the reply before, or from the very beginning where there is
        none (`first`), to where the reply to `text` begins.

        Raises ValueError for a text that is not Unicode, or holds a mark that cannot be told
        from the template's own.
        """
        self._check(text)
        words = {SYSTEM: self.system, FIRST: text, LATER: text}
        written = (self.first if first else self.following).translate(str.maketrans(words))
        ids, before = [], "" if first else "."  # a reply, whatever it ends with
        for at, part in enumerate(SYMBOL.split(trimmed(written))):
            ids += [self.ids[part]] if at % 2 else self._letters(part, None if at else before)
        return ids

    def _recognised(self, template: list) -> tuple[tuple[str, ...], str]:
        """The form of a template, and in `first` and `following` what it writes for a question
        and after a reply. Raises an Exception for another form, and for one whose turns are
        not all alike."""
        turns = [("system", SYSTEM)] * (self.system is not None) + [("user", FIRST)]
        turns += [("assistant", REPLY), ("user", LATER)] * 2
        texts = [Reader(template, turns[:end]).written for end in (-4, -2, len(turns))]
        after_replies = (text.rpartition(REPLY)[2].lstrip(RIGHT) for text in texts[1:])
        self.first, (self.following, later) = texts[0], after_replies
        alike = FIRST not in self.following and self.following == later
        alike &= self.system is None or SYSTEM in self.first
        for one, other in pairwise(texts):  # spaces before a reply are the model's to write
            one = one.rstrip()
            rest = other.removeprefix(one).replace(LEFT, "").lstrip()
            alike &= other.startswith(one) and rest.startswith(REPLY)
        if not alike or RIGHT in trimmed(self.following):
            raise NotImplementedError
        ends, written = self.following.lstrip(), texts[2]
        [form] = [
            (marks, end) for marks, end in FORMS
            if ends.startswith(end) and all(mark in written for mark in marks[:2])
        ]  # fmt: skip
        return form

    def _find_marks(self, marks: tuple[str, ...]):
        """Put symbols where marks are written that are ids of their own, BOS and EOS among
        them; `letters` are the marks that are none."""
        tokenizer = self.tokenizer
        ids = tokenizer.marks | {BOS: tokenizer.bos_token_id, EOS: tokenizer.eos_id}
        self.letters = [mark for mark in marks if mark not in ids]
        self.ids = {mark: id for mark, id in ids.items() if id is not None}
        finder = longest_first(self.ids)
        written = dict.fromkeys(finder.findall(self.first + self.following))
        symbols = {mark: SYMBOLS[8 + at] for at, mark in enumerate(written)}
        self.first = finder.sub(lambda mark: symbols[mark[0]], self.first)
        self.following = finder.sub(lambda mark: symbols[mark[0]], self.following)
        self.ids |= {symbol: self.ids[mark] for mark, symbol in symbols.items()}

    def _letters(self, text: str, before: str | None = "") -> list[int]:
        """The ids of a text in which marks are only letters; before: the text that it goes on
        from, None for a mark."""
        ids = self.tokenizer.encode(
            (before or "") + text, bos=False, special=False, begun=before is None
        )
        return ids[len(self._letters(before)) :] if before else ids

    def _check(self, text: str):
        """Raise ValueError for a text that would be read as a mark of the template."""
        found = [mark for mark in (*self.letters, *SYMBOLS) if mark in text]
        # A token that its file does not call special is found in any text.
        ids = set(self._letters(text))
        found += [mark for mark, id in self.ids.items() if id in ids]
        if found:
            raise ValueError(
                f"the text holds {found[0]}, which this model could not tell from the marks "
                "around a turn: leave it out"
            )


def template_text(folder: Path) -> str:
    """A folder's chat template: chat_template.jinja, or the one in tokenizer_config.json, where
    several are the one called default; "" where there is none."""
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    given = part_of(folder / "tokenizer_config.json")["chat_template"]
    if isinstance(given.value, list):
        several = {part["name"].text(""): part["template"].text("") for part in given.items()}
        return several.get("default", "")
    return given.text("")

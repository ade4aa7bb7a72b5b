"""Which form of conversation a model was trained on, recognised in its chat template.

A template is a program (in Jinja) that comes with the weights. It is not run: template_syntax
reads its statements, template_unrolled what they write for conversations of which only the
roles are known. That must be one of the forms below, turn for turn. Anything else is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ..terminal.files import named, read_json, read_text
from .template_syntax import UnknownTemplate, parsed
from .template_unrolled import (
    BOS,
    DATE,
    EOS,
    PRIVATE,
    SAID,
    STRIP,
    STRIPPED,
    NotAllowed,
    unrolled,
)  # fmt: skip

LONGEST = 30_000  # characters; known templates have less than 10,000
SYSTEM, USER, TEXT = "\ue005\ue006\ue007"  # what they say; TEXT: in a Form, any but a mark
KNOWN = "ChatML, Llama 2, Llama 3, Mistral and Zephyr (TinyLlama)"


class Form(NamedTuple):
    """A form of conversation, as regular expressions.

    marks: what stands around turns; whole: whether each of them has to be one id. letters: what
    else a model could not tell from its template's own, where somebody says it.
    system: how a conversation with a system message begins; turn: from the user's header to
    where the reply begins; end: what follows a reply before the next turn.
    """

    marks: tuple[str, ...]
    whole: bool
    letters: tuple[str, ...]
    system: str
    turn: str
    end: str


FORMS = {
    "ChatML": Form(
        ("<|im_start|>", "<|im_end|>"), True, (),
        rf"<\|im_start\|>system\n{TEXT}<\|im_end\|>\n",
        rf"<\|im_start\|>user\n{USER}<\|im_end\|>\n<\|im_start\|>assistant\n",
        r"<\|im_end\|>\n",
    ),
    "Llama 3": Form(
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), True, (),
        rf"<\|start_header_id\|>system<\|end_header_id\|>\n\n{TEXT}<\|eot_id\|>",
        rf"<\|start_header_id\|>user<\|end_header_id\|>\n\n{USER}<\|eot_id\|>"
        r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n",
        r"<\|eot_id\|>",
    ),
    "Zephyr": Form(
        ("<|system|>", "<|user|>", "<|assistant|>"), False, (),
        rf"<\|system\|>\n{TEXT}{EOS}\n",
        rf"<\|user\|>\n{USER}{EOS}\n<\|assistant\|>\n?",
        rf"{EOS}\n",
    ),
    "Llama 2": Form(
        ("[INST]", "[/INST]"), False, ("<<SYS>>", "<</SYS>>"), "",
        rf"{BOS}\[INST\] (<<SYS>>\n{TEXT}\n<</SYS>>\n\n)?{USER} \[/INST\]",
        rf" ?{EOS}",
    ),
    "Mistral": Form(
        ("[INST]", "[/INST]"), False, (), "",
        rf" ?\[INST\] ?({TEXT}\n\n)?{USER} ?\[/INST\]",
        rf" ?{EOS} ?",
    ),
}  # fmt: skip


class Template(NamedTuple):
    """What a recognised template writes around what people say.

    Each is a text in which BOS, EOS, SYSTEM, USER, DATE, and STRIP and STRIPPED around a text
    without spaces at its ends, are one character each.
    first: before the first reply; begun: the same for a system message of one's own, None where
    there can be none; following: from the end of a reply to the beginning of the next one.
    moves: whether the system message moves on to each turn that follows.
    """

    form: str
    first: str
    begun: str | None
    following: str
    moves: bool = False


def read_template(folder: Path) -> Template:
    """The form of a checkpoint's chat template: chat_template.jinja, or the one in
    tokenizer_config.json. Raises ValueError where it is missing or not known."""
    folder = Path(folder)
    text = template_text(folder)
    found = None if text is None else recognise(text)
    if found is None:
        has = "no chat template" if text is None else f"a chat template {of_what_kind(text)}"
        raise ValueError(
            f"{named(folder)} has {has}: --chat knows the forms of {KNOWN}; without --chat the "
            "prompt is read as it stands"
        )
    return found


def template_text(folder: Path) -> str | None:
    """A folder's chat template, the one called default where there are several; None without.

    Raises ValueError where its file is of another shape.
    """
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja") or None
    path = folder / "tokenizer_config.json"
    given = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(given, list):
        several = [t for t in given if isinstance(t, dict) and t.get("name") == "default"]
        given = several[0].get("template") if several else None
    if given is not None and not isinstance(given, str):
        raise ValueError(
            f"{named(path)}: chat_template must be a text, or a list of named texts"
        )
    return given or None


def of_what_kind(text: str) -> str:
    """Why a template is refused, by its length or by the marks that it writes."""
    if len(text) > LONGEST:
        return f"of {len(text):,} characters, more than any known one"
    marks = dict.fromkeys(re.findall(r"<[|/]?\w{2,30}[|]?>|\[/?[A-Z_]{2,30}\]", text))
    with_marks = f" with {', '.join(list(marks)[:4])}" if marks else ""
    return f"of a form that is not known{with_marks}"


def recognise(text: str) -> Template | None:
    """A template's form, None where it is not known."""
    if len(text) > LONGEST or PRIVATE.search(text):
        return None
    try:
        statements = parsed(text)
        plain = ["user", "assistant", "user", "assistant", "user"]
        first, following = turns(statements, plain)
    except (UnknownTemplate, NotAllowed, RecursionError):
        return None
    for form in FORMS:
        if fits(form, first, following):
            begun, moves = system_turns(statements, form, following)
            return Template(form, first, begun, following, moves)
    return None


def turns(statements: list, roles: list[str]) -> tuple[str, str]:
    """What stands before the first reply, and between a reply and the next one.

    Raises UnknownTemplate where a conversation does not go on as it began.
    """
    start = roles.index("user")
    texts = [
        unrolled(statements, roles[:count]) for count in range(start + 1, len(roles) + 1, 2)
    ]
    following = set()
    for at, (before, whole) in enumerate(zip(texts, texts[1:])):
        reply, question = SAID[start + 2 * at + 1], SAID[start + 2 * at + 2]
        rest = re.match(rf"\s*{STRIP}?{reply}{STRIPPED}?", whole[len(before) :])
        if not whole.startswith(before) or not rest:
            raise UnknownTemplate
        following.add(whole[len(before) + rest.end() :].replace(question, USER))
    if len(following) > 1:
        raise UnknownTemplate
    first = texts[0].replace(SAID[start], USER)
    return first.replace(SAID[0], SYSTEM), following.pop() if following else ""


def system_turns(statements: list, form: str, following: str) -> tuple[str | None, bool]:
    """What begins a conversation with a system message, None where there can be none; and
    whether it is known only until the first reply, since the message then moves on."""
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    for count in (6, 2):
        try:
            begun, after = turns(statements, roles[:count])
        except (UnknownTemplate, NotAllowed):
            continue
        if (
            begun.count(SYSTEM) == 1
            and fits(form, begun, following)
            and after in ("", following)
        ):
            return begun, count == 2
    return None, False


def fits(name: str, first: str, following: str) -> bool:
    """Whether a conversation that begins and goes on so is of a form."""
    form = FORMS[name]
    begins = f"{BOS}?({form.system})?{form.turn}"
    return matches(begins, first, form) and matches(form.end + form.turn, following, form)


def matches(pattern: str, text: str, form: Form) -> bool:
    """Whether a text of a Template is what a form's pattern says."""
    marks = "|".join(map(re.escape, form.marks))
    pattern = pattern.replace(TEXT, f"(?:(?!{marks})[^\ue000-\uf8ff]|{SYSTEM}|{DATE})*")
    inside = rf"{STRIP}((?:(?!{marks})[^{STRIP}{STRIPPED}])*){STRIPPED}"
    for _ in range(3):  # one in another
        text = re.sub(inside, r"\1", text)
    return re.fullmatch(pattern, text) is not None

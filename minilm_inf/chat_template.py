"""Which form of conversation a model was trained on, recognised in its chat template.

A template is a program (in Jinja) that comes with the weights. It is not run. It is reduced to
what it does for a plain conversation whose next reply is wanted: spaces and comments go,
questions with a known answer (are there tools?) are decided, and what is left must be one of
the forms below, statement for statement. Anything else is refused.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from .files import read_json, read_text

# A line a statement: % does something, = writes something. SYSTEM and DATE are any text.
CHATML = r"""
% for message in messages
= '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n'
% endfor
= '<|im_start|>assistant\n'
"""
CHATML_WITH_DEFAULT = r"""
% for message in messages
% if loop.first and messages[0].role != 'system'
= '<|im_start|>system\nSYSTEM<|im_end|>\n'
% endif
= '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n'
% endfor
= '<|im_start|>assistant\n'
"""
LLAMA3 = r"""
% set loop_messages = messages
% for message in loop_messages
% set content = '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + CONTENT
% if loop.index0 == 0
% set content = bos_token + content
% endif
= content
% endfor
= '<|start_header_id|>assistant<|end_header_id|>\n\n'
""".replace("CONTENT", "message.content | trim + '<|eot_id|>'")
LLAMA3_WITH_DATE = r"""
= bos_token
% set date_string = TODAY
% if messages[0].role == 'system'
% set system_message = messages[0].content | trim
% set messages = messages[1:]
% else
% set system_message = ''
% endif
= '<|start_header_id|>system<|end_header_id|>\n\n'
= 'Cutting Knowledge Date: December 2023\n'
= 'Today Date: ' + date_string + '\n\n'
= system_message
= '<|eot_id|>'
% for message in messages
= '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + CONTENT
% endfor
= '<|start_header_id|>assistant<|end_header_id|>\n\n'
""".replace("CONTENT", "message.content | trim + '<|eot_id|>'")
LLAMA2 = r"""
% if messages[0].role == 'system'
% set loop_messages = messages[1:]
% set system_message = messages[0].content
% else
% set loop_messages = messages
% set system_message = false
% endif
% for message in loop_messages
% if loop.index0 == 0 and system_message != false
% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message.content
% else
% set content = message.content
% endif
% if message.role == 'user'
= bos_token + '[INST] ' + content.strip() + ' [/INST]'
% elif message.role == 'assistant'
= ' ' + content.strip() + ' ' + eos_token
% endif
% endfor
"""
FORMS = (
    ("chatml", CHATML),
    ("chatml", CHATML_WITH_DEFAULT),
    ("llama3", LLAMA3),
    ("llama3", LLAMA3_WITH_DATE.replace("TODAY", "'DATE'")),
    ("llama3", LLAMA3_WITH_DATE.replace("TODAY", "strftime_now('%d %b %Y')")),
    ("llama2", LLAMA2),
)
ANSWERS = {  # what is known of a plain conversation, asked as templates ask it
    "add_generation_prompt": True,
    "not add_generation_prompt is defined": False,
    "custom_tools is defined": False,
    "not tools_in_user_message is defined": True,
    "not tools is defined": False,
    "tools is not none": False,
    "tools is not none and not tools_in_user_message": False,
    "tools_in_user_message and not tools is none": False,
    "builtin_tools is defined": False,
    "builtin_tools is defined or tools is not none": False,
    "not date_string is defined": True,
    "strftime_now is defined": True,
    "not (message.role == 'ipython' or message.role == 'tool'"
    " or 'tool_calls' in message)": True,
    "(message.role == 'user') != (loop.index0 % 2 == 0)": False,
}
NOTHING_WRITTEN = "% set tools_in_user_message = true"


class Template(NamedTuple):
    """A recognised form of conversation.

    system: the system message of a conversation that brings none; None for no such message.
    date:   what stands for today in Llama 3.1's system message, "" for today itself, and None
            where there is no date in it.
    """

    form: str
    system: str | None = None
    date: str | None = None


def read_template(folder: Path) -> Template:
    """The form of a checkpoint's chat template: chat_template.jinja, or the one in
    tokenizer_config.json. Raises ValueError where it is missing or not known."""
    folder, text = Path(folder), None
    if (folder / "chat_template.jinja").is_file():
        text = read_text(folder / "chat_template.jinja")
    elif (folder / "tokenizer_config.json").is_file():
        text = read_json(folder / "tokenizer_config.json").get("chat_template")
        if isinstance(text, list):  # several, by their names
            text = next((t.get("template") for t in text if t.get("name") == "default"), None)
    template = recognise(text) if isinstance(text, str) else None
    if template is None:
        has = "a chat template that is not known" if text else "no chat template"
        raise ValueError(
            f"{folder} has {has}: --chat knows ChatML, Llama 3 and Llama 2; without --chat the "
            "prompt is read as it stands"
        )
    return template


def recognise(text: str) -> Template | None:
    """The form of a template, None where it is not known."""
    try:
        given = "\n".join(decided(statements(text)))
    except UnicodeDecodeError:  # of a string with an escape that is none
        return None
    for form, known in FORMS:
        lines = (f"{line[0]} {spelled(line[2:])}" for line in known.strip().split("\n"))
        pattern = re.escape("\n".join(lines))
        for name in ("SYSTEM", "DATE"):
            pattern = pattern.replace(name, rf'(?P<{name}>(?:[^"\\]|\\.)*)')
        match = re.fullmatch(pattern, given)
        if match:
            found = {name: json.loads(f'"{text}"') for name, text in match.groupdict().items()}
            dated = "date_string" in known
            return Template(form, found.get("SYSTEM"), found.get("DATE", "") if dated else None)
    return None


def statements(text: str) -> list[str]:
    """A template's statements, one a line as in the forms above; text between them is one that
    writes it.

    Spaces around a statement go as Jinja lets them go with trim_blocks and lstrip_blocks,
    which is how transformers sets it up.
    """
    pieces = re.split(r"(\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\})", text.removesuffix("\n"), flags=re.S)
    found = []
    for at, piece in enumerate(pieces):
        if at % 2:
            if piece[1] != "#":
                kind = "=" if piece[1] == "{" else "%"
                found.append(f"{kind} {spelled(piece[2:-2].strip('-'))}")
            continue
        before, after = (pieces[at - 1] if at else ""), (pieces[at + 1 :] or [""])[0]
        if after.startswith(("{{-", "{%-", "{#-")):
            piece = piece.rstrip()
        elif after.startswith(("{%", "{#")):
            piece = re.sub(r"(\n|\A)[ \t]+\Z" if at == 0 else r"(\n)[ \t]+\Z", r"\1", piece)
        if before.endswith(("-}}", "-%}", "-#}")):
            piece = piece.lstrip()
        elif before.endswith(("%}", "#}")):
            piece = piece.removeprefix("\n")
        if piece:
            found.append(f"= {json.dumps(piece)}")
    return found


def spelled(expression: str) -> str:
    """An expression in one spelling: single spaces, x['y'] as x.y, "a" + "b" as "ab".

    >>> spelled("'a'+'b' +message['role']")
    '"ab" + message . role'
    """
    string = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
    words: list[str] = []
    for word in re.findall(rf"{string}|\w+|[^\s\w]", expression, re.DOTALL):
        if word[0] in "'\"" and len(word) > 1:
            word = word[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape")
            word = json.dumps(word)
            if words[-1:] == ["+"] and words[:-1] and words[-2][0] == '"':
                word = words[-2][:-1] + word[1:]
                del words[-2:]
        words.append(word)
    return re.sub(r'\[ "([a-z_]+)" \]', r". \1", " ".join(words))


def decided(lines: list[str]) -> list[str]:
    """The statements that are left when every question with a known answer is answered."""
    answers = {spelled(question): answer for question, answer in ANSWERS.items()}
    left = []
    branches: list[str] = []  # of each open if: asked, taken, not yet taken, over

    def reached(depth: int) -> bool:
        return all(branch in ("asked", "taken") for branch in branches[:depth])

    for line in lines:
        word, _, question = line[2:].partition(" ") if line[0] == "%" else ("", "", "")
        if word == "if":
            branches.append("not yet taken")
        depth = len(branches) - 1
        if word in ("if", "elif", "else") and branches:
            answer = True if word == "else" else answers.get(question)
            if branches[-1] == "asked":
                left += [line] * reached(depth)
            elif branches[-1] != "not yet taken":
                branches[-1] = "over"
            elif answer is None:
                branches[-1] = "asked"
                left += [f"% if {question}"] * reached(depth)
            elif answer:
                branches[-1] = "taken"
        elif word == "endif" and branches:
            left += [line] * (branches[-1] == "asked" and reached(depth))
            branches.pop()
        elif reached(len(branches)) and line != NOTHING_WRITTEN:
            left.append(line)
    return left

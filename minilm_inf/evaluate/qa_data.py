"""Questions about texts, with their answers, as three kinds of files hold them.

    .json    Qasper's own (Dasigi et al., NAACL 2021)
    .jsonl   LongBench's rows: input, context, answers, dataset (Bai et al., ACL 2024)
    .jsonl   plain rows: question, context, answers

prompts.json holds the prompts that LongBench publishes for its English sets of questions, with
the most tokens of an answer. Answers are scored as all three do it: by words, in lower case and
without punctuation and articles, against the best of several references.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..terminal.files import named, parse_object, read_json, read_text
from ..terminal.json_parts import Part

PROMPTS = read_json(Path(__file__).with_name("prompts.json"))
PLAIN = "multifieldqa_en"  # whose prompt asks about any text


class Example(NamedTuple):
    """A question about a text, its references, and the set whose prompt asks it."""

    id: str
    question: str
    context: str
    answers: list[str]
    dataset: str

    def asked(self, prompt: str, context: str) -> str:
        """A prompt with {question}, or {input}, and {context} filled in."""
        words = {"{context}": context} | dict.fromkeys(("{question}", "{input}"), self.question)
        return re.sub("|".join(words), lambda place: words[place[0]], prompt)


def read(path: Path) -> list[Example]:
    """The questions of a file. Raises ValueError, with the line or the place, for what is
    missing there, or of another kind, and for a set whose scores are others."""
    found = list(qasper(path) if path.suffix == ".json" else rows(path))
    if not found:
        raise ValueError(f"{named(path)} holds no questions")
    return found


def rows(path: Path) -> Iterator[Example]:
    """The questions of a file with a row in each line."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{named(path)}, line {number}"
        try:
            row = Part(parse_object(line.encode()), place)
        except ValueError as error:
            raise ValueError(f"{place} holds no JSON object ({error})") from error
        id, question = ("_id", "input") if "input" in row else ("id", "question")
        words = row[id].text(str(number)), row[question].text(), row["context"].text()
        answers = [answer.text() for answer in listed(row["answers"])]
        yield Example(*words, answers, row["dataset"].only(None, *PROMPTS) or PLAIN)


def qasper(path: Path) -> Iterator[Example]:
    """The questions about papers, whose sections, each after its name, are the text."""
    for paper in Part(read_json(path), named(path)).fields().values():
        lines = []
        for section in listed(paper["full_text"]):
            lines += [section["section_name"].text("")]
            lines += [paragraph.text() for paragraph in section["paragraphs"].items()]
        context = "\n".join(filter(None, lines))
        for asked in listed(paper["qas"]):
            answers = [reference(one["answer"]) for one in listed(asked["answers"])]
            words = asked["question_id"].text(), asked["question"].text(), context
            yield Example(*words, answers, "qasper")


def reference(answer: Part) -> str:
    """What one person answered, as Qasper's evaluator takes it."""
    if answer["unanswerable"].flag():
        return "Unanswerable"
    spans = ", ".join(span.text() for span in answer["extractive_spans"].items())
    yes_no = {True: "Yes", False: "No"}.get(answer["yes_no"].flag(None))
    found = spans or answer["free_form_answer"].text("") or yes_no
    if not found:
        raise answer.error(f"{answer.place} answers nothing")
    return found


def listed(part: Part) -> list[Part]:
    """The parts of a list that holds at least one."""
    if not part.items():
        raise part.error(f"{part.place} is missing or empty")
    return part.items()


# ---- scores


def words_of(text: str) -> list[str]:
    """The words that count: captains, leg, white, one of "The Captain's leg -- a white one"."""
    text = text.lower().translate(dict.fromkeys(map(ord, string.punctuation)))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def scores(text: str, answers: list[str]) -> dict[str, float]:
    """F1, the harmonic mean of precision and recall of words, and exact match, 0 or 1, each
    against the best of some answers.

    >>> scores("It was the white whale.", ["a whale", "the white whale"])
    {'f1': 0.6666666666666666, 'exact match': 0}
    """
    found, best = words_of(text), 0.0
    for words in map(words_of, answers):
        shared = (Counter(found) & Counter(words)).total()
        best = max(best, 2 * shared / max(1, len(found) + len(words)))
    return {"f1": best, "exact match": int(found in map(words_of, answers))}

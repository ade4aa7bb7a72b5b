"""evaluate qa: three kinds of files, scores by hand, prompts that fit, answers of generate."""

import json
import re
from argparse import Namespace

import numpy as np
import pytest
from conftest import ROOT, error
from test_chat import folder, model_folder  # noqa: F401  (fixtures)

from minilm_inf import LMInfinite, generate, load_tokenizer
from minilm_inf.evaluate import qa
from minilm_inf.evaluate.__main__ import main
from minilm_inf.evaluate.methods import with_window
from minilm_inf.evaluate.qa_data import PROMPTS, Example, read, scores
from minilm_inf.text.chat import Chat
from minilm_inf.transformer import Transformer
from minilm_inf.writing.reply import Plain

FIXTURES = ROOT / "tests" / "fixtures" / "qa"
KETTLE = (
    "Introduction\nThe kettle is blue.\nIt holds {two} litres.\n"
    "We used tap water and rain water."
)
WATERS = ["tap water, rain water", "Tap and rain water"]
HELD = {
    "qasper.json": [
        ("q1", "Which waters were used?", KETTLE, WATERS, "qasper"),
        ("q2", "Is it blue?", KETTLE, ["Yes"], "qasper"),
        ("q3", "Is it red?", KETTLE, ["No", "Unanswerable"], "qasper"),
        ("q4", "What is hot?", "Tea\nTea is hot.", ["Tea"], "qasper"),
    ],
    "longbench.jsonl": [("aa11", "Who boiled?", "Ann boiled.", ["Ann", "Anne"], "hotpotqa")],
    "plain.jsonl": [
        ("1", "What is one?", "Line one.\u2028Still one.", ["Line"], "multifieldqa_en"),
        ("mine", "How was it?", "The sea was cold.", ["cold", "the cold"], "multifieldqa_en"),
    ],
}


@pytest.mark.parametrize("name", HELD)
def test_what_a_file_holds(name):
    """An annotator who is left out, spans that are not joined, a No for an Unanswerable, a row
    that is cut where only some readers see the end of a line."""
    assert read(FIXTURES / name) == [Example(*fields) for fields in HELD[name]]


ROW = '{"context": "A sea.", "question": "Which?", "answers": ["A"]}\n'
PAPER = '{"p": {"full_text": [{"paragraphs": ["A sea."]}], "qas": [%s]}}'
ASKED = '{"question": "Which?", "question_id": "q", "answers": [%s]}'


@pytest.mark.parametrize("name, content, words", [
    ("a.jsonl", "\n" + ROW.replace('["A"]', "[]"), "line 2: answers is missing or empty"),
    ("a.jsonl", ROW.replace('["A"]', "[1]"), "line 1: answers[0] must be a text, not 1"),
    ("a.jsonl", ROW * 2 + '{"context": "A", "answers": ["A"]}', "line 3: the key question is"),
    ("a.jsonl", ROW.replace("question", "input").replace("text", "_"), "key context is"),
    ("a.jsonl", ROW.replace("}", ', "dataset": "trec"}'), "line 1: dataset must be"),
    ("a.jsonl", ROW + "A sea.", "line 2 holds no JSON"), ("a.jsonl", "\n", "no questions"),
    ("a.json", PAPER.replace("full", "all") % "", 'a.json: ["p"].full_text is missing'),
    ("a.json", PAPER % ASKED % "", '["p"].qas[0].answers is missing or empty'),
    ("a.json", PAPER % ASKED % '{"answer": {}}', "qas[0].answers[0].answer answers nothing"),
])  # fmt: skip
def test_a_row_that_lacks_something(program, tmp_path, name, content, words):
    """A question without an answer that counts as wrong, or a traceback in its place."""
    (tmp_path / name).write_text(content)
    assert words in error(program, main, "qa", "--data", tmp_path / name)


@pytest.mark.parametrize("text, answers, f1, exact", [
    ("The   Yellow!", ["a yellow"], 1, 1),  # case, articles, marks and spaces do not count
    ("It was a yellow gown.", ["yellow"], 2 * (1 / 4) * 1 / (1 / 4 + 1), 0),  # 1 of 4, 1 of 1
    ("blue", ["yellow"], 0, 0), ("", ["yellow"], 0, 0), ("the", ["yellow"], 0, 0),
    ("red red", ["red wine"], 1 / 2, 0),  # as often as it occurs: 1 of 2 and 1 of 2
    ("tap and rain", ["rain", *WATERS, "Tap and Rain."], 1, 1),  # the best reference
    ("tap water", ["rain", *WATERS], 2 * 1 * (2 / 4) / (1 + 2 / 4), 0),
    ("Ann's theatre", ["anns atre"], 1 / 2, 0), ("No, it is", ["No", "Unanswerable"], 1 / 2, 0),
])  # fmt: skip
def test_scores_by_hand(text, answers, f1, exact):
    """A normalisation or a mean that SQuAD, Qasper and LongBench do not have."""
    assert scores(text, answers) == {"f1": pytest.approx(f1), "exact match": exact}


# ---- prompts


def ids_of(tokenizer, example: Example, template=None, **how) -> list[int]:
    return qa.prompt(Namespace(template=template), Plain(tokenizer), example, **how)


def test_a_prompt_is_the_set_s_own(tokenizer):
    """A set that is asked in another's words, braces of a text that are filled in, a question
    that LongBench calls input and we do not find."""
    assert len(PROMPTS) == 6
    for words in PROMPTS.values():
        assert sorted(re.findall(r"{\w*}", words["prompt"])) == ["{context}", "{input}"]
    example = read(FIXTURES / "qasper.json")[0]._replace(context="{input} {two}")
    for template, begins in (
        (None, "You are given a scientific"), ("narrativeqa", "You are given a story"),
        ("{question} of {context}?", f"{example.question} of {{input}} {{two}}?"),
    ):  # fmt: skip
        text = tokenizer.decode(ids_of(tokenizer, example, template))
        assert text.startswith(begins)
        assert text.count(example.question) == text.count("{input} {two}") == 1


def test_a_cut_prompt_has_its_two_ends_or_its_head(tokenizer):
    """A question that is cut away, more tokens than there is room for, far fewer, or a prompt
    that was short enough and is cut nevertheless."""
    text = " ".join(f"No. {number} is late." for number in range(200))
    example = Example("e", "What is late?", text, ["one"], "multifieldqa_en")
    whole = ids_of(tokenizer, example)
    assert ids_of(tokenizer, example, room=len(whole), name="truncate-head") == whole
    for room in (100, 333):
        two_ends, head = (ids_of(tokenizer, example, room=room, name=name)
                          for name in ("truncate", "truncate-head"))  # fmt: skip
        assert room - 8 <= len(two_ends) <= room and room - 8 <= len(head) <= room
        half = len(two_ends) // 2 - 8  # tokens near the cut may join otherwise
        assert two_ends[:half] == whole[:half] and two_ends[-half:] == whole[-half:]
        assert head[:40] == whole[:40] and head[-40:] == whole[-40:]
        assert "No. 1 is" in tokenizer.decode(head) and "No. 195" not in tokenizer.decode(head)
    with pytest.raises(ValueError, match="question e takes more than the 20 tokens"):
        ids_of(tokenizer, example, room=20, name="truncate-head")


# ---- answers


@pytest.fixture
def data(tmp_path):
    """Five questions about three texts, of which two are asked about again later."""
    path = tmp_path / "questions.jsonl"
    with path.open("w") as file:
        for at, question in enumerate(("Who spoke?", "Where?", "Who?", "When was it?", "Why?")):
            text = f"Text {at % 3}. " + "The captain went on, for it was late. " * 12
            row = {"context": text, "question": question, "answers": ["the captain"]}
            file.write(json.dumps(row) + "\n")
    return path


LINE = "--n-local 120 --n-global 4 -n 6 --top-k-middle 3".split()


def test_answers_are_what_generate_writes(program, data, shipped, monkeypatch):
    """A prompt whose shared beginning is another text's, or a method that is another."""
    model, tokenizer = shipped
    runs, result = [], qa.result
    monkeypatch.setattr(qa, "result", lambda run: runs.append(run) or result(run))
    code, out, err = program(main, "qa", "--data", data, *LINE, "--json")
    assert code == 0, err
    [run], found = runs, json.loads(out)["results"]
    topk = with_window(LMInfinite(120, 4, 120, 3), 117)
    lms = {"lambda": LMInfinite(120, 4, 120), "topk": topk}
    for name in qa.METHODS:
        for ids, example in zip(run.prompts[name], found["examples"]):
            assert len(ids) <= 118 if "truncate" in name else len(ids) == example["tokens"]
            new = list(generate(model, ids, lms.get(name), 6, temperature=0))
            text, written = tokenizer.decode(new).strip(), example["written"][name]
            assert written == {"text": text, **scores(text, ["the captain"])}
    assert len({x["written"]["full"]["text"] for x in found["examples"]}) > 1


def test_only_a_prompt_s_last_token_reaches_back(program, data, monkeypatch):
    """Tokens of a shared beginning that reach back, as generate has it of none of them."""
    asked, read = [], Transformer.read

    def spy(*what, **how):
        asked.append(how.get("n_reaching", "as set"))
        return read(*what, **how)

    monkeypatch.setattr(Transformer, "read", spy)
    assert program(main, "qa", "--data", data, *LINE, "-n", 1, "--methods", "topk")[0] == 0
    assert asked.count("as set") == 5 and set(asked) == {"as set", 0}


def test_means_and_intervals(data, shipped):
    """A mean that is another method's, or an interval that draws questions, not texts."""
    examples = [x._replace(answers=["sea"]) for x in read(data)]
    prompts = dict.fromkeys(("full", "lambda"), [[1, 2]] * 5)
    turns = Plain(shipped[1])
    run = qa.Run(shipped[0], turns, examples, dict.fromkeys(prompts), prompts, [9] * 5, 512)
    for at, text in enumerate(("sea", "sea", "ship", "the sea", "sea ship")):
        ids = turns.tokenizer.encode(text, bos=False)
        run.written[1, at, : len(ids)] = ids
    found = qa.result(run)["results"]
    assert found["texts"] == 3 and [x["text"] for x in found["examples"]] == [0, 1, 2, 0, 1]
    f1, exact = found["methods"]["lambda"].values()
    assert f1["mean"] == pytest.approx((1 + 1 + 0 + 1 + 2 / 3) / 5)
    assert exact["mean"] == pytest.approx(3 / 5) and found["methods"]["full"]["f1"]["mean"] == 0
    drawn = np.random.default_rng([0]).integers(0, 3, (1000, 3))
    means = np.array([2, 5 / 3, 0])[drawn].sum(1) / np.array([2, 2, 1])[drawn].sum(1)
    assert f1["interval"] == pytest.approx(np.quantile(means, [0.025, 0.975]))


def test_flags_of_qa(program, data, model_folder, monkeypatch):  # noqa: F811
    """A run over no questions, or a chat model that is shown the bare prompt."""
    for flags in ([], ["--data", data, "--template", "narrative"]):
        code, out, err = program(main, "qa", *flags)
        assert code == 2 and not out and ("--template" if flags else "--data") in err
    asked, replies = [], qa.replies
    monkeypatch.setattr(qa, "replies", lambda *new: asked.append(new) or replies(*new))
    line = ["-m", model_folder, "--data", data, *LINE, "--n-local", 2000, "--methods", "full"]
    assert program(main, "qa", *line, "--template", "{question}", "--chat")[0] == 0
    chat = Chat(model_folder, load_tokenizer(model_folder))
    _, turns, [rest], *_ = asked[0]
    assert turns.stop_ids == chat.stop_ids
    assert chat.prompt("Who spoke?", first=True)[-len(rest) :] == rest != []

"""The course: every lesson runs, holds what it claims, and is shown as it is.

Lessons and solutions run here without matplotlib, whether it is installed or not: their
numbers and asserts need no picture.
"""

import importlib.util
import re

import pytest
from conftest import ROOT

TUTORIALS = ROOT / "tutorials"
SOLUTIONS = TUTORIALS / "solutions"
MOST_LINES = 68  # about 60, and the numbers of a second figure


def module(name: str):
    """A program of tutorials/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, TUTORIALS / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


render = module("render")
LESSONS = render.lessons()
SLOW = ("03", "04", "06", "07", "09", "10", "11", "12", "B_")  # most of the lessons' time
PROGRAMS = [
    pytest.param(path, marks=pytest.mark.slow) if path.name.startswith(SLOW) else path
    for path in (*LESSONS, *(SOLUTIONS / lesson.name for lesson in LESSONS))
]

RUN = """
import ast, sys
from pathlib import Path

sys.modules["matplotlib"] = None  # import matplotlib raises ImportError
path = Path(sys.argv[1])
sys.path.insert(0, str(path.parent))
reached = set()


class Watched(ast.NodeTransformer):
    def visit_Assert(self, node):
        note = ast.parse(f"reached_.add({node.lineno})").body[0]
        return [ast.copy_location(note, node), node]


tree = ast.parse(path.read_text(encoding="utf-8"))
written = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)}
tree = ast.fix_missing_locations(Watched().visit(tree))
names = {"__name__": "__main__", "__file__": str(path), "reached_": reached}
exec(compile(tree, str(path), "exec"), names)
assert written, "it asserts nothing"
assert written == reached, f"not reached: the asserts of lines {sorted(written - reached)}"
"""


def name_of(path) -> str:
    return str(path.relative_to(TUTORIALS))


def test_there_is_a_course():
    """Catches a search for lessons that finds none, and would let every rule below pass."""
    assert len(LESSONS) >= 6 and LESSONS[0].name.startswith("00_")


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_it_runs_and_its_asserts_hold(path, python):
    """Catches a lesson that a change to the package has broken, a claim that is not true, and
    an assert that is never reached."""
    done = python(["-c", RUN, path])
    assert done.returncode == 0, done.stderr


def test_an_assert_that_is_missed_is_seen(tmp_path, python):
    """Catches a runner that would let a lesson without a claim pass."""
    cases = {"x = 1\n": "asserts nothing", "if 0:\n    assert 1\n": "not reached"}
    cases["import matplotlib\nassert 1\n"] = "matplotlib"
    for number, (source, complaint) in enumerate(cases.items()):
        path = tmp_path / f"{number}.py"
        path.write_text(source)
        done = python(["-c", RUN, path])
        assert done.returncode == 1 and complaint in done.stderr
    good = tmp_path / "good.py"
    good.write_text("assert 1 + 1 == 2\n")
    assert python(["-c", RUN, good]).returncode == 0


def without_output(page: str) -> str:
    """A page without what only a run can know: printed text, and figures made by the lesson."""
    page = re.sub(r"^```text\n.*?^```\n\n?", "", page, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^!\[[^\]]*\]\(figures/[^)]*\)\n\n?", "", page, flags=re.MULTILINE)


@pytest.mark.parametrize("lesson", LESSONS, ids=name_of)
def test_the_page_is_the_lesson(lesson):
    """Catches a page that was not rendered again after its lesson was changed."""
    shown = lesson.with_suffix(".md").read_text(encoding="utf-8")
    nothing = [("", [])] * len(render.cells(lesson.read_text(encoding="utf-8")))
    assert without_output(shown) == without_output(render.page(lesson, nothing, LESSONS))
    assert f"](figures/{lesson.stem}.png)" in shown
    assert (TUTORIALS / "figures" / f"{lesson.stem}.png").is_file()


@pytest.mark.parametrize("lesson", LESSONS, ids=name_of)
def test_the_form_of_a_lesson(lesson):
    """Catches a lesson that asks nothing, claims nothing, or is longer than an evening."""
    cells = render.cells(lesson.read_text(encoding="utf-8"))
    prose = "\n".join(cell.text for cell in cells if cell.kind == "prose")
    code = "\n".join(cell.text for cell in cells if cell.kind == "code")
    assert cells[0].text.startswith(f"# {lesson.stem.partition('_')[0]} · ")
    for once in ("**Question.**", "**Predict.**", "**Claim.**", "**Where this lives.**"):
        assert prose.count(once) == 1, once
    assert prose.index("**Question.**") < prose.index("**Predict.**") < prose.index("**Claim")
    exercises = prose.partition("## Exercises")[2]
    assert re.findall(r"^(\d)\. ", exercises, re.MULTILINE) == ["1", "2"]
    assert re.search(r"\]\(\.\./minilm_inf/[\w/]+\.py\)", prose)
    assert "```text" not in prose
    lines = [line for line in code.splitlines() if line.strip() and line.strip()[0] != "#"]
    is_kernel = lesson.name.startswith("12_")  # a whole kernel and its launcher
    assert len(lines) <= (85 if is_kernel else MOST_LINES), len(lines)
    assert code.count("plot.show(") >= 1
    assert len(re.findall(r"^# %% \d\.", solution(lesson), re.MULTILINE)) == 2


def solution(lesson) -> str:
    return (SOLUTIONS / lesson.name).read_text(encoding="utf-8")


def test_nothing_is_left_of_a_lesson_that_went():
    """Catches pages, solutions and figures without a lesson."""
    stems = {lesson.stem for lesson in LESSONS}
    assert {p.stem for p in SOLUTIONS.glob("*.py")} == stems | {"here"}
    assert {p.stem for p in TUTORIALS.glob("*.md")} - {"README", "neighbours"} == stems
    pages = "".join(p.read_text(encoding="utf-8") for p in TUTORIALS.glob("*.md"))
    for figure in (TUTORIALS / "figures").iterdir():
        assert f"(figures/{figure.name})" in pages, figure.name


def test_the_index_lists_the_course():
    """Catches a lesson that nobody finds, a promise of one that is not there, and a row without
    a picture or a time."""
    index = (TUTORIALS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(.+?)\]\((\w+)\.md\) \|(.*)\|$", index, re.MULTILINE)
    assert [(name, stem) for name, stem, _ in rows] == [
        (render.title(lesson), lesson.stem) for lesson in LESSONS
    ]
    for _, stem, rest in rows:
        assert f"(figures/{stem}.png)" in rest or f'"figures/{stem}.png"' in rest
        assert re.search(r"\b\d+ s\b", rest), stem

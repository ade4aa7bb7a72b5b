"""The course: every lesson runs, holds what it claims, and is shown as it is.

Lessons and solutions run here without matplotlib, whether it is installed or not: their
numbers and asserts need no picture.
"""

import ast
import importlib.util
import re
import sys
import types
from itertools import combinations

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
SLOW = ("03", "04", "06", "07", "09", "10", "11", "B_")  # of the lessons: most of their time
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
    """Catches a lesson that a change to the package left behind, a claim that is not true, and
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
    assert len(lines) <= MOST_LINES, len(lines)
    assert code.count("plot.show(") >= 1
    assert len(re.findall(r"^# %% \d\.", solution(lesson), re.MULTILINE)) == 2


def solution(lesson) -> str:
    return (SOLUTIONS / lesson.name).read_text(encoding="utf-8")


@pytest.mark.parametrize("lesson", LESSONS, ids=name_of)
def test_a_lesson_redefines_nothing(lesson):
    """Catches a copy of the package in a lesson, which would drift away from it: what a lesson
    defines has at most ten lines of code, and no name of the package."""
    public = {"attend", "chunked_attend", "generate", "load", "lambda_mask", "capped_logits"}
    public |= {"LMInfinite", "ModelConfig", "Rotary", "Alibi", "distances"}
    source = lesson.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert node.name not in public
            text = source.splitlines()[node.lineno - 1 : node.end_lineno]
            lines = [line for line in text if line.strip() and line.strip()[0] != "#"]
            told = len((ast.get_docstring(node) or "").splitlines())
            assert len(lines) - told <= 11, node.name  # the def itself, and ten


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


def lightness(colour: str) -> float:
    """CIE L* of #rrggbb: 0 is black, 100 white."""
    linear = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in linear)
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_the_palette_survives_greyscale():
    """Catches two roles that a printer or a colour-blind reader cannot tell apart."""
    assert abs(lightness("#ffffff") - 100) < 0.1 and lightness("#000000") == 0
    plot = module("plot")
    six = "LM-Infinite", "starting", "window", "ceiling", "vanilla", "hidden"
    dashes = [pattern for _, pattern in plot.STYLE_OF.values()]
    assert len(set(map(str, dashes))) == len(dashes)
    for names in (six, ("other", "third")):
        for a, b in combinations((plot.COLOURS[name] for name in names), 2):
            assert abs(lightness(a) - lightness(b)) > 10, (a, b)


def test_the_explorer_has_the_lessons_colours():
    """Catches a page on which red is another thing than in the lessons."""
    colours, page = module("plot").COLOURS, (TUTORIALS / "explorer.html").read_text("utf-8")
    for name in ("window", "starting", "ceiling", "hidden"):
        first = re.search(rf"--{name}: (#\w+);", page)  # of light pages; dark ones follow
        assert first[1] == colours[name], name


def test_a_notebook_shows_pictures(monkeypatch):
    """Catches a figure that a notebook prints the name of: none of its own formatters knows a
    figure that was made without pyplot."""
    pytest.importorskip("matplotlib")
    shown = []
    made = types.SimpleNamespace(Image=lambda data, width: data, display=shown.append)
    shell = types.SimpleNamespace(version_info=(9, 0), get_ipython=lambda: None)
    monkeypatch.setitem(sys.modules, "IPython", shell)  # matplotlib looks at it too
    monkeypatch.setitem(sys.modules, "IPython.display", made)
    plot = module("plot")
    drawing, axes = plot.figure()
    plot.line(axes, [1, 2], [3, 4], "vanilla")
    plot.show(drawing, "a line")
    assert len(shown) == 1 and shown[0].startswith(b"\x89PNG") and not plot.shown


def test_prose_that_is_no_comment_is_refused():
    """Catches a lesson whose prose would be run, or whose head would be lost."""
    with pytest.raises(ValueError, match="line 3 is no comment"):
        render.cells("# %% [markdown]\n# fine\nprint(1)\n")
    with pytest.raises(ValueError, match="begins with a cell"):
        render.cells("print(1)\n# %%\nprint(2)\n")
    found = render.cells(
        "# %% [markdown]\n# # A\n#\n# b\n\n# %%\nx = 1\n\n\n# %% last\ny = 2\n"
    )
    assert [tuple(cell) for cell in found] == [
        ("prose", "# A\n\nb", 2), ("code", "x = 1", 7), ("code", "y = 2", 11),
    ]  # fmt: skip

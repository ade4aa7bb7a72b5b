"""What the documents promise: every command exists, every number is the measured one."""

import hashlib
import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from minilm_inf.train.recipes import SHAPES

sys.path.insert(0, str(ROOT / "weights" / "pages"))  # programs, and no package
diagnosis, methods, qa, questions, retrieval, stream = (
    importlib.import_module(name)
    for name in ("diagnosis", "methods", "qa", "questions", "retrieval", "stream")
)
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "tutorials").rglob("*.md"), *(ROOT / "weights").rglob("*.md")]
)
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
SIZES = {  # flags that are made from a table, by program
    f"minilm_inf.{program}": {"--" + name.replace("_", "-") for name in names}
    for program, names in (("train", [name for shape in SHAPES.values() for name in shape]),)
}
COMMAND = re.compile(r"python3? -m ([\w.]+)((?: [^\n`|&;]*)?)")


def code(text: str) -> str:
    """The code of a page: what stands in fences, indented by four, or between backticks."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`]+)`", rest)
    return "\n".join([*fenced, *re.findall(r"^ {4}(.*)$", rest, re.MULTILINE), *inline])


def commands(text: str) -> tuple[set[str], list[tuple[str, list[str]]]]:
    """The make targets that a page names, and its modules with the long flags after them."""
    found = code(text).replace("\\\n", " ")
    targets = set(re.findall(r"\bmake ([a-z][\w-]*)", found))
    modules = [(m, re.findall(r" (--[a-z][\w-]*)", rest)) for m, rest in COMMAND.findall(found)]
    return targets, modules


def faults(text: str, page: Path) -> list[str]:
    """What a page names and the repository has not."""
    targets, modules = commands(text)
    found = [f"make {target}" for target in sorted(targets - TARGETS)]
    for module, flags in modules:
        if module.partition(".")[0] != "minilm_inf":
            continue
        spec = importlib.util.find_spec(module) if "." in module else None
        if spec and spec.submodule_search_locations:  # a folder: its program is in __main__.py
            spec = importlib.util.find_spec(f"{module}.__main__")
        source = Path(spec.origin).read_text(encoding="utf-8") if spec else ""
        if '__name__ == "__main__"' not in source:
            found.append(f"python -m {module}")
        for shared in ("terminal/options.py", "evaluate/documents.py"):
            source += (ROOT / "minilm_inf" / shared).read_text(encoding="utf-8")
        made = SIZES.get(module, set())
        known = set(re.findall(r'[" ](--[a-z0-9-]+)(?=[" ])', source)) | made
        found += [f"{module} {flag}" for flag in flags if flag not in known]
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if not re.match(r"\w+:", link) and not (page.parent / link).exists():
            found.append(f"the link {link}")
    return found


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_names_exists(page):
    """A target, a module, a flag or a file that was renamed, and its page was not told."""
    assert not faults(page.read_text(encoding="utf-8"), page)


def test_a_page_s_faults_are_found():
    """A search that finds nothing would let every page pass."""
    page = """Say `make demo`, `make tea`, or `python -m minilm_inf.brew`, [here](pot.md):

    python3 -m minilm_inf.train --corpus corpus \\
        --out x && make test

```sh
make   # alone is help
python -m minilm_inf.generate --top-k 5 --sugar 2
python -m minilm_inf.config
```
"""
    assert commands(page)[0] == {"demo", "tea", "test"} and len(commands(page)[1]) == 4
    assert faults(page, ROOT / "README.md") == [
        "make tea", "minilm_inf.generate --sugar", "python -m minilm_inf.config",
        "python -m minilm_inf.brew", "the link pot.md",
    ]  # fmt: skip


README = (ROOT / "README.md").read_text(encoding="utf-8")


def nll_rows(text: str) -> list[str]:
    """The rows of every table of nll by position in a page."""
    tables = re.findall(r"^\| positions \| vanilla .*\n(?:\|.*\n?)+", text, re.MULTILINE)
    return [row.strip() for table in tables for row in table.splitlines()]


def test_the_readme_s_numbers_are_the_cards():
    """A table of an earlier model beside the weights of a later one; a row of the other
    families that an earlier model made."""
    tables = {name: nll_rows((ROOT / "weights" / name / "README.md").read_text("utf-8"))
              for name in ("tiny-llama", "tiny-mpt", "tiny-gptj")}  # fmt: skip
    assert nll_rows(README) == tables.pop("tiny-llama") and len(nll_rows(README)) > 5
    shown = re.findall(r"^\| \[([\w-]+)\]\(weights/\1/README.md\) \| [^|]+ \| (.*) \|$",
                       README, re.MULTILINE)  # fmt: skip
    for (name, numbers), (other, rows) in zip(shown, tables.items(), strict=True):
        assert name == other and rows[-1].startswith("| 8,192 to 16,384 |")
        assert numbers.split(" | ") == [cell.strip() for cell in rows[-1].split("|")[2:5]]


RETRIEVAL, SWEEPS = retrieval.load()
STREAM = json.loads((ROOT / "weights" / "stream-200m.json").read_text(encoding="utf-8"))
MADE = {  # a page of weights/, and what its results make of it
    "diagnosis.md": lambda: diagnosis.page(diagnosis.load()),
    "methods.md": lambda: methods.page(methods.load()),
    "qa.md": lambda: qa.page(*qa.load()),
    "retrieval.md": lambda: retrieval.page(
        RETRIEVAL, SWEEPS, retrieval.COMMANDS, retrieval.NOTE
    ),
    "questions.md": questions.page,
    "README.md": lambda: stream.page(STREAM),
}


@pytest.mark.parametrize("name", MADE)
def test_a_page_is_what_was_measured(name):
    """Tables, curves and sentences that were written by hand, or of an earlier run."""
    assert (ROOT / "weights" / name).read_text(encoding="utf-8") == MADE[name]()


def test_the_numbers_bear_out_what_the_pages_say():
    """A prose that a later run no longer bears out: a factor that is not shown, a middle that
    does not come back, a curve that is not flat, or is another model's."""
    for name, run in diagnosis.load().items():
        one, two, three = (run["factors"][f"factor_{i}"]["numbers"] for i in (1, 2, 3))
        assert run["settings"]["model"] == f"weights/{name}"
        if name != "tiny-mpt":
            assert one["vanilla"] < 1.1 * one["vanilla_within"]
            assert one["vanilla_far"] > 1.25 * one["capped_far"]
            assert two["beyond"] > two["within"] and two["lambda"] - two["within"] < 0.3
        assert (run["factors"]["factor_3"]["verdict"] == "shown") == (name == "smollm2-135m")
        assert three["mass"] > 0.25 or name != "smollm2-135m"
    for name, run in RETRIEVAL.items():
        assert run["settings"]["trials"] >= 50 and run["settings"]["model"] == f"weights/{name}"
        found = {row["where"]: row["accuracy"] for row in run["results"]["by_place"]
                 if row["method"] == "lambda"}  # fmt: skip
        assert found["middle"] == 0 and min(found["starting"], found["window"]) > 0.9, name
    cells = {(cell["length"], cell["depth"]): cell["accuracy"]
             for cell in RETRIEVAL["tiny-mpt"]["results"]["cells"]
             if cell["method"] == "topk"}  # fmt: skip
    for depth in RETRIEVAL["tiny-mpt"]["settings"]["depths"]:
        assert cells[8 * 256, depth] >= 0.9 and cells[64 * 256, depth] >= 0.75
    asked, by_heart = (qa.scored(run) for run in qa.load())
    found = {m: qa.mean(asked, m, "names it")["mean"] for m in ("full", "lambda", "topk")}
    assert found["lambda"] < min(found["full"], found["topk"]) and len(asked) >= 40
    assert qa.mean(by_heart, "full", "names it")["mean"] < 0.05 < found["full"] < 0.5
    assert all(qa.mean(asked, m, "exact match")["mean"] == 0 for m in qa.METHODS)
    early_and_late = STREAM["results"]["early_and_late"]
    assert STREAM["results"]["tokens"] == 200_000_000 and early_and_late["pairs"] > 100_000
    assert abs(early_and_late["difference"]) < 0.05
    weights = ROOT / STREAM["settings"]["model"] / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert STREAM["settings"]["weights_sha256"] == {"model.safetensors": digest}


def test_the_readme_s_tables_are_the_pages():
    """A table of an earlier run, or a share of another place in the text."""
    lines = (ROOT / "weights" / "methods.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| ")][1:9]
    for row in rows:
        label, *_, beyond, cache, keys = [cell.strip("| ") for cell in row]
        beyond = beyond.replace("-", "0") if beyond == "-" else beyond
        assert f"| {label} | {beyond} | {cache} | {keys.partition(' ')[0]} |" in README, label
    assert len(rows) == 8
    for name, run in RETRIEVAL.items():
        places = [row for row in run["results"]["by_place"] if row["where"] == "middle"]
        shares = [f"{row['accuracy']:.1%}" for row in places]
        assert [row["method"] for row in places] == ["full", "truncate", "lambda", "topk"]
        assert f"| {name} | {' | '.join(shares)} |" in README, shares
        assert {f"{row['trials']:,}" for row in places} == {"2,350"}


def make(*arguments: str) -> str:
    """What make prints."""
    command = ["make", "--no-print-directory", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_help_lists_every_target():
    """A target that nobody can find, or a help that went stale."""
    assert {line.split()[0] for line in make("help").splitlines()} == TARGETS
    assert make() == make("help")


def test_what_the_targets_would_run_exists():
    """A Makefile that calls a module or a script that was renamed."""
    printed = make("--dry-run", *sorted(TARGETS - {"help"}))
    indented = "".join(f"    {line}\n" for line in printed.splitlines())
    assert not faults(indented, ROOT / "Makefile")
    for script in re.findall(r"python (\S+\.py)", printed):
        assert (ROOT / script).is_file(), script

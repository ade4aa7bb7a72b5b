"""README.md: every block of code and every command in it is run, in small."""

import json
import re
import shlex
import shutil

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from test_chat import folder, model_folder  # noqa: F401  (fixtures)

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
PROGRAMS = [block for language, block in BLOCKS if language == "python"]
LINES = [
    line.removeprefix("$ ").partition("  #")[0].strip()
    for language, block in BLOCKS
    for line in block.splitlines()
    if language != "python" and re.match(r"(\$ )?(python|make|pip|\.|echo|torchrun) ", line)
]
SHOWN = [block for _, block in BLOCKS if block.startswith("$ ")]
COMMANDS = [  # those whose output is not shown
    line
    for line in LINES
    if re.match("python |echo ", line) and not any(f"$ {line}\n" in b for b in SHOWN)
]
SMALLER = {  # flag -> what it is given here
    "-n": "12", "--length": "600", "--lengths": "1", "--heatmap": "found.png",
    "--out": "run.json", "--resume": "run.json",
}  # fmt: skip
MORE = {  # words of a command -> what is added, so that it takes seconds
    "minilm_inf.generate": ["-n", "12"],
    "passkey": ["--trials", "1", "--depths", "0.5"],
    "recall": ["--trials", "1", "--depths", "0.5", "--lengths", "1"],
    "needles": ["--trials", "1", "--tasks", "single", "--lengths", "1"],
    "--compile": ["-n", "0"],  # compiling itself is in test_compiled.py
}


@pytest.fixture
def place(tmp_path):
    """A folder with what the commands name: weights, a checkpoint of one's own, a book."""
    for name in ("weights", "tutorials"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "weights" / "tiny-llama", tmp_path / "FOLDER")
    words = (ROOT / "tutorials" / "text.txt").read_text(encoding="utf-8")
    mine = next(block for block in PROGRAMS if block.startswith("# mine.py"))
    (tmp_path / "mine.py").write_text(mine, encoding="utf-8")
    (tmp_path / "book.txt").write_text(words[:3000], encoding="utf-8")
    row = {"context": words[:1500], "question": "Who?", "answers": ["Catherine"]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row), encoding="utf-8")
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(words[-9000:], encoding="utf-8")
    return tmp_path


def in_small(words: list[str]) -> list[str]:
    """A command's words, with smaller numbers and texts of its own instead of the corpus."""
    found, skip = [], False
    for word, following in zip(words, [*words[1:], ""]):
        if skip:
            skip = False
        elif word == "--corpus":
            skip = True
        elif word in SMALLER and following:
            found, skip = [*found, word, SMALLER[word]], True
        else:
            found.append(word)
    if "minilm_inf.evaluate" in words and not {"--resume", "--data"} & set(words):
        found += ["--text", "a.txt", "b.txt"]
    for word, more in MORE.items():
        found += more if word in words else []
    return found


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_every_program_runs(program, place, python):
    """Catches an example that a renamed function, or a wrong number, has broken."""
    done = python(["-c", program.replace("500", "20")], place)
    assert done.returncode == 0 and done.stderr == "", done.stderr


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_runs(line, place, model_folder, python):  # noqa: F811
    """Catches a command that ends in an error, or in nothing."""
    if "FILE.gguf" in line:
        pytest.importorskip("gguf", reason="gguf is asked for by this command alone")
        pytest.skip("test_convert.py converts a GGUF of its own")
    piped, _, command = line.rpartition(" | ")  # echo's text, and who reads it
    words = in_small(shlex.split(command)[1:])
    if "--heatmap" in words:
        pytest.importorskip("matplotlib")
    if "--chat" in words:
        words[words.index("-m", 2) + 1] = str(model_folder)
    if words[1] == "minilm_inf.convert" and "--int8" not in words:
        weights = place / "FOLDER" / "model.safetensors"
        torch.save(load_file(weights), place / "FOLDER" / "pytorch_model.bin")
        weights.unlink()
    if "--resume" in words:
        words_of_run = in_small(shlex.split(next(x for x in COMMANDS if "--stream" in x))[1:])
        assert python(words_of_run, place).returncode == 0
    done = python(words, place, stdin=shlex.split(piped)[1] if piped else "Hello\n/exit\n")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stdout or "--resume" in words or "-n 0" in " ".join(words)


def test_all_that_can_be_typed_is_run():
    """Catches a block of which no line is recognised, and a target that does not exist."""
    assert len(PROGRAMS) >= 2 and len(COMMANDS) >= 15 and len(SHOWN) >= 5
    others = {line for line in LINES if not re.match("(python|echo|torchrun) ", line)}
    assert others == {"make demo", "make test", "pip install .", ". .venv/bin/activate"}
    unread = [block for language, block in BLOCKS if language not in ("python", "bibtex")
              and not any(line in block for line in LINES)]  # fmt: skip
    assert len(unread) == 1 and "keys: 0" in unread[0], "the picture of the Λ"


@pytest.mark.parametrize(
    "block",
    [pytest.param(block, marks=pytest.mark.slow) if "--attention full" in block else block
     for block in SHOWN],
    ids=range(len(SHOWN)),
)  # fmt: skip
def test_what_is_shown_is_what_is_printed(block, place, python):
    """Catches an output in the README that the command above it no longer prints, and another
    size of what it saved. A line of three dots stands for any lines."""
    for shown in re.split(r"^\$ ", block, flags=re.M)[1:]:
        line, _, output = shown.partition("\n")
        done = python([*shlex.split(line)[1:], "--device", "cpu"], place)
        pieces = [re.escape(x.strip()) for x in re.split(r"^\.\.\.$", output, flags=re.M)]
        printed = done.stdout.strip()
        assert re.fullmatch(r"[\s\S]*?".join(pieces), printed), printed + done.stderr
    for saved in place.glob("*.context"):
        assert f" {saved.stat().st_size:,} bytes" in README

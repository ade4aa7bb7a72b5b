"""What pip makes of a clone: a package that works in any folder, with its model."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MODEL = ROOT / "weights" / "tiny-llama"


def versions(requirements: list[str]) -> dict[str, list[int]]:
    """Package -> its version, of lines such as numpy==2.4.6 or numpy>=2.0."""
    found = (re.fullmatch(r"(\w+)[=>]=([\d.]+)", line).groups() for line in requirements)
    return {name: [int(part) for part in version.split(".")] for name, version in found}


def test_the_oldest_versions_are_not_newer_than_the_tested():
    """Catches a package that a clone installs and a wheel lacks, or a bound that nothing of the
    tested set meets."""
    tested = versions((ROOT / "requirements.txt").read_text().split())
    project = PROJECT["project"]
    oldest = versions(project["dependencies"] + project["optional-dependencies"]["test"])
    assert oldest.keys() == tested.keys()
    assert all(oldest[name] <= tested[name] for name in oldest)
    assert versions(project["dependencies"]).keys() == oldest.keys() - {"pytest"}


@pytest.mark.slow
def test_a_wheel_has_all_that_another_folder_needs(tmp_path):
    """Catches a room, or the model, that is left out of the package, and a program that finds
    its model in a clone only."""
    clone, other = tmp_path / "clone", tmp_path / "other"
    for folder in ("minilm_inf", MODEL.relative_to(ROOT)):
        shutil.copytree(ROOT / folder, clone / folder, ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    made = subprocess.run([*pip, "-w", tmp_path, clone], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    [wheel] = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(other)
    names = {str(path.relative_to(ROOT)) for path in (ROOT / "minilm_inf").rglob("*.py")}
    names |= {"minilm_inf/evaluate/prompts.json"}
    names |= {f"minilm_inf/tiny_llama/{path.name}" for path in MODEL.iterdir()}
    packed = {str(path.relative_to(other)) for path in other.glob("minilm_inf/**/*.*")}
    assert packed == names

    program = "from minilm_inf import attend; print(attend.__module__)"
    for arguments in (["-c", program], ["-m", "minilm_inf.generate", "-n", "3", "-q"]):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(other)},
        )  # fmt: skip
        assert done.returncode == 0 and done.stdout and not done.stderr, done.stderr

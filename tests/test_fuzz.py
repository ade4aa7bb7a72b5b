"""300 cases of fuzz.py, or as many as --fuzz says: `make fuzz` asks for 20,000."""

from __future__ import annotations

import os
from pathlib import Path

import fuzz
import pytest
from fuzz import FAULTS, KINDS, judged
from fuzz_draw import Refused, Wrong


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_goes_wrong(kind, request):
    """Catches a traceback, a hang, an execution, a file outside of its folder, a Python word or
    a long echo in a sentence, and two paths of attention that disagree."""
    cases = request.config.getoption("--fuzz") // len(KINDS)
    verdicts = [judged(kind, number) for number in range(cases)]
    wrong = [f"{number}: {v}" for number, v in enumerate(verdicts) if v.outcome in FAULTS]
    assert any(v.outcome == "clean" for v in verdicts), (
        "nothing was right before it was spoiled"
    )
    assert not wrong, f"python tests/fuzz.py --kind {kind} --number " + "\n".join(wrong)


def spin():
    while True:
        pass


def say(error: Exception):
    raise error


FAULTY = [  # how the judge must find it -> a case
    ("traceback", lambda: {}["a"]),
    ("hang", spin),
    ("outside", lambda: os.system("touch ../canary")),
    ("outside", lambda: Path("../../x").write_text("x")),
    ("wrong", lambda: say(Wrong("the two disagree"))),
    ("clean", lambda: Path("x").write_text("x")),
    ("sentence", lambda: say(Refused("error: m is no folder: give the model's"))),
    *(("words", lambda text=text: say(Refused(text)))
      for text in ("KeyError: 'a'", "", "a\nb", "x" * 1000, "a: " + "long " * 50, "NoneType")),
    ("words", lambda: int("a")),
]  # fmt: skip


@pytest.mark.parametrize("outcome, case", FAULTY)
def test_the_judge_sees(outcome, case, monkeypatch):
    """Catches a judge that lets everything pass, or nothing."""
    monkeypatch.setitem(KINDS, "faulty", lambda rng: ("", case))
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    assert judged("faulty", 0).outcome == outcome

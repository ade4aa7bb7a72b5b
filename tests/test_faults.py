"""Faults at any moment: signals before the work begins and after it has ended, and kills."""

import os
import random
import signal
import subprocess
import sys

import kills
import pytest
from conftest import ROOT

from minilm_inf.terminal import ending


@pytest.mark.parametrize(
    "name", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_while_the_program_is_imported(name):
    """A traceback of an import that somebody's Ctrl-C cut short."""
    program = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "minilm_inf.inspect", "nowhere"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        for line in program.stderr:
            if b" torch._" in line:  # in the middle of PyTorch
                break
        program.send_signal(name)
        _, err = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == 128 + name and err.endswith(b"\nstopped\n")
    assert b"Traceback" not in err


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_two_signals_are_one(name, capsys, monkeypatch):
    """A traceback after a second Ctrl-C; a handler that outlives its program."""
    say, before = ending.say, signal.getsignal(name)
    monkeypatch.setattr(ending, "say", lambda text: (signal.raise_signal(name), say(text)))
    assert ending.guarded(lambda: signal.raise_signal(name)) == 128 + name
    assert capsys.readouterr().err == "\nstopped\n" and signal.getsignal(name) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stream", "convert"])
def test_kills(kind, capfd):
    """Half a file, or a last bit that differs; make kills has more of them."""
    assert kills.hold(kind, 2, random.Random(0))
    assert "differing: 0" in capfd.readouterr().out

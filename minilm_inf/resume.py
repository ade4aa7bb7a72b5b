"""A long run that can be interrupted at any moment: by Ctrl-C, SIGTERM or kill -9.

Its state lies in one safetensors file beside the run's result, RESULT.state, and is replaced as
a whole, every minute and when a signal asks the run to stop. There is a state from the first
moment on, and none any more once the result is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


def state_path(out: Path) -> Path:
    """Where the state of the run that writes `out` lies."""
    return out.parent / (out.name + ".state")


def part_path(out: Path) -> Path:
    """The folder in which a state is written, and which is there only meanwhile."""
    return out.parent / (out.name + ".state.part")


def check_free(out: Path):
    """Make the folder of `out`. Raises ValueError where an unfinished run has the name."""
    if out.is_dir():
        raise ValueError(f"{out} is a folder: give the name of a file to write")
    if state_path(out).exists():
        raise ValueError(
            f"{state_path(out)} holds a run that was stopped: --resume {out}, or delete it"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out.parent} cannot be made: {error.strerror}") from error


def begun(options, given):
    """How a task begins that --out saves and --resume goes on with: (facts of the saved state
    or None, the run's flags, its --out); None where there is nothing left to do.

    given: a function of the flags that a state holds, and of --out, that makes them options.
    Raises ValueError as check_free and read_facts do.
    """
    out = options.resume or options.out
    if options.resume is None:
        if out is not None:
            check_free(out)
        return None, options, out
    if out.is_file() and not state_path(out).exists():
        print(f"{out} is finished: there is nothing to resume", file=sys.stderr)
        return None
    facts = read_facts(out)
    return facts, given(facts.get("flags"), out), out


def save_state(out: Path, tensors: dict[str, torch.Tensor], facts: dict):
    """Write a state, or nothing. Raises ValueError where it cannot be written.

    It is written in a folder of its own and moved: safetensors writes beside its file under a
    random name, which a killed run would leave behind where nobody finds it.
    """
    path, folder = state_path(out), part_path(out)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        save_file(tensors, folder / path.name, metadata={"run": json.dumps(facts)})
        os.replace(folder / path.name, path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be written: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_facts(out: Path) -> dict:
    """The facts of a state. Raises ValueError where there is none, or none that can be read."""
    with opened(out) as state:
        facts = json.loads(state.metadata()["run"])
        if not isinstance(facts, dict):
            raise TypeError("the facts of a state are an object")
        return facts


def read_tensors(out: Path) -> dict[str, torch.Tensor]:
    """The tensors of a state, each in memory of its own, as the run had them: a kernel's last
    bits may depend on how its numbers lie in memory, and those of a file lie anywhere."""
    with opened(out) as state:
        names = list(state.keys())
        return {name: state.get_tensor(name).clone() for name in names}


@contextlib.contextmanager
def opened(out: Path):
    """An open state; whatever goes wrong with it is a ValueError that says what to do."""
    path = state_path(out)
    if not path.exists():
        raise ValueError(f"there is no {path} to resume: start a run with --out {out}")
    try:
        with safe_open(path, framework="pt") as state:
            yield state
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a readable state: delete it and start again"
        ) from error


def remove_state(out: Path):
    """The run is finished: nothing is left to resume."""
    state_path(out).unlink(missing_ok=True)
    shutil.rmtree(part_path(out), ignore_errors=True)


@contextlib.contextmanager
def signals_noted():
    """Within it, Ctrl-C and SIGTERM stop nothing, but enter the list that it gives."""
    came: list[int] = []
    names = (signal.SIGINT, signal.SIGTERM)
    before = {
        name: signal.signal(name, lambda number, _: came.append(number)) for name in names
    }
    try:
        yield came
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def drive(run, out: Path | None, facts: dict, save_every: float, report) -> bool:
    """Take steps until the run is done; False where a signal ended it earlier.

    run: has step(), is_done and state(); its state is saved for `out`, with `facts` beside its
    own, before the first step, every save_every seconds, and when a signal came.
    report: called after every step.
    """

    def save():
        if out is not None:
            tensors, own = run.state()
            save_state(out, tensors, {**facts, "at": own})

    with signals_noted() as came:
        save()
        saved = time.monotonic()
        while not run.is_done:
            run.step()
            report()
            if came and not run.is_done:
                save()
                return False
            if time.monotonic() - saved >= save_every:
                save()
                saved = time.monotonic()
    return True

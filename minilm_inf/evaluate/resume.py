"""A long run that can be interrupted at any moment: by Ctrl-C, SIGTERM or kill -9.

Its state lies in one safetensors file beside the run's result, RESULT.state, and is replaced as
a whole, every minute and when a signal asks the run to stop. There is a state from the first
moment on, and none any more once the result is written. It carries a SHA-256 of all that it
holds, which tells whether a disk or a person changed it. That is no secret, so whoever restores
a state checks what it finds there as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..checkpoint.tensor_file import as_bytes, write_tensors
from ..terminal import options as flags
from ..terminal.files import PICTURE, RESULT, outputs, parse_object, shown


def state_path(out: Path) -> Path:
    """Where the state of the run that writes `out` lies."""
    return out.parent / (out.name + ".state")


@contextlib.contextmanager
def begun(options) -> Iterator[tuple | None]:
    """How a task begins that --out saves and --resume goes on with: (facts of the saved state
    or None, the run's flags, its --out); None where there is nothing left to do. No other run
    has the names of its files meanwhile.

    Raises ValueError where such a name is taken, or the state is none.
    """
    if options.resume is None:
        with outputs(flags.inputs(options), out=(options.out, RESULT), **drawn(options)):
            if options.out and state_path(options.out).exists():
                raise ValueError(
                    f"{state_path(options.out)} holds a run that was stopped: --resume "
                    f"{options.out}, or delete it"
                )
            yield None, options, options.out
        return
    out, path = options.resume, state_path(options.resume)
    with outputs((), resume=(out, RESULT)):
        if out.is_file() and not path.exists():
            print(f"{out} is finished: there is nothing to resume", file=sys.stderr)
            yield None
            return
        if not path.is_file():
            raise ValueError(f"there is no {path} to resume: start a run with --out {out}")
        facts = read_facts(path)
        options = as_begun(facts, options, path)
        with outputs(flags.inputs(options), **drawn(options)):
            yield facts, options, out


def drawn(options) -> dict:
    """What a task draws besides its --out, as files.outputs takes it."""
    return {"heatmap": (getattr(options, "heatmap", None), PICTURE)}


def kept_flags(options) -> dict:
    """A run's flags as a state holds them: its command line, and what was left to this machine
    to choose."""
    return {
        "arguments": [options.task, *options.given],
        "device": str(flags.device(options.device)), "threads": torch.get_num_threads(),
    }  # fmt: skip


def as_begun(facts: dict, options, path: Path):
    """The flags that a run began with, read as those of a command line are. Raises ValueError
    where its state holds no such flags, or those of another task."""
    kept = facts.get("flags")
    kept = kept if isinstance(kept, dict) else {}
    line = kept.get("arguments")
    if not isinstance(line, list) or not all(isinstance(word, str) for word in line):
        raise ValueError(f"{path} is of another program or version: delete it and start again")
    if line[:1] != [options.task]:
        task = shown(line[0] if line else "")
        raise ValueError(f"{path} is of the task {task}: --resume it there")
    line = [*line, f"--device={kept.get('device')}", f"--threads={kept.get('threads')}"]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return options.parse(line)
    except SystemExit as error:
        raise ValueError(
            f"{path} holds flags that make no sense: delete it and start again"
        ) from error


# ---- a state


def save_state(out: Path, tensors: dict[str, torch.Tensor], facts: dict):
    """Write the state of the run that writes `out`, or nothing. Raises ValueError where it
    cannot be written."""
    write_state(state_path(out), tensors, facts)


def write_state(path: Path, tensors: dict[str, torch.Tensor], facts: dict):
    """Write a state, or nothing. Raises ValueError where it cannot be written."""
    whole = {**facts, "sha256": checksum(facts, tensors.items())}
    write_tensors(path, tensors, {"run": json.dumps(whole)})


def checksum(facts: dict, tensors) -> str:
    """The SHA-256 of a state's facts and of its tensors, (name, tensor) each."""
    found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, x in sorted(tensors, key=lambda pair: pair[0]):
        found.update(json.dumps([name, str(x.dtype), list(x.shape)]).encode())
        found.update(as_bytes(x))
    return found.hexdigest()


def read_facts(path: Path) -> dict:
    """The facts of a state. Raises ValueError where it is none, or not as it was written."""
    with opened(path) as state:
        try:
            facts = parse_object((state.metadata() or {})["run"].encode())
            told = facts.pop("sha256")
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{path} is no state of this version of the program: delete it and start again"
            ) from error
        tensors = ((name, state.get_tensor(name)) for name in sorted(state.keys()))
        if checksum(facts, tensors) != told:
            raise ValueError(
                f"{path} was edited or damaged, as its SHA-256 tells: delete it and start again"
            )
    return facts


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a state, whose numbers stay in the file until they are asked for."""
    with opened(path) as state:
        return {name: state.get_tensor(name) for name in state.keys()}  # noqa: SIM118


@contextlib.contextmanager
def opened(path: Path):
    """An open state. Raises ValueError where the file is none."""
    try:
        with safe_open(path, framework="pt") as state:
            yield state
    except (SafetensorError, OSError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is no whole state: delete it and start again") from error


def not_whole(path: Path) -> ValueError:
    """What is said of a state that holds other things than a run of these flags saves."""
    return ValueError(f"{path} is not a whole state of this run: delete it and start again")


def remove_state(out: Path):
    """The run is finished: nothing is left to resume."""
    state_path(out).unlink(missing_ok=True)


# ---- a run


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


def drive(run, out: Path | None, facts: dict, save_every: float, report) -> int:
    """Take steps until the run is done: 0; or the exit code of the signal that ended it.

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
                return 128 + came[0]
            if time.monotonic() - saved >= save_every:
                save()
                saved = time.monotonic()
    return 0

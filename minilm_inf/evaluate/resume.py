"""A long run that can be interrupted at any moment: by Ctrl-C, SIGTERM or kill -9.

Its state lies beside the run's result, RESULT.state, from the first moment on until the result
is written. It holds all that was measured, the command line that began the run, and the
settings that its numbers depend on.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.run_state import not_whole, read_state, write_state
from ..checkpoint.shards import find_tensors
from ..terminal import options as flags
from ..terminal.checks import fitting
from ..terminal.ending import signals_noted
from ..terminal.files import PICTURE, RESULT, check_output, shown, sweep, write_beside
from ..terminal.progress import Progress
from ..terminal.tables import as_json


class Run:
    """What a task measures, a step at a time; each task says how.

    settings: all that the numbers depend on. total, done: tokens to be read, and those that
    were. step() measures some more. arrays(): what holds all that was measured, by name.
    """

    settings: dict

    @property
    def is_done(self) -> bool:
        return self.done == self.total

    def state(self) -> dict[str, Tensor]:
        """All that restore needs."""
        return {name: torch.from_numpy(array) for name, array in self.arrays().items()}

    def restore(self, tensors: dict[str, Tensor]):
        """Go on where another run of the same settings was. Raises ValueError for what is no
        state of such a run."""
        for name, array in self.arrays().items():
            place = torch.from_numpy(array)
            place.copy_(fitting(tensors.pop(name, None), place.shape, place.dtype))
        if tensors:
            raise ValueError(f"this run has no {next(iter(tensors))}")


def carry_out(task, options) -> int:
    """A task, from its flags to its result: 0, or the exit code of the signal that ended it.

    task: a module with prepared(options) -> Run; result(run): what was measured, for JSON,
    under "results", and under "timing" what differs from run to run; words(result), the same
    for readers; and, where --figure asks for it, picture(result) -> bytes.
    """
    facts, tensors, out = {}, {}, options.resume or options.out
    check_output(out, RESULT)
    if options.resume:
        if out.is_file() and not state_path(out).exists():
            print(f"{out} is finished: there is nothing to resume", file=sys.stderr)
            return 0
        if not state_path(out).is_file():
            raise ValueError(f"there is no {state_path(out)}: start a run with --out {out}")
        facts, tensors = read_state(state_path(out))
        if facts["line"][0] != options.task:
            told = shown(facts["line"][0])
            raise ValueError(f"{out} is a run of the task {told}: --resume it there")
        options = options.parse(facts["line"])
        options.out = out
    elif out and state_path(out).exists():
        raise ValueError(f"{out} was stopped: --resume it, or delete {state_path(out)}")
    if options.figure and not flags.can_draw():
        raise ValueError("--figure draws with matplotlib: install it, or leave out --figure")
    check_output(options.figure, PICTURE, "--figure")
    run = task.prepared(options)
    run.settings = json.loads(as_json(run.settings))
    if tensors:
        changed = [name for name, x in run.settings.items() if facts["settings"].get(name) != x]
        if changed:
            raise ValueError(f"the run began with another {', '.join(changed)}: put it back")
        try:
            run.restore(tensors)
        except ValueError as error:
            raise not_whole(state_path(out)) from error
    code = drive(run, options)
    if code:
        onward = f"go on with --resume {out}" if out else "nothing was saved: there is no --out"
        print(f"stopped after {run.done:,} of {run.total:,} tokens; {onward}", file=sys.stderr)
    else:
        publish(task, run, options)
    return code


def state_path(out: Path) -> Path:
    """Where the state of the run that writes `out` lies."""
    return out.parent / (out.name + ".state")


def drive(run: Run, options) -> int:
    """Take steps until a run is done: 0; or the exit code of the signal that ended it.

    Its state is saved before the first step, every --save-every seconds, and when a signal
    came. What was left to this machine to choose is saved with its command line.
    """
    machine = f"--device={flags.device(options.device)}", f"--threads={torch.get_num_threads()}"
    facts = {"line": [options.task, *options.given, *machine], "settings": run.settings}

    def save():
        if options.out:
            write_state(state_path(options.out), run.state(), facts)
        return time.monotonic()

    with signals_noted() as came:
        saved = save()
        for _ in steps(run):
            if came and not run.is_done:
                save()
                return 128 + came[0]
            if time.monotonic() - saved >= options.save_every:
                saved = save()
    return 0


def steps(run: Run):
    """Take a run to its end, with progress on stderr: yields after every step."""
    progress = Progress(run.total, run.done)
    try:
        while not run.is_done:
            run.step()
            progress.show(run.done, "", now=run.is_done)
            yield
    finally:
        progress.end()


def publish(task, run: Run, options):
    """Write and print what was measured, and then draw it."""
    result = {"task": options.task, "settings": run.settings, **task.result(run)}
    try:
        if options.out:
            write_beside(options.out, (as_json(result) + "\n").encode())
    finally:
        print(as_json(result) if options.json else task.words(result), flush=True)
    if options.figure:
        write_beside(options.figure, task.picture(result))
    if options.out:
        state_path(options.out).unlink(missing_ok=True)
        sweep(state_path(options.out))


# ---- what the numbers depend on


def model_facts(options, model) -> dict:
    """What the numbers of any task depend on, but for the text."""
    paths = sorted({stored.path for stored in find_tensors(options.model).values()})
    return {
        "model": options.model.as_posix(),
        "weights_sha256": {path.name: sha256_of(path) for path in paths},
        "config_sha256": sha256_of(options.model / "config.json"),
        "device": str(model.embed.weight.device),
        "dtype": str(model.embed.weight.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

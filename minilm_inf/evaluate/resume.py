"""A long run that can be interrupted at any moment: by Ctrl-C, SIGTERM or kill -9.

Its state lies beside the run's result, RESULT.state, and is saved every minute and when a
signal asks the run to stop. There is a state from the first moment on, and none any more once
the result is written. It holds the run's tensors, the command line that began it, and the
settings that its numbers depend on.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ..checkpoint.run_state import not_whole, read_state, write_state
from ..checkpoint.shards import find_tensors
from ..checks import fitting
from ..terminal import options as flags
from ..terminal.ending import signals_noted
from ..terminal.files import PICTURE, RESULT, check_outputs, shown, sweep, write_beside
from ..terminal.progress import Progress
from ..terminal.tables import as_json

WORDS = {"weights_sha256": "weights", "config_sha256": "config.json", "ids_sha256": "text"}


def carry_out(options, prepared, result_of) -> int:
    """A task that --out saves and --resume goes on with, from its flags to its result: 0, or
    the exit code of the signal that ended it.

    prepared(options) -> (run, settings): a run has step(), is_done, done and total, fact(),
        state() and restore(tensors); settings are all that its numbers depend on.
    result_of(options, run, settings) -> (result, words, draw): for JSON, and for readers;
        draw() draws what the flags ask for, once all is written and printed.
    """
    start = begun(options)
    if start is None:
        return 0
    state, options, out = start
    run, settings = prepared(options)
    if state is not None:
        facts, tensors = state
        check_same(settings, facts.get("settings"))
        try:
            run.restore(tensors)
        except ValueError as error:
            raise not_whole(state_path(out)) from error
    code = drive(run, out, {"line": kept_line(options), "settings": settings}, options)
    if code:
        onward = f"go on with --resume {out}"
        onward = onward if out else "nothing was saved: there is no --out"
        stopped = f"stopped after {run.done:,} of {run.total:,} tokens"
        print(f"{stopped}; {onward}", file=sys.stderr)
        return code
    result, words, draw = result_of(options, run, settings)
    try:
        if out is not None:
            write_beside(out, (as_json(result) + "\n").encode())
    finally:
        print(as_json(result) if options.json else words, flush=True)
    draw()
    if out is not None:
        state_path(out).unlink(missing_ok=True)
        sweep(state_path(out))
    return 0


def state_path(out: Path) -> Path:
    """Where the state of the run that writes `out` lies."""
    return out.parent / (out.name + ".state")


def begun(options) -> tuple | None:
    """How a run begins: (the saved state or None, the run's flags, its --out); None where
    there is nothing left to do. Raises ValueError where such a name is taken, or the state is
    none."""
    out, state = options.resume or options.out, None
    path = out and state_path(out)
    if options.resume:
        check_outputs(resume=(out, RESULT))
        if out.is_file() and not path.exists():
            print(f"{out} is finished: there is nothing to resume", file=sys.stderr)
            return None
        if not path.is_file():
            raise ValueError(f"there is no {path} to resume: start a run with --out {out}")
        state = read_state(path)
        options = as_begun(state[0].get("line"), options, path)
    drawn = getattr(options, "heatmap", None), PICTURE
    check_outputs(heatmap=drawn, out=(out, RESULT))
    if out and path.exists() and state is None:
        raise ValueError(f"{path} holds a run that was stopped: --resume {out}, or delete it")
    return state, options, out


def kept_line(options) -> list[str]:
    """A run's command line, with what was left to this machine to choose."""
    chosen = f"--device={flags.device(options.device)}", f"--threads={torch.get_num_threads()}"
    return [options.task, *options.given, *chosen]


def as_begun(line, options, path: Path):
    """The flags that a run began with, read as those of a command line are. Raises ValueError
    where its state holds no such flags, or those of another task."""
    if not isinstance(line, list) or not all(isinstance(word, str) for word in line):
        raise not_whole(path)
    if line[:1] != [options.task]:
        task = shown(line[0] if line else "")
        raise ValueError(f"{path} is of the task {task}: --resume it there")
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return options.parse(line)
    except SystemExit as error:
        raise not_whole(path) from error


# ---- what the numbers depend on


def model_facts(options, model) -> dict:
    """What the numbers of any task depend on, as JSON gives it back."""
    paths = sorted({stored.path for stored in find_tensors(Path(options.model)).values()})
    return {
        "model": str(options.model),
        "weights_sha256": {path.name: sha256_of(path) for path in paths},
        "config_sha256": sha256_of(options.model / "config.json"),
        "device": str(model.embed.weight.device),
        "dtype": str(model.embed.weight.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_same(settings: dict, before):
    """Raise ValueError where the run that is to go on would read, or be, another one."""
    before = before if isinstance(before, dict) else {}
    changed = {name for name in settings if settings[name] != before.get(name)}
    if "torch" in changed:
        print(
            f"the run began with PyTorch {shown(before.get('torch'))} and goes on with "
            f"{settings['torch']}: the last bits may differ",
            file=sys.stderr,
        )
    if changed - {"torch"}:
        named = ", ".join(WORDS.get(name, name) for name in sorted(changed - {"torch"}))
        raise ValueError(
            f"the run began with another {named}: put back what was there, or delete its state "
            "and start again"
        )


def put_back(arrays: dict[str, np.ndarray], tensors: dict[str, torch.Tensor]):
    """Fill arrays with what a state holds under their names, and no longer holds then. Raises
    ValueError where it has nothing of that kind."""
    for name, array in arrays.items():
        place = torch.from_numpy(array)
        new = fitting(tensors.pop(name, None), place.shape, place.dtype)
        if not new.isfinite().all():
            raise ValueError(f"{name} holds what is no number")
        place.copy_(new)


# ---- a run


def drive(run, out: Path | None, facts: dict, options) -> int:
    """Take steps until a run is done: 0; or the exit code of the signal that ended it.

    Its state, with these facts, is saved for `out` before the first step, every
    --save-every seconds, and when a signal came.
    """

    def save():
        if out is not None:
            write_state(state_path(out), run.state(), facts)

    progress = Progress(run.total, run.done)
    try:
        with signals_noted() as came:
            save()
            saved = time.monotonic()
            while not run.is_done:
                run.step()
                progress.show(run.done, run.fact(), now=run.is_done)
                if came and not run.is_done:
                    save()
                    return 128 + came[0]
                if time.monotonic() - saved >= options.save_every:
                    save()
                    saved = time.monotonic()
        return 0
    finally:
        progress.end()

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

from ..checkpoint.checkpoint import dtype_name
from ..checkpoint.run_state import read_state, write_state
from ..terminal import options as flags
from ..terminal.checks import fitting
from ..terminal.ending import signals_noted
from ..terminal.files import PICTURE, RESULT, check_output, sweep, write_beside
from ..terminal.progress import Progress
from ..terminal.tables import as_json
from ..transformer import Transformer
from .documents import texts_of
from .qa_data import read as questions


class Run:
    """What a task measures, a step at a time; each task says how.

    settings: all that the numbers depend on. total, done: tokens to be read, and those that
    were. step() measures some more. arrays(): what holds all that was measured, by name.
    """

    model: Transformer
    settings: dict

    def state(self) -> dict[str, Tensor]:
        """All that restore needs."""
        return {name: torch.from_numpy(array) for name, array in self.arrays().items()}

    def restore(self, tensors: dict[str, Tensor]):
        """Continue from where another run of the same settings was. Raises ValueError for what
        is no state of such a run."""
        for name, array in self.arrays().items():
            place = torch.from_numpy(array)
            place.copy_(fitting(tensors.pop(name, None), place.shape, place.dtype))
        if tensors:
            raise ValueError(f"this run has no {next(iter(tensors))}")


def carry_out(options) -> int:
    """A task, from its flags to its result: 0, or the exit code of the signal that ended it.

    options.room: a module with prepared(options, texts, model, tokenizer) -> Run; result(run):
    what was measured, for JSON, under "results", and under "timing" what differs from run to
    run; words(result), the same for readers; and, for --figure, picture(result) -> bytes.
    """
    before, out = None, options.resume or options.out
    state = out and state_path(out)
    check_output(out, RESULT)
    if options.resume:
        if not state.exists() and out.is_file():
            print(f"{out} is finished: there is nothing to resume", file=sys.stderr)
            return 0
        if not state.is_file():
            raise ValueError(f"there is no {state}: start a run with --out {out}")
        before = read_state(state)
        options = options.parse(before[0]["line"])
        options.out = out
    elif out and state.exists():
        raise ValueError(f"{out} was stopped: --resume it, or delete {state}")
    if options.figure and not flags.can_draw():
        raise ValueError("--figure draws with matplotlib: install it, or leave out --figure")
    check_output(options.figure, PICTURE, "--figure")
    texts = questions(options.data) if options.data else texts_of(options)
    run = options.room.prepared(options, texts, *flags.load(options))
    run.settings = json.loads(as_json(facts_of(options, run.model) | run.settings))
    if before:
        go_on(run, *before, state)
    code = drive(run, options)
    if code:
        onward = f"go on with --resume {out}" if out else "nothing was saved: there is no --out"
        print(f"stopped after {run.done:,} of {run.total:,} tokens; {onward}", file=sys.stderr)
    else:
        publish(run, options)
    return code


def state_path(out: Path) -> Path:
    """Where the state of the run that writes `out` lies."""
    return out.parent / (out.name + ".state")


def go_on(run: Run, facts: dict, tensors: dict[str, Tensor], path: Path):
    """Take a run to where a state of it was. Raises ValueError for a state of another one."""
    changed = [name for name, x in run.settings.items() if facts["settings"].get(name) != x]
    if changed:
        raise ValueError(f"the run began with another {', '.join(changed)}: put it back")
    try:
        run.restore(tensors)
    except ValueError as error:
        raise ValueError(
            f"{path} is not a whole state of this run: delete it and start again"
        ) from error


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
        for is_done in steps(run):
            if came and not is_done:
                save()
                return 128 + came[0]
            if time.monotonic() - saved >= options.save_every:
                saved = save()
    return 0


def steps(run: Run):
    """Take a run to its end, with progress on stderr: yields after every step whether it is
    there."""
    progress = Progress(run.total, run.done)
    try:
        while run.done < run.total:
            run.step()
            is_done = run.done == run.total
            progress.show(run.done, "", now=is_done)
            yield is_done
    finally:
        progress.end()


def publish(run: Run, options):
    """Write and print what was measured, and then draw it."""
    task = options.room
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


def facts_of(options, model) -> dict:
    """What the numbers of any task depend on, besides what it asks."""
    kinds, digests = (".safetensors", ".json", ".model", ".txt"), {}
    for path in sorted(options.model.iterdir()):
        if path.suffix in kinds and path.is_file():
            with open(path, "rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "model": options.model.as_posix(), "weights_sha256": digests,
        "device": str(model.embed.weight.device),
        "dtype": dtype_name(model),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "corpus": options.corpus and str(options.corpus), "chunk": options.chunk,
        "text": options.text and list(map(str, options.text)),
    }  # fmt: skip

"""A long run that can be interrupted at any moment: by Ctrl-C, SIGTERM or kill -9.

Its state lies beside the run's result, RESULT.state, from the first moment on until the result
is written. It holds all that was measured, the command line that began the run, and the
settings that its numbers depend on. Of several processes (see shares.py) each has its own,
RESULT.state-1-of-2; in the end they join what they measured, and the first writes the result.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.checkpoint import dtype_name
from ..checkpoint.run_state import read_state, write_state
from ..terminal import options as flags
from ..terminal.checks import fitting
from ..terminal.ending import handled, signals_noted
from ..terminal.files import PICTURE, RESULT, check_output, sweep, write_beside
from ..terminal.progress import Progress
from ..terminal.tables import as_json
from ..transformer import Transformer
from .documents import texts_of
from .qa_data import read as questions
from .shares import ALONE, Share, joined

# What comes with the flags, or is one of them, and changes no number.
UNTOLD = {"room", "parse", "given", "task", "plan", "resume", "out", "save_every", "json",
          "figure"}  # fmt: skip


class Run:
    """What a task measures, a step at a time; each task says how.

    settings: all that the numbers depend on. total, done: tokens to be read, and those that
    were. step() measures some more. arrays: what holds all that was measured, by name.
    divided: arrays, (.., n, ..), of whose n things each process measures a share, and what
    stands in the place of the others': less than whatever is measured. how: SUM or MAX, what
    joins the arrays of all processes.
    """

    model: Transformer
    settings: dict
    arrays: dict[str, np.ndarray]
    divided: list[tuple[np.ndarray, float]]
    how = "MAX"

    def take(self, share: Share):
        """Leave to other processes what is theirs: it counts as known."""
        for array, less in self.divided:
            own = share.of(array.shape[1])
            array[:, : own.start] = array[:, own.stop :] = less

    def state(self) -> dict[str, Tensor]:
        """All that restore needs."""
        return {name: torch.from_numpy(array) for name, array in self.arrays.items()}

    def restore(self, tensors: dict[str, Tensor]):
        """Continue from where another run of the same settings was. Raises ValueError for what
        is no state of such a run."""
        for name, array in self.arrays.items():
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
    out, share = options.resume or options.out, joined()
    check_output(out, RESULT)
    before = earlier(options, out, share) if out else None
    if options.resume:
        if not before:
            print(f"{out} is finished: there is nothing to resume", file=sys.stderr)
            return 0
        options = options.parse(before[0]["line"])
        options.out = out
    if options.figure and not flags.can_draw():
        raise ValueError("--figure draws with matplotlib: install it, or leave out --figure")
    check_output(options.figure, PICTURE, "--figure")
    texts = questions(options.data) if options.data else texts_of(options)
    run = options.room.prepared(options, texts, *flags.load(options))
    told = facts_of(options, run.model, texts) | run.settings | {"processes": share.count}
    run.settings = json.loads(as_json(told))
    run.take(share)
    if before:
        go_on(run, *before, state_path(out, share))
    code = drive(run, options, share)
    if code and not share.rank:
        onward = f"go on with --resume {out}" if out else "nothing was saved: there is no --out"
        print(f"stopped after {run.done:,} of {run.total:,} tokens; {onward}", file=sys.stderr)
    if code:
        return code
    if not share.rank:
        publish(run, options)
    share.join(np.zeros(1), "MAX")  # a state lasts until the first has written
    if out:
        state_path(out, share).unlink(missing_ok=True)
        sweep(state_path(out, share))
    return 0


def state_path(out: Path, share: Share = ALONE) -> Path:
    """Where the state of the run that writes `out` lies, or of one process of it."""
    which = f"-{share.rank + 1}-of-{share.count}" if share.count > 1 else ""
    return out.parent / f"{out.name}.state{which}"


def earlier(options, out: Path, share: Share) -> tuple[dict, dict[str, Tensor]] | None:
    """The state to go on from; None for a run that begins, and for one that has ended. Raises
    ValueError where there is none, or one that neither the user nor torchrun asks for."""
    state, found = state_path(out, share), [*out.parent.glob(glob.escape(out.name) + ".state*")]
    is_again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    is_whole = share.join(np.array([int(state in found)]), "MIN").all()
    if found and not (options.resume or is_again):
        raise ValueError(f"{out} was stopped: --resume it, or delete {found[0]}")
    if options.resume and not is_whole and (found or not out.is_file()):
        raise ValueError(
            f"there is no {state}: start a run with --out {out}, or resume it by as many "
            "processes as began it"
        )
    return read_state(state) if is_whole else None


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


def drive(run: Run, options, share: Share) -> int:
    """Take steps until all shares of a run are done, and join them: 0; or the exit code of the
    signal that ended it.

    Its state is saved before the first step, every --save-every seconds, and when a signal
    came. What was left to this machine to choose is saved with its command line.
    """
    machine = f"--device={flags.device(options.device)}", f"--threads={torch.get_num_threads()}"
    facts = {"line": [options.task, *options.given, *machine], "settings": run.settings}

    def save():
        if options.out:
            write_state(state_path(options.out, share), run.state(), facts)
        return time.monotonic()

    with signals_noted() as came:
        saved = save()
        for is_done in steps(run, share):
            if came and not is_done:
                save()
                return 128 + came[0]
            if time.monotonic() - saved >= options.save_every:
                saved = save()
    if share.count > 1:
        save()
        with handled(signal.SIG_DFL):  # who waits for others would hear no other
            for array in run.arrays.values():
                share.join(array, run.how)
    return 0


def steps(run: Run, share: Share = ALONE):
    """Take a run to its end, with the first process's progress on stderr: yields after every
    step whether it is there."""
    progress = Progress(run.total, run.done)
    try:
        while run.done < run.total:
            run.step()
            is_done = run.done == run.total
            if not share.rank:
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


def facts_of(options, model, texts) -> dict:
    """What the numbers of any task depend on: the flags, what was read, and the machine."""
    kinds, digests = (".safetensors", ".json", ".model", ".txt"), {}
    for path in sorted(options.model.iterdir()):
        if path.suffix in kinds and path.is_file():
            with open(path, "rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    asked = {name: value for name, value in vars(options).items() if name not in UNTOLD}
    return asked | {
        "weights_sha256": digests,
        "texts_sha256": hashlib.sha256(as_json(texts).encode()).hexdigest(),
        "context_length": model.config.context_length,
        "device": str(model.embed.weight.device), "dtype": dtype_name(model),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip

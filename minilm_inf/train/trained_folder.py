"""The folder that a training run writes: what stands in its way, and how it is filled.

What somebody else put there stays. A folder that an earlier run wrote is known by its record,
training.json, and its files are written again; one that holds files of a model without that
record is refused, since two models would be mixed in it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from ..checkpoint.checkpoint import save
from ..terminal.files import begins_with, check_output, sweep, write_beside

STATE_FILE, LOG_FILE = "state.safetensors", "training.json"
LOG_BEGINS = b'{\n "command": "python -m minilm_inf.train '
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")
WRITTEN = ("config.json", "model.safetensors", *TOKENIZER_FILES, LOG_FILE)
OF_A_MODEL = {".json", ".safetensors", ".bin", ".model", ".jinja"}  # and merges.txt


def part_of(out: Path) -> Path:
    """The folder that a run works in until it is finished. Raises ValueError for a path without
    a name of its own."""
    if out.name in ("", ".."):
        raise ValueError(f"--out {out} has no name of its own: give a folder to write")
    return out.with_name(out.name + ".part")


def check_folder(out: Path):
    """Raise ValueError where a model must not be written to a folder, which holds files of a
    model that no run of ours wrote."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: give the name of a folder")
    log = out / LOG_FILE
    ours = WRITTEN if log.is_file() and begins_with(log, LOG_BEGINS) else ()
    for path in out.iterdir() if out.is_dir() else ():
        of_a_model = path.suffix in OF_A_MODEL or path.name == "merges.txt"
        if of_a_model and path.name not in ours:
            raise ValueError(
                f"{path} was not written by this program, and would be mixed with the new "
                "model: give another --out"
            )
    for name in WRITTEN:
        check_output(out / name)


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """The folder of a run's state and tokenizer, which stays where there is a state to go on
    from. Raises ValueError where it holds what no run writes there."""
    sweep(folder)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in (STATE_FILE, *TOKENIZER_FILES):
            raise ValueError(f"{path} was not written by this program: give another --out")
    try:
        yield
    finally:
        if not (folder / STATE_FILE).exists() and folder.is_dir():
            clear(folder)
            with contextlib.suppress(OSError):  # somebody put something there meanwhile
                folder.rmdir()


def publish(model, out: Path, folder: Path, record: dict):
    """Write the finished folder, from the model and the files of the one that the run worked
    in, whose state is then removed. The record comes first: it says that the rest is ours."""
    out.mkdir(parents=True, exist_ok=True)
    write_beside(out / LOG_FILE, (json.dumps(record, indent=1) + "\n").encode())
    save(model, out)
    for name in TOKENIZER_FILES:
        if (folder / name).exists():
            write_beside(out / name, (folder / name).read_bytes())
        else:
            (out / name).unlink(missing_ok=True)
    (folder / STATE_FILE).unlink()


def clear(folder: Path):
    """Remove the tokenizer of the folder that a run works in."""
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)

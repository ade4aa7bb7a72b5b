"""What an interrupted run, or a text that was read, continues from: tensors and facts, in one
safetensors file that is replaced as a whole.

It carries a SHA-256 of all that it holds, which tells whether a disk or a person changed it.
A SHA-256 is no secret, so whatever restores a state checks what it finds there as well.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..terminal.files import named, parse_object, reason
from .shards import as_bytes, write_tensors

# Where a kind of file keeps its facts, with the format's number; what to do with a damaged one.
STATE = "state 3", "delete it and start again"
CONTEXT = "context 1", "read its text again, and save it"


def write_state(path: Path, tensors: dict[str, torch.Tensor], facts: dict, kind=STATE):
    """Write a state, or nothing. Raises ValueError where it cannot be written."""
    whole = {**facts, "sha256": checksum(facts, tensors)}
    write_tensors(path, tensors, {kind[0]: json.dumps(whole)})


def checksum(facts: dict, tensors: dict[str, torch.Tensor]) -> str:
    """The SHA-256 of a state's facts and tensors."""
    found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, x in sorted(tensors.items()):
        found.update(json.dumps([name, str(x.dtype), list(x.shape)]).encode())
        found.update(as_bytes(x))
    return found.hexdigest()


def read_state(path: Path, kind=STATE) -> tuple[dict, dict[str, torch.Tensor]]:
    """The facts of a state, and its tensors, whose numbers stay in the file until they are
    asked for. Raises ValueError where it is none, or not as it was written."""
    (name, remedy), what = kind, kind[0].split()[0]
    try:
        with open(path, "rb"), safe_open(path, framework="pt") as state:
            metadata = state.metadata() or {}
            tensors = {name: state.get_tensor(name) for name in state.keys()}  # noqa: SIM118
    except OSError as error:
        raise ValueError(f"cannot read {named(path)}: {reason(error)}") from error
    except (SafetensorError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is no whole {what}: {remedy}") from error
    try:
        facts = parse_object(metadata[name].encode())
        told = facts.pop("sha256")
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is no {what} of this version of the program: {remedy}"
        ) from error
    if checksum(facts, tensors) != told:
        raise ValueError(f"{path} was edited or damaged, as its SHA-256 tells: {remedy}")
    return facts, tensors

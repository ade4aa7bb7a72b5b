"""Hold a kernel to the definition, and learn by name what is wrong with it.

    python -m minilm_inf.conformance MODULE:FUNCTION [--dtype float32] [--device cuda]

calls the function as attention.attend is called, with (q, k, v, q_positions, k_positions,
scheme, lm), and compares. Each question adds one thing to those before it, so the first that
fails names the mistake. A call that the kernel answers with NotImplementedError is listed as
not done, and is no mistake. Exit code 0: nothing was found; 1: something was; 2: bad arguments.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import asdict

from ..terminal import options as flags
from ..terminal.ending import guarded
from ..terminal.files import shown
from ..terminal.tables import as_json
from .asking import check
from .questions import questions


def main(arguments: list[str] | None = None) -> int:
    parser = flags.Parser(prog="python -m minilm_inf.conformance", description=__doc__)
    add, dtypes = parser.add_argument, [name for name in flags.NAMES if name != "int8"]
    add("kernel", metavar="MODULE:FUNCTION", help="what to hold to the definition")
    add("--dtype", choices=dtypes, default="float32", help="of the vectors (%(default)s)")
    add("--device", default="cpu", help="where they lie (%(default)s)")
    add("--placed", action="store_true", help="q and k come placed, and there is no ceiling")
    add("--backward", action="store_true", help="check gradients as well")
    add("--top-k", action="store_true", help="check the middle keys that come back as well")
    add("--skip", nargs="+", default=[], metavar="NAME", help="questions not to ask")
    add("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args(arguments)
    try:
        kernel, device = named_function(options.kernel), flags.device(options.device)
        how = flags.DTYPES[options.dtype], device, options.placed, options.backward
        check(None, *how, options.top_k, [*options.skip, *questions()])  # asks nothing
    except ValueError as error:
        parser.error(str(error))
    return guarded(lambda: run(kernel, (*how, options.top_k, options.skip), options.json))


def named_function(name: str):
    """The function MODULE:FUNCTION. Raises ValueError where there is none."""
    module, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:
        raise ValueError(
            f"{shown(name)} cannot be imported ({type(error).__name__}: {error}): give "
            "MODULE:FUNCTION, of a module in this folder or an installed one"
        ) from error
    if not callable(found):
        raise ValueError(f"{shown(name)} is no function")
    return found


def run(kernel, how: tuple, json: bool) -> int:
    """Ask and tell."""
    report = check(kernel, *how)
    if json:
        found = {name: asdict(finding) for name, finding in report.items()}
        print(as_json({"found": found, "answered": report.done}))
    else:
        print(report)
    return 1 if report else 0


if __name__ == "__main__":
    sys.exit(main())

"""Programs in processes of their own that share one import of PyTorch.

A server imports the package once, and makes a copy of itself for each program. Such a program
has its own arguments, streams, folder and exit code; only its first moments, which are those of
minilm_inf/terminal/startup.py, are not those of a program that a shell starts, and at its end
the interpreter is not taken down, which takes half a second.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "agg", "PYTHONIOENCODING": "utf-8",
}  # fmt: skip


class Server:
    """The process that is copied: to be used in a with block."""

    def __enter__(self):
        command = [sys.executable, __file__]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(command, env=ENVIRONMENT, **pipes)
        return self

    def __exit__(self, *_):
        self.process.communicate()

    def run(self, arguments, cwd=ROOT, stdin: str = "", seconds: int = 300):
        """What subprocess.run would give for `python ARGUMENTS`: a CompletedProcess."""
        words = [str(word) for word in arguments]
        with tempfile.TemporaryDirectory() as folder:
            streams = [Path(folder) / name for name in ("stdin", "stdout", "stderr")]
            for path in streams:
                path.write_text(stdin if path.name == "stdin" else "", encoding="utf-8")
            job = [words, str(cwd), [str(path) for path in streams], seconds]
            print(json.dumps(job), file=self.process.stdin, flush=True)
            code = int(self.process.stdout.readline())
            out, err = (path.read_text(encoding="utf-8") for path in streams[1:])
        return subprocess.CompletedProcess(words, code, out, err)


def become(words: list[str], cwd: str, streams: list[str], seconds: int):
    """Be the program that `python WORDS` would be, in a folder, with files as its streams."""
    for number, path in enumerate(streams):
        os.dup2(os.open(path, os.O_RDWR), number)
    sys.stdin = os.fdopen(0, "r", encoding="utf-8")
    sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8") for n in (1, 2))
    os.chdir(cwd)
    signal.alarm(seconds)
    sys.orig_argv = [sys.executable, *words]
    flag, *rest = words if words[0] in ("-c", "-m") else ("", *words)
    sys.argv, sys.path[0] = rest if flag != "-c" else [flag, *rest[1:]], cwd
    if flag == "-c":
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif flag == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(rest[0]).parent)
        runpy.run_path(rest[0], run_name="__main__")


def exit_code(job) -> int:
    """Be a program to its end: the code that it ends with."""
    code = None
    try:
        become(*job)
    except SystemExit as end:
        code = end.code
    except BaseException:
        code = traceback.format_exc()
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    import minilm_inf  # noqa: F401  (what all of them need)

    for line in sys.stdin:  # a job a line; the answer to each is its exit code
        child = os.fork()
        if child == 0:
            os._exit(exit_code(json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

"""Our commands in processes that begin with everything imported, which takes longer than most commands of a test.

`run` is `subprocess.run` for `python SCRIPT ...`, `python -m MODULE ...` and `python -c CODE ...`: a process of its
own, its folder, its environment, its output and exit status, forked from one that has imported the libraries and done
nothing else. What a library reads of the environment when it is imported is that of the tests.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import random
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = (
    "launch.train", "launch.evaluate", "launch.score", "hydra.main", "pandas", "sklearn.linear_model", "torch._dynamo",
    "torch.distributed.tensor", "transformers.models.llama.modeling_llama", "transformers.generation.utils",
)  # fmt: skip
_forking: list[subprocess.Popen[str]] = []


def run(command: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """The command's exit status and what it printed, once it has ended.

    Args:
        command: an interpreter, which is not used; a script's path, `-m` and a module, or `-c` and code; arguments.

    Raises:
        subprocess.TimeoutExpired: it was killed, after so many seconds.
    """
    if not _forking or _forking[0].poll() is not None:
        settings = {**os.environ, "PYTHONPATH": str(ROOT)}
        start = [sys.executable, "-m", "tests.warm"]
        _forking[:] = [
            subprocess.Popen(start, cwd=ROOT, env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ]
    process = _forking[0]
    assert process.stdin is not None and process.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        request = {"command": list(command[1:]), "cwd": str(cwd), "env": dict(env), "out": str(out), "err": str(err)}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        pid = int(process.stdout.readline())
        late = not select.select([process.stdout], [], [], timeout)[0]
        if late:
            os.kill(pid, signal.SIGKILL)
        status = int(process.stdout.readline())
        printed = [file.read_text(encoding="utf-8", errors="replace") for file in (out, err)]
    if late:
        raise subprocess.TimeoutExpired(list(command), timeout, *printed)
    return subprocess.CompletedProcess(list(command), status, *printed)


def _serve(requests: IO[str], answers: IO[str]) -> None:
    """For each request forks, writes the process's id, waits, and writes its exit status."""
    for name in IMPORTED:
        importlib.import_module(name)
    for line in requests:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(request)
        print(pid, file=answers, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)


def _become(request: Mapping[str, Any]) -> None:
    """Runs the command in this process, as the interpreter would, and ends it."""
    command, environment = list(request["command"]), dict(request["env"])
    status = 1
    try:
        os.setsid()
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(str(request["cwd"]))
        for number, name in ((0, os.devnull), (1, str(request["out"])), (2, str(request["err"]))):
            opened = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, number)
            os.close(opened)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        random.seed()
        paths = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
        is_script = command[0] not in ("-m", "-c")
        first = str(Path(command[0]).resolve().parent) if is_script else os.getcwd()
        sys.path[:] = [first, *paths, *(entry for entry in sys.path if entry not in (str(ROOT), ""))]
        sys.argv = command if is_script else command[1:]
        status = _status_of(command)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _status_of(command: Sequence[str]) -> int:
    try:
        if command[0] == "-m":
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        elif command[0] == "-c":
            exec(compile(command[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    _serve(sys.stdin, answers)

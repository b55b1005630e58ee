"""A training that kills itself: `python -m tests.killing EVENT:N[:SIGNAL[+SIGNAL]] key=value ...` at the N-th EVENT.

EVENT@STEP is the event of the step with that index. Nothing of the process runs after SIGKILL, so what is on the disk
is what a real kill at that moment leaves. Under torchrun KILLED_RANK says which of the processes it is. Where it was is
written to the file KILLED_AT.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def callers() -> list[str]:
    """The project's functions that are at work, the innermost one last."""
    names, frame = [], sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(ROOT) and file.parent != ROOT / "tests" and "site-packages" not in file.parts:
            names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names[::-1]


def note(event: str, args: tuple) -> None:
    """Writes where the process is: the functions at work, the files it was about, the trainer's step."""
    files = [str(one) for one in args if isinstance(one, str | Path)]
    place = {"event": event, "inside": callers(), "files": files, "step": getattr(args[0], "step_idx", None)}
    if "KILLED_AT" in os.environ:
        Path(os.environ["KILLED_AT"]).write_text(json.dumps(place))


def at(
    event: str, counts: Callable[..., bool], numbers: list[int], then: Callable[..., Any] | None,
    function: Callable[..., Any],
) -> Callable[..., Any]:  # fmt: skip
    """`function`; before the first call that counts `then` is called in its place, and the process signalled."""
    signalled = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        if not signalled and counts(*args, **kwargs):
            signalled.append(True)
            if then is not None:
                then(*args, **kwargs)
            note(event, args)
            for number in numbers:
                os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    return counted


def install(event: str, step: int | None, count: int, numbers: list[int]) -> None:
    """Patches what the event is named after."""
    import torch

    from models import checkpoints, reference_cache
    from models.generation.hf import HFGenerator
    from trainers import checkpointing, metrics
    from trainers.basic import BasicTrainer

    def half_a_save(contents: object, file: Path) -> None:
        save(contents, file)
        os.truncate(file, os.path.getsize(file) // 2)

    def half_a_record(log: metrics.MetricsLog, *_: object) -> None:
        log._file.write(b'{"split": "tra')
        log._file.flush()

    def half_an_append(cache: reference_cache.ReferenceCache, record: bytes) -> None:
        append(cache, record[: len(record) // 2])

    save, append = torch.save, reference_cache.ReferenceCache._append

    def evaluates(*_: object) -> bool:
        return "evaluate" in callers()

    def appears(_: object, target: object, **__: object) -> bool:
        return re.fullmatch(r"step-\d+", Path(str(target)).name) is not None

    places = {
        "step": (BasicTrainer, "step", None),  # before it
        "gradients": (BasicTrainer, "_clip", None),  # when it is half done
        "evaluate": (BasicTrainer, "_collect", None, evaluates),  # computed and not yet logged
        "sample": (HFGenerator, "_batch", None),
        "write": (torch, "save", half_a_save),  # inside policy.pt or resume.pt
        "rename": (os, "replace", None, appears),  # a checkpoint is complete and not yet there
        "link": (checkpointing, "switch_link", None),
        "remove": (checkpointing, "remove_folder", None),
        "log": (metrics.MetricsLog, "write", half_a_record),
        "reference": (reference_cache.ReferenceCache, "_append", half_an_append),
        "flush": (checkpoints.os, "fsync", None),
    }
    owner, name, then, *only = places[event]
    calls = iter(range(1, 10**9))

    def counts(*args: Any, **kwargs: Any) -> bool:
        if only and not only[0](*args, **kwargs):
            return False
        return next(calls) == count if step is None else args[0].step_idx == step

    setattr(owner, name, at(event, counts, numbers, then, getattr(owner, name)))


if __name__ == "__main__":
    event, sort, number, names = re.fullmatch(r"(\w+)([:@])(\d+)(?::([\w+]+))?", sys.argv[1]).groups()
    if os.environ.get("RANK") == os.environ.get("KILLED_RANK"):
        signals = [getattr(signal, name) for name in (names or "SIGKILL").split("+")]
        install(event, int(number) if sort == "@" else None, int(number), signals)
    sys.argv = [str(ROOT / "train.py"), *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")

"""A training that kills itself at its N-th EVENT: `python -m tests.killing EVENT:N[:SIGNAL[+SIGNAL]] key=value ...`.

Nothing of the process runs after SIGKILL, so what is on the disk is what a real kill at that moment leaves. Under
torchrun KILLED_RANK says which of the processes it is.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def at(
    count: int, numbers: list[int], then: Callable[..., Any] | None, function: Callable[..., Any]
) -> Callable[..., Any]:
    """`function`; before the call of that count `then` is called in its place, and the process signalled."""
    calls = iter(range(1, 10**9))

    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == count:
            if then is not None:
                then(*args, **kwargs)
            for number in numbers:
                os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    return counted


def install(event: str, count: int, numbers: list[int]) -> None:
    """Patches what the event is named after."""
    import torch

    from models import checkpoints, reference_cache
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
    places = {
        "step": (BasicTrainer, "step", None),  # before it
        "gradients": (BasicTrainer, "_clip", None),  # when it is half done
        "evaluate": (BasicTrainer, "_collect", None),
        "write": (torch, "save", half_a_save),  # inside policy.pt or resume.pt
        "rename": (os, "replace", None),  # a folder, a link or a config is complete and not yet there
        "link": (checkpointing, "switch_link", None),
        "remove": (checkpointing, "remove_folder", None),
        "log": (metrics.MetricsLog, "write", half_a_record),
        "reference": (reference_cache.ReferenceCache, "_append", half_an_append),
        "flush": (checkpoints.os, "fsync", None),
    }
    owner, name, then = places[event]
    setattr(owner, name, at(count, numbers, then, getattr(owner, name)))


if __name__ == "__main__":
    event, count, names = (*sys.argv[1].split(":"), "SIGKILL")[:3]
    if os.environ.get("RANK") == os.environ.get("KILLED_RANK"):
        install(event, int(count), [getattr(signal, name) for name in names.split("+")])
    sys.argv = [str(ROOT / "train.py"), *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")

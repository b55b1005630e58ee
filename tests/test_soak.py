"""Twenty kills of a run of each kind of state, by SIGKILL, and each time it is started again: `make soak`.

The first ones are in the last step of an epoch and the first of the next one, in an evaluation, and in the writing of a
checkpoint. Of the others half come at moments of the clock, spread over the time after start-up, half at events: lines
of metrics and records of reference values among them. Two processes under torchrun lose one of them, or all at once,
and end in what they would have to 1e-5. AUREOLE_SOAK_RECORD names a JSON file that keeps what was killed where,
AUREOLE_SOAK_KILLS another number of kills, for a try.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.readme import ROOT
from tests.test_resume import FAMILIES, assert_same, command, killed_at, train
from tests.trainers.test_sharding import compare, compare_checkpoints
from tests.trainers.test_sharding import records as records_of

KILLS = int(os.environ.get("AUREOLE_SOAK_KILLS", "20"))
FIRST = ("gradients@4", "step@5", "evaluate:1", "write:2")
"""Epochs have five steps."""
EVENTS = ("step", "gradients", "evaluate", "write", "rename", "link", "remove", "log", "reference", "flush")
Place = dict[str, Any]


def attempts(chance: random.Random) -> Iterator[str | float]:
    """Without an end where to kill a run: at an event, or after a share of the time of a whole one."""
    yield from FIRST
    for number in itertools.count():
        yield (number % 10 + 1) / 10
        yield f"{EVENTS[number % len(EVENTS)]}:{chance.randint(1, 5)}"


def soak(folder: Path, name: str, attempt: Callable[[Path, str | float], Place | None]) -> list[Path]:
    """Lets `attempt` start a run, and again where it was killed, until there were so many kills.

    A run that came to its end is followed by another one.

    Args:
        attempt: returns where the run in a folder was killed; None: it came to its end.

    Returns:
        The folders of runs.
    """
    kills, runs = [], [folder / "killed-0"]
    for tried, how in enumerate(attempts(random.Random(name)), 1):
        assert tried <= 5 * KILLS, f"{len(kills)} kills in {tried} attempts"
        place = attempt(runs[-1], how)
        if place is not None:
            kills.append({"asked": how, **place})
        if len(kills) == KILLS:
            break
        if (runs[-1] / "run" / "finished.json").exists():
            runs.append(folder / f"killed-{len(runs)}")
    assert any("evaluate" in kill.get("inside", ()) for kill in kills), "no kill in an evaluation"
    assert any("write_folder" in kill.get("inside", ()) for kill in kills), "no kill while a checkpoint is written"
    assert {4, 5} <= {kill.get("step") for kill in kills}, "no kill on both sides of an epoch's end"
    keep(name, {"attempts": tried, "runs": len(runs), "kills": kills})
    return runs


def keep(name: str, found: dict[str, Any]) -> None:
    """Adds to the record, if one is wanted."""
    if "AUREOLE_SOAK_RECORD" not in os.environ:
        return
    file = Path(os.environ["AUREOLE_SOAK_RECORD"])
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | {name: known.get(name, {}) | found}, indent=1) + "\n")


def place_of(folder: Path) -> Place:
    """Where the run in a folder was killed; without the folder's own path."""
    place = json.loads(killed_at(folder).read_text())
    return place | {"files": [Path(file).name for file in place["files"]]}


def timed(folder: Path, family: str) -> tuple[float, float]:
    """Seconds of a whole run until its first line of metrics, and until its end."""
    start = time.monotonic()
    whole = [sys.executable, str(ROOT / "train.py"), *command(folder, family)]
    process = subprocess.Popen(whole, cwd=ROOT, stderr=subprocess.PIPE)
    metrics, begun = folder / "run" / "metrics.jsonl", None
    while process.poll() is None:
        if begun is None and metrics.is_file() and metrics.stat().st_size:
            begun = time.monotonic() - start
        time.sleep(0.02)
    assert process.wait() == 0 and begun is not None
    return begun, time.monotonic() - start


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", FAMILIES)
def test_killed_and_started_again(family: str, tmp_path):
    """Prevents a moment at which a kill changes what a run ends in, or leaves what a later start trips over."""
    begun, whole = timed(tmp_path / "whole", family)

    def attempt(folder: Path, how: str | float) -> Place | None:
        by_clock = isinstance(how, float)
        seconds = begun + (whole - begun) * how if by_clock else None
        start = [str(ROOT / "train.py")] if by_clock else ["-m", "tests.killing", how]
        environment = os.environ | {"KILLED_AT": str(killed_at(folder))}
        try:
            done = subprocess.run(
                [sys.executable, *start, *command(folder, family)], cwd=ROOT, env=environment, capture_output=True,
                text=True, timeout=seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired:  # it was killed by SIGKILL
            return {"seconds": round(seconds, 2)}
        assert done.returncode in (0, -signal.SIGKILL), f"{how}: {done.stdout}{done.stderr}"
        return place_of(folder) if done.returncode else None

    for folder in soak(tmp_path, family, attempt):
        train(folder, family, run=functools.partial(subprocess.run, capture_output=True, text=True))
        assert_same(folder, tmp_path / "whole")
    keep(family, {"ended in the same bits": True})


TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start_together(folder: Path, how: str, kill: str | None = None, rank: int = 0) -> subprocess.Popen:
    """The same run by two processes, of which one may kill itself at an event."""
    script = [str(ROOT / "train.py")] if kill is None else ["-m", "tests.killing", kill]
    arguments = command(folder, "dpo", f"distributed={how}", "distributed.heartbeat_seconds=5")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "KILLED_RANK": str(rank), "KILLED_AT": str(killed_at(folder)),
    }  # fmt: skip
    return subprocess.Popen(
        [*TOGETHER, *script, *arguments], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def end(launcher: subprocess.Popen) -> None:
    """Kills torchrun and its processes."""
    children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split()
    for process in map(int, [launcher.pid, *children]):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    launcher.communicate()


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_killed_and_started_again(kind: str, tmp_path):
    """Prevents a moment at which the loss of one process, or of the machine, changes a run's end, or hangs it."""
    began = time.monotonic()
    whole = start_together(tmp_path / "whole", kind)
    _, said = whole.communicate(timeout=300)
    assert whole.returncode == 0, said
    whole_seconds, ranks = time.monotonic() - began, itertools.cycle((1, 0))

    def attempt(folder: Path, how: str | float) -> Place | None:
        killed_at(folder).unlink(missing_ok=True)
        if isinstance(how, float):
            launcher, seconds = start_together(folder, kind), whole_seconds * (0.5 + 0.5 * how)
            try:
                _, said = launcher.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                end(launcher)
                return {"seconds": round(seconds, 2)}
        else:
            launcher = start_together(folder, kind, how, 0 if how in FIRST else next(ranks))
            _, said = launcher.communicate(timeout=300)
        assert launcher.returncode == 0 or killed_at(folder).exists(), f"{how}: {said}"
        return place_of(folder) if launcher.returncode else None

    for folder in soak(tmp_path, kind, attempt):
        again = start_together(folder, kind)
        _, said = again.communicate(timeout=300)
        assert again.returncode == 0, said
        compare(records_of(folder / "run"), records_of(tmp_path / "whole" / "run"), kind, 1e-5)
        compare_checkpoints(folder / "run", tmp_path / "whole" / "run", 1e-5)
    keep(kind, {"ended in the same to 1e-5": True})

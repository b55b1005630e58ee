"""Twenty kills of a run of each kind of state, by SIGKILL, and each time it is started again: `make soak`.

Half of them come at moments of the clock, spread over the time after start-up; the others at events, inside the writing
of a checkpoint, in evaluations, at epoch boundaries, in lines of metrics and records of reference values among them.
Two processes under torchrun lose one of them, or all at once, and end in what they would have to 1e-5.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.readme import ROOT
from tests.test_resume import FAMILIES, assert_same, command, train
from tests.trainers.test_sharding import compare, compare_checkpoints
from tests.trainers.test_sharding import records as records_of

KILLS = 20
EVENTS = ("step", "gradients", "evaluate", "write", "rename", "link", "remove", "log", "reference", "flush")


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


def killed_by_clock(folder: Path, family: str, seconds: float) -> None:
    """Starts a run and kills it after so many seconds."""
    whole = [sys.executable, str(ROOT / "train.py"), *command(folder, family)]
    try:
        subprocess.run(whole, cwd=ROOT, capture_output=True, timeout=seconds)  # kills by SIGKILL
    except subprocess.TimeoutExpired:
        return


def killed_at_event(folder: Path, family: str, event: str, count: int) -> None:
    """Starts a run that kills itself at the event, if it comes to it."""
    whole = [sys.executable, "-m", "tests.killing", f"{event}:{count}", *command(folder, family)]
    subprocess.run(whole, cwd=ROOT, capture_output=True)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", FAMILIES)
def test_killed_and_started_again(family: str, tmp_path):
    """Prevents a moment at which a kill changes what a run ends in, or leaves what a later start trips over."""
    begun, whole = timed(tmp_path / "whole", family)
    chance, runs = random.Random(family), 0
    for number in range(KILLS):
        folder = tmp_path / f"killed-{runs}"
        if number % 2:
            killed_at_event(folder, family, EVENTS[number // 2 % len(EVENTS)], chance.randint(1, 5))
        else:
            killed_by_clock(folder, family, begun + (whole - begun) * (number + 1) / KILLS)
        if (folder / "run" / "finished.json").exists():
            runs += 1
    for number in range(runs + 1):
        train(tmp_path / f"killed-{number}", family)
        assert_same(tmp_path / f"killed-{number}", tmp_path / "whole")


TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start_together(folder: Path, how: str, kill: str | None = None, rank: int = 0) -> subprocess.Popen:
    """The same run by two processes, of which one may kill itself at an event."""
    script = [str(ROOT / "train.py")] if kill is None else ["-m", "tests.killing", kill]
    arguments = command(folder, "dpo", f"distributed={how}", "distributed.heartbeat_seconds=5")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "KILLED_RANK": str(rank)}
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
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_killed_and_started_again(how: str, tmp_path):
    """Prevents a moment at which the loss of one process, or of the machine, changes a run's end, or hangs it."""
    began = time.monotonic()
    whole = start_together(tmp_path / "whole", how)
    assert whole.wait(300) == 0, whole.stderr.read()
    seconds = time.monotonic() - began
    chance, runs = random.Random(how), 0
    for number in range(KILLS):
        folder = tmp_path / f"killed-{runs}"
        if number % 2:
            event = f"{EVENTS[number // 2 % len(EVENTS)]}:{chance.randint(1, 5)}"
            launcher = start_together(folder, how, event, number // 2 % 2)
            launcher.communicate(timeout=300)
        else:
            launcher = start_together(folder, how)
            try:
                launcher.communicate(timeout=seconds * (0.5 + 0.5 * (number + 1) / KILLS))
            except subprocess.TimeoutExpired:
                end(launcher)
        if (folder / "run" / "finished.json").exists():
            runs += 1
    for number in range(runs + 1):
        folder = tmp_path / f"killed-{number}"
        again = start_together(folder, how)
        assert again.wait(300) == 0, again.stderr.read()
        compare(records_of(folder / "run"), records_of(tmp_path / "whole" / "run"), how, 1e-5)
        compare_checkpoints(folder / "run", tmp_path / "whole" / "run", 1e-5)

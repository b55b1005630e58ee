"""Twenty kills of a run of each kind of state, by SIGKILL, and each time it is started again: `make soak`.

Half of them come at moments of the clock, spread over the time after start-up; the others at events, inside the writing
of a checkpoint, in evaluations, at epoch boundaries, in lines of metrics and records of reference values among them.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.readme import ROOT
from tests.test_resume import FAMILIES, assert_same, command, train

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

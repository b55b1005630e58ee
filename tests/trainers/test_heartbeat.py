"""Processes that miss each other: whoever is gone is named, whoever is there is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.readme import ROOT
from trainers.heartbeat import PEER_LOST

SECONDS = 2.0


def start(folder: Path, *deeds: str, arrival: float = 60.0) -> list[subprocess.Popen]:
    """A process for each deed, by rank; None leaves the rank out."""
    environment = {key: value for key, value in os.environ.items() if key != "TORCHELASTIC_RUN_ID"}
    common = [sys.executable, "-m", "tests.trainers.beating", str(folder)]
    numbers = [str(len(deeds)), str(SECONDS)]
    return [
        subprocess.Popen(
            [*common, str(rank), *numbers, deed, str(arrival)], cwd=ROOT, env=environment, stderr=subprocess.PIPE,
            text=True,
        )
        for rank, deed in enumerate(deeds)
        if deed
    ]  # fmt: skip


def all_here(folder: Path, count: int) -> None:
    """Returns once each has met the first one."""
    until = time.monotonic() + 30
    while len(list(folder.glob("here*"))) < count and time.monotonic() < until:
        time.sleep(0.02)


def ends(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Exit code and stderr of each."""
    said = [process.communicate(timeout=60)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@pytest.mark.parametrize("victim", [0, 2])
def test_a_frozen_process_is_named(victim: int, tmp_path):
    """Prevents a run that waits for a process that stands still, the first one among them."""
    processes = start(tmp_path, "sleep:60", "sleep:60", "sleep:60")
    all_here(tmp_path, 3)
    frozen = processes.pop(victim)
    os.kill(frozen.pid, signal.SIGSTOP)
    began = time.monotonic()
    for code, text in ends(processes):
        assert code == PEER_LOST and f"lost rank {victim} (process {frozen.pid} on " in text, text
        assert f"silent for {SECONDS:g} s" in text and "goes on from the last checkpoint" in text
    assert time.monotonic() - began < 5 * SECONDS
    frozen.kill()
    frozen.communicate()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_named_at_once(victim: int, tmp_path):
    """Prevents a peer's death that shows as nothing but an error deep in the library that was exchanging."""
    processes = start(tmp_path, "sleep:60", "sleep:60", "wait")
    all_here(tmp_path, 3)
    killed = processes.pop(victim)
    killed.kill()
    killed.communicate()
    for code, text in ends(processes):
        assert code == PEER_LOST and f"lost rank {victim} (process {killed.pid}" in text, text
        assert text.count("lost rank") == 1 and "ended without a word" in text


def test_work_and_unequal_ends_are_no_loss(tmp_path):
    """Prevents a heartbeat that ends a run which loads, computes, is interrupted for a moment, or ends unevenly."""
    processes = start(tmp_path, f"sleep:{2 * SECONDS}", f"work:{3 * SECONDS}", "sleep:0.1")
    all_here(tmp_path, 2)
    os.kill(processes[1].pid, signal.SIGSTOP)
    time.sleep(SECONDS / 3)
    os.kill(processes[1].pid, signal.SIGCONT)
    assert ends(processes) == [(0, "")] * 3


def test_one_that_fails_takes_the_others_along(tmp_path):
    """Prevents processes that wait for one whose error ended it; that one's own message and code stay what they are."""
    first, second, third = ends(start(tmp_path, "sleep:60", "fail:0.5", "sleep:60"))
    assert second == (3, "")
    for code, text in (first, third):
        assert code == PEER_LOST and "lost rank 1 (process" in text and "ended before the run did" in text, text


def test_one_that_never_comes_is_named(tmp_path):
    """Prevents a wait of hours for a process that ended before it met the others."""
    for code, text in ends(start(tmp_path, "sleep:60", "sleep:60", "", arrival=3.0)):
        assert code == PEER_LOST and "lost rank 2: did not come within 3 s" in text, text


def test_what_a_predecessor_left_in_the_store_is_no_address(tmp_path):
    """Prevents a restart by torchrun, whose store still says where the first process listened before it."""
    old = '{"addresses": ["localhost"], "port": 9, "token": "old", "host": "gone", "process": 1}'
    (tmp_path / "heartbeat").write_text(old)
    second = start(tmp_path, "", "sleep:0.1")
    time.sleep(1)
    assert not (tmp_path / "here1").exists()
    assert ends([*start(tmp_path, f"sleep:{SECONDS}", ""), *second]) == [(0, "")] * 2
    (tmp_path / "heartbeat").write_text(old)
    ((code, text),) = ends(start(tmp_path, "", "sleep:0.1", arrival=1.0))
    assert code == 1 and "does not reach rank 0 (process 1 on gone) at port 9 of localhost" in text
    assert "distributed.heartbeat_seconds=null" in text

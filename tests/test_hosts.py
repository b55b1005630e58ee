"""Two hosts, as network namespaces of this machine, under torchrun's own rendezvous."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.hosts import Host, missing, two_hosts
from tests.trainers.test_sharding import compare, compare_checkpoints, records
from trainers.heartbeat import PEER_LOST

LACKS = missing()
pytestmark = pytest.mark.skipif(LACKS is not None, reason=f"two hosts on one machine: {LACKS}")
TRAINING = [
    "train.py", "model=tiny", "loss=dpo", "datasets.everyday.n_examples=40", "model.batch_size=4", "n_eval_examples=8",
    "save_every=8", "keep_last=null", "exp_name=run", "lr=1e-3", "device=cpu", "distributed.heartbeat_seconds=3",
]  # fmt: skip
LONG = "n_epochs=100"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    with two_hosts(tmp_path) as made:
        yield made


def begin(hosts: tuple[Host, Host], folder: Path, processes: int, *arguments: str) -> list[subprocess.Popen]:
    """The same torchrun on both hosts, which write to host-a.log and host-b.log."""
    command = [*arguments, f"cache_dir={folder / 'cache'}"]
    return [host.torchrun(folder / f"{host.name}.log", processes, *command) for host in hosts]


def until_saved(folder: Path, launchers: list[subprocess.Popen]) -> None:
    """Returns once the run has a checkpoint."""
    until = time.monotonic() + 120
    while not (folder / "cache" / "run" / "LATEST").exists():
        assert all(one.poll() is None for one in launchers) and time.monotonic() < until, said(folder)
        time.sleep(0.05)


def worker_of(launcher: subprocess.Popen) -> int:
    """The process that a torchrun has started."""
    found = subprocess.run(["pgrep", "-P", str(launcher.pid), "-f", "train.py"], capture_output=True, text=True)
    return int(found.stdout.split()[0])


def ends(launchers: list[subprocess.Popen], seconds: float) -> list[int]:
    """Exit codes; what has not ended by then is killed, and the test fails."""
    until = time.monotonic() + seconds
    try:
        return [one.wait(max(0.1, until - time.monotonic())) for one in launchers]
    finally:
        for one in launchers:
            one.kill()


def said(folder: Path) -> tuple[str, str]:
    """What the launcher and the processes of each host wrote."""
    first, second = ((folder / f"{name}.log").read_text() for name in ("host-a", "host-b"))
    return first, second


def alone(folder: Path, host: Host, *arguments: str) -> Path:
    """The run of one process."""
    process = host.start(folder / "alone.log", sys.executable, *arguments, f"cache_dir={folder / 'alone'}")
    assert process.wait(240) == 0, (folder / "alone.log").read_text()
    return folder / "alone" / "run"


def test_a_cut_link_ends_both_sides(hosts: tuple[Host, Host], tmp_path: Path):
    """Prevents a run that waits for hours, on either side of a cut, the side of the rendezvous and the other one.

    Each side names the other host and its process. torchrun on the side without the rendezvous would wait for TCP to
    give up, a quarter of an hour; it is ended, too.
    """
    launchers = begin(hosts, tmp_path, 1, *TRAINING, LONG)
    until_saved(tmp_path, launchers)
    workers = [worker_of(launcher) for launcher in launchers]
    hosts[1].cut_link()
    assert ends(launchers, 60) == [1, -signal.SIGKILL]
    first, second = said(tmp_path)
    assert f"rank 0 on host-a lost rank 1 (process {workers[1]} on host-b): silent for 3 s" in first
    assert f"rank 1 on host-b lost rank 0 (process {workers[0]} on host-a): silent for 3 s" in second
    assert f"exitcode  : {PEER_LOST} " in first
    assert f"torchrun (process {launchers[1].pid}) waits for a host that is gone: it is ended" in second
    torch.load(tmp_path / "cache" / "run" / "LATEST" / "resume.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run(victim: int, hosts: tuple[Host, Host], tmp_path: Path):
    """Prevents a run that goes on, or hangs, without a process of another host; one process goes on from LATEST."""
    launchers = begin(hosts, tmp_path, 1, *TRAINING, LONG)
    until_saved(tmp_path, launchers)
    worker = worker_of(launchers[victim])
    os.kill(worker, signal.SIGKILL)
    codes = ends(launchers, 60)
    assert all(codes), codes
    lost = f"lost rank {victim} (process {worker} on {hosts[victim].name}): ended without a word"
    assert lost in said(tmp_path)[1 - victim]
    examples = int((tmp_path / "cache" / "run" / "LATEST").resolve().name.removeprefix("step-"))
    more = [LONG, f"n_examples={examples + 8}", f"cache_dir={tmp_path / 'cache'}"]
    process = hosts[0].start(tmp_path / "again.log", sys.executable, *TRAINING, *more)
    assert process.wait(240) == 0, (tmp_path / "again.log").read_text()
    assert f"goes on after {examples} examples" in (tmp_path / "again.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_restarts_the_run(victim: int, hosts: tuple[Host, Host], tmp_path: Path):
    """Prevents a restart that begins anew, loses a step, or meets what the processes before it left in the store."""
    few = "n_epochs=8"
    launchers = begin(hosts, tmp_path, 1, "--max-restarts=1", *TRAINING, few)
    until_saved(tmp_path, launchers)
    os.kill(worker_of(launchers[victim]), signal.SIGKILL)
    assert ends(launchers, 180) == [0, 0], said(tmp_path)
    assert "goes on after" in said(tmp_path)[0]
    whole = alone(tmp_path, hosts[0], *TRAINING, few)
    compare(records(tmp_path / "cache" / "run"), records(whole), "run", 1e-5)
    compare_checkpoints(tmp_path / "cache" / "run", whole, 1e-5)


@pytest.mark.slow
def test_sharded_within_hosts_and_replicated_over_them(hosts: tuple[Host, Host], tmp_path: Path):
    """Prevents gradients that only one host knows, and those of replicas summed twice: two hosts of two processes."""
    steps = ["n_examples=24", "model.batch_size=5", "datasets.everyday.n_examples=24"]
    sharded = ["distributed=fsdp", "distributed.hybrid=true"]
    assert ends(begin(hosts, tmp_path, 2, *TRAINING, *steps, *sharded), 240) == [0, 0], said(tmp_path)
    whole = alone(tmp_path, hosts[0], *TRAINING, *steps)
    compare(records(tmp_path / "cache" / "run"), records(whole), "run", 1e-5)
    compare_checkpoints(tmp_path / "cache" / "run", whole, 1e-5)
    assert json.loads((tmp_path / "cache" / "run" / "LATEST" / "metrics.json").read_text())

"""Two and three gloo processes on a CPU give what one process gives."""

import os
import subprocess
import sys

import pytest
import torch

from tests import tiny
from tests.trainers import processes_worker, sharded
from tests.trainers.test_sharding import compare, compare_checkpoints, records


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A folder with what 2 and what 3 processes saved."""
    folder = tmp_path_factory.mktemp("together")
    environment = os.environ | {"PYTHONPATH": str(tiny.ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, processes_worker.__file__, "replicas", str(folder), "2", "3"]
    done = subprocess.run(command, env=environment, cwd=tiny.ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone_folder(tmp_path_factory):
    """The trainings of one process."""
    return tmp_path_factory.mktemp("alone")


@pytest.fixture(scope="module")
def alone(alone_folder) -> dict:
    return processes_worker.everything(alone_folder)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_change_nothing(count: int, alone: dict, together):
    """Prevents local means, a KL of a process's own rows, pairs that no process has whole, and a hang without rows.

    Gradients, losses, rewards, true pair accuracy and KTO's estimate agree to 1e-6.
    """
    folder = together / str(count)
    results = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(count)]
    for name, expected in alone.items():
        for result in results:
            assert expected["gradient"].norm() > 0
            assert tiny.relative(expected["gradient"], result[name]["gradient"]) < 1e-6, name
            for split in ("train", "eval"):
                assert result[name][split] == pytest.approx(expected[split], rel=1e-6, abs=1e-9), (name, split)


@pytest.mark.parametrize(
    ("count", "name"), [(count, name) for name, counts in sharded.REPLICAS.items() for count in counts]
)
def test_ten_steps_are_those_of_one_process(count: int, name: str, alone: dict, alone_folder, together):
    """Prevents replicas that drift apart, a head that is not summed, and records of more processes than one.

    Metrics of every step and both checkpoints are those of one process, as of shards (see `test_sharding.py`).
    """
    ours = together / str(count) / name
    assert len(records(ours)) == sharded.STEPS + 2
    compare(records(ours), records(alone_folder / name), name, 1e-5)
    compare_checkpoints(ours, alone_folder / name, 1e-5)


def test_the_cases_have_what_they_are_for(alone: dict):
    """Prevents a comparison that compares nothing: the estimate is not always clamped, pair accuracies are there."""
    assert any(result["train"].get("rewards/KL_estimate", 0) > 0 for result in alone.values())
    assert "rewards_eval/accuracies" in alone["kto odd"]["eval"]
    assert "rewards/unpaired_accuracies" in alone["simple_kto odd"]["train"]

"""Two and three gloo processes on a CPU give what one process gives."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests import tiny
from tests.trainers import processes_worker


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
def alone(tmp_path_factory) -> dict:
    return processes_worker.everything(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("count", [2, 3])
def test_processes_change_nothing(count: int, alone: dict, together):
    """Prevents local means, a KL of a process's own rows, pairs that no process has whole, and a hang without rows.

    Gradients, losses, rewards, true pair accuracy, KTO's estimate and the weights after a training agree to 1e-6.
    """
    folder = together / str(count)
    results = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(count)]
    for name, expected in alone.items():
        for result in results:
            if name == "training":
                assert tiny.relative(expected["weights"], result[name]["weights"]) < 1e-5  # AdamW divides tiny by tiny
                assert result[name]["eval"] == pytest.approx(expected["eval"], rel=1e-4, abs=1e-6)
                assert result[name]["examples"] == expected["examples"]
                continue
            assert expected["gradient"].norm() > 0
            assert tiny.relative(expected["gradient"], result[name]["gradient"]) < 1e-6, name
            for split in ("train", "eval"):
                assert result[name][split] == pytest.approx(expected[split], rel=1e-6, abs=1e-9), (name, split)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(record["split"] == "train" for record in records) == 3, "one record a step, from one process"
    assert (folder / "LATEST" / "policy.pt").exists()


def test_the_cases_have_what_they_are_for(alone: dict):
    """Prevents a comparison that compares nothing: the estimate is not always clamped, pair accuracies are there."""
    assert any(result.get("train", {}).get("rewards/KL_estimate", 0) > 0 for result in alone.values())
    assert "rewards_eval/accuracies" in alone["kto odd"]["eval"]
    assert "rewards/unpaired_accuracies" in alone["simple_kto odd"]["train"]

"""A multirun whose jobs do not all succeed."""

import os
import sys
from types import SimpleNamespace

import pytest

from launch.multirun import Job, run_job, table
from tests import warm
from tests.readme import ROOT


def test_a_job_that_fails_does_not_keep_the_others_from_running(tmp_path):
    """Prevents a sweep that ends at its first diverged job, each time that it is started."""
    settings = ["model=tiny", "n_examples=8", "n_eval_examples=4", "model.batch_size=4", f"cache_dir={tmp_path}"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", "loss=sft", "lr=1e-4,1e30,2e-4", *settings]
    done = warm.run(command, tmp_path, os.environ, timeout=200)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()[-5:]
    assert lines[0].split() == ["job", "seconds", "loss/eval"]
    assert [line.split()[0] for line in lines[1:4]] == [f"tiny_sft_lr-{lr}" for lr in ("0.0001", "1e+30", "0.0002")]
    assert "is not finite" in lines[2] and "failed" not in lines[1] + lines[3]
    assert lines[4].startswith("1 of 3 jobs failed")
    again = warm.run(command, tmp_path, os.environ, timeout=200)
    assert again.returncode == 2 and again.stdout.count("nothing to do") == 2
    assert [line.split()[2] for line in again.stderr.splitlines()[-4:-1:2]] == [
        lines[1].split()[2],
        lines[3].split()[2],
    ]


def test_the_table_has_a_line_for_each_job():
    """Prevents a column that a missing number shifts."""
    lines = table([Job("a", 1.2, 0.5), Job("longer", 100.0)]).splitlines()
    assert lines == ["job      seconds  loss/eval", "a              1     0.5000", "longer       100           "]


def test_a_launcher_hears_of_a_job_that_fails(monkeypatch):
    """Prevents a cluster's job that counts as done although nothing was trained."""

    def fails(_: object) -> None:
        raise ValueError("lower lr")

    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    with pytest.raises(ValueError, match="lower lr"):
        run_job(SimpleNamespace(exp_name="a"), fails)

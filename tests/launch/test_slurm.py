"""Jobs of SLURM: the batch script that is rendered, run by stand-ins for sbatch, srun and sacct."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import submitit
from hydra import compose, initialize_config_dir
from hydra.types import HydraContext
from hydra.utils import instantiate

from launch.compose import check_command
from tests.readme import ROOT

PROGRAMS = {
    # Runs the script in the background, as a job of one machine, and says its number; again when it is queued again.
    "sbatch": """
        echo "Submitted batch job 77"
        cp "$1" "$FAKE/script.sh"
        export SLURM_JOB_ID=77
        if ! grep -q -- --array "$1"; then
          (bash "$1"; while rm "$FAKE/requeued"; do bash "$1"; done) > "$FAKE/out" 2>&1 &
          exit
        fi
        for task in $(seq 0 $((JOBS - 1))); do
          SLURM_ARRAY_JOB_ID=77 SLURM_ARRAY_TASK_ID=$task bash "$1" > "$FAKE/out$task" 2>&1 &
        done
    """,
    # Leaves out srun's own options, and starts the tasks.
    "srun": """
        while [[ "$1" == --* ]]; do if [[ "$1" == *=* || "$1" == --unbuffered ]]; then shift; else shift 2; fi; done
        for rank in $(seq 0 $((TASKS - 1))); do
          SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=$TASKS SLURM_NNODES=1 SLURM_NODEID=0 \\
            SLURM_JOB_NODELIST=localhost "$@" >> "$FAKE/task$SLURM_ARRAY_TASK_ID-$rank" 2>&1 &
          echo $! >> "$FAKE/processes"
        done
        wait
    """,
    "sacct": 'echo "JobID|State|NodeList"',
    "scontrol": 'if [[ "$1" == requeue ]]; then touch "$FAKE/requeued"; fi',
}


@pytest.fixture
def cluster(tmp_path):
    """An environment in which SLURM's programs are the ones above."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        lines = [line.removeprefix("        ") for line in text.strip("\n").splitlines()]
        (folder / name).write_text("\n".join(["#!/bin/bash", *lines, ""]))
        (folder / name).chmod(0o755 | stat.S_IXUSR)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "FAKE": str(tmp_path), "OMP_NUM_THREADS": "1"}


def submit(folder, environment, *more: str, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Runs train.py to the end of its jobs."""
    settings = ["model=tiny", "n_examples=8", "n_eval_examples=4", "model.batch_size=4", f"cache_dir={folder}"]
    launcher = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=2"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", *launcher, *settings, *more]
    process = subprocess.Popen(command, env=environment, cwd=folder, stderr=subprocess.PIPE, text=True)
    meanwhile()
    _, said = process.communicate(timeout=240)
    logs = [file.read_text()[-3000:] for file in folder.glob("task*")] + [f.read_text() for f in folder.glob("out*")]
    assert process.returncode == 0, said + "\n".join(logs)


def test_the_jobs_of_a_multirun_are_jobs_of_slurm(cluster, tmp_path):
    """Prevents a batch script without what was asked for, and jobs that do not train."""
    submit(tmp_path, cluster | {"JOBS": "2", "TASKS": "1"}, "loss=sft,dpo", "hydra.launcher.mem_gb=48")
    script = (tmp_path / "script.sh").read_text()
    for line in ("--partition=gpu", "--gpus-per-node=2", "--mem=48GB", "--time=1440", "--array=0-1%2", "--nodes=1"):
        assert re.search(rf"^#SBATCH {line}", script, re.MULTILINE), (line, script)
    assert re.search(r"^#SBATCH --signal=USR2@300", script, re.MULTILINE)
    assert (tmp_path / "tiny_sft" / "finished.json").exists() and (tmp_path / "tiny_dpo" / "finished.json").exists()


def test_a_job_on_several_machines_asks_for_them(cluster, tmp_path, monkeypatch):
    """Prevents two machines of eight GPUs on which one process trains: the script is rendered, and not run."""
    monkeypatch.setenv("PATH", cluster["PATH"])
    asked = {"nodes": 2, "tasks_per_node": 8, "gpus_per_node": 8}
    overrides = [f"hydra.launcher.{key}={value}" for key, value in asked.items()]
    with initialize_config_dir(str(ROOT / "config"), version_base=None):
        overrides += ["hydra/launcher=slurm", f"hydra.sweep.dir={tmp_path}"]
        config = compose("config", overrides, return_hydra_config=True)
        launcher = instantiate(config.hydra.launcher)
    scripts = []

    def render(executor: submitit.AutoExecutor, *_: object) -> list:
        scripts.append(executor._executor._make_submission_file_text("train", "77"))
        return []

    monkeypatch.setattr(submitit.AutoExecutor, "map_array", render)
    launcher.setup(hydra_context=HydraContext(None, None), task_function=print, config=config)
    launcher.launch([["loss=dpo"]], 0)
    for line in ("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8"):
        assert re.search(rf"^#SBATCH {line}$", scripts[0], re.MULTILINE), (line, scripts[0])


def test_a_machine_without_slurm_is_refused(tmp_path, monkeypatch):
    """Prevents a traceback of submitit on a machine that is no node of a cluster."""
    command = ["-m", "hydra/launcher=slurm", "model=tiny", "loss=sft,dpo", f"cache_dir={tmp_path}"]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"^hydra/launcher=slurm: sbatch and srun of SLURM .* login node .*leave the"):
        check_command(command)
    for program in ("sbatch", "srun"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    check_command(command)


def test_the_processes_of_a_job_train_together(cluster, tmp_path):
    """Prevents two processes that train the same run beside each other."""
    submit(tmp_path, cluster | {"JOBS": "1", "TASKS": "2"}, "loss=dpo", "hydra.launcher.tasks_per_node=2")
    assert (tmp_path / "tiny_dpo" / "finished.json").exists()
    assert "in use by" not in "".join(file.read_text() for file in tmp_path.glob("task*"))


@pytest.mark.slow
def test_a_job_whose_time_ends_is_queued_again_and_goes_on(cluster, tmp_path):
    """Prevents a notice of SLURM that saves nothing, a job that is not queued again, and one that begins anew."""
    run = tmp_path / "tiny_dpo"

    def notify() -> None:
        until = time.monotonic() + 120
        while not (run / "LATEST").exists() and time.monotonic() < until:
            time.sleep(0.05)
        for process in (tmp_path / "processes").read_text().split():
            os.kill(int(process), signal.SIGUSR2)

    longer = ["n_examples=160", "save_every=8", "hydra.launcher.tasks_per_node=2", "loss=dpo"]
    submit(tmp_path, cluster | {"JOBS": "1", "TASKS": "2"}, *longer, meanwhile=notify)
    said = (tmp_path / "task-0").read_text()
    stopped = re.search(r"stopped by SIGUSR2 after (\d+) of 160 examples", said)
    assert stopped, said
    assert f"goes on after {stopped[1]} examples, from step-{stopped[1]}" in said
    assert (run / "finished.json").exists() and (run / "LATEST").resolve().name == "step-160"
    assert len((tmp_path / "processes").read_text().split()) == 4, "two tasks, twice"

"""Two runs never share a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launch.compose import compose
from launch.run_folder import NOT_COMPARED, claim, finish, release, run_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path):
    config = compose(["model=tiny", f"cache_dir={tmp_path / 'runs'}"])
    yield config
    release(run_folder(config))


def changed(config, **values):
    copy = config.copy()
    for key, value in values.items():
        OmegaConf.update(copy, key.replace("__", "."), value)
    return copy


def begun(config):
    """Claims the folder of a run and leaves there what its first step does."""
    claimed = claim(config)
    (claimed.folder / "metrics.jsonl").write_text("{}\n")
    return claimed


def test_a_run_that_trained_nothing_does_not_hold_its_name(config):
    """Prevents that a run refused for its model, say, has to be removed by hand before a better try."""
    folder = claim(config).folder
    (folder / "metrics.jsonl").touch()
    again = claim(changed(config, lr=0.1))
    assert again.status == "new" and OmegaConf.load(folder / "config.yaml").lr == 0.1


def test_a_folder_is_new_then_unfinished_then_finished(config):
    """Prevents a finished run that trains again, and an unfinished one that is taken for finished."""
    first = begun(config)
    assert first.status == "new" and OmegaConf.load(first.folder / "config.yaml") == config
    assert claim(config).status == "unfinished"
    finish(first.folder)
    assert claim(config).status == "finished"


def test_another_config_is_refused_with_what_differs(config):
    """Prevents a run that overwrites another, or goes on with another's checkpoint."""
    begun(config)
    with pytest.raises(ValueError, match=r"lr: 5e-06 there, 0.1 here; loss.beta: 0.1 there, 0.2 here.*overwrite=true"):
        claim(changed(config, lr=0.1, loss__beta=0.2))


def test_what_does_not_change_the_training_is_not_compared(config):
    """Prevents that a run cannot resume on another device or with another log interval."""
    begun(config)
    same = changed(config, device="cpu", n_samples=3, wandb__enabled=True, minimum_log_interval_secs=5.0, mode="eval")
    assert claim(same).status == "unfinished"
    flat = {key for key in NOT_COMPARED if OmegaConf.select(config, key, default="gone") == "gone"}
    assert flat == set(), "keys that no config has"


def test_overwrite_removes_the_old_run_whole(config):
    """Prevents a new run beside the old one's checkpoints."""
    folder = claim(config).folder
    (folder / "LATEST").mkdir()
    (folder / "LATEST" / "policy.pt").touch()
    finish(folder)
    assert claim(changed(config, lr=0.1, overwrite=True)).status == "new"
    assert {entry.name for entry in folder.iterdir()} == {"config.yaml", ".lock"}
    assert OmegaConf.load(folder / "config.yaml").lr == 0.1


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_run_is_left_alone(config, overwrite):
    """Prevents that cache_dir=. exp_name=data overwrite=true removes somebody's data."""
    folder = run_folder(config)
    folder.mkdir(parents=True)
    (folder / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"has no config\.yaml but thesis\.tex"):
        claim(changed(config, overwrite=overwrite))
    assert (folder / "thesis.tex").exists()


def test_what_inspect_left_is_no_hindrance(config):
    """Prevents that looking at the data first makes the run impossible."""
    folder = run_folder(config)
    folder.mkdir(parents=True)
    (folder / "data.json").touch()
    assert claim(config).status == "new"


def in_another_process(config, then: str = "") -> subprocess.CompletedProcess[str]:
    code = (
        "from omegaconf import OmegaConf\nfrom launch.run_folder import claim\n"
        f"print(claim(OmegaConf.create({OmegaConf.to_yaml(config)!r})).status, flush=True)\n{then}"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)


def test_two_processes_never_share_a_folder(config):
    """Prevents two runs started at once that write the same checkpoint."""
    begun(config)
    result = in_another_process(config)
    assert "is in use by process" in result.stderr and result.stdout == ""
    release(run_folder(config))
    assert in_another_process(config).stdout == "unfinished\n"


def test_a_killed_process_leaves_no_lock(config):
    """Prevents that a crashed run can only be resumed after deleting a file by hand."""
    killed = in_another_process(config, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert killed.stdout == "new\n" and killed.returncode == -9
    (run_folder(config) / "metrics.jsonl").write_text("{}\n")
    assert claim(config).status == "unfinished"


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", ".hidden", "a ", "a\\b"])
def test_a_name_is_one_folder_below_cache_dir(config, name):
    """Prevents runs outside of cache_dir."""
    with pytest.raises(ValueError, match="no folder's name"):
        run_folder(changed(config, exp_name=name))


def test_a_folder_that_cannot_be_written_is_an_error_with_its_fix(config, tmp_path):
    """Prevents a PermissionError after minutes of loading."""
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write to .*cache_dir=DIR"):
        claim(changed(config, cache_dir=str(tmp_path / "file")))


def test_a_broken_saved_config_is_named(config):
    """Prevents a YAML error that does not say which file."""
    folder = begun(config).folder
    (folder / "config.yaml").write_text("a: [1\n")
    with pytest.raises(ValueError, match=r"config\.yaml: not a config"):
        claim(config)

"""Two runs never share a folder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launch.compose import compose
from launch.run_folder import NOT_COMPARED, begin, claim, finish, release, run_folder
from tests import warm

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


def finished(config):
    """The folder of a finished run, with one of everything that a run makes."""
    folder = begun(config).folder
    for name in ("LATEST", "BEST", "step-512", "wandb", "export"):
        (folder / name).mkdir()
        (folder / name / "file").touch()
    for name in ("data.json", "eval-test.json"):
        (folder / name).touch()
    finish(folder)
    return folder


def test_overwrite_removes_the_old_run_only_when_the_new_one_begins(config):
    """Prevents that data which cannot be read cost the finished run, and a new run beside the old one's checkpoints."""
    folder = finished(config)
    before = {entry.name for entry in folder.iterdir()}
    new = changed(config, lr=0.1, overwrite=True)
    claimed = claim(new)
    assert claimed.status == "replace" and {entry.name for entry in folder.iterdir()} == before
    assert OmegaConf.load(folder / "config.yaml").lr == config.lr
    begin(claimed, new)
    assert {entry.name for entry in folder.iterdir()} == {"config.yaml", ".lock"}
    assert OmegaConf.load(folder / "config.yaml").lr == 0.1


def test_only_what_a_run_makes_is_removed(config):
    """Prevents that notes beside a run's files go with it."""
    folder = finished(config)
    (folder / "notes.txt").touch()
    (folder / "step-by-step.md").touch()
    claimed = claim(changed(config, overwrite=True))
    begin(claimed, config)
    assert {entry.name for entry in folder.iterdir()} == {"config.yaml", ".lock", "notes.txt", "step-by-step.md"}


@pytest.mark.parametrize("restarts", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
@pytest.mark.parametrize("replacing", [{"overwrite": True}, {"resume": "never"}])
def test_a_restart_by_the_launcher_replaces_nothing(config, restarts, replacing, monkeypatch):
    """Prevents a run that begins at zero whenever one of its processes is lost, and one that spares an older run."""
    finished(changed(config, n_epochs=2))
    monkeypatch.setenv(restarts, "1")
    new = changed(config, **replacing)
    assert claim(new).status == "replace", "killed before it began, it still replaces the old one"
    begin(claim(new), new)
    begun(new)
    assert claim(new).status == "unfinished"
    assert claim(changed(config, lr=0.1, overwrite=True)).status == "replace"
    finish(run_folder(config))
    assert claim(new).status == "finished"
    monkeypatch.setenv(restarts, "0")
    assert claim(changed(new, n_epochs=2)).status == "replace"


FOREIGN = {
    "other_keys: 1": r"without the section model",
    "{model: {}, loss: {}, datasets: {}, exp_name: another}": r"config\.yaml of exp_name=another",
    "{model: 1, loss: {}, datasets: {}, exp_name: tiny_kto}": r"without the section model",
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", FOREIGN)
def test_a_config_yaml_alone_makes_no_run(config, content, overwrite):
    """Prevents that overwrite=true empties any project that has a config.yaml."""
    folder = run_folder(config)
    (folder / "LATEST").mkdir(parents=True)
    (folder / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=FOREIGN[content] + ".*no run's folder"):
        claim(changed(config, overwrite=overwrite))
    assert {entry.name for entry in folder.iterdir()} == {"config.yaml", "LATEST"}, "no lock either"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_repository_is_no_runs_folder(config, overwrite):
    """Prevents that a .git goes with what a run has made beside it."""
    folder = finished(config)
    (folder / ".git").mkdir()
    with pytest.raises(ValueError, match=r"has \.git, so it is no run's folder"):
        claim(changed(config, overwrite=overwrite))
    assert (folder / ".git").exists() and (folder / "LATEST").exists()


def test_what_a_killed_save_left_is_repaired(config):
    """Prevents a run that lost its LATEST between two renames, and gigabytes of half-written checkpoints."""
    folder = begun(config).folder
    for name in (".LATEST.old", ".step-512.ab12cd34", ".step-8.old", ".BEST.ab12cd34", "BEST"):
        (folder / name).mkdir()
    assert claim(config).status == "unfinished"
    assert {entry.name for entry in folder.iterdir() if entry.is_dir()} == {"LATEST", "step-8", "BEST"}


def test_a_saved_config_with_an_interpolation_is_refused(config, monkeypatch):
    """Prevents that somebody else's config.yaml reads this environment, into a message or a file."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hush-hush")
    folder = begun(config).folder
    saved = OmegaConf.load(folder / "config.yaml")
    saved.datasets.everyday.path = ["${oc.env:OPENAI_API_KEY}"]
    OmegaConf.save(saved, folder / "config.yaml")
    with pytest.raises(ValueError, match=r"config\.yaml: datasets\.everyday\.path has an interpolation") as error:
        claim(config)
    assert "hush" not in str(error.value) and "\n" not in str(error.value)


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
    return warm.run([sys.executable, "-c", code], ROOT, os.environ, timeout=60)


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


def test_a_full_disk_is_told_with_what_to_do(config, monkeypatch):
    """Prevents a bare [Errno 28] when a run begins or ends, and half a file that stays behind."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    claimed = begun(config)
    before = {entry.name for entry in claimed.folder.iterdir()}
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"config\.yaml could not be written .*No space left.*make room .*same command"):
        begin(claimed, config)
    assert {entry.name for entry in claimed.folder.iterdir()} == before


def test_a_broken_saved_config_is_named(config):
    """Prevents a YAML error that does not say which file."""
    folder = begun(config).folder
    (folder / "config.yaml").write_text("a: [1\n")
    with pytest.raises(ValueError, match=r"config\.yaml: not a config"):
        claim(config)

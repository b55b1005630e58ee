"""A run's folder, `{cache_dir}/{exp_name}`: two runs never share one.

The folder holds the run's config.yaml from its first moment and finished.json from its last. A lock on the file .lock
says that a process is at work in it; the system frees the lock when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from launch.check import show
from launch.keys import flatten
from models.checkpoints import repair_folder, step_folders
from models.files import write_whole

log = logging.getLogger(__name__)

FINISHED = "finished.json"
ORIGIN = "origin.json"
NOT_COMPARED = frozenset(
    {
        *("mode", "overwrite", "device", "cache_dir", "log_every", "minimum_log_interval_secs"),
        *("n_samples", "samples_dir", "split", "top_p", "temperature", "max_new_tokens", "sample_reference"),
        *("saved_policy", "export_dir", "push_to", "model.eval_batch_size"),
        *("resume", "save_every", "keep_last", "keep_optimizer", "save_in_background"),
        *("corpus", "text_key", "documents_path", "scoring_processes", "cache_scores"),
    }
)
"""Keys that do not change what a training run computes; of SECTIONS_NOT_COMPARED no key does."""
MAY_CHANGE = frozenset(
    {
        *("n_epochs", "n_examples", "task.n_tokens", "n_eval_examples", "eval_every", "do_first_eval", "keep_best"),
        *("intermediate_checkpoints", "cache_reference", "model.tokens_per_microbatch"),
        *("model.activation_checkpointing", "model.compile"),
    }
)
"""Keys that may change before a run goes on: its length, how it is looked at, and how its steps are computed; also all
of SECTIONS_THAT_MAY_CHANGE."""
MAY_DIFFER = (
    *("device", "cache_dir", "overwrite", "minimum_log_interval_secs", "wandb.*"),
    *("datasets.*.path", "datasets.*.test_path", "datasets.*.data_dir"),
)
"""Keys that may differ between the processes of one run: the rows of data sets are compared themselves."""
SECTIONS_NOT_COMPARED = ("wandb.", "distributed.", "red_team.")
SECTIONS_THAT_MAY_CHANGE = ("generation.", "kl.", "scorer.")
LENGTHS = ("n_epochs", "n_examples", "task.n_tokens")
BEFORE_A_RUN = frozenset({"data.json"})  # what mode=inspect leaves in the folder of a run to come
RUN_MAKES = (
    *("config.yaml", "data.json", "metrics.jsonl", "LATEST", "BEST", "step-[0-9]*", FINISHED, ORIGIN, "eval-*.json"),
    *("export", "wandb", "samples", "alignment.json", "red_team"),
)
"""The names in a run's folder that may be removed with the run; beside them `.NAME.*`, what a killed write leaves."""
REPLACING = ("overwrite", "resume")  # keys that let a run replace the one that is there
RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
HARMLESS = (".lock", ".DS_Store", ".nfs*")  # the lock, and what systems put into any folder
SECTIONS = ("model", "loss", "datasets")

_locks: dict[Path, IO[str]] = {}  # open files: a lock lasts as long as its file is open


@dataclass(frozen=True)
class Claim:
    """A folder that this process may work in.

    Attributes:
        status: `new`; `finished`, by the same config, so that there is nothing to do; `unfinished`, so that the run
            goes on from its last checkpoint, if there is one; `replace`, an old run that `begin` removes.
        changed: keys that have other values than when the run began (see MAY_CHANGE), as `key: there, here`.
    """

    status: str
    folder: Path
    changed: tuple[str, ...] = ()


def run_folder(config: DictConfig) -> Path:
    """`{cache_dir}/{exp_name}`; ValueError for an exp_name that is not the name of one folder."""
    name = config.exp_name
    if not name or "/" in name or "\\" in name or "\0" in name or name.startswith(".") or name != name.strip():
        raise ValueError(f"exp_name={name!r} is no folder's name: no slashes, no dot or space at its start, not empty.")
    return Path(config.cache_dir).expanduser() / name


def claim(config: DictConfig) -> Claim:
    """Takes the run's folder for this process, until it ends or calls `release`; writes config.yaml into a new one.

    Of several processes of one run only the first calls it. With the status `replace` the old run is still whole.

    Raises:
        ValueError: the folder is in use, holds a run of another config or what is no run, or cannot be written.
    """
    folder = run_folder(config)
    try:
        _refuse_foreign(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _lock(folder)
    except OSError as error:
        raise ValueError(
            f"cannot write to {folder}: {error.strerror}; choose another folder with cache_dir=DIR."
        ) from error
    try:
        _repair(folder)
        return _claim(folder, config)
    except BaseException:
        release(folder)
        raise


def begin(claimed: Claim, config: DictConfig) -> None:
    """Called when nothing is left to do before the training: only now an old run is removed for a new one."""
    if claimed.status == "replace":
        log.warning(_removal(claimed.folder, config))
        _empty(claimed.folder)
    (claimed.folder / FINISHED).unlink(missing_ok=True)
    write_whole(claimed.folder / "config.yaml", OmegaConf.to_yaml(config))


def _removal(folder: Path, config: DictConfig) -> str:
    """What `begin` is about to remove, and which key asks for it."""
    state = "finished" if (folder / FINISHED).is_file() else "unfinished"
    steps = [path.name for path in step_folders(folder)]
    why = "overwrite=true" if config.overwrite else "resume=never begins anew; resume=auto would have gone on with it"
    return f"the run that was in {folder} ({state}, with {', '.join(steps) or 'no checkpoint'}) is removed: {why}"


def finish(folder: Path) -> None:
    """Marks the run as finished and gives the folder free."""
    finished_at = datetime.now(UTC).isoformat(timespec="seconds")
    write_whole(folder / FINISHED, json.dumps({"finished_at": finished_at}) + "\n")
    release(folder)


def release(folder: Path) -> None:
    """Gives the folder free for other processes."""
    held = _locks.pop(folder.resolve(), None)
    if held is not None:
        held.close()


def _lock(folder: Path) -> None:
    """POSIX locks, because worker processes do not inherit them: a dead run's orphans do not keep its folder."""
    if folder.resolve() in _locks:
        return
    file = open(folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 - open for as long as the lock is held
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise ValueError(
            f"{folder} is in use by {owner}; wait for it, or give this run a name of its own with exp_name=NAME."
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _locks[folder.resolve()] = file


def _made_by_a_run(name: str) -> bool:
    if name.startswith("step-") and not name.removeprefix("step-").isdecimal():
        return False  # a checkpoint that somebody put aside
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f".{pattern}.*") for pattern in RUN_MAKES)


def _refuse_foreign(folder: Path) -> None:
    """Refuses a folder with anything in it that is no run's, before a lock file is put there."""
    if not folder.is_dir():
        return
    advice = "so it is no run's folder and nothing is written there: choose another name with exp_name=NAME."
    names = sorted(entry.name for entry in folder.iterdir())
    names = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in HARMLESS)]
    hidden = [name for name in names if name.startswith(".") and not _made_by_a_run(name)]
    if hidden:
        raise ValueError(f"{folder} has {hidden[0]}, {advice}")
    if not (folder / "config.yaml").is_file():
        foreign = [name for name in names if name not in BEFORE_A_RUN and not name.startswith(".")]
        if foreign:
            raise ValueError(f"{folder} has no config.yaml but {foreign[0]}, {advice}")
        return
    saved = read_config(folder / "config.yaml")
    lacking = [section for section in SECTIONS if not isinstance(saved.get(section), DictConfig)]
    if lacking:
        raise ValueError(f"{folder} has a config.yaml without the section {lacking[0]}, {advice}")
    if str(saved.get("exp_name")) != folder.name:
        raise ValueError(f"{folder} has a config.yaml of exp_name={show(saved.get('exp_name'))}, {advice}")


def _repair(folder: Path) -> None:
    """Puts back or removes what a process that was killed while it saved has left."""
    steps = {entry.name[1:].rpartition(".")[0] for entry in folder.glob(".step-[0-9]*.*")}
    for name in ("LATEST", "BEST", "export", *sorted(steps)):
        repair_folder(folder / name)


def _claim(folder: Path, config: DictConfig) -> Claim:
    saved = folder / "config.yaml"
    if not (saved.is_file() and begun(folder)):
        write_whole(saved, OmegaConf.to_yaml(config))
        return Claim("new", folder)
    before = read_config(saved)
    differing = differences(before, config)
    refused = [text for key, text in differing.items() if not may_change(key)]
    begun_by_this = _restarted() and not refused and all(before.get(key) == config[key] for key in REPLACING)
    if config.overwrite and not begun_by_this:
        return Claim("replace", folder)
    if refused:
        raise ValueError(
            f"{folder} holds a run with another config ({'; '.join(refused)}): choose another name with "
            "exp_name=NAME, or overwrite=true removes that run first."
        )
    if (folder / FINISHED).is_file() and not set(differing) & set(LENGTHS):
        return Claim("finished", folder)
    if config.resume == "never" and not begun_by_this:
        return Claim("replace", folder)
    return Claim("unfinished", folder, tuple(differing.values()))


def _restarted() -> bool:
    """Whether the launcher starts a command again that it has started before: torchrun with --max-restarts, SLURM."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in RESTARTS)


def begun(folder: Path) -> bool:
    """Whether anything was trained: a run that ended before that (no model, say) does not hold its name."""
    if not folder.is_dir():
        return False
    metrics = folder / "metrics.jsonl"
    if metrics.is_file() and metrics.stat().st_size:
        return True
    kept = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    return bool(kept - BEFORE_A_RUN - {"config.yaml", "metrics.jsonl"})


def _empty(folder: Path) -> None:
    """Removes a run and nothing else, its mark of being finished first: a crash in between leaves no finished run.

    config.yaml stays until it is written over: what a crash leaves is still known as a run's.
    """
    entries = [entry for entry in folder.iterdir() if _made_by_a_run(entry.name) and entry.name != "config.yaml"]
    for entry in sorted(entries, key=lambda one: one.name != FINISHED):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def read_config(file: Path) -> DictConfig:
    """A saved config.yaml; ValueError where it is not one, or where a value would be looked up in this environment."""
    try:
        config = OmegaConf.load(file)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not a config: {' '.join(str(error).split())}") from error
    if not isinstance(config, DictConfig):
        raise ValueError(f"{file}: not a config; a saved one has keys such as model, loss and datasets.")
    for key, value in flatten(OmegaConf.to_container(config, resolve=False)).items():
        if "${" in str(value):
            raise ValueError(
                f"{file}: {key} has an interpolation (${{...}}), and a saved config has none: it was written by "
                "something else than train.py. Write the value itself in its place."
            )
    return config


def differences(saved: DictConfig, config: DictConfig) -> dict[str, str]:
    """The keys in which two runs differ, and for each `key: saved value, now value`."""

    def compared(one: DictConfig) -> dict[str, Any]:
        flat = flatten(OmegaConf.to_container(one, resolve=True))
        return {k: v for k, v in flat.items() if k not in NOT_COMPARED and not k.startswith(SECTIONS_NOT_COMPARED)}

    before, now = compared(saved), compared(config)
    return {
        key: f"{key}: {_shown(before, key)} there, {_shown(now, key)} here"
        for key in dict.fromkeys([*now, *before])
        if key not in before or key not in now or before[key] != now[key]
    }


def may_change(key: str) -> bool:
    """Whether a key may have another value when a run goes on."""
    return key in MAY_CHANGE or key.startswith(SECTIONS_THAT_MAY_CHANGE)


def may_differ(key: str) -> bool:
    """Whether processes of one run may have another value each."""
    return any(fnmatchcase(key, pattern) for pattern in MAY_DIFFER)


def _shown(flat: dict[str, Any], key: str) -> str:
    return show(flat[key]) if key in flat else "absent"

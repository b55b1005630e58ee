"""Which checkpoint a run goes on from, and the note in its folder of the one that `resume` named.

A command is run again whenever its run was cut off. So the checkpoint that it names is taken up once: from then on the
run's own newest one counts, and until there is one, what the run was begun from.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from launch.run_folder import ORIGIN, differences, may_change
from models.checkpoints import switch_link
from models.files import write_whole
from trainers import distributed
from trainers.resume import Resume, checkpoint_in, find_resume, own_latest, read_resume

log = logging.getLogger(__name__)


def choose_resume(config: DictConfig, folder: Path, status: str) -> Resume | None:
    """The checkpoint that the run goes on from, if there is one.

    Args:
        status: of the folder (see `run_folder.Claim`).

    Raises:
        ValueError: there is one that cannot be gone on from, or it is of another config.
    """
    found, own = _checkpoint(config, folder, status, _say())
    if found is None:
        return None
    resume = read_resume(found, own)
    there = differences(OmegaConf.create(resume.state["config"]), config)
    refused = [text for key, text in there.items() if not may_change(key) and key != "exp_name"]
    if refused:
        raise ValueError(
            f"{found} is of a run with another config ({'; '.join(refused)}): take over its weights alone with "
            f"model.load_from={found}/policy.pt, or leave resume at auto."
        )
    return resume


def tell_resume(resume: Resume, folder: Path, changed: Sequence[str]) -> None:
    """Says where a run goes on, once nothing is left to refuse it.

    Args:
        changed: see `run_folder.Claim`.
    """
    say = _say()
    say("%s goes on after %d examples, from %s", folder, resume.examples, resume.folder.resolve().name)
    for text in changed:
        say("changed since it began: %s", text)
    _tell_last_bits(resume, say)


def _say() -> Callable[..., None]:
    """What the first process says, and the others keep to themselves."""
    return log.info if distributed.rank() == 0 else log.debug


def note_origin(folder: Path, config: DictConfig, resume: Resume | None) -> None:
    """Keeps in the folder that the checkpoint which `resume` names was taken up; called when the run begins.

    One of the run's own becomes LATEST first: whenever the process is killed, the run goes on from it.
    """
    if resume is None or not names_checkpoint(config):
        return
    origin, value = _origin(folder), _absolute(config.resume)
    if value in (origin.get("resume"), origin.get("back_to")):
        return
    if resume.own:
        switch_link(folder / "LATEST", resume.folder.resolve())
        origin["back_to"] = value
    else:
        origin = {"resume": value, "checkpoint": str(resume.folder.resolve())}
    write_whole(folder / ORIGIN, json.dumps(origin) + "\n")


def names_checkpoint(config: DictConfig) -> bool:
    """Whether `resume` is a folder."""
    return config.resume not in ("auto", "never")


def _checkpoint(config: DictConfig, folder: Path, status: str, say: Callable[..., None]) -> tuple[Path | None, bool]:
    """Its folder, and whether it is the run's own."""
    origin = _origin(folder) if status == "unfinished" else {}
    if names_checkpoint(config):
        if _absolute(config.resume) not in (origin.get("resume"), origin.get("back_to")):
            found = checkpoint_in(Path(config.resume).expanduser())
            own = found.resolve().parent == folder.resolve()
            if status == "unfinished" and not own:
                raise ValueError(
                    f"resume={found} is of another run than {folder}, which has begun already: leave it at auto, or "
                    "choose another name with exp_name=NAME."
                )
            return found, own
        say("resume=%s was taken up when %s began: now its own newest checkpoint counts", config.resume, folder)
    elif status != "unfinished":
        return None, False
    found = find_resume(folder)
    if found is None and (folder / "LATEST").exists():
        if not own_latest(folder):
            raise ValueError(
                f"{folder / 'LATEST'} leads to {(folder / 'LATEST').resolve()}, outside of the run's folder: remove "
                "the link, or go on from that checkpoint in a run of its own: exp_name=NAME resume=FOLDER."
            )
        read_resume(folder / "LATEST")  # says what is wrong with it
    if found is None and (folder / "LATEST").is_symlink():
        raise ValueError(
            f"{folder / 'LATEST'} leads to {(folder / 'LATEST').readlink()}, which is not there: put it back, or begin "
            "anew with resume=never."
        )
    if found is None and "checkpoint" in origin:
        return Path(origin["checkpoint"]), False
    if found is None:
        say("%s had not come to its first checkpoint: it starts from the beginning", folder)
    return found, True


def _tell_last_bits(resume: Resume, say: Callable[..., None]) -> None:
    import torch

    threads, version = resume.state["threads"], resume.state["torch"]
    if threads != torch.get_num_threads() or version != torch.__version__:
        say(
            "it computed with %d threads and torch %s, and now with %d and %s: last bits will differ",
            threads, version, torch.get_num_threads(), torch.__version__,
        )  # fmt: skip


def _absolute(value: str) -> str:
    return os.path.abspath(Path(value).expanduser())


def _origin(folder: Path) -> dict[str, Any]:
    """`resume` as the run was begun with and its `checkpoint`, and `back_to`: the own one that it went back to."""
    file = folder / ORIGIN
    if not file.is_file():
        return {}
    try:
        origin = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): remove it.") from error
    return origin if isinstance(origin, dict) else {}

"""What a checkpoint has to hold before a run goes on from it, and what of it no longer counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dataloaders.sft import SFTDataLoader
from models.checkpoints import switch_link
from tests import tiny
from trainers.basic import BasicTrainer
from trainers.resume import Resume, find_resume, read_resume
from trainers.sft import SFTTrainer


def trainer(folder: Path, n_epochs: int, **options: object) -> BasicTrainer:
    """Two steps an epoch."""
    loader = tiny.loader(SFTDataLoader, 8, batch_size=4, n_epochs=n_epochs)
    options = {"lr": 1e-2, "eval_every": 100} | options
    return tiny.trainer(
        SFTTrainer, "sft", reference_seed=None, train_loader=loader, eval_rows=loader.fixed_rows(8), folder=folder,
        **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The folder of a run of one epoch with a best checkpoint."""
    folder = tmp_path_factory.mktemp("saved")
    trainer(folder, 1, keep_best="loss/eval").train()
    return folder


@pytest.mark.parametrize(
    ("changes", "kept"),
    [({}, True), ({"keep_best": "logps_eval/target"}, False), ({"n_eval_examples": 4}, False)],
)
def test_values_of_another_metric_are_not_compared(changes, kept, saved):
    """Prevents a BEST that stays wrong for good, because the loss of before is compared with an accuracy."""
    later = trainer(saved, 2, **({"keep_best": "loss/eval"} | changes))
    training = later.prepare(read_resume(saved / "LATEST"))
    later.checkpoints.folder = None  # the links stay for the other cases
    training._start()
    assert (later.checkpoints.best is not None) == (later.checkpoints.best_examples is not None) == kept


@pytest.mark.parametrize(("key", "value"), [("averages", None), ("step_idx", "3"), ("optimizer", ...)])
def test_a_resume_file_that_lacks_something_is_named(key, value, saved, tmp_path):
    """Prevents a KeyError from the depths of a run that has begun already."""
    state = dict(read_resume(saved / "LATEST").state)
    state.pop(key) if value is ... else state.update({key: value})
    torch.save(state, tmp_path / "resume.pt")
    with pytest.raises(ValueError, match=rf"resume\.pt is damaged: {key} missing or of a wrong type\. Go on from"):
        read_resume(tmp_path)


def test_weights_that_cannot_be_read_say_what_else_to_do(saved, tmp_path):
    """Prevents a message without the ways out that resume.pt's has, and one that comes once the run has begun."""
    (tmp_path / "policy.pt").write_bytes((saved / "LATEST" / "policy.pt").read_bytes()[:-3000])
    later = trainer(saved, 2, keep_best="loss/eval")
    with pytest.raises(ValueError, match=r"policy\.pt cannot be read.*resume=FOLDER.*resume=never"):
        later.prepare(Resume(tmp_path, read_resume(saved / "LATEST").state))


def test_a_link_out_of_the_folder_is_none_of_the_runs_checkpoints(saved, tmp_path):
    """Prevents a run that goes on from another one's weights and metrics as if they were its own."""
    (tmp_path / "LATEST").symlink_to((saved / "LATEST").resolve())
    assert find_resume(tmp_path) is None
    (tmp_path / "step-4").mkdir()
    (tmp_path / "step-4" / "resume.pt").touch()
    assert find_resume(tmp_path) == tmp_path / "step-4"
    switch_link(tmp_path / "LATEST", tmp_path / "step-4")
    assert find_resume(tmp_path) == tmp_path / "LATEST" and find_resume(saved) == saved / "LATEST"

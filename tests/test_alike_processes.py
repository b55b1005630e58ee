"""Processes of one run that were started differently, or not by a launcher, are told so before they train."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch

from dataloaders.sft import SFTDataLoader
from launch import train
from launch.compose import compose
from tests import tiny
from trainers import distributed
from trainers.agreement import refuse_unlike
from trainers.sft import SFTTrainer


def joined_by(monkeypatch, **changes: Any) -> None:
    """Lets this process have met another one, on a host named `far`, with other values of some names."""
    monkeypatch.setattr(distributed, "gather_objects", lambda own: [own, ("far", own[1] | changes)])


def test_another_command_on_one_host_is_refused(monkeypatch):
    """Prevents replicas that drift apart because one host has another learning rate, seed or number of examples."""
    config = compose(["model=tiny", "device=cpu"])
    joined_by(monkeypatch, lr=0.5, n_examples=8)
    here = f"n_examples=None; lr=5e-06 on rank 0 ({socket.gethostname()})"
    with pytest.raises(ValueError, match="Start every process with the same command") as error:
        train._begin(config)
    assert f"differ: n_examples=8; lr=0.5 on rank 1 (far), {here}" in str(error.value)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(distributed, "gather_objects", lambda own: seen.update(own[1]) or [own])
    train._begin(config)
    assert "model.batch_size" in seen and not {"device", "cache_dir", "datasets.everyday.path"} & set(seen)
    joined_by(monkeypatch, seed=2)
    with pytest.raises(ValueError, match=r"seed=2 on rank 1 \(far\), no seed on rank 0"):
        refuse_unlike({}, "")


@pytest.mark.parametrize("changes", [{"training data": "other"}, {"examples before": 8}])
def test_other_data_or_another_checkpoint_on_one_host_is_refused(changes, tmp_path, monkeypatch):
    """Prevents replicas of different files under one name, and one that begins anew because it sees no LATEST."""
    loader = tiny.loader(SFTDataLoader, 8, batch_size=4)
    trainer = tiny.trainer(SFTTrainer, "sft", reference_seed=None, train_loader=loader, folder=tmp_path)
    joined_by(monkeypatch, **changes)
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=rf"differ: {name}={value} on rank 1 \(far\), {name}=.*a cache_dir that all"):
        trainer.prepare()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0"}, r"RANK is set and WORLD_SIZE is not"),
        ({"RANK": "0", "WORLD_SIZE": ""}, r"WORLD_SIZE='' in the environment is no number"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, r"RANK='x' in"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "abc"}, r"MASTER_PORT='abc' in"),
    ],
)
def test_a_variable_that_is_no_number_is_named(variables, message, monkeypatch):
    """Prevents an error of int() that names nothing, and processes that each train alone."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        distributed.start(torch.device("cpu"))

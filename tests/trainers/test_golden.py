"""Every loss trains through the command line as it did when it was recorded."""

import json

import pytest

from tests.trainers import golden

RECORD = json.loads(golden.RECORD.read_text())


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory) -> dict[str, list[float]]:
    return golden.trajectories(tmp_path_factory.mktemp("golden"))


def test_every_loss_is_recorded(trajectories):
    """Prevents a loss that no command line has run, and a run that is missing."""
    assert sorted(RECORD) == sorted(trajectories) == golden.LOSSES
    assert {len(losses) for losses in RECORD.values()} == {golden.STEPS}


@pytest.mark.parametrize("name", golden.LOSSES)
def test_a_trajectory_stays(name: str, trajectories):
    """Prevents a silent change of data order, masks, losses, gradients or optimizer: twenty steps are as recorded."""
    assert trajectories[name] == pytest.approx(RECORD[name], rel=1e-3, abs=1e-4)
    assert len(set(RECORD[name])) >= 5, "it moves"

"""The curves of several runs in one picture."""

import json
from pathlib import Path

import pytest

from reports import ranking_plots
from reports.inputs import read_run

CONFIG = "exp_name: {name}\nseed: {seed}\nlr: {lr}\nloss:\n  name: {loss}\n"


def run(folder: Path, loss: str, lr: float, seed: int, **metrics: float) -> Path:
    """A run's folder with two training records and an evaluation."""
    path = folder / f"{loss}_{lr}_{seed}"
    path.mkdir()
    (path / "config.yaml").write_text(CONFIG.format(name=path.name, seed=seed, lr=lr, loss=loss))
    records = [{"split": "train", "counters/examples": n, "loss/train": 1 / n, **metrics} for n in (8, 16)]
    records.append({"split": "eval", "counters/examples": 16, "loss/eval": 0.5})
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_runs_are_grouped_by_loss_and_setting(tmp_path):
    """Prevents seeds that look like methods, and losses on one scale."""
    folders = [run(tmp_path, loss, lr, seed) for loss in ("dpo", "kto") for lr in (0.1, 0.2) for seed in (1, 2)]
    groups = ranking_plots._grouped([read_run(folder) for folder in folders])
    assert {loss: list(methods) for loss, methods in groups.items()} == {
        "dpo": ["lr=0.1", "lr=0.2"],
        "kto": ["lr=0.1", "lr=0.2"],
    }
    assert all(len(runs) == 2 for methods in groups.values() for runs in methods.values())


def test_the_command_draws(tmp_path, capsys):
    """Prevents an empty picture that passes for one: two losses with one metric are two panels."""
    folders = [run(tmp_path, "dpo", 0.1, 1), run(tmp_path, "kto", 0.1, 1, **{"rewards_train/margins": 1.0})]
    target = tmp_path / "out" / "curves.png"
    assert ranking_plots.main([*map(str, folders), "--output", str(target)]) == 0
    assert "2 runs, 3 panels" in capsys.readouterr().out and target.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("more, message", [((), "none of these runs"), (("away",), "away has no config.yaml")])
def test_what_cannot_be_drawn_is_said(more, message, tmp_path, capsys):
    """Prevents a traceback for a misspelled metric or folder."""
    folder = str(run(tmp_path, "dpo", 0.1, 1))
    assert ranking_plots.main([folder, *more, "--output", str(tmp_path / "x.png"), "--metrics", "nothing"]) == 2
    assert message in capsys.readouterr().err

"""Random kills: a run that is killed at any moment and started again ends as if nothing had happened.

`make soak` runs it. There is no resumption from the middle yet: a killed run starts again, and that must be clean.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.readme import ROOT

KILLS = 20
VOLATILE = ("seconds", "per_second", "memory")


def command(folder: Path, loss: str) -> list[str]:
    settings = ["model=tiny", "n_examples=96", "n_eval_examples=16", "eval_every=16", "intermediate_checkpoints=true"]
    return [sys.executable, str(ROOT / "train.py"), f"loss={loss}", *settings, f"cache_dir={folder}", "exp_name=run"]


def records(folder: Path) -> list[dict]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if not any(word in k for word in VOLATILE)} for record in found]


@pytest.mark.soak
@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_killed_and_started_again(loss, tmp_path):
    """Prevents a half-written folder that a later start trips over or takes for finished."""
    start = time.monotonic()
    subprocess.run(command(tmp_path / "whole", loss), check=True, capture_output=True)
    duration = time.monotonic() - start
    chance = random.Random(loss)
    for _ in range(KILLS):
        process = subprocess.Popen(command(tmp_path / "killed", loss), stderr=subprocess.DEVNULL)
        try:
            process.wait(chance.uniform(0.3, 1.0) * duration)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    subprocess.run(command(tmp_path / "killed", loss), check=True, capture_output=True)
    whole, killed = (
        torch.load(tmp_path / name / "run" / "LATEST" / "policy.pt", weights_only=True) for name in ("whole", "killed")
    )
    assert all(torch.equal(whole["state"][key], killed["state"][key]) for key in whole["state"])
    assert records(tmp_path / "whole") == records(tmp_path / "killed")

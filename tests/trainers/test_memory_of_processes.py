"""What each of two processes holds in memory while it loads and trains, measured on a model of 79 MB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.compose import compose
from launch.memory import estimate
from tests import tiny
from tests.readme import ROOT

PARAMETERS = 20 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 256 * 1024 + 2 * 256) + 256 + tiny.VOCABULARY * 256
WEIGHTS = 4 * PARAMETERS
MODEL = [
    "model=tiny", "model.shape.layers=20", "model.shape.hidden_size=256", "model.shape.intermediate_size=1024",
    "model.shape.attention_heads=4", "model.shape.key_value_heads=2", "model.shape.head_size=64",
    f"model.shape.parameters={PARAMETERS}",
]  # fmt: skip
"""Twenty blocks, so that the few which are gathered at a time are little beside the whole."""
TRAINING = [
    "loss=dpo", "datasets=[local]", "n_examples=16", "n_eval_examples=0", "model.batch_size=8",
    "model.tokens_per_microbatch=200", "exp_name=large", "device=cpu", "save_in_background=false",
]  # fmt: skip
"""Each pair has 199 tokens (two of the longest responses, a prompt, what the template adds), and a pass to itself."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc")


def measured(folder: Path, what: str, processes: int, *more: str) -> list[dict[str, int]]:
    """Peaks of each process, in bytes."""
    rows = folder / "rows.jsonl"
    pairs = [
        {"prompt": f"{n:03d}" + "q" * 30, "chosen": "a" * 83, "rejected": "b" * 80 + f"{n:03d}"} for n in range(40)
    ]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [sys.executable, *(launcher if processes > 1 else []), "-m", "tests.trainers.memory_worker", what]
    settings = [*MODEL, *TRAINING, f"datasets.local.path={rows}", f"cache_dir={folder}", *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, str(folder / "peaks"), *settings], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"peaks{rank}").read_text()) for rank in range(processes)]


def test_loading_holds_one_full_copy_a_host(tmp_path):
    """Prevents a host that holds as many copies of a model as it has processes while it shards it.

    The first process has a full copy and its shards, the other one shards alone, and a few blocks for a moment; of the
    reference, which is loaded beside the policy's shards, likewise.
    """
    first, second = measured(tmp_path, "load", 2, "distributed=fsdp")
    assert 0.9 * WEIGHTS < first["policy"] < 1.75 * WEIGHTS
    assert 0.4 * WEIGHTS < second["policy"] < 0.95 * WEIGHTS
    assert first["reference"] < 2.4 * WEIGHTS and second["reference"] < 1.6 * WEIGHTS


@pytest.mark.slow
def test_replicas_hold_each_model_once(tmp_path):
    """Prevents a second copy of weights that are loaded, for a moment that decides whether they fit."""
    for peaks in measured(tmp_path, "load", 2):
        assert peaks["policy"] < 1.25 * WEIGHTS and peaks["reference"] < 2.3 * WEIGHTS


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "how"), [(1, "ddp"), (2, "ddp"), (2, "fsdp")])
def test_a_training_takes_what_is_reckoned(processes: int, how: str, tmp_path):
    """Prevents a calculator that nobody has checked: mode=memory against the peak of the last process.

    A tenth may be missing, and 70 MB of what does not grow with a model. The first process of a sharded run also
    gathers what a checkpoint holds. `python -m benchmarks.scaling` compares the two on a real model.
    """
    options = [f"distributed={how}", f"distributed.processes={processes}"]
    peaks = [one["training"] for one in measured(tmp_path, "train", processes, *options)]
    found = estimate(compose([*MODEL, *TRAINING, f"datasets.local.path={tmp_path / 'rows.jsonl'}", *options]))
    assert abs(peaks[-1] - found.total) < 0.1 * found.total + 70e6
    assert peaks[0] < 1.1 * (found.total + found.copy) + 70e6

"""Two and three gloo processes that share the weights of a model, by FSDP2, give what one process gives."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.trainers import processes_worker, sharded
from trainers import distributed

OPTIMIZER = 1e-4
"""Of the state after ten steps; float32 has seven digits."""
ROUNDED = {"bfloat16": (0.01, 0.01), "reduced": (0.01, 1e-6)}
"""Tolerances of gradients and metrics where numbers are rounded to bfloat16: all of a pass, or sums of gradients."""
VOLATILE = ("seconds", "per_second", "memory", "tokens/")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What one process (alone), 2 and 3 processes saved."""
    made = tmp_path_factory.mktemp("sharded")
    (made / "alone").mkdir()
    torch.save(sharded.everything(made / "alone"), made / "alone" / "rank0.pt")
    environment = os.environ | {"PYTHONPATH": str(tiny.ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, processes_worker.__file__, "sharded", str(made), *map(str, sharded.COUNTS)]
    done = subprocess.run(command, env=environment, cwd=tiny.ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return made


def steps_of(folder: Path, count: int) -> list[dict[str, Any]]:
    return [torch.load(folder / str(count) / f"rank{rank}.pt", weights_only=True) for rank in range(count)]


def records(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says, and without how rows were packed."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if not any(word in k for word in VOLATILE)} for record in found]


def compare(value: Any, expected: Any, where: str, tolerance: float) -> None:
    """The same containers, types, shapes and dtypes, and numbers within a tolerance.

    An optimizer's tensors are held to their largest number as well: most squares of gradients are below 1e-5.
    """
    assert type(value) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert (value.dtype, value.shape) == (expected.dtype, expected.shape), where
        assert value.untyped_storage().nbytes() == expected.untyped_storage().nbytes(), f"{where} saves more than it is"
        value, expected = value.double(), expected.double()
        assert torch.allclose(value, expected, rtol=tolerance, atol=tolerance), where
        if ".optimizer." in where:
            assert (value - expected).abs().max() <= OPTIMIZER * expected.abs().max(), where
    elif isinstance(expected, dict):
        assert list(value) == list(expected), where
        for key in expected:
            compare(value[key], expected[key], f"{where}.{key}", tolerance)
    elif isinstance(expected, list | tuple):
        assert len(value) == len(expected), where
        for number, one in enumerate(expected):
            compare(value[number], one, f"{where}.{number}", tolerance)
    elif isinstance(expected, float):
        assert value == pytest.approx(expected, rel=tolerance, abs=tolerance), where
    else:
        assert value == expected, where


def compare_checkpoints(folder: Path, expected: Path, tolerance: float) -> None:
    """policy.pt and resume.pt at the end of two trainings."""
    for name in ("policy.pt", "resume.pt"):
        one, other = (torch.load(place / "LATEST" / name, weights_only=True) for place in (folder, expected))
        for contents in (one, other):
            for key in ("random", "config", "metrics_bytes", "passed"):  # of each process; names its folder; of packs
                contents.pop(key, None)
            contents.get("reference", {}).pop("values", None)  # of the rows of each process
        compare(one, other, f"{folder.name}/{name}", tolerance)


@pytest.mark.parametrize("count", sharded.COUNTS)
def test_a_step_is_that_of_one_process(count: int, folder: Path):
    """Prevents gradients that are averaged or counted twice, a head's that is lost, and a hang without rows.

    Of every loss: gradient, loss, rewards and KTO's estimate agree to 1e-6, on each process; in bfloat16 they are near.
    """
    alone = torch.load(folder / "alone" / "rank0.pt", weights_only=True)
    for result in steps_of(folder, count):
        assert len(result) >= 10
        for name, value in result.items():
            assert value["gradient"].norm() > 0
            apart, most = ROUNDED.get(name, (1e-6, 1e-6))
            assert tiny.relative(alone[name]["gradient"], value["gradient"]) < apart, name
            for split in ("train", "eval"):
                assert value[split] == pytest.approx(alone[name][split], rel=most, abs=most / 1000), (name, split)


@pytest.mark.parametrize(
    ("count", "name"), [*((2, name) for name in sharded.TRAININGS), *((3, name) for name in sharded.BY_THREE)]
)
def test_ten_steps_are_those_of_one_process(count: int, name: str, folder: Path):
    """Prevents a norm of parts, an optimizer's state under other keys, and a checkpoint that one process cannot read.

    Metrics of every step, gradient norm and evaluations agree to 1e-5; policy.pt and resume.pt have the same keys,
    shapes, dtypes and sizes, and values within 1e-5.
    """
    ours, alone = folder / str(count) / name, folder / "alone" / name
    assert len(records(ours)) == sharded.STEPS + 2
    compare(records(ours), records(alone), name, 1e-5)
    compare_checkpoints(ours, alone, 1e-5)


@pytest.mark.parametrize("name", sharded.RESUMED)
def test_a_run_goes_on_with_another_number_of_processes(name: str, folder: Path, tmp_path: Path):
    """Prevents a resume that takes a part for the whole: from 1 process to 3, from 2 to 3, and from 2 to 1."""
    whole = folder / "alone" / name
    for start in ("alone", "two"):
        compare_checkpoints(folder / "3" / f"{name} {start}", whole, 1e-5)
    sharded.train(name, tmp_path, folder / "2" / name)
    compare_checkpoints(tmp_path, whole, 1e-5)


def test_a_whole_run_is_that_of_one_process(folder: Path, tmp_path: Path):
    """Prevents weights that are not those of the first process, reference values under another name, other policy.pt.

    Each of the two loads in the other: a sharded run begins with one's weights, and one with a sharded run's.
    """
    compare(records(folder / "2" / "run"), records(folder / "alone" / "run"), "run", 1e-5)
    compare_checkpoints(folder / "2" / "run", folder / "alone" / "run", 1e-5)
    named = {file.name for file in (folder / "2" / "reference").iterdir()}
    assert named >= {file.name for file in (folder / "alone" / "reference").iterdir()}
    load = f"model.load_from={folder / '2' / 'run' / 'LATEST' / 'policy.pt'}"
    sharded.whole_run(tmp_path, "exp_name=loaded", load)
    compare(records(folder / "2" / "loaded"), records(tmp_path / "loaded"), "loaded", 1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_blocks_are_sharded(tmp_path: Path):
    """Prevents a block that is compiled with the weights of one moment, or without FSDP2's hooks: a minute or two."""
    environment = os.environ | {"PYTHONPATH": str(tiny.ROOT), "OMP_NUM_THREADS": "1"}
    train = [str(tiny.ROOT / "train.py"), *sharded.RUN, "model.compile=true", "cache_reference=false"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, start, how in (("alone", [sys.executable], "ddp"), ("together", launcher, "fsdp")):
        command = [*start, *train, f"cache_dir={tmp_path / name}", f"distributed={how}"]
        done = subprocess.run(command, env=environment, cwd=tiny.ROOT, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
    compare(records(tmp_path / "together" / "run"), records(tmp_path / "alone" / "run"), "run", 1e-4)


def test_work_is_shared_out_by_tokens():
    """Prevents processes that wait for the one with the long rows, a row that two have, and rows out of their order."""
    costs = [7, 1, 1, 90, 3, 50, 40, 2]
    shares = distributed.shares(costs, 3)
    assert sorted(itertools.chain(*shares)) == list(range(8)) and all(share == sorted(share) for share in shares)
    assert sorted(sum(costs[index] for index in share) for share in shares) == [52, 52, 90]
    assert distributed.shares(costs, 1) == [list(range(8))]
    assert distributed.shares([5], 2) == [[0], []]

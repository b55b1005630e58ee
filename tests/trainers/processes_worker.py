"""The gloo processes of `test_processes.py` and `test_sharding.py`: each computes its share of all cases.

    python tests/trainers/processes_worker.py replicas|sharded FOLDER COUNT...

What takes long is importing torch, so one process imports it and forks the others before it has computed anything.
"""

import multiprocessing
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import torch

from tests import tiny
from tests.trainers import steps
from tests.trainers.couplings import RunningMeanTrainer
from trainers import distributed
from trainers.metrics import Averages

CASES = {**steps.CASES, "state": (RunningMeanTrainer, "dpo")}
ROWS = {"odd": 7, "few": 2}
"""Rows of a step: an odd number, and so few that the last of three processes has none."""


def rows_of(name: str, count: int) -> list:
    """The first rows of an epoch, of unequal weights where weights belong to rows."""
    made = tiny.loader(steps.LOADERS[CASES[name][1]], 6, batch_size=100)
    rows = next(made.epoch(0))[:count]
    if name in steps.BY_RANK:
        return rows
    return [replace(row, weight=0.5 + number % 3) for number, row in enumerate(rows)]


def compute(name: str, count: int) -> dict:
    """Gradient and training metrics of a step, and the evaluation's metrics, on all processes together."""
    kind, loss = CASES[name]
    rows = rows_of(name, count)
    trainer = tiny.trainer(
        kind, loss, reference_seed=1, dtype=torch.float64, eval_rows=rows, model__tokens_per_microbatch=60
    )
    averages = Averages()
    result = trainer.computer.gradients(trainer.own(rows))
    trainer._collect(result, averages)
    trainer.remember(**trainer.computer.everywhere(result))
    train = averages.means() | {name: value.item() for name, value in trainer.loss_state.items()}
    return {"gradient": tiny.gradients(trainer.policy), "train": train, "eval": trainer.evaluate()}


def everything(folder: Path) -> dict:
    """All cases by name; trainings in folders."""
    from tests.trainers import sharded

    few = ("sft", "dpo", "kto", "kto-simple", "aot", "bco", "mpo", "grpo", "rrhf", "tokens", "state")
    for name, counts in sharded.REPLICAS.items():
        if distributed.processes() in (1, *counts):
            sharded.train(name, folder / name, replicas=True)
    return {
        f"{name} {rows}": compute(name, count)
        for rows, count in ROWS.items()
        for name in CASES
        if rows != "few" or name in few
    }


def work(what: str, folder: Path, rank: int, count: int, port: int) -> None:
    """What one of `count` processes does."""
    from tests.trainers import sharded

    compute_all = {"replicas": everything, "sharded": sharded.everything}[what]
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "RANK": str(rank),
        "LOCAL_WORLD_SIZE": "1",
    }  # fmt: skip
    distributed.start(torch.device("cpu"))
    torch.save(compute_all(folder), folder / f"rank{rank}.pt")
    distributed.barrier()
    torch.distributed.destroy_process_group()


def main(what: str, folder: Path, counts: list[int]) -> int:
    """Lets each number of processes work in a folder of its own; returns the exit code."""
    for count in counts:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
        place = folder / str(count)
        place.mkdir()
        fork = multiprocessing.get_context("fork")
        workers = [fork.Process(target=work, args=(what, place, rank, count, port)) for rank in range(count)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(240)
        if any(worker.exitcode != 0 for worker in workers):
            for worker in workers:
                worker.kill()
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), list(map(int, sys.argv[3:]))))

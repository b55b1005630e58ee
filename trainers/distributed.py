"""What processes of one run tell each other. With one process every function is the identity."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from trainers.heartbeat import ARRIVAL, Heartbeat

LONGEST_WAIT = timedelta(hours=2)
"""The first process may load a large model, or hash it, while the others wait: the heartbeat tells who is gone."""

_heartbeat: Heartbeat | None = None


def start(device: torch.device, heartbeat_seconds: float | None = None) -> None:
    """Joins the processes that torchrun or SLURM's launcher started; does nothing for one process.

    Args:
        heartbeat_seconds: of silence after which a process counts as gone (see `trainers.heartbeat`); None: nobody
            looks.

    Raises:
        OSError: the first process cannot be reached.
        ValueError: a variable by which processes find each other is missing, or no number.
    """
    global _heartbeat
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(overwrite=False)  # what torchrun sets: RANK, WORLD_SIZE, MASTER_ADDR, ...
    if _started() == 1 or distributed.is_initialized():
        return
    store, rank, count = next(distributed.rendezvous("env://", timeout=timedelta(seconds=ARRIVAL)))
    prefix = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if heartbeat_seconds is not None:
        _heartbeat = Heartbeat(store, rank, count, heartbeat_seconds)
        prefix = _heartbeat.token  # torchrun keeps its store, and in it what the processes before a restart said
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=distributed.PrefixStore(prefix, store), rank=rank,
        world_size=count, timeout=LONGEST_WAIT,
    )  # fmt: skip


def _started() -> int:
    """How many processes the launcher has started, by its variables."""
    if "WORLD_SIZE" not in os.environ:
        if "RANK" in os.environ:
            raise ValueError("RANK is set and WORLD_SIZE is not: start processes by torchrun, or unset RANK.")
        return 1
    for name in ("WORLD_SIZE", "RANK", "MASTER_PORT"):
        if not (value := os.environ.get(name, "0")).isdecimal():
            raise ValueError(f"{name}={value!r} in the environment is no number: start processes by torchrun.")
    return int(os.environ["WORLD_SIZE"])


def leave() -> None:
    """Parts from the other processes, once all of them have come to the end: a process that just ends may abort."""
    if distributed.is_initialized():
        distributed.barrier()
        stop_heartbeat()
        distributed.destroy_process_group()


def stop_heartbeat() -> None:
    """Called by all processes when they are about to end, each at its own time."""
    if _heartbeat is not None:
        _heartbeat.stop()


def wait_for_verdict() -> None:
    """Called when something failed that may be another process's end: whoever knows of one ends this process."""
    if _heartbeat is not None:
        _heartbeat.wait_for_verdict()


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def processes() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def barrier() -> None:
    if processes() > 1:
        distributed.barrier()


def shares(costs: Sequence[int], count: int) -> list[list[int]]:
    """Which items each of `count` processes takes, by what they cost: the costliest first, to who has least so far.

    Every process gets the same answer, and its items in their order.
    """
    taken: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        process = min(range(count), key=loads.__getitem__)
        taken[process].append(index)
        loads[process] += costs[index]
    return [sorted(some) for some in taken]


def total(value: float) -> float:
    """The sum of a number over processes."""
    return sum(gather_objects(value))


def gather_objects(value: object) -> list:
    """Everybody's value, in order of rank, on every process."""
    if processes() == 1:
        return [value]
    values: list = [None] * processes()
    distributed.all_gather_object(values, value)
    return values


def of_first(compute: Callable[[], Any]) -> Any:
    """What the first process computes, on every process."""
    return gather_objects(compute() if rank() == 0 else None)[0]


def gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Everybody's tensor (lengths may differ), in order of rank; this process's own keeps its gradient."""
    if processes() == 1:
        return [tensor]
    parts = [part.to(tensor.device) for part in gather_objects(tensor.detach().cpu())]
    parts[rank()] = tensor
    return parts


def sum_gradients(parameters: list[torch.nn.Parameter], bucket: int = 2**26) -> None:
    """Adds up gradients over processes, in flat buckets of at most `bucket` elements unless one gradient is larger."""
    if processes() == 1:
        return
    waiting: list[torch.Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:  # a process without a row of this step takes part all the same
            parameter.grad = torch.zeros_like(parameter)
        if waiting and sum(map(torch.numel, waiting)) + parameter.numel() > bucket:
            _sum_together(waiting)
            waiting = []
        waiting.append(parameter.grad)
    _sum_together(waiting)


def _sum_together(tensors: list[torch.Tensor]) -> None:
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))

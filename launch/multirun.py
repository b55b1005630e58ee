"""The jobs of a multirun, one after the other: one that fails is told and does not keep the others from running."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from omegaconf import DictConfig

from dataloaders.resolve import ROOT


@dataclass(frozen=True)
class Job:
    """One of them, when it has ended.

    Attributes:
        loss: of the last evaluation; None without one.
        error: why it failed; None when it did not.
    """

    exp_name: str
    seconds: float
    loss: float | None = None
    error: str | None = None


_jobs: list[Job] = []


def let_jobs_import() -> None:
    """Puts this project on the PYTHONPATH that the jobs of a launcher inherit, wherever they start."""
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))


def run_job(config: DictConfig, function: Callable[[DictConfig], dict[str, float]]) -> None:
    """Runs a job of a multirun; a mistake of the user's or a machine that fails ends it alone.

    Raises:
        ValueError, OSError: in a process that a launcher started for this job alone: then the launcher has to know.
    """
    start, metrics, message = time.monotonic(), {}, None
    try:
        metrics = function(config) or {}
    except (ValueError, OSError) as error:
        if "SUBMITIT_EXECUTOR" in os.environ:
            raise
        message = " ".join(str(error).split())
        print(f"train.py: {message}", file=sys.stderr)
    gc.collect()  # a model and its optimizer are held by circles: the next job would find them still there
    _jobs.append(Job(config.exp_name, time.monotonic() - start, metrics.get("loss/eval"), message))


def conclude() -> int:
    """Prints what became of each job; returns the exit code, 2 when one of them failed."""
    from trainers import distributed

    if len(_jobs) > 1:
        print(table(_jobs), file=sys.stderr)
    if any(job.error is not None for job in _jobs):
        return 2
    distributed.leave()
    return 0


def table(jobs: list[Job]) -> str:
    """A line for each job."""
    width = max(len(job.exp_name) for job in jobs)
    lines = [f"{'job':<{width}}  {'seconds':>8}  {'loss/eval':>9}"]
    for job in jobs:
        loss = "" if job.loss is None else f"{job.loss:9.4f}"
        failed = "" if job.error is None else f"  failed: {job.error}"
        lines.append(f"{job.exp_name:<{width}}  {job.seconds:8.0f}  {loss:>9}{failed}")
    failed = sum(job.error is not None for job in jobs)
    if failed:
        lines.append(f"{failed} of {len(jobs)} jobs failed; the same command runs these again, and skips the others")
    return "\n".join(lines)

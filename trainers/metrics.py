"""Averages over a step, an interval or an evaluation set, and where they go: console, metrics.jsonl, wandb."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from models.files import unwritten
from scorers.progress import say
from trainers import distributed

log = logging.getLogger(__name__)

_SHOWN = re.compile(r"generation/[^/]+/(score|length)|KL/KL\(reference, model\)")


class Averages:
    """Sums and counts of per-example values: means are made of these once, over all processes, never of other means."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, float] = defaultdict(float)
        self._together: list[tuple[Callable[[Sequence[Any]], Mapping[str, torch.Tensor]], Any]] = []

    def add(self, name: str, values: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Adds per-example values (N,); `weights` (N,) multiply the sum but not the count, as in a loss."""
        values = values.detach().cpu().double()
        self.sums[name] += float((values if weights is None else values * weights.cpu().double()).sum())
        self.counts[name] += values.numel()

    def add_weighted(self, name: str, values: torch.Tensor, weights: torch.Tensor) -> None:
        """Adds values (N,) to a weighted mean: `weights` (N,), at least 0, multiply the sum and are the count."""
        weights = weights.detach().cpu().double()
        self.sums[name] += float((values.detach().cpu().double() * weights).sum())
        self.counts[name] += float(weights.sum())

    def add_together(self, values: Callable[[Sequence[Any]], Mapping[str, torch.Tensor]], part: Any) -> None:
        """Adds what only all processes together know: `values` gets everybody's `part` and returns name -> (N,).

        It is called when the means are asked for, so that nothing more is exchanged than for the sums.
        """
        self._together.append((values, part))

    def means(self) -> dict[str, float]:
        """The mean of each name over all processes; a name without a value is left out."""
        sums, counts = self._total()
        return {name: sums[name] / count for name, count in sorted(counts.items()) if count}

    def _total(self) -> tuple[dict[str, float], dict[str, float]]:
        """Sums and counts over all processes."""
        everybody = distributed.gather_objects(
            (dict(self.sums), dict(self.counts), [part for _, part in self._together])
        )
        total = Averages()
        for sums, counts, _ in everybody:
            for name, value in sums.items():
                total.sums[name] += value
                total.counts[name] += counts[name]
        for place, (values, _) in enumerate(self._together):
            for name, tensor in values([parts[place] for _, _, parts in everybody]).items():
                total.add(name, tensor)
        return total.sums, total.counts

    def settle(self) -> None:
        """Makes numbers of all that was added so far; the first process holds them. All processes call it."""
        sums, counts = self._total()
        first = distributed.rank() == 0
        self.sums, self.counts = (sums, counts) if first else (defaultdict(float), defaultdict(float))
        self._together = []

    def state(self) -> dict[str, dict[str, float]]:
        """What is to be kept, once it is settled."""
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Takes back what `state` gave."""
        if distributed.rank() == 0:
            self.sums.update(state["sums"])
            self.counts.update(state["counts"])


class Clock:
    """Seconds spent in each part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time of a block to `name`; on a GPU the block's kernels are waited for."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_available() and torch.cuda.is_initialized():
                torch.cuda.synchronize()
            self.seconds[name] += time.perf_counter() - start


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory so far, in GiB: of the GPU when there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


class MetricsLog:
    """Writes metrics to the console, to metrics.jsonl and, when asked, to Weights & Biases. Only rank 0 has one.

    Args:
        folder: the run's folder.
        console_interval: at least this many seconds between two lines of training on the console. The first is always
            shown, and the last before an evaluation or the end.
        wandb_options: entity, project, name and config of a wandb run; None leaves wandb alone.
        keep_bytes: of the metrics.jsonl that is there, when a run goes on; what comes behind is written anew.
    """

    def __init__(
        self,
        folder: Path,
        console_interval: float = 0.0,
        wandb_options: Mapping[str, Any] | None = None,
        keep_bytes: int = 0,
    ):
        self._console_interval = console_interval
        self._last_line = -math.inf
        self._held_back: str | None = None
        self._file = open(folder / "metrics.jsonl", "ab")  # noqa: SIM115 (closed by `close`)
        there = self._file.tell()
        if there < keep_bytes:
            log.warning("%s has lost its last records: they are not in the run's curves", self._file.name)
        self._file.truncate(min(keep_bytes, there))
        self._wandb = None
        if wandb_options is not None:
            self._wandb = check_wandb().init(dir=str(folder), **wandb_options)

    def write(
        self,
        metrics: Mapping[str, float],
        examples: int,
        split: str,
        tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]] | None = None,
    ) -> None:
        """One record: to the file and wandb whole, to the console in short.

        Args:
            tables: for wandb alone, name -> (columns, rows).
        """
        try:
            self._file.write((json.dumps({"split": split, **metrics}) + "\n").encode())
            self._file.flush()
        except OSError as error:
            raise unwritten(Path(self._file.name), error) from error
        if self._wandb is not None:
            drawn = {
                name: check_wandb().Table(columns=list(columns), data=[list(row) for row in rows])
                for name, (columns, rows) in (tables or {}).items()
            }
            self._wandb.log(dict(metrics) | drawn, step=examples)
        line = summary(metrics, examples, split)
        if split != "train":
            self._show_held_back()
            say(line)
        elif time.monotonic() - self._last_line >= self._console_interval:
            say(line)
            self._last_line, self._held_back = time.monotonic(), None
        else:
            self._held_back = line

    def _show_held_back(self) -> None:
        if self._held_back is not None:
            say(self._held_back)
            self._held_back = None

    def bytes_on_disk(self) -> int:
        """How long metrics.jsonl is, once it is safe on the disk."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    @property
    def wandb_id(self) -> str | None:
        """Of the wandb run, where there is one."""
        return None if self._wandb is None else self._wandb.id

    def close(self) -> None:
        """Raises OSError where what `write` could not write cannot be written now either."""
        self._show_held_back()
        try:
            self._file.close()
        except OSError as error:
            raise unwritten(Path(self._file.name), error) from error
        finally:
            if self._wandb is not None:
                self._wandb.finish()


def check_wandb() -> ModuleType:
    """The package wandb, once it is known that a run can be logged with it.

    Raises:
        ValueError: it is not installed, or there is neither a key nor offline mode.
    """
    try:
        import wandb
    except ImportError as error:
        raise ValueError("wandb.enabled=true needs the package wandb: pip install wandb.") from error
    if not os.environ.get("WANDB_MODE") and not os.environ.get("WANDB_API_KEY") and not wandb.api.api_key:
        raise ValueError(
            "wandb.enabled=true, but there is no WANDB_API_KEY. Set it, run `wandb login`, or keep the run on this "
            "machine with WANDB_MODE=offline."
        )
    return wandb


def summary(metrics: Mapping[str, float], examples: int, split: str) -> str:
    """The line of a record for the console: what one looks at first."""
    shown = [f"loss {metrics[f'loss/{split}']:.4f}"] if f"loss/{split}" in metrics else []
    for name in ("accuracies", "unpaired_accuracies", "margins", "KL_estimate"):
        if (value := metrics.get(f"rewards_{split}/{name}")) is not None:
            shown.append(f"{name} {value:.3f}")
    looked_at = (name for name in metrics if _SHOWN.fullmatch(name))
    shown += [f"{name.removeprefix('generation/')} {metrics[name]:.4g}" for name in looked_at]
    for name, form in (("grad_norm", "{:.3g}"), ("examples_per_second", "{:.2f}"), ("tokens_per_second", "{:.0f}")):
        if name in metrics:
            shown.append(f"{name} {form.format(metrics[name])}")
    return f"{split} {examples:>7} examples  " + "  ".join(shown)

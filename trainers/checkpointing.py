"""When a run's checkpoints are written, which of them stay, and which is the best one.

Each is a folder `step-N`, N being training examples, and appears whole or not at all. LATEST and BEST are links to two
of them, switched in one step. Writing goes on in the background while the next steps are computed.
"""

from __future__ import annotations

import logging
import math
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.checkpoints import (
    RESUME,
    Checkpoint,
    examples_of,
    remove_folder,
    step_folders,
    switch_link,
    write_folder,
)
from models.files import unwritten
from scorers.progress import say
from trainers.optimization import OPTIMIZER_BYTES

log = logging.getLogger(__name__)


class Checkpointing:
    """The checkpoints of one run; the first process has one with a folder, the others write nothing.

    Args:
        folder: the run's; None writes nothing.
        config: save_every, keep_last, keep_best, intermediate_checkpoints, keep_optimizer, save_in_background.
    """

    def __init__(self, folder: Path | None, config: Any):
        self.folder = folder
        self.best: float | None = None
        self.best_examples: int | None = None
        self._config = config
        self._writer: threading.Thread | None = None
        self._error: Exception | None = None
        self.written, self.waited, self.took = 0, 0.0, 0.0

    # When ----------------------------------------------------------------------------------------------------------

    def due(self, before: int, now: int, evaluated: bool) -> bool:
        """Whether a checkpoint is due once so many examples were seen, and was not yet at `before`."""
        every = self._config.save_every
        return (every is not None and now // every > before // every) or (
            evaluated and self._config.intermediate_checkpoints
        )

    def is_best(self, metrics: Mapping[str, float], examples: int) -> bool:
        """Whether these metrics of an evaluation are the best so far; False when nobody wants to know.

        Raises:
            ValueError: keep_best is none of them.
        """
        if self._config.keep_best is None:
            return False
        value = self.best_of(metrics)
        if math.isnan(value) or (self.best is not None and value <= self.best):
            return False
        self.best, self.best_examples = value, examples
        return True

    def best_of(self, metrics: Mapping[str, float]) -> float:
        """The metric that decides which checkpoint is best, the higher the better."""
        name = self._config.keep_best.lstrip("-")
        if name not in metrics:
            names = ", ".join(sorted(metrics)) or "none: there is no evaluation set"
            raise ValueError(f"keep_best={name} is no metric of the evaluation: choose one of {names}.")
        lower_is_better = "loss" in name or self._config.keep_best.startswith("-")
        return -metrics[name] if lower_is_better else metrics[name]

    def refuse_full_disk(self, examples: int, weights: int, trained: int) -> None:
        """A disk too small for the checkpoints is an error before the training, not after it.

        Args:
            examples: of the whole run.
            weights: bytes of a policy.pt.
            trained: how many weights are trained.
        """
        if self.folder is None:
            return
        config = self._config
        ends = 1 + examples // config.save_every if config.save_every is not None else 1
        if config.intermediate_checkpoints:
            ends += examples // config.eval_every + 1
        kept = ends if self._keeps_all else min(ends, config.keep_last)
        folders = kept + (config.keep_best is not None) + (kept < ends)  # the next one stands beside them
        resumable = min(folders, (config.keep_last or 1) + (kept < ends))
        needed = folders * weights + resumable * OPTIMIZER_BYTES[config.optimizer] * trained
        of_before = (file for step in step_folders(self.folder) for file in step.glob("*.pt"))  # of a run that goes on
        there = sum(file.stat().st_size for file in of_before)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = there + shutil.disk_usage(self.folder).free
        if free < needed:
            raise ValueError(
                f"{self.folder} has {free / 2**30:.1f} GiB left and the run's {folders} checkpoints take "
                f"{needed / 2**30:.1f} GiB: make room, or set another cache_dir."
            )

    @property
    def _keeps_all(self) -> bool:
        return self._config.intermediate_checkpoints or self._config.keep_last is None

    def go_back(self, folder: Path, examples: int, best: float | None, best_examples: int | None) -> None:
        """To the state of a checkpoint of this run; later ones are removed, since they are now to come."""
        self.best, self.best_examples = best, best_examples
        if self.folder is None:
            return
        for later in step_folders(self.folder):
            if examples_of(later) > examples:
                log.info("%s is removed: the run goes on from an earlier checkpoint", later)
                remove_folder(later)
        switch_link(self.folder / "LATEST", folder.resolve())
        name, target = self.folder / "BEST", self.folder / f"step-{best_examples}"
        if best_examples is not None and target.is_dir():
            switch_link(name, target)
        elif name.is_symlink():
            name.unlink()

    # Writing -------------------------------------------------------------------------------------------------------

    def write(self, checkpoint: Checkpoint, examples: int, best: bool) -> None:
        """Writes `step-N` and lets LATEST (and BEST) be it; an earlier one that is still being written is waited for.

        Raises:
            OSError: that one, or this one where nothing is copied, could not be written.
        """
        self.wait()
        if checkpoint.copied:
            self._writer = threading.Thread(target=self._try, args=(checkpoint, examples, best), daemon=True)
            self._writer.start()
        else:
            start = time.perf_counter()
            self._write(checkpoint, examples, best)
            self.waited += time.perf_counter() - start

    def wait(self) -> None:
        """Until everything is written.

        Raises:
            OSError: something could not be.
        """
        self.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def join(self) -> None:
        """Until nothing is being written, well or not."""
        start = time.perf_counter()
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        self.waited += time.perf_counter() - start

    def tell_error(self) -> None:
        """Logs what could not be written, where another error ends the run."""
        if self._error is not None:
            log.error("%s", self._error)

    def _try(self, checkpoint: Checkpoint, examples: int, best: bool) -> None:
        try:
            self._write(checkpoint, examples, best)
        except Exception as error:  # raised where the training next waits for this thread
            self._error = error

    def _write(self, checkpoint: Checkpoint, examples: int, best: bool) -> None:
        start = time.perf_counter()
        target = self.folder / f"step-{examples}"
        write_folder(target, checkpoint.write)
        try:
            switch_link(self.folder / "LATEST", target)
            if best:
                switch_link(self.folder / "BEST", target)
            self._tidy()
        except OSError as error:
            raise unwritten(self.folder / "LATEST", error) from error
        say(f"saved {target.name} at {time.strftime('%H:%M:%S')}{', the best so far' if best else ''}")
        self.written += 1
        self.took += time.perf_counter() - start

    def _tidy(self) -> None:
        """Removes the checkpoints that are not kept, and of older ones what only a resume needs."""
        linked = {(self.folder / name).resolve() for name in ("LATEST", "BEST")}
        for number, folder in enumerate(step_folders(self.folder)):
            recent = self._config.keep_last is None or number < self._config.keep_last
            if not recent and folder.resolve() != (self.folder / "LATEST").resolve():
                (folder / RESUME).unlink(missing_ok=True)
            if not recent and not self._keeps_all and folder.resolve() not in linked:
                remove_folder(folder)

    def finish(self) -> None:
        """Waits for the last one; what a resume needs goes where keep_optimizer=false."""
        self.wait()
        if self.folder is not None and not self._config.keep_optimizer:
            for folder in step_folders(self.folder):
                (folder / RESUME).unlink(missing_ok=True)

    def account(self) -> str:
        """How many were written and what it cost, in words."""
        took = f"{self.written} written in {self.took:.1f} s"
        return f"checkpoints: {took}; the training waited {self.waited:.1f} s for them"

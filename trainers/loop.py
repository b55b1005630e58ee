"""The one training loop: steps in their order, and when to log, evaluate, save and stop."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from dataloaders.batches import Row
from models.checkpoints import Checkpoint, policy_contents
from models.lora import adapter_weights, has_adapter
from scorers.progress import Bar, progress
from trainers import distributed
from trainers.agreement import refuse_unlike
from trainers.metrics import Averages
from trainers.optimization import optimization
from trainers.resume import Owed, Resume, pack, refuse_shorter, refuse_unfit, take_up
from trainers.signals import Stopped, StopSignals, ToldToStop, exit_code

if TYPE_CHECKING:
    from trainers.basic import BasicTrainer


log = logging.getLogger(__name__)


class Evaluation(Protocol):
    """What else is looked at while a policy is trained: samples of it, its distance from another model."""

    def due(self, before: int, now: int, last: bool) -> bool:
        """Whether it is, once so many examples were seen, and was not yet at `before`."""

    def run(self, trainer: BasicTrainer, last: bool) -> None:
        """Looks, and writes to the trainer's log; all processes call it. It leaves the random numbers as they were."""


class Loop:
    """A trainer's run through its loader, from the beginning or from a checkpoint.

    Args:
        resume: the checkpoint to go on from; None begins.

    Raises:
        ValueError: nothing to train on, too small a disk, processes with different data, or a checkpoint that does not
            fit; nothing in the run's folder was touched.
    """

    def __init__(self, trainer: BasicTrainer, resume: Resume | None = None):
        self.trainer, self.config, self.resume = trainer, trainer.config, resume
        self.checkpoints = trainer.checkpoints
        self.sizes = trainer.train_loader.sizes()
        if not self.sizes:
            raise ValueError(
                f"{type(trainer.train_loader).__name__} gives no optimizer step: raise n_examples, "
                "datasets.NAME.weight or n_epochs, or see what its `arrange` and `steps` return."
            )
        self._refuse_full_disk()
        if self.config.keep_best is not None and not trainer.eval_rows:
            self.checkpoints.best_of({})  # says what is wrong
        self.data = "" if trainer.folder is None else trainer.train_loader.digest()
        begins = {"training data": self.data, "examples before": 0 if resume is None else resume.examples}
        refuse_unlike(begins, "Give all hosts the same files, and a cache_dir that all see.")
        if resume is not None:
            refuse_unfit(trainer, resume, self.data)
        self.optimizer, self.rate = optimization(self.config, trainer.parameters, len(self.sizes))
        self.averages = Averages()
        self._progress: Bar | None = None

    def run(self) -> dict[str, float]:
        """To the end of the loader; returns the last evaluation's metrics (empty without an evaluation set).

        Raises:
            Stopped: SIGTERM or Ctrl-C came; what was done is saved.
        """
        metrics = self._start()  # no step is under way: a signal does not wait for the first one
        with StopSignals() as signals:
            try:
                metrics = self._run(signals, metrics)
            except Exception:
                self.checkpoints.join()  # what is being written is not lost behind whatever this is
                self.checkpoints.tell_error()
                raise
            finally:
                if self._progress is not None:
                    self._progress.close()
        self.checkpoints.finish()
        return metrics

    def _run(self, signals: StopSignals, metrics: dict[str, float]) -> dict[str, float]:
        trainer, sizes = self.trainer, self.sizes
        total = trainer.examples + sum(sizes[trainer.step_idx :])
        self._progress = progress(
            total=total, initial=trainer.examples, unit="ex", desc="training", disable=distributed.rank() > 0
        )
        self._seen, self._tokens, self._since = 0, 0, time.perf_counter()
        first, steps = trainer.step_idx, trainer.train_loader.after(trainer.step_idx)
        for number in range(first, len(sizes)):
            before, last = trainer.examples, number + 1 == len(sizes)
            with trainer.clock.part("data"):
                rows = next(steps)
            self._step(number, rows)
            self._progress.update(trainer.examples - before)
            if (number + 1) % self.config.log_every == 0 or last:
                self._log(number)
            pause = time.perf_counter()
            metrics = self._after(before, metrics, signals)
            self._since += time.perf_counter() - pause  # a step's time is the step's alone
        return metrics

    def _after(self, before: int, metrics: dict[str, float], signals: StopSignals | None) -> dict[str, float]:
        """What is due after a step: evaluations, then a checkpoint, which says where the log ends; and the end of a run
        that was told to stop, whose checkpoint says what is still due.

        Args:
            before: examples before the step.
            metrics: of the last evaluation.
            signals: None where they end the process at once.

        Returns:
            The metrics of the last evaluation.
        """
        trainer, every, last = self.trainer, self.config.eval_every, self.trainer.step_idx == len(self.sizes)
        evaluates = last or trainer.examples // every > before // every
        looks = [one for one in trainer.evaluations if one.due(before, trainer.examples, last)]
        trainer.check_stop, log_ends = (lambda: self._refuse_to_go_on(signals)), 0
        try:
            if looks or (evaluates and trainer.eval_rows):
                log_ends = 0 if trainer.metrics_log is None else trainer.metrics_log.bytes_on_disk()
                trainer.check_stop()
            if evaluates:
                metrics = trainer.evaluate_and_log()
            for evaluation in looks:
                trainer.check_stop()
                evaluation.run(trainer, last)
        except ToldToStop as told:
            self.save({}, owed=Owed(before, log_ends))
            self._stop(str(told), signals)
        told = self._told(signals)
        best = evaluates and self._is_best(metrics)
        if best or last or told or self.checkpoints.due(before, trainer.examples, evaluates):
            self.save(metrics if evaluates else {}, best)
        if told and not last:
            self._stop(told, signals)
        if evaluates:
            trainer.clock.seconds.clear()
        return metrics

    def _start(self) -> dict[str, float]:
        """Takes up the checkpoint, or evaluates before the first step."""
        trainer, metrics = self.trainer, {}
        if self.resume is not None:
            take_up(trainer, self.optimizer, self.averages, self.resume)
            self._check_length()
            if self.resume.owed_since is not None:
                metrics = self._after(self.resume.owed_since, {}, None)
        elif self.config.do_first_eval:
            metrics = trainer.evaluate_and_log()
        if self.config.keep_best is not None and metrics:
            self.checkpoints.best_of(metrics)  # a name that no metric has is an error before the training, not after it
        return metrics

    def _check_length(self) -> None:
        """What a run that goes on with another n_epochs or n_examples can know of it."""
        refuse_shorter(self.resume, self.sizes)
        done, planned = self.trainer.examples, sum(self.sizes[: self.trainer.step_idx])
        changed = self.resume.state["steps"] != len(self.sizes)
        shaped = self.config.scheduler != "constant" or (self.config.warmup_steps is None and self.config.warmup)
        if changed and shaped and distributed.rank() == 0:
            log.info(
                "the run has %d steps now and had %d: from here on the learning rate is that of the new length",
                len(self.sizes), self.resume.state["steps"],
            )  # fmt: skip
        if done < planned and distributed.rank() == 0:
            log.info("the last step was cut short by n_examples: its other %d rows are not seen", planned - done)

    def _step(self, number: int, rows: Sequence[Row]) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(number)
        self._norm = self.trainer.step(self.optimizer, self.trainer.own(rows), self.averages)
        self._seen += self.sizes[number]
        self._tokens += self.trainer.tokens(rows)

    def _log(self, number: int) -> None:
        speed = self.trainer.speed(self._seen, self._tokens, time.perf_counter() - self._since)
        now = {"grad_norm": self._norm, "counters/lr": self.rate(number), **speed}
        self.trainer.log(self.averages, now, "train")
        self.averages = Averages()
        self._seen, self._tokens, self._since = 0, 0, time.perf_counter()

    # Saving and stopping ---------------------------------------------------------------------------------------------

    def save(self, metrics: dict[str, float], best: bool = False, owed: Owed | None = None) -> None:
        """Writes a checkpoint of this moment; the first process writes, all of them call it."""
        trainer = self.trainer
        if trainer.folder is None:
            return
        self.checkpoints.wait()  # before anything is copied: two copies would take twice the memory
        state = pack(trainer, self.optimizer, self.averages, self.data, owed)
        contents = None if trainer.computer.shards is None else policy_contents(trainer.policy)
        if distributed.rank() == 0:
            checkpoint = Checkpoint(
                trainer.policy, trainer.tokenizer, trainer.step_idx, metrics | trainer.counters(),
                loss_state=trainer.state_of_loss(), resume=state, copied=self.config.save_in_background,
                contents=contents,
            )  # fmt: skip
            self.checkpoints.write(checkpoint, trainer.examples, best)

    def _is_best(self, metrics: dict[str, float]) -> bool:
        try:
            return self.checkpoints.is_best(metrics, self.trainer.examples)
        except ValueError:
            self.save(metrics)  # without do_first_eval a misspelled keep_best may only now be found
            raise

    def _told(self, signals: StopSignals | None) -> str | None:
        """The signal by which any process was told to stop."""
        return signals and next(filter(None, distributed.gather_objects(signals.name)), None)

    def _refuse_to_go_on(self, signals: StopSignals | None) -> None:
        if told := self._told(signals):
            raise ToldToStop(told)

    def _stop(self, name: str, signals: StopSignals) -> None:
        self.checkpoints.wait()
        distributed.barrier()
        distributed.stop_heartbeat()  # the launcher of the first process may take its time
        if distributed.rank() == 0:
            where = f"after {self.trainer.examples} of {self._progress.total} examples"
            print(f"stopped by {name} {where}; the same command goes on from there", file=sys.stderr)
        signals.hand_on()
        raise Stopped(exit_code(name))

    def _refuse_full_disk(self) -> None:
        policy = self.trainer.policy
        saved = adapter_weights(policy).values() if has_adapter(policy) else policy.parameters()
        weights = sum(weight.numel() * weight.element_size() for weight in saved)
        trained = sum(weight.numel() for weight in policy.parameters() if weight.requires_grad)
        self.checkpoints.refuse_full_disk(sum(self.sizes), weights, trained)

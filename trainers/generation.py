"""Samples of a policy while it is trained and after: drawn, scored, measured, saved and logged.

Where the numbers go has the names of Pretraining with Human Preferences (arXiv 2302.08582):
`generation/{scenario}/score`, `score_max@25`, `num_hits`, `length`, `distinct-1-grams`, ... and `{name}_low`,
`{name}_high` for the ends of 95 % intervals.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.files import write_whole
from models.generation.scenarios import Drawing, Drawn, Scenario
from models.sharding import shards_of
from scorers.estimates import Estimate, expected_maximum_estimate, mean_estimate, share_estimate
from scorers.printable import printable
from scorers.scorer import Sample, Scorer
from scorers.text_metrics import OF_WHOLE_TEXTS, text_metric
from trainers import distributed
from trainers.rehearsal import generators_kept

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trainers.basic import BasicTrainer

log = logging.getLogger(__name__)

TABLE_ROWS = 512
"""Of the samples in a wandb table; the file has all."""
MAXIMUM_OF = 25


@dataclass(frozen=True)
class Scored:
    """A sample with its score; None where it has none, and then why, if there is a scorer."""

    drawn: Drawn
    score: float | None
    flaw: str | None = None


@dataclass(frozen=True)
class ScenarioResult:
    """A scenario's samples and what was measured of them.

    Attributes:
        estimates: by their logged names.
        unscored: reason -> samples that the scorer could not score; they are in no figure of the score.
        missing: why a figure is not there, by its name.
    """

    scenario: Scenario
    samples: list[Scored]
    estimates: dict[str, Estimate]
    unscored: dict[str, int]
    missing: dict[str, str]
    seconds: float

    def record(self) -> dict[str, float]:
        """Its numbers as they are logged."""
        found: dict[str, float] = {}
        for name, estimate in self.estimates.items():
            found[name] = estimate.mean
            if estimate.low is not None and estimate.high is not None:
                found |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        scores = [sample.score for sample in self.samples if sample.score is not None]
        if scores:
            found["score_max"] = max(scores)
        found |= {"samples": len(self.samples), "samples_per_second": len(self.samples) / max(self.seconds, 1e-9)}
        if self.scored_at_all:
            found["unscored"] = sum(self.unscored.values())
        return {f"generation/{self.scenario.name}/{name}": value for name, value in found.items()}

    @property
    def scored_at_all(self) -> bool:
        """Whether there was a scorer."""
        return bool(self.unscored) or any(sample.score is not None for sample in self.samples)


@dataclass(frozen=True)
class Generation:
    """The scenarios of a run, and what is done with their samples. DictConfig does not come here.

    Attributes:
        scorer: None: samples are drawn and measured, and not scored.
        metrics: names as in a config; see `scorers.text_metrics`.
        every: training examples between two; None: only at the end.
    """

    scenarios: Sequence[Scenario]
    drawing: Drawing
    scorer: Scorer | None = None
    metrics: Sequence[str] = ()
    every: int | None = None

    def due(self, before: int, now: int, last: bool) -> bool:
        """Whether samples are due once so many examples were seen, and were not yet at `before`."""
        return last or (self.every is not None and now // self.every > before // self.every)

    def run(self, trainer: BasicTrainer, last: bool) -> None:
        """Samples the policy as it is now; all processes call it. The training's random numbers stay as they are.

        Args:
            last: of the training; then wandb gets all samples once more, of every time.
        """
        start, results = time.perf_counter(), []
        with generators_kept(trainer.policy.device), trainer.computer.in_its_precision():
            for result in self.results(trainer.policy, trainer.check_stop):
                results.append(result)
                if distributed.rank() == 0 and trainer.folder is not None:
                    self.save(result, trainer.folder, trainer.examples)
        if trainer.metrics_log is not None:
            seconds = {"generation_seconds": time.perf_counter() - start}
            record = {name: value for result in results for name, value in result.record().items()}
            in_wandb = trainer.metrics_log.wandb_id is not None and trainer.folder is not None
            tables = self.tables(results) | (self.all_tables(trainer.folder) if last and in_wandb else {})
            trainer.metrics_log.write(record | trainer.counters() | seconds, trainer.examples, "generation", tables)

    def results(
        self, policy: PreTrainedModel, before_batch: Callable[[], None] | None = None
    ) -> Iterator[ScenarioResult]:
        """The samples of each scenario, scored and measured; all processes call it and have all of them.

        Args:
            before_batch: what it raises ends the sampling.
        """
        for scenario in self.scenarios:
            start = time.perf_counter()
            samples = self.scored(policy, scenario, before_batch)
            yield self.measured(scenario, samples, time.perf_counter() - start)

    def scored(
        self, policy: PreTrainedModel, scenario: Scenario, before_batch: Callable[[], None] | None = None
    ) -> list[Scored]:
        """A scenario's samples with their scores; each process draws and scores its share, and has all of them."""
        # A sharded model goes forward on all processes together: each draws everything.
        part, parts = (0, 1) if shards_of(policy) is not None else (distributed.rank(), distributed.processes())
        own = self.drawing.draw(policy, scenario, part, parts, before_batch)
        share = self._with_scores(scenario, own)
        shares = distributed.gather_objects(share) if parts > 1 else [share]
        return [next(one for one in everybody if one is not None) for everybody in zip(*shares, strict=True)]

    def _with_scores(self, scenario: Scenario, own: Sequence[Drawn | None]) -> list[Scored | None]:
        """The samples that this process drew, in the places of all."""
        made = [one for one in own if one is not None]
        if self.scorer is None or not made:
            return [None if one is None else Scored(one, None) for one in own]
        texts = [self._sample(scenario, one) for one in made]
        scores = [None if one is None or one != one else float(one) for one in self.scorer.score(texts)]
        flaws = [self.scorer.reason(text) if score is None else None for text, score in zip(texts, scores, strict=True)]
        scored = iter(map(Scored, made, scores, flaws))
        return [None if one is None else next(scored) for one in own]

    def _sample(self, scenario: Scenario, drawn: Drawn) -> Sample:
        """What is scored: with its prompt for a scorer that judges completions of prompts, else a text."""
        if self.scorer.reads_prompt:
            return Sample(drawn.prompt, drawn.completion)
        return Sample("", drawn.prompt * scenario.use_prompt_for_scoring + drawn.completion)

    def measured(self, scenario: Scenario, samples: list[Scored], seconds: float) -> ScenarioResult:
        """The figures of scored samples."""
        estimates: dict[str, Estimate] = {}
        missing: dict[str, str] = {}
        known = [sample for sample in samples if sample.score is not None]
        if known:
            scores = [sample.score for sample in known]
            units = _units(scenario, known)
            estimates["score"] = mean_estimate(scores, units)
            if scenario.hits_threshold is not None:
                estimates["num_hits"] = share_estimate([score > scenario.hits_threshold for score in scores], units)
            if len(scores) >= MAXIMUM_OF:
                estimates[f"score_max@{MAXIMUM_OF}"] = expected_maximum_estimate(scores, MAXIMUM_OF, units)
            else:
                missing[f"score_max@{MAXIMUM_OF}"] = f"{len(scores)} scored samples, and it needs {MAXIMUM_OF}"
        texts, units = [sample.drawn.completion for sample in samples], _units(scenario, samples)
        whole = [sample.drawn.prompt * scenario.use_prompt_for_scoring + sample.drawn.completion for sample in samples]
        for metric in self.metrics:
            name, function = text_metric(metric)
            try:
                estimates[name] = function(whole if metric in OF_WHOLE_TEXTS else texts, units)
            except ValueError as error:
                missing[name] = str(error)
        unscored = dict(Counter(sample.flaw for sample in samples if sample.flaw is not None))
        for name, why in missing.items():
            log.warning("generation/%s/%s is not there: %s", scenario.name, name, why)
        if unscored:
            reasons = ", ".join(f"{count} {printable(reason)}" for reason, count in unscored.items())
            count = sum(unscored.values())
            log.warning(
                "generation/%s: %d of %d samples could not be scored: %s", scenario.name, count, len(samples), reasons
            )
        return ScenarioResult(scenario, samples, estimates, unscored, missing, seconds)

    def save(self, result: ScenarioResult, folder: Path, examples: int) -> Path:
        """Writes `samples/{scenario}-{examples}.jsonl`, a sample a line, and beside it its figures as .json.

        Returns:
            The file of the figures.
        """
        base = folder / "samples" / f"{result.scenario.name}-{examples}"
        lines = [
            json.dumps(
                asdict(sample.drawn) | {"score": sample.score} | ({} if sample.flaw is None else {"flaw": sample.flaw})
            )
            + "\n"
            for sample in result.samples
        ]
        write_whole(base.parent / f"{base.name}.jsonl", "".join(lines))
        file = base.parent / f"{base.name}.json"
        write_whole(file, json.dumps(self.summary(result, examples), indent=1, sort_keys=True) + "\n")
        return file

    def summary(self, result: ScenarioResult, examples: int) -> dict[str, Any]:
        """What a result file says of a scenario's samples, without the time that it took."""
        prompts = result.scenario.prompts
        digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
        settings = asdict(replace(result.scenario, prompts=())) | {"prompts": len(prompts), "prompts_sha256": digest}
        settings["prefix_ids"] = [int(one) for one in result.scenario.prefix_ids]
        return {
            "scenario": result.scenario.name,
            "examples": examples,
            "settings": settings
            | {"seed": self.drawing.seed, "banned_ids": list(self.drawing.banned_ids)}
            | ({"before_ids": list(self.drawing.before_ids)} if self.drawing.before_ids else {})
            | ({"replaced_ids": [[*pair] for pair in self.drawing.replaced_ids]} if self.drawing.replaced_ids else {}),
            "scorer": None if self.scorer is None else self.scorer.identity,
            "direction": None if self.scorer is None else self.scorer.direction,
            "notes": [] if self.scorer is None else list(self.scorer.notes),
            "unscored": result.unscored,
            "missing": result.missing,
            "metrics": {name: estimate.as_json() for name, estimate in result.estimates.items()},
        }

    def tables(self, results: Sequence[ScenarioResult]) -> dict[str, tuple[list[str], list[list[Any]]]]:
        """The first samples of each scenario, for wandb: name -> (columns, rows)."""
        return {
            f"generation/{result.scenario.name}/current_samples": (
                ["prompt", "continuation", "score"],
                [[one.drawn.prompt, one.drawn.completion, one.score] for one in result.samples[:TABLE_ROWS]],
            )
            for result in results
        }

    def all_tables(self, folder: Path) -> dict[str, tuple[list[str], list[list[Any]]]]:
        """The saved samples of each scenario, at whatever number of examples, for wandb: name -> (columns, rows)."""
        tables = {}
        for scenario in self.scenarios:
            rows: list[list[Any]] = []
            files = {int(file.stem.rpartition("-")[2]): file for file in saved_samples(folder, scenario.name)}
            for examples, file in sorted(files.items()):
                try:
                    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
                    rows += [[examples, one["prompt"], one["completion"], one["score"]] for one in samples]
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    log.warning("%s is damaged, and not in wandb's table: %s", file, printable(error)[:200])
            tables[f"generation/{scenario.name}/all_samples"] = (["step", "prompt", "continuation", "score"], rows)
        return tables


def saved_samples(folder: Path, scenario: str) -> list[Path]:
    """The files of a scenario's samples in a run's folder, in no order."""
    found = (folder / "samples").glob("*.jsonl")
    return [file for file in found if re.fullmatch(rf"{re.escape(scenario)}-\d+", file.stem)]


def write_alignment(folder: Path, label: str, weights: Mapping[str, Any], found: Mapping[str, Any]) -> Path:
    """Adds results to the run's `alignment.json`, of which the figure is drawn (`python -m reports.pareto`).

    Args:
        label: what the figure calls the run.
        weights: which they are; results of other weights, which an earlier command left there, are dropped.
        found: `score` {mean, low, high}, `kl`, `bits_per_byte`, ...

    Returns:
        The file.
    """
    file = folder / "alignment.json"
    old: Any = {}
    if file.is_file():
        try:
            old = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            log.warning("%s could not be read and is written anew", file)
    if not isinstance(old, dict) or old.get("weights") != weights:
        old = {}
    write_whole(file, json.dumps(old | {"label": label, "weights": weights} | found, indent=1, sort_keys=True) + "\n")
    return file


def _units(scenario: Scenario, samples: Sequence[Scored]) -> list[str] | None:
    """What varies independently: the prompt; without prompts each sample."""
    return [sample.drawn.prompt for sample in samples] if scenario.prompts else None

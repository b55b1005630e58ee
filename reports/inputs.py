"""What a report is made of, read from files: a run's folder, its samples, result lines and verdicts."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports import expected

SAMPLING = "write it with `python eval.py --config-path=RUN_FOLDER ++mode=sample ++sample_reference=true`"
_FINISH_REASONS = {"policy": "finish_reason", "reference": "reference_finish_reason"}


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
        config: its config.yaml.
        metrics: the records of metrics.jsonl in their order, without values that are not finite.
        account: data.json, {data set: {split: {rows, used, dropped: {reason: n}, cut, examples}}}; empty if missing.
    """

    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    account: dict[str, dict[str, Any]]

    def records(self, split: str) -> list[dict[str, Any]]:
        """The records of `train` or `eval`."""
        return [record for record in self.metrics if record.get("split") == split]


@dataclass(frozen=True)
class Sample:
    """A prompt with the response of the trained model (`after`) and of the one that it started from (`before`).

    Attributes:
        before_whole, after_whole: the response ended by itself; None where the file does not say.
        facts: strings of a right answer, alternatives between "|"; empty where the data set has none.
        log_ratio: log p(after | prompt) under the trained model minus the same under the other one, in nats.
        tokens: tokens of `after`.
    """

    prompt: str
    before: str
    after: str
    before_whole: bool | None
    after_whole: bool | None
    facts: list[str]
    topic: str | None
    log_ratio: float | None
    tokens: int | None


@dataclass(frozen=True)
class Samples:
    """A samples file: one sample a prompt (the first, where the file has several; `repeated` counts the others)."""

    config: dict[str, Any]
    sampled_at: str
    samples: list[Sample]
    repeated: int

    def with_facts(self) -> list[Sample]:
        """The samples whose prompt has facts."""
        return [sample for sample in self.samples if sample.facts]


def setting(config: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value of a dotted key, `default` where there is none or it is null."""
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return default if value is None else value


def read_run(folder: Path) -> Run:
    """Reads a run's folder.

    Raises:
        ValueError: config.yaml or metrics.jsonl is missing or malformed, or the config has a `${`.
    """
    for name in ("config.yaml", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: give the folder of a finished run, {{cache_dir}}/{{exp_name}}")
    config = _read_config(folder / "config.yaml")
    metrics = [
        {name: value for name, value in record.items() if _is_value(value)}
        for record in read_lines(folder / "metrics.jsonl")
    ]
    if not metrics:
        raise ValueError(f"{folder / 'metrics.jsonl'} is empty: the run has not made a step")
    for record in metrics:
        expected.check_record(record, str(folder / "metrics.jsonl"))
    account = read_json(folder / "data.json") if (folder / "data.json").is_file() else {}
    expected.check_account(account, str(folder / "data.json"))
    return Run(config, metrics, account)


def _is_value(value: Any) -> bool:
    return value is not None and (not isinstance(value, float) or math.isfinite(value))


def _read_config(path: Path) -> dict[str, Any]:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML ({' '.join(str(error).split())})") from error
    if _has_interpolation(config):
        # A run saves its values resolved. Whoever added one could have the page show the reader's own environment.
        raise ValueError(f"{path} holds a `${{`; the report resolves none: write the value itself in its place")
    expected.check_config(config, str(path))
    return config


def _has_interpolation(config: Any) -> bool:
    if isinstance(config, dict):
        return any(map(_has_interpolation, (*config, *config.values())))
    if isinstance(config, list):
        return any(map(_has_interpolation, config))
    return isinstance(config, str) and "${" in config


def read_samples(path: Path) -> Samples:
    """Reads a samples file that has the responses of both models.

    Raises:
        ValueError: it is missing or malformed, or lacks `policy` or `reference`.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("samples"), list) or not content["samples"]:
        raise ValueError(f"{path} holds no samples: {SAMPLING}")
    chosen: dict[str, Sample] = {}
    expected.mapping(content.get("config") or {}, f"{path}: `config`")
    for index, row in enumerate(content["samples"]):
        expected.mapping(row, f"{path}: sample {index}")
        for key in ("prompt", "policy", "reference"):
            if key not in row:
                raise ValueError(f"{path}: sample {index} has no `{key}`, and the report shows both models: {SAMPLING}")
        expected.check_sample(row, f"{path}: sample {index}")
        sample = _sample(row)
        chosen.setdefault(sample.prompt, sample)
    repeated = len(content["samples"]) - len(chosen)
    return Samples(content.get("config") or {}, str(content.get("sampled_at", "")), list(chosen.values()), repeated)


def _sample(row: Mapping[str, Any]) -> Sample:
    whole = {}
    for key, reason in _FINISH_REASONS.items():
        whole[key] = None if row.get(reason) is None else row[reason] != "length" and bool(row[key].strip())
    logps = row.get("policy_logp"), row.get("policy_reference_logp")
    return Sample(
        prompt=_prompt_text(row["prompt"]),
        before=row["reference"],
        after=row["policy"],
        before_whole=whole["reference"],
        after_whole=whole["policy"],
        facts=list(row.get("facts") or []),
        topic=row.get("topic"),
        log_ratio=None if None in logps else logps[0] - logps[1],
        tokens=row.get("policy_tokens"),
    )


def _prompt_text(prompt: Any) -> str:
    if isinstance(prompt, list) and prompt and all(isinstance(turn, dict) for turn in prompt):
        return "\n\n".join(f"{turn.get('role', 'user')}: {turn.get('content', '')}" for turn in prompt)
    return prompt if isinstance(prompt, str) else str(prompt)


def read_results(paths: Sequence[Path], samples: Samples) -> list[dict[str, Any]]:
    """The last line of each judge that compared `policy` with `reference`, in the order of the files.

    Raises:
        ValueError: there is none, or one is of other responses than `samples` has.
    """
    lines: dict[str, dict[str, Any]] = {}
    for path in paths:
        for line in read_lines(path):
            names = (setting(line, "candidate.name"), setting(line, "baseline.name"))
            if names == ("policy", "reference"):
                expected.check_result(line, str(path))
                lines.pop(line["judge"], None)
                lines[line["judge"]] = line
    if not lines:
        raise ValueError(
            f"{', '.join(map(str, paths)) or 'no results file'}: no result compares policy with reference; make one "
            "with `python compare.py -f SAMPLES -ck policy -bk reference --offline direct_answer -r RESULTS`"
        )
    lengths = [len(sample.after.split()) for sample in samples.samples]
    for judge, line in lines.items():
        same = samples.repeated or line["candidate"].get("lengths") == lengths
        if line["total"] > len(lengths) or (line["total"] == len(lengths) and not same):
            raise ValueError(
                f"the result of {judge} is of other responses than the samples file has: run compare.py again"
            )
    return list(lines.values())


def read_outcomes(path: Path | None, samples: Samples) -> list[str | None]:
    """For each sample whether the trained model's response won, by the CSV file that `compare.py -csv` writes.

    Returns:
        "won", "tie", "lost", "undecided", "failed", or None where the file does not have these responses.
    """
    if path is None:
        return [None] * len(samples.samples)
    outcomes: dict[tuple[str, str, str], str] = {}
    with _opened(path) as file:
        try:
            rows = list(csv.DictReader(file))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not what `compare.py -csv` writes ({error})") from error
    for row in rows:
        if any(row.get(name) is None for name in ("prompt", "candidate", "baseline", "outcome")):
            raise ValueError(f"{path} is not what `compare.py -csv` writes: it lacks a column")
        outcomes[row["prompt"], row["candidate"], row["baseline"]] = _outcome(row["outcome"])
    return [outcomes.get((sample.prompt, sample.after, sample.before)) for sample in samples.samples]


def _outcome(text: str) -> str:
    try:
        score = float(text)
    except ValueError:
        return text
    return "won" if score > 0.5 else "lost" if score < 0.5 else "tie"


def _opened(path: Path) -> Any:
    try:
        return open(path, encoding="utf-8-sig", newline="")  # some editors write a byte order mark
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def read_json(path: Path) -> Any:
    """The contents of a JSON file.

    Raises:
        ValueError: it cannot be read, or is none.
    """
    with _opened(path) as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON ({error})") from error
        except RecursionError as error:
            raise ValueError(f"{path} is malformed JSON: it is nested too deeply") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that has one on each line.

    Raises:
        ValueError: it cannot be read, or a line is none.
    """
    with _opened(path) as file:
        try:
            lines = file.read().split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not valid JSON; was its writing interrupted?") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: not a JSON object")
        records.append(record)
    return records
